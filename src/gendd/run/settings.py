"""What a configuration asks of a run: which methods, with a teacher and labels or not, and what binds it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

from gendd.config import DataConfig, RunConfig, to_dict, with_settings
from gendd.config.registry import method_class
from gendd.data import Data, train_loader
from gendd.data.tars import is_remote
from gendd.evaluation.refit import Target
from gendd.files import user_path
from gendd.messages import say
from gendd.processes import world_size

_CHECKPOINTS = ("checkpoint_every", "checkpoint_minutes")

# settings that may differ between a run and its continuation, and do not make another teacher
_FREE = (
    {"out", "teacher.license", "student.license"}
    | {f"data.{key}" for key in ("in_memory", "workers", "max_corrupt", "shot_thresholds")}
    | {
        f"{section}.{key}"
        for section in ("training", "teacher_training")
        for key in ("device", "devices", "strategy", "loggers", "progress", *_CHECKPOINTS)
    }
)


# settings that a run's configuration has as numbers, whatever null becomes
SIZED = {"data.batch_size", "training.epochs"}


def sized(config: RunConfig, data: Data) -> RunConfig:
    """The configuration with batch size and epochs as numbers, for so many training images."""
    batch = config.data.batch_of(len(data.train))
    sizes = dataclasses.replace(config.data, batch_size=batch)
    batches = len(train_loader(data, sizes, seed=0, epoch=0, world_size=world_size()))
    steps = max(1, batches // config.training.accumulate)
    epochs = config.training.num_epochs(steps)
    if config.training.epochs is None or config.data.batch_size is None:
        passes = "1 epoch" if epochs == 1 else f"{epochs} epochs"
        say(f"{passes} of {steps:,} steps, batch size {batch} (training.epochs, data.batch_size)")
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch),
        training=dataclasses.replace(config.training, epochs=epochs),
    )


def methods_of(config: RunConfig) -> list[str]:
    """What is trained, in order: the baselines, then the method itself."""
    return list(dict.fromkeys([*config.baselines, config.method]))


def is_taught(config: RunConfig) -> bool:
    """Whether any of its methods has a teacher."""
    return any(method_class(name).needs_teacher for name in methods_of(config))


def trains_teacher(config: RunConfig) -> bool:
    """Whether its teacher comes without weights, so that one is trained on the labels first."""
    return is_taught(config) and config.teacher.weights is None and not config.teacher.pretrained


def refit_target(config: RunConfig) -> Target | None:
    """What the method's linear readout is fitted to after its training, if it is."""
    target: Target | Literal["none"] = getattr(config.settings_of(config.method), "refit", "none")
    return None if target == "none" else target


def sees_labels(config: RunConfig, data: Data) -> bool:
    """Whether training sees labels: there are some, and it may."""
    return config.data.labels and data.labelled


def binding_of(config: RunConfig) -> dict[str, Any]:
    """By dotted key, the settings that a run's results depend on: of methods those of the ones it trains."""
    found = binding(to_dict(with_settings(config)))
    # what was measured before there were these settings is known by the same names
    if config.data.validation_images == "all" or (
        config.data.validation_images is None and config.data.train_images is None
    ):
        del found["data.validation_images"]
    if config.evaluation.images is None:
        del found["evaluation.images"]
    for part in ("training", "teacher_training"):
        if found[f"{part}.cache_teacher"] == 0:
            del found[f"{part}.cache_teacher"], found[f"{part}.cache_dtype"]
        for key, usual in (("sync_batchnorm", False), ("scale_lr", "none")):
            if found[f"{part}.{key}"] == usual:
                del found[f"{part}.{key}"]
    if "gendd" in methods_of(config):
        return found
    return {key: value for key, value in found.items() if not key.startswith("gendd.")}


def binding(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key, the settings of a plain configuration that its results depend on."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= binding(value, name + ".")
        elif name not in _FREE:
            found[name] = value
    return found


def data_paths(config: DataConfig) -> dict[str, Any]:
    """What the configuration of the images names on disk, by key."""
    return {key: getattr(config, key) for key in ("path", "test_path", "root", "classes")}


def absolute(path: str) -> str:
    """The same path from everywhere; a URL is that already."""
    if is_remote(path):
        return path
    return os.path.realpath(user_path(path))
