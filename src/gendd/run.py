"""A run from configuration to report: the teacher, the baselines, the student, its figures and its files."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gendd import exhibits, report
from gendd.config import (
    DataConfig,
    MethodName,
    ModelConfig,
    ReadoutConfig,
    ReadoutName,
    RunConfig,
    dump,
    from_dict,
    load_config,
    to_dict,
)
from gendd.data import Data, describe, load_data
from gendd.data.readers import image_files
from gendd.data.tars import is_remote
from gendd.embedding import collect_features, embedding_scores
from gendd.errors import UserError
from gendd.evaluation import (
    OutputName,
    ReadoutPick,
    evaluate,
    latency_images,
    memory_format,
    pick_readout,
    readout_costs,
)
from gendd.files import cache_folder, write_json, write_text
from gendd.methods import Method, Pretraining, build_method
from gendd.modelcard import write_card
from gendd.models import (
    Backbone,
    Frozen,
    build_model,
    build_teacher,
    count_parameters,
    load_weights,
    teacher_class_names,
)
from gendd.models.module import digest
from gendd.models.registry import check_name, describe_module
from gendd.models.weights import saved_backbone
from gendd.provenance import provenance
from gendd.readout import choose_mean_time
from gendd.refit import Refit, Target, check_refit, refit_linear
from gendd.shots import shots_of
from gendd.student import Student, load
from gendd.training import (
    FitResult,
    choose_monitor,
    derive_seed,
    fit,
    is_share,
    resolve_device,
    resolve_precision,
    shows_progress,
)
from gendd.uncertainty import PredictiveDistribution, check_samples

if TYPE_CHECKING:
    from gendd.probing import Probed

_TEACHERLESS = {"supervised", "linear_probe"}
# all that a run writes into its folder
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
    # left where writing was cut short
    "probe.tmp",
    "config.yaml.tmp",
    "metrics.json.tmp",
    "report.html.tmp",
)
# settings that may differ between a run and its continuation, and do not make another teacher
_FREE = (
    {"out", "data.in_memory", "data.workers", "data.max_corrupt", "data.shot_thresholds"}
    | {
        "teacher.license",
        "student.license",
    }
    | {
        f"{section}.{key}"
        for section in ("training", "teacher_training")
        for key in ("checkpoint_every", "device", "loggers", "progress")
    }
)


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    folder: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run at ``path``.

        Raises:
            UserError: there is none, or it has not finished.
        """
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise UserError(f"No run at {str(path)!r}: expected a folder with config.yaml, written by gendd.")
        if not (folder / "metrics.json").is_file():
            raise UserError(
                f"The run at {str(path)!r} has not finished: expected metrics.json. "
                "Continue it with --resume."
            )
        return cls(folder)

    @property
    def config(self) -> RunConfig:
        """Its resolved configuration."""
        return load_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> dict[str, Any]:
        """Its figures, the content of ``metrics.json``."""
        metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return metrics

    @property
    def report(self) -> Path:
        """Its HTML report."""
        return self.folder / "report.html"

    def student(self, device: str | torch.device = "cpu", backbone: nn.Module | None = None) -> Student:
        """Its student, in eval mode; see :func:`gendd.load`."""
        return load(self.folder, device=device, backbone=backbone)

    def probe(
        self,
        target: Target | None = None,
        *,
        train_images: int | None = None,
        allow_labels: bool = False,
        device: str | None = None,
        backbone: nn.Module | None = None,
        teacher: nn.Module | None = None,
        progress: bool = False,
    ) -> Probed:
        """Fit the linear readout of its student anew; see :func:`gendd.probing.probe_run`."""
        from gendd.probing import probe_run

        return probe_run(
            self.folder,
            target,
            train_images=train_images,
            allow_labels=allow_labels,
            device=device,
            backbone=backbone,
            teacher=teacher,
            progress=progress,
        )


def distill(
    config: RunConfig | None = None,
    *,
    teacher: str | ModelConfig | nn.Module | None = None,
    student: str | ModelConfig | nn.Module | None = None,
    data: str | DataConfig | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Distil a teacher into a student.

    Args:
        config: The whole configuration; what else is given replaces parts of it.
        teacher: Name or configuration of the teacher, a run's folder, whose student it is, or a trained
            network: a :class:`gendd.Backbone` (see :func:`gendd.wrap`) or any module. It is frozen in place.
        student: Name, configuration or run's folder of the student, or a network, whose copy is trained
            from the weights it has; ``gendd.load(run, backbone=module)`` gives the distilled one.
        data: Name or configuration of the images.
        out: Output folder.
        overwrite: Replace a run in that folder. Only what a run writes is deleted, and nothing at all
            where other files are beside it.
        resume: Go on with the run in that folder.
        settings: Any other section or key of :class:`RunConfig`; sections may be dictionaries.

    Returns:
        The finished run.

    Raises:
        UserError: something given can't be used.
    """
    values = to_dict(config or RunConfig())
    given = {"teacher": teacher, "student": student, "data": data, "out": out, **settings}
    networks: dict[str, nn.Module] = {}
    for key, value in given.items():
        if value is None:
            continue
        if key in ("teacher", "student") and isinstance(value, nn.Module):
            networks[key] = value
            values[key] = to_dict(describe_module(from_dict(values[key], ModelConfig), value))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            values[key] = to_dict(value)
        elif isinstance(value, dict):
            values[key] = {**values.get(key, {}), **value}
        elif key in ("teacher", "student"):
            values[key] = {**values[key], **network_of(str(value))}
        elif key == "data":
            values[key] = {**values[key], "name": str(value)}
        else:
            values[key] = str(value) if key == "out" else value
    return execute(from_dict(values, RunConfig), overwrite=overwrite, resume=resume, networks=networks)


def network_of(value: str) -> dict[str, str]:
    """The keys of :class:`ModelConfig` that a network's name, or the folder of its run, stands for."""
    described = saved_backbone(value) if Path(value).is_dir() else None
    return {"name": value} if described is None else {"name": described["name"], "weights": value}


def execute(
    config: RunConfig,
    *,
    overwrite: bool = False,
    resume: bool = False,
    networks: Mapping[str, nn.Module] | None = None,
) -> Run:
    """Carry a configuration out, from data to report; see :func:`distill`.

    Args:
        config: What is to be done.
        overwrite: As there.
        resume: As there.
        networks: The ``teacher`` or ``student`` that was made in Python.
    """
    networks = networks or {}
    if config.out is None:
        config = dataclasses.replace(config, out=f"runs/{config.method}-{config.data.name}")
    assert config.out is not None
    folder = Path(config.out)
    device = resolve_device(config.training.device)
    _check_folder(folder, config, overwrite, resume)
    _check_names(config, networks)
    data = load_data(config.data)
    network = _build_teacher(config, data, networks)
    data = _with_classes(config, data, network)
    _say(describe(data))
    _check_networks(config, data, network, networks)
    if network is not None:
        _say(f"teacher {network.describe()}")
    if config.data.labels and not data.labelled:
        kept = " (a folder of images holds train/CLASS/)" if data.name == "folder" else ""
        _say(
            f"data.labels is true, but the training images of {data.name!r} have no labels{kept}: training "
            "without; data.labels false says that it is meant"
        )
    # before the teacher is trained: a run that is stopped there can be resumed too
    if not resume:
        _claim(folder, config)
    for skipped in data.skipped:
        skipped.record(folder / "logs" / "skipped.txt")
    teacher, teacher_folder = _teacher(config, data, network, device)

    results: dict[str, Trained] = {}
    for name in _methods(config):
        part = dataclasses.replace(config, method=name)
        place = _place(folder, config, name)
        results[name] = _train(part, data, teacher, place, resume, networks.get("student"))
    main = results[config.method].student
    pick = _settle_readout(main, config, data, teacher, device)
    main.info |= {
        "class_names": data.class_names,
        "image_size": data.image_size,
        "framing": data.test.framing,
        "data": data.name,
        "method": config.method,
        "teacher": None if teacher is None else config.teacher.name,
        **provenance(config.student, None if teacher is None else config.teacher),
    }
    if teacher is not None and teacher.num_classes not in (0, data.num_classes):
        names = teacher_class_names(config.teacher, teacher.num_classes)
        if names is not None:
            main.info["teacher_class_names"] = names
    # before the evaluation, which a sampling readout can make long
    main.save(folder / "student")
    metrics, confusion = _measure(config, data, teacher, results, device)
    if pick is not None:
        metrics["student"]["readout_pick"] = {"metric": pick.metric, "percent": pick.percent}
    write_card(folder / "student" / "README.md", main, metrics)
    curves = {name: exhibits.curves(_place(folder, config, name), config.readout.name) for name in results}
    if teacher_folder is not None:
        curves["teacher"] = exhibits.curves(teacher_folder)
    content = report.ReportData(
        title=folder.name,
        metrics=metrics,
        curves=curves,
        confusion=confusion,
        class_names=data.class_names,
        examples=exhibits.examples(main, data, device, config.seed),
        config_yaml=dump(config),
        **exhibits.features(main, teacher, data.test, device, config.seed),
    )
    report.write_report(content, folder / "report.html")
    # last: a folder with it is a finished run
    write_json(folder / "metrics.json", metrics)
    return Run(folder)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _methods(config: RunConfig) -> list[MethodName]:
    """What is trained, in order: the baselines, then the method itself."""
    return list(dict.fromkeys([*config.baselines, config.method]))


def _sees_labels(config: RunConfig, data: Data) -> bool:
    return config.data.labels and data.labelled


def _check_labels(name: MethodName, method: Method, config: RunConfig, data: Data) -> None:
    """Raise :class:`UserError` where a method of a run needs labels that are absent or may not be seen."""
    if not method.needs_labels or _sees_labels(config, data):
        return
    if config.data.labels:
        raise UserError(
            f"Method {name!r} learns from labels, and {data.name!r} has none: use method gendd or kl, "
            "or give labelled images."
        )
    if name == config.method:
        raise UserError(
            f"data.labels: expected true for method {name!r}, which learns from labels, got False."
        )
    raise UserError(
        f"baselines: expected methods without labels (gendd, kl) where data.labels is false, "
        f"got {name!r}. Give --baselines '[kl]' or '[]'."
    )


def _with_classes(config: RunConfig, data: Data, teacher: Backbone | None) -> Data:
    """The data with the classes of the teacher, where it doesn't tell its own and the teacher has some."""
    if data.class_names or teacher is None:
        return data
    classes = teacher.num_classes
    names = teacher_class_names(config.teacher, classes)
    return dataclasses.replace(data, class_names=names or [str(number) for number in range(classes)])


def _check_names(config: RunConfig, networks: Mapping[str, nn.Module]) -> None:
    """Raise :class:`UserError` at a network's name that isn't known, before images are loaded for it."""
    if _taught(config) and "teacher" not in networks:
        try:
            check_name(config.teacher.name)
        except UserError as error:
            raise UserError(f"Teacher: {error}") from error
    if "student" not in networks:
        check_name(config.student.name)


def _build_teacher(config: RunConfig, data: Data, networks: Mapping[str, nn.Module]) -> Backbone | None:
    """The teacher, untrained where it comes without weights; None where no method has one."""
    if not _taught(config):
        return None
    try:
        return build_teacher(config.teacher, data.num_classes, data.channels, networks.get("teacher"))
    except UserError as error:
        raise UserError(f"Teacher: {error}") from error


def _check_networks(
    config: RunConfig, data: Data, teacher: Backbone | None, networks: Mapping[str, nn.Module]
) -> None:
    """Raise :class:`UserError` where the student or a method can't be built, or can't learn.

    It is said before anything is trained or written, of this teacher and these labels.
    """
    _check_teacher(config, data)
    if config.readout.name == "auto" and data.val is None:
        raise UserError(
            "data.validation: expected a fraction above 0, as readout.name is auto, got 0; hold some images "
            "out, or name the readout."
        )
    seen = _sees_labels(config, data)
    student = _student(config, data, teacher, networks.get("student"))
    for name in _methods(config):
        method = build_method(dataclasses.replace(config, method=name), student, teacher, seen)
        _check_labels(name, method, config, data)
        if data.val is not None:
            monitor = config.training.monitor
            choose_monitor(method, monitor, seen, data.num_classes, config.readout.name)
        if name == "gendd" and method.teacher is not None and config.gendd.refit != "none":
            check_refit(method.student(), method.teacher, config.gendd.refit, seen)
    if "linear_probe" in _methods(config) and not (config.student.weights or config.student.pretrained):
        raise UserError(
            "student.weights: expected a trained student for method 'linear_probe', got none; "
            "give its run or its file."
        )
    if config.method == "gendd" and config.training.stage1_epochs > 0:
        if not seen:
            raise UserError(
                f"training.stage1_epochs: expected 0 without labels, got {config.training.stage1_epochs}."
            )
        assert teacher is not None
        Pretraining(student, teacher)
    if _trains_teacher(config) and not data.labelled:
        raise UserError(
            "teacher.weights: expected a trained teacher for images without labels; give its file."
        )
    if data.test.labels is None and not _taught(config):
        raise UserError(
            f"data.test_path: expected labelled test images for method {config.method!r}, which has no "
            "teacher to agree with, got unlabelled ones; set data.test_path."
        )


def _student(
    config: RunConfig, data: Data, teacher: Backbone | Frozen | None, given: nn.Module | None
) -> Backbone:
    """The student as training finds it; each method trains its own."""
    classes = _student_classes(config, data, teacher)
    # where nothing tells the classes its classifier is no readout
    backbone = build_model(config.student, classes or 1, data.channels, given)
    if not backbone.has_classifier:
        raise UserError(
            f"student.feature: expected a module before the classifier of {backbone.name}, got "
            f"{config.student.feature!r}, which none follows; leave it out."
        )
    if classes and backbone.num_classes != classes:
        raise UserError(
            f"Student: expected {backbone.name} with {classes} classes, those of the data or of the teacher "
            f"that it learns from without labels, got one with {backbone.num_classes}; build it anew."
        )
    return backbone if given is None else copy.deepcopy(backbone)


def _check_teacher(config: RunConfig, data: Data) -> None:
    """Raise :class:`UserError` where a teacher would have to be trained that can't be."""
    if not _trains_teacher(config):
        return
    if not config.teacher.classifier:
        raise UserError(
            "teacher.classifier: expected true for a teacher that is trained on the labels first, got False. "
            "Give --teacher.weights, or a pretrained one."
        )
    if config.teacher.classes not in (None, data.num_classes):
        raise UserError(
            f"teacher.classes: expected null for a teacher that is trained on the labels first, got "
            f"{config.teacher.classes}. Give --teacher.weights, or leave it out."
        )


def _student_classes(config: RunConfig, data: Data, teacher: Backbone | Frozen | None) -> int:
    """K of the student: the data's where it sees labels, else the teacher's, whose predictions it learns."""
    if _sees_labels(config, data) or teacher is None or not teacher.has_classifier:
        return data.num_classes
    return teacher.num_classes


def _place(folder: Path, config: RunConfig, name: str) -> Path:
    return folder if name == config.method else folder / "baselines" / name


def _claim(folder: Path, config: RunConfig) -> None:
    """Make a checked output folder this run's."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if not _is_written(entry):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    write_text(folder / "config.yaml", dump(config))


def _is_written(entry: Path) -> bool:
    return any(fnmatchcase(entry.name, pattern) for pattern in _WRITTEN)


def _check_folder(folder: Path, config: RunConfig, overwrite: bool, resume: bool) -> None:
    """Raise :class:`UserError` where the output folder can't be this run's; nothing is written."""
    saved = folder / "config.yaml"
    if resume:
        if not saved.is_file():
            raise UserError(
                f"--resume: expected a run in {str(folder)!r}, found none. Leave --resume out to start it."
            )
        if (folder / "metrics.json").is_file() and "imported" in Run(folder).metrics.get("run", {}):
            raise UserError(
                f"--resume: expected a run trained in {str(folder)!r}, found an imported checkpoint; "
                f"start from its weights with --student.weights {folder} and another --out."
            )
        ours, theirs = _binding(to_dict(load_config(saved))), _binding(to_dict(config))
        changed = [
            f"{name} was {value!r} and is {theirs[name]!r}"
            for name, value in ours.items()
            if value != theirs[name]
        ]
        if changed:
            more = ", …" if len(changed) > 4 else ""
            raise UserError(
                f"--resume: expected the configuration of the run in {str(folder)!r}, but "
                f"{', '.join(changed[:4])}{more}. Give the same, or another --out."
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise UserError(
                f"Output folder {str(folder)!r} exists: give another --out, --resume to go on with its run, "
                "or --overwrite to replace it."
            )
        _check_replaceable(folder, config)


def _check_replaceable(folder: Path, config: RunConfig) -> None:
    """Raise :class:`UserError` unless the folder holds a run, that run alone, and nothing this one reads."""
    end = "Nothing was deleted; give another --out."
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UserError(f"--overwrite: expected a run in {str(folder)!r}, found other files. {end}")
    try:
        load_config(saved)
    except UserError as error:
        raise UserError(
            f"--overwrite: expected a run in {str(folder)!r}, but its config.yaml is of none ({error}) {end}"
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
        **{f"data.{key}": path for key, path in _data_paths(config.data).items()},
    }
    for key, path in read.items():
        if path is not None and Path(_absolute(path)).is_relative_to(folder.resolve()):
            raise UserError(
                f"--overwrite: expected {key} outside of the folder to replace, got {path!r} in "
                f"{str(folder)!r}. {end}"
            )


def _data_paths(config: DataConfig) -> dict[str, Any]:
    """What the configuration of the images names on disk, by key."""
    return {key: getattr(config, key) for key in ("path", "test_path", "root", "classes")}


def _absolute(path: str) -> str:
    if is_remote(path):
        return path
    return str(Path(path).expanduser().resolve())


def _binding(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key, the settings of a plain configuration that its results depend on."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= _binding(value, name + ".")
        elif name not in _FREE:
            found[name] = value
    return found


def _taught(config: RunConfig) -> bool:
    return not set(_methods(config)) <= _TEACHERLESS


def _trains_teacher(config: RunConfig) -> bool:
    return _taught(config) and config.teacher.weights is None and not config.teacher.pretrained


def _teacher(
    config: RunConfig, data: Data, network: Backbone | None, device: torch.device
) -> tuple[Frozen | None, Path | None]:
    """The frozen teacher, and the folder it was trained in, if it was."""
    if network is None:
        return None, None
    folder = None
    if _trains_teacher(config):
        folder = _trained_teacher(config, data, device)
        load_weights(network, folder)
    return _freeze(network, config, device), folder


def open_teacher(
    config: RunConfig, data: Data, device: torch.device, given: nn.Module | None = None
) -> Frozen:
    """The teacher of a finished run; none is trained.

    Args:
        config: The run's.
        data: The run's.
        device: Where to put it.
        given: The teacher, where it was made in Python.

    Raises:
        UserError: the run had none, or it is not to be had any more.
    """
    if not _taught(config):
        raise UserError(
            f"Teacher: expected a run with one, got one of method {config.method!r}, which has none."
        )
    if given is None and config.teacher.name.startswith("module/"):
        raise UserError(
            f"Teacher: expected {config.teacher.name!r}, which was made in Python; give it there."
        )
    network = _build_teacher(config, data, {} if given is None else {"teacher": given})
    assert network is not None
    if given is None and _trains_teacher(config):
        folder, _ = _teacher_run(config, data, device)
        if not (folder / "metrics.json").is_file():
            raise UserError(
                f"Teacher: expected the one that was trained for the run in {str(folder)!r}, found none; set "
                "GENDD_CACHE to the cache folder of that time."
            )
        load_weights(network, folder)
    return _freeze(network, config, device)


def _freeze(network: Backbone, config: RunConfig, device: torch.device) -> Frozen:
    dtype = torch.bfloat16 if config.teacher.dtype == "bf16" else None
    return Frozen(network.to(device), dtype=dtype, compile=config.teacher.compile)


def _trained_teacher(config: RunConfig, data: Data, device: torch.device) -> Path:
    """The run folder of a teacher trained on the labels, from the cache or trained now."""
    folder, training = _teacher_run(config, data, device)
    if (folder / "metrics.json").is_file():
        _say(f"teacher {config.teacher.name}: cached")
        return folder
    _say(f"teacher {config.teacher.name}: training (cached afterwards in {folder})")
    again = (folder / "config.yaml").is_file()
    execute(dataclasses.replace(training, out=str(folder)), resume=again)
    return folder


def _teacher_run(config: RunConfig, data: Data, device: torch.device) -> tuple[Path, RunConfig]:
    """Where in the cache a teacher trained on the labels is, and what trains it."""
    seen = config.data
    # resolved: the same teacher has the same settings wherever and however it is asked for
    paths: dict[str, Any] = {
        key: None if path is None else _absolute(path) for key, path in _data_paths(seen).items()
    }
    training = RunConfig(
        method="supervised",
        student=dataclasses.replace(config.teacher, classes=None, dtype="fp32", compile=False),
        data=dataclasses.replace(seen, labels=True, **paths),
        training=dataclasses.replace(
            config.teacher_training, precision=resolve_precision(config.teacher_training.precision, device)
        ),
        readout=ReadoutConfig("linear"),
        seed=config.seed,
    )
    # without labels the images are split otherwise; streamed, none is decoded to know them
    own = data if seen.labels else load_data(dataclasses.replace(training.data, in_memory=False))
    made_of = [_binding(to_dict(training)), _contents(own), version("gendd")]
    source = digest(config.teacher.name)
    if source is not None:
        made_of.append(source)
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    # of a path its end, which names the network
    stem = re.sub(r"[^\w.+-]+", "-", config.teacher.name)[-100:].lstrip("-.")
    return cache_folder() / "teachers" / f"{stem}-{data.name}-{key}", training


def _contents(data: Data) -> list[Any]:
    """What tells these images from others of the same name and place: counts, classes and labels."""
    parts = [data.train, data.test] if data.val is None else [data.train, data.test, data.val]
    labels = [
        None if part.labels is None else hashlib.sha256(part.labels.numpy().tobytes()).hexdigest()
        for part in parts
    ]
    return [[len(part) for part in parts], data.class_names, labels]


@dataclass(frozen=True)
class Trained:
    """A student and how its training went; ``refit`` where its linear readout was fitted anew."""

    student: Student
    result: FitResult
    refit: Refit | None = None


def _train(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    place: Path,
    resume: bool,
    given: nn.Module | None = None,
) -> Trained:
    seen = _sees_labels(config, data)
    torch.manual_seed(derive_seed(config.seed, "student"))
    backbone = _student(config, data, teacher, given)
    if config.method == "gendd" and config.training.stage1_epochs > 0:
        assert teacher is not None
        # a training of its own: the milestones and warmup are those of stage 2
        stage1 = dataclasses.replace(
            config.training,
            epochs=config.training.stage1_epochs,
            lr=config.training.stage1_lr,
            schedule="cosine",
            milestones=[],
            warmup_epochs=None,
            stage1_epochs=0,
        )
        fit(
            Pretraining(backbone, teacher),
            data,
            stage1,
            config.data,
            seed=derive_seed(config.seed, "stage1"),
            folder=place / "stage1",
            resume=resume,
            title="stage 1",
        )
    torch.manual_seed(derive_seed(config.seed, "method"))
    method = build_method(config, backbone, teacher, seen)
    result = fit(
        method,
        data,
        config.training,
        config.data,
        seed=config.seed,
        folder=place,
        readout=config.readout.name,
        resume=resume,
        title=config.method,
    )
    student = method.student()
    _settle_mean_time(student, config, data, teacher)
    if config.method != "gendd" or teacher is None or config.gendd.refit == "none":
        return Trained(student, result)
    refit = refit_linear(
        student.eval(),
        teacher,
        data,
        config.gendd.refit,
        labels=seen,
        device=resolve_device(config.training.device),
        workers=config.data.workers,
        progress=shows_progress(config.training),
    )
    _say(str(refit))
    return Trained(student, result, refit)


def _settle_mean_time(student: Student, config: RunConfig, data: Data, teacher: Frozen | None) -> None:
    """Give an ε head its time on the validation images, where there are some and something reads it."""
    generator, classifier = student.generator, student.classifier
    if generator is None or classifier is None or teacher is None or data.val is None:
        return
    if generator.prediction == "epsilon":
        device = resolve_device(config.training.device)
        held = collect_features(
            student.to(device).eval(), teacher, data.val, device=device, workers=config.data.workers
        )
        assert held.teacher is not None
        share = choose_mean_time(generator, classifier, held.own.to(device), held.teacher.to(device))
        _say(
            f"readout mean: asked of the noise-predicting head at t = {generator.mean_time}, where it says "
            f"what the teacher says of {100 * share:.2f} % of validation images"
        )


def _settle_readout(
    student: Student, config: RunConfig, data: Data, teacher: Frozen | None, device: torch.device
) -> ReadoutPick | None:
    """Give the student its readout: as configured, else what ``auto`` picks, which is said and returned."""
    name, pick = config.readout.name, None
    student.settings = dataclasses.replace(config.readout, name="linear")
    if name == "auto" and len(student.readouts) > 1:
        assert data.val is not None
        scores = evaluate(
            student.to(device).eval(),
            data.val,
            teacher=teacher,
            num_classes=data.num_classes,
            device=device,
            seed=config.seed,
            workers=config.data.workers,
            progress=shows_progress(config.training),
        )
        # without labels, or of the teacher's classes
        seen = _sees_labels(config, data) and any(score.top1 is not None for score in scores.values())
        pick = pick_readout(scores, "top1" if seen else "agreement")
        _say(str(pick))
        name = pick.name
    if name in student.readouts:
        student.readout = name
    return pick


def _measure(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    results: dict[str, Trained],
    device: torch.device,
) -> tuple[dict[str, Any], Tensor | None]:
    images = latency_images(data.test, device)
    bar = shows_progress(config.training)

    def figures(student: Student, name: ReadoutName) -> dict[str, Any]:
        return {**scores[name].as_dict(), **readout_costs(student, name, images)}

    main = results[config.method].student.to(device).eval()
    shots = shots_of(data, config.data)
    metrics: dict[str, Any] = {
        "run": {
            "method": config.method,
            "name": Path(config.out or "").name,
            "seed": config.seed,
            "train_images": len(data.train),
            "val_images": 0 if data.val is None else len(data.val),
            "test_images": len(data.test),
            "tested_on": data.tested_on,
            "labels_used": _sees_labels(config, data),
            "epochs": config.training.epochs,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "precision": resolve_precision(config.training.precision, device),
            "latency_batch": len(images),
            "latency_memory_format": str(memory_format(main)).removeprefix("torch."),
            "versions": {
                "gendd": version("gendd"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": version("lightning"),
            },
        },
        "teacher": None,
        "student": None,
        "baselines": {},
    }
    embedding: dict[str, Any] = {}
    if teacher is not None and (not teacher.has_classifier or teacher.num_classes != data.num_classes):
        embedding = embedding_scores(
            main, teacher, data.train, data.test, data.num_classes, device=device, workers=config.data.workers
        )
    if teacher is not None:
        reader = Student(teacher.backbone).to(device).eval()
        scores = evaluate(
            reader,
            data.test,
            shots=shots,
            num_classes=data.num_classes,
            device=device,
            workers=config.data.workers,
            progress=bar,
        )
        if reader.readouts:
            own = figures(reader, "linear")
        else:
            own = {"top1": None, "top5": None, **readout_costs(reader, "feature", images)}
        own.pop("agreement", None)
        metrics["teacher"] = {"name": config.teacher.name, **own}
        if embedding:
            metrics["teacher"]["embedding"] = embedding.pop("teacher")
    confusion = None
    for name, trained in results.items():
        student, result = trained.student.to(device).eval(), trained.result
        scores = evaluate(
            student,
            data.test,
            teacher=teacher,
            shots=shots,
            num_classes=data.num_classes,
            device=device,
            seed=config.seed,
            workers=config.data.workers,
            progress=bar,
        )
        fitted = {
            "train_seconds": round(result.seconds, 2),
            "validation": _validation(result),
        }
        if name != config.method:
            metrics["baselines"][name] = {"name": config.student.name, **figures(student, "linear"), **fitted}
            continue
        readouts: dict[str, Any] = {each: figures(student, each) for each in student.readouts}
        if "sample" in readouts:
            sampler = to_dict(student.settings)
            sampler.pop("name")
            readouts["sample"].update(sampler)
        metrics["student"] = {
            "name": config.student.name,
            "parameters": count_parameters(student.backbone),
            "readouts": readouts,
            "readout": student.readout if student.readouts else None,
            **fitted,
        }
        if trained.refit is not None:
            metrics["student"]["refit"] = dataclasses.asdict(trained.refit)
        if embedding:
            outputs: tuple[OutputName, ...] = ("feature", "generated")
            metrics["student"]["embedding"] = {
                each: {**embedding[each], **readout_costs(student, each, images)}
                for each in outputs
                if each in embedding
            }
        if student.readouts:
            confusion = scores[student.readout].confusion
            metrics["run"]["test_images"] = scores[student.readout].images
    metrics["run"]["skipped"] = {each.part: len(each) for each in data.skipped}
    if shots is not None:
        metrics["run"]["shot_thresholds"] = [shots.few, shots.many]
    return metrics, confusion


def _validation(result: FitResult) -> dict[str, Any] | None:
    """What the checkpoint was chosen by; None where nothing is held out."""
    if result.monitor is None or result.best is None:
        return None
    if not is_share(result.monitor):
        return {"metric": result.monitor, "loss": round(result.best, 5)}
    return {"metric": result.monitor, "percent": round(100 * result.best, 2)}


def evaluate_run(
    path: str | Path, readout: ReadoutName | None = None, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """Scores of a run's student on its test images, computed anew, by readout.

    Without labels, or where a readout is not of the data's classes, the teacher is loaded for its
    agreement; of a student without readouts its features are scored as
    :func:`gendd.embedding.embedding_scores` does.

    Args:
        path: The run folder.
        readout: One readout; all by default.
        progress: Show a progress bar.
    """
    run = Run.open(path)
    config = run.config
    device = resolve_device(config.training.device)
    student = run.student(device)
    if readout is not None:
        student.readout = readout
    # streamed: the training images, which size and channels were taken from, need no decoding
    data = load_data(dataclasses.replace(config.data, in_memory=False))
    names = student.readouts if readout is None else (readout,)
    teacher = None
    unlabelled = data.test.labels is None
    if unlabelled or not names or any(student.num_classes(name) != data.num_classes for name in names):
        network = _build_teacher(config, data, {})
        data = _with_classes(config, data, network)
        teacher, _ = _teacher(config, data, network, device)
    if teacher is not None and not names:
        workers = config.data.workers
        return embedding_scores(
            student, teacher, data.train, data.test, data.num_classes, device=device, workers=workers
        )
    scores = evaluate(
        student,
        data.test,
        readouts=names,
        teacher=teacher,
        num_classes=data.num_classes,
        shots=shots_of(data, config.data),
        device=device,
        seed=config.seed,
        workers=config.data.workers,
        progress=progress,
    )
    return {name: score.as_dict() for name, score in scores.items()}


@dataclass
class Prediction:
    """What a student says of an image.

    Attributes:
        path: Of the image.
        classes: Class names, the most likely first; none for a file that is no image.
        probabilities: Theirs.
        error: What is wrong with the file; None for an image.
        uncertainty: Where it was asked for: ``samples``, how many were generated, and of these ``total``,
            ``aleatoric`` and ``mutual_information`` in nats, and ``spread`` (see :mod:`gendd.uncertainty`).
    """

    path: str
    classes: list[str]
    probabilities: list[float]
    error: str | None = None
    uncertainty: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Path, and either classes and probabilities, with the uncertainty if there is one, or the error."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        said = {"path": self.path, "classes": self.classes, "probabilities": self.probabilities}
        return said if self.uncertainty is None else {**said, "uncertainty": self.uncertainty}


@torch.no_grad()
def predict(
    path: str | Path,
    images: list[str],
    top: int = 5,
    readout: ReadoutName | None = None,
    uncertainty: int = 0,
) -> list[Prediction]:
    """A saved student's most likely classes of image files.

    Args:
        path: A run folder, a student's folder, or the id of a Hugging Face repository.
        images: Image files, and directories for all images in them.
        top: Classes an image.
        readout: The readout; the student's own choice by default.
        uncertainty: Features to generate an image to tell the uncertainty by; 0 does without.

    Returns:
        One a file; those that are no images, and directories without any, have an ``error``.

    Raises:
        UserError: no student there, or it hasn't that readout, or can't tell the uncertainty.
    """
    from gendd.data.images import decode, frame, watched

    student = load(path)
    if readout is not None:
        student.readout = readout
    size = int(student.info.get("image_size", 224))
    framing = float(student.info.get("framing", 1.0))
    if not student.readouts:
        raise UserError(
            f"Student {str(path)!r}: expected one that classifies, got one of features alone; "
            "use its embed(images) from Python."
        )
    if uncertainty != 0:
        check_samples(uncertainty, student.generator is not None, student.classifier is not None)
    names = student.class_names()

    def one(file: str) -> Prediction:
        try:
            content = _content(file)
            pixels = frame(decode(content, file, student.backbone.in_channels), size, framing)
        except UserError as error:
            return Prediction(file, [], [], str(error))
        # anew for each: what is said of an image does not depend on the others
        generator = torch.Generator().manual_seed(0)
        said = student.predict(pixels[None].float() / 255, uncertainty, generator)
        best = said.probabilities[0].topk(min(top, len(names)))
        classes = [names[index] for index in best.indices.tolist()]
        unsure = {"samples": uncertainty, **_entropies(said)} if uncertainty else None
        return Prediction(file, classes, [round(p, 4) for p in best.values.tolist()], uncertainty=unsure)

    found: list[Prediction] = []

    def each(files: list[str]) -> Iterator[int]:
        for file in files:
            found.append(one(file))
            yield 1

    files = [file for given in images for file in _images_at(given)]
    for _ in watched(each(files), len(files), "predicting"):
        pass
    return found


def _entropies(said: PredictiveDistribution) -> dict[str, float]:
    """The figures of the first image."""
    names = ("total", "aleatoric", "mutual_information", "spread")
    return {name: round(float(getattr(said, name)[0]), 4) for name in names}


def _images_at(path: str) -> list[str]:
    """The path itself, or the images in the directory it is; a directory without any stays."""
    return (image_files(Path(path)) if Path(path).is_dir() else []) or [path]


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except IsADirectoryError as error:
        raise UserError(f"Expected images in {file!r}, found none; give another directory.") from error
    except OSError as error:
        raise UserError(f"Image {file!r}: expected a readable file; {error.strerror}.") from error
