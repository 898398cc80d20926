"""One door to every format: what is exported, where to, and whether it came out right."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from gendd.config import ReadoutName
from gendd.deploy import deploy
from gendd.errors import UserError, did_you_mean
from gendd.exporting import int8, to_onnx, to_safetensors, to_timm, to_torch
from gendd.exporting.check import IMAGES, checked, images_of
from gendd.exporting.int8 import CALIBRATION, Quantized
from gendd.exporting.job import Job, Network, image_size
from gendd.generator import SamplerName
from gendd.run import Run
from gendd.student import Student, load

Format = Literal["onnx", "timm", "torch-export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[Format, str] = {
    "onnx": to_onnx.SUFFIX,
    "timm": to_timm.SUFFIX,
    "torch-export": to_torch.SUFFIX,
    "safetensors": to_safetensors.SUFFIX,
}


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        path: The file; for ``safetensors`` the folder.
        format: Its format.
        readout: The readout it gives the logits of.
        bytes: Its size.
        deviation: Largest difference from PyTorch's logits, in units of the largest logit; of a quantised
            file that of the file it was made of.
        checked_on: What images that was seen on.
        notes: Remarks, and for ``timm`` the call that loads it.
        quantized: How the int8 file does; None without ``quantize``.
    """

    path: Path
    format: Format
    readout: ReadoutName
    bytes: int
    deviation: float
    checked_on: str
    notes: tuple[str, ...] = ()
    quantized: Quantized | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.path}   {self.format}, readout {self.readout}, {self.bytes / 1e6:.2f} MB",
            f"largest deviation from PyTorch {self.deviation:.1e} on {self.checked_on}",
        ]
        if self.quantized is not None:
            lines.append(str(self.quantized))
        return "\n".join([*lines, *self.notes])


def export(
    source: str | Path | Run | Student,
    to: Format,
    *,
    readout: ReadoutName | None = None,
    quantize: Literal["int8"] | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    calibration: int = CALIBRATION,
    overwrite: bool = False,
    backbone: nn.Module | None = None,
    progress: bool = False,
) -> Exported:
    """Write one readout of a finished student as a file that runs elsewhere, and check it.

    Its logits are compared with PyTorch's on the run's test images, or on random ones where there are none.

    Args:
        source: A run, its folder, a student's folder, the id of a Hugging Face repository, or a student.
        to: ``onnx`` and ``torch-export`` take any number of images (B, C, S, S) in [0, 1] to logits (B, K);
            ``timm`` is the state dict of a timm student with its linear classifier; ``safetensors`` is a
            folder that :func:`gendd.load` reads, with no more than the readout needs.
        readout: The student's own by default, and ``linear`` for ``timm``.
        quantize: ``int8`` for an ONNX file of 8-bit weights and activations.
        out: The file (the folder of ``safetensors``); by default in ``export/`` of the source's folder.
        seed: Of the noise of readout ``sample``, which is the same for every image.
        steps: Sampling steps of readout ``sample``; the student's own by default.
        sampler: ``ddpm``, ``ddim`` or ``dpm-solver``, likewise.
        calibration: Training images that ``quantize`` looks at, at most.
        overwrite: Replace what is at ``out``.
        backbone: The network of a student made in Python, see :func:`gendd.load`.
        progress: Show progress bars.

    Raises:
        UserError: something given can't be used, a package is missing, the network can't be converted, or
            the logits differ by more than 1e-4 of the largest. Nothing is then written.
    """
    _check(to, quantize, calibration, sampler)
    run, folder, student = _opened(source, backbone)
    readout = _configured(student, to, readout, steps, sampler)
    path = _target(out, folder, to, readout, quantize)
    if path.exists() and not overwrite:
        raise UserError(f"Export: {str(path)!r} exists: give another --out, or --overwrite to replace it.")
    notes = []
    unrolled = readout == "sample" and to in ("onnx", "torch-export")
    if unrolled and (remark := to_torch.check_steps(student.settings.steps)) is not None:
        notes.append(remark)
    size = image_size(student, folder)
    job = Job(student, deploy(student, readout, seed=seed), run, size, seed)
    with _fresh(path) as temporary:
        deviation, checked_on, figures = _written(job, to, temporary, quantize, calibration, progress)
    if to == "timm":
        notes.append(to_timm.call(job, path))
    written = sum(file.stat().st_size for file in _files(path))
    return Exported(path, to, readout, written, deviation, checked_on, tuple(notes), figures)


def _check(to: str, quantize: str | None, calibration: int, sampler: str | None) -> None:
    """Raise :class:`UserError` at what no student can be exported to, before one is loaded."""
    if to not in FORMATS:
        raise UserError(f"Export: expected a known format, got {to!r}.{did_you_mean(to, FORMATS)}")
    if quantize not in (None, "int8"):
        raise UserError(f"Export: expected quantize int8 or none, got {quantize!r}.")
    if quantize is not None and to != "onnx":
        raise UserError(f"Export: expected format onnx for quantize int8, got {to}; leave quantize out.")
    if calibration < 1:
        raise UserError(f"Export: expected a positive number of calibration images, got {calibration}.")
    samplers = get_args(SamplerName)
    if sampler not in (None, *samplers):
        near = did_you_mean(str(sampler), samplers)
        raise UserError(f"Export: expected a known sampler, got {sampler!r}.{near}")
    if to == "onnx":
        to_onnx.needs()


def _opened(
    source: str | Path | Run | Student, backbone: nn.Module | None
) -> tuple[Run | None, Path | None, Student]:
    """The run, the folder that exports go into, and the student."""
    if isinstance(source, Student):
        # its mode and settings stay
        return None, None, copy.deepcopy(source).cpu().eval()
    path = source.folder if isinstance(source, Run) else source
    student, folder = load(path, backbone=backbone), Path(path)
    if not folder.is_dir():  # of the Hub
        return None, None, student
    if folder.name == "student" and _is_run(folder.parent):
        folder = folder.parent
    return Run(folder) if _is_run(folder) else None, folder, student


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "metrics.json").is_file()


def _configured(
    student: Student, to: Format, readout: ReadoutName | None, steps: int | None, sampler: SamplerName | None
) -> ReadoutName:
    """The readout that is exported; the sampler's settings are put into the student's."""
    if not student.readouts:
        raise UserError(
            "Export: expected a student that classifies, got one of features alone; use its embed(images) "
            "from Python."
        )
    if to == "timm":
        to_timm.check(student, readout)
        readout = "linear"
    readout = student.checked(readout)
    given: dict[str, Any] = {"steps": steps, "sampler": sampler}
    changed = {key: value for key, value in given.items() if value is not None}
    if changed and readout != "sample":
        raise UserError(
            f"Export: expected readout sample for {' and '.join(f'--{key}' for key in changed)}, got "
            f"{readout!r}; leave the option out."
        )
    student.settings = dataclasses.replace(student.settings, **changed)
    return readout


def _target(
    out: str | Path | None, folder: Path | None, to: Format, readout: ReadoutName, quantize: str | None
) -> Path:
    suffix = _SUFFIXES[to]
    more = [quantize] if quantize else ["timm"] if to == "timm" else []
    name = "-".join(["student", readout, *more]) + suffix
    if out is None:
        if folder is None:
            raise UserError("Export: expected --out for a student without a folder of its own, got none.")
        return folder / "export" / name
    path = Path(out)
    if suffix and path.is_dir():
        return path / name
    if suffix and path.suffix != suffix:
        raise UserError(f"--out: expected a file name that ends in {suffix} for {to}, got {str(out)!r}.")
    if not suffix and path.is_file():
        raise UserError(f"--out: expected a folder for {to}, got the file {str(out)!r}.")
    return path


@contextlib.contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes its place at the end, or of which nothing is left."""
    if path.is_dir() and (foreign := {entry.name for entry in path.iterdir()} - to_safetensors.FILES):
        raise UserError(
            f"--overwrite: expected an exported student alone in {str(path)!r}, found "
            f"{', '.join(sorted(foreign)[:3])} beside it; give another --out."
        )
    made = [each for each in path.parents if not each.exists()]
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in _files(temporary):
            # safetensors writes for the owner alone, whatever the umask
            file.chmod(0o644)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            for each in made:
                each.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"--out: expected a place to write to, got {str(path)!r} ({reason}); give another."
            ) from error
        raise


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.iterdir())


def _written(
    job: Job, to: Format, path: Path, quantized: str | None, calibration: int, progress: bool
) -> tuple[float, str, Quantized | None]:
    """Write to ``path`` and check: the deviation, on what images, and the figures of an int8 file."""
    data = int8.data_of(job) if quantized else None
    images, checked_on = images_of(job, IMAGES)
    if data is None:
        return checked(_write(job, to, path), job, images, f"the {to} file"), checked_on, None
    plain = path.with_name(f"{path.stem}-fp32{path.suffix}")
    try:
        deviation = checked(_write(job, to, plain), job, images, f"the {to} file")
        return deviation, checked_on, int8.quantize(plain, path, data, calibration, progress)
    finally:
        plain.unlink(missing_ok=True)


def _write(job: Job, to: Format, path: Path) -> Network:
    if to == "onnx":
        return to_onnx.write(job, path)
    if to == "torch-export":
        return to_torch.write(job, path)
    if to == "timm":
        return to_timm.write(job, path)
    return to_safetensors.write(job, path)
