"""Output folder of a run: which folder may be written to, and how an earlier run in it is replaced."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gendd.config import RunConfig, dump, load_config, to_dict
from gendd.data import Data
from gendd.errors import UntrustedCodeError, UserError
from gendd.files import write_json, write_text
from gendd.messages import say
from gendd.run.settings import SIZED, absolute, binding, data_paths
from gendd.student.folders import RunFolder

# locked while a run writes to the folder
LOCK = ".lock"
# holds the finished run that is being replaced
ASIDE = ".replaced"
# the same while files are still being moved there
_MOVING = ".replaced.tmp"
# left by a run that was killed before it started
_NOTHING = (LOCK, "config.yaml.tmp")
# everything a run writes to its folder
_WRITTEN = (
    "config.yaml",
    "metrics.json",
    "report.html",
    "student",
    "checkpoints",
    "logs",
    "wandb",
    "baselines",
    "stage1",
    "export",
    LOCK,
    ASIDE,
    _MOVING,
    # left by interrupted writes
    "probe.tmp",
    "config.yaml.tmp",
    "metrics.json.tmp",
    "report.html.tmp",
)


# settings that may change on resume: those of the rest of the training, and of what follows it
_CHANGEABLE = {
    *("evaluation.images", "data.batch_size"),
    *(f"training.{key}" for key in ("lr", "scale_lr", "clip_grad_norm", "precision", "epochs")),
    *(f"training.{key}" for key in ("accumulate", "sync_batchnorm")),
    *(f"readout.{key}" for key in ("sampler", "eta", "steps", "guidance", "num_samples", "temperature")),
}


def claim(folder: Path, config: RunConfig) -> None:
    """Claim a checked output folder; a finished run in it is set aside until this one finishes."""
    folder.mkdir(parents=True, exist_ok=True)
    aside, moving, figures, saved = (
        folder / name for name in (ASIDE, _MOVING, "metrics.json", "config.yaml")
    )
    # the old configuration identifies the folder until the new one replaces it
    left = (LOCK, ASIDE, saved.name)
    there = [each for each in folder.iterdir() if _is_written(each) and each.name not in left]
    if figures.is_file():
        moving.mkdir()
        for entry in sorted(there, key=lambda entry: entry != figures):
            entry.rename(moving / entry.name)
        shutil.copy(saved, moving)
        _remove(aside)
        moving.rename(aside)
    else:  # nothing of an unfinished run is kept
        for entry in there:
            _remove(entry)
    write_text(saved, dump(config))


def restore(folder: Path) -> None:
    """Put back a finished run if setting it aside was interrupted."""
    moving = folder / _MOVING
    if moving.is_dir():
        (moving / "config.yaml").unlink(missing_ok=True)  # a copy, which may be incomplete
        for entry in sorted(moving.iterdir(), key=lambda entry: entry.name == "metrics.json"):
            entry.replace(folder / entry.name)
        moving.rmdir()


def check_images(folder: Path, data: Data, resume: bool) -> None:
    """Save the fingerprint of a run's images; a resumed run must have the same.

    Raises:
        UserError: images were added, removed, changed or relabelled since.
    """
    file = folder / "logs" / "images.json"
    found = {
        name: {"images": len(part), "fingerprint": part.fingerprint} for name, part in data.parts.items()
    }
    known = _known_images(file) if resume else {}
    if not known:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, found)
        return
    for name in {**known, **found}:
        was, now = known.get(name, {}), found.get(name, {})
        if was.get("fingerprint") == now.get("fingerprint"):
            continue
        before, after = was.get("images", 0), now.get("images", 0)
        raise UserError(
            f"--resume: expected the {before:,} {name} images that the run in {str(folder)!r} started with, "
            f"got {'others' if after == before else f'{after:,}'}; restore them, or start again with "
            "--overwrite."
        )


def _known_images(file: Path) -> dict[str, Any]:
    """Read the saved fingerprints of a run's images; empty if there are none, or the file is damaged."""
    if file.is_file():
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
    return {}


def warn_of_other_images(folder: Path, data: Data) -> None:
    """Warn if the images held out for testing are no longer those held out in training."""
    if data.tested_on != "held-out":
        return
    try:
        before = _known_images(folder / "logs" / "images.json")["test"]["fingerprint"]
    except (OSError, KeyError, TypeError):
        return
    if before != data.test.fingerprint:
        say(
            "the images are no longer those of the training: test images held out now may have been trained "
            "on; give the run's own images, or set data.test_path in a new run"
        )


def finish(folder: Path) -> None:
    """Remove the run that was set aside."""
    _remove(folder / ASIDE)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


def _is_written(entry: Path) -> bool:
    return any(fnmatchcase(entry.name, pattern) for pattern in _WRITTEN)


def check_folder(folder: Path, config: RunConfig, overwrite: bool, resume: bool) -> None:
    """Raise :class:`UserError` if this run can't use the output folder; nothing is written."""
    saved = folder / "config.yaml"
    if resume and overwrite:
        raise UserError(
            f"Output folder {str(folder)!r}: expected --resume or --overwrite, got both; leave one out."
        )
    if resume:
        if not saved.is_file():
            raise UserError(
                f"--resume: expected a run in {str(folder)!r}, found none. Leave --resume out to start it."
            )
        if (folder / "metrics.json").is_file() and "imported" in RunFolder(folder).metrics.get("run", {}):
            raise UserError(
                f"--resume: expected a run trained in {str(folder)!r}, found an imported checkpoint; "
                f"start from its weights with --student.weights {folder} and another --out."
            )
        changed = _changed(saved, config)
        refused = [
            f"{name} was {was!r} and is {now!r}"
            for name, (was, now) in changed.items()
            if name not in _CHANGEABLE or (name == "training.epochs" and now < was)
        ]
        if refused:
            more = ", …" if len(refused) > 4 else ""
            raise UserError(
                f"--resume: expected the configuration of the run in {str(folder)!r}, but "
                f"{', '.join(refused[:4])}{more}. Give the same, or another --out."
            )
        return
    if folder.exists() and (
        not folder.is_dir() or any(each.name not in _NOTHING for each in folder.iterdir())
    ):
        if not overwrite:
            raise UserError(
                f"Output folder {str(folder)!r} exists: give another --out, --resume to continue its run, "
                "or --overwrite to replace it."
            )
        _check_replaceable(folder, config)


def _changed(saved: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from the saved ones, before and now, by dotted key."""
    ours, theirs = binding(to_dict(load_config(saved))), binding(to_dict(config))
    return {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        # null becomes a number when the run starts
        if ours.get(name) != theirs.get(name) and not (theirs.get(name) is None and name in SIZED)
    }


def adopt(folder: Path, config: RunConfig) -> None:
    """Save and report the changed settings of a checked configuration in the run that is resumed."""
    changed = _changed(folder / "config.yaml", config)
    for name, (was, now) in changed.items():
        say(f"--resume: {name} {was} → {now} from here on")
    if changed:
        write_text(folder / "config.yaml", dump(config))


def _check_replaceable(folder: Path, config: RunConfig) -> None:
    """Raise :class:`UserError` unless the folder holds just a run, and nothing that this run reads."""
    end = "Nothing was deleted; give another --out."
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"--overwrite: expected a run in {str(folder)!r}, found other files. {end}")
    try:
        load_config(saved)
    except UntrustedCodeError:  # it is a run, and its code is not needed to replace it
        pass
    except UserError as error:
        raise UserError(
            f"--overwrite: expected a run in {str(folder)!r}, but its config.yaml is not a run's ({error}) "
            f"{end}"
        ) from error
    foreign = sorted(entry.name for entry in folder.iterdir() if not _is_written(entry))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise UserError(
            f"--overwrite: expected a run alone in {str(folder)!r}, found {shown} beside it. {end}"
        )
    read = {
        "teacher.weights": config.teacher.weights,
        "student.weights": config.student.weights,
        **{f"data.{key}": path for key, path in data_paths(config.data).items()},
    }
    for key, path in read.items():
        if path is not None and Path(absolute(path)).is_relative_to(folder.resolve()):
            raise UserError(
                f"--overwrite: expected {key} outside of the folder to replace, got {path!r} in "
                f"{str(folder)!r}. {end}"
            )
