"""What a run's configuration implies: its methods, use of teacher and labels, what results depend on."""

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

# settings that may change on resume and do not make a different cached teacher
_FREE = (
    {"out", "teacher.license", "student.license"}
    | {f"data.{key}" for key in ("in_memory", "workers", "max_corrupt", "shot_thresholds")}
    | {
        f"{section}.{key}"
        for section in ("training", "teacher_training")
        for key in (
            *("device", "devices", "strategy", "cuda_graphs", "compile", "loggers", "progress"),
            *_CHECKPOINTS,
        )
    }
)


# settings where null is resolved to a number when the run starts
SIZED = {"data.batch_size", "training.epochs"}


def sized(config: RunConfig, data: Data) -> RunConfig:
    """Return the configuration with batch size and epochs resolved for this number of training images."""
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
    """Return the methods in training order: the baselines, then the method itself."""
    return list(dict.fromkeys([*config.baselines, config.method]))


def is_taught(config: RunConfig) -> bool:
    """Return whether any of the run's methods has a teacher."""
    return any(method_class(name).needs_teacher for name in methods_of(config))


def trains_teacher(config: RunConfig) -> bool:
    """Return whether the teacher has no weights, so that it is trained on the labels first."""
    return is_taught(config) and config.teacher.weights is None and not config.teacher.pretrained


def refit_target(config: RunConfig) -> Target | Literal["auto"] | None:
    """Return what the method's linear readout is refitted to after training, or None."""
    target: Target | Literal["auto", "none"] = getattr(config.settings_of(config.method), "refit", "none")
    return None if target == "none" else target


def sees_labels(config: RunConfig, data: Data) -> bool:
    """Return whether training uses labels: there are some, and it may."""
    return config.data.labels and data.labelled


def binding_of(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a run's results depend on, by dotted key, for the methods it trains."""
    found = binding(to_dict(with_settings(config)))
    # left out at their defaults, so that results from before these settings existed keep their digests
    if config.data.validation_images == "all" or (
        config.data.validation_images is None and config.data.train_images is None
    ):
        del found["data.validation_images"]
    if config.data.test == DataConfig.test:
        del found["data.test"]
    if config.evaluation.images is None:
        del found["evaluation.images"]
    own = config.gendd
    if own.contract == "all" or own.contraction == 0 or not config.data.labels:
        del found["gendd.contract"]
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
    """Return the settings of a plain configuration that its results depend on, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= binding(value, name + ".")
        elif name not in _FREE:
            found[name] = value
    return found


def data_paths(config: DataConfig) -> dict[str, Any]:
    """Return the paths in the data configuration, by key."""
    return {key: getattr(config, key) for key in ("path", "test_path", "root", "classes")}


def absolute(path: str) -> str:
    """Return the absolute path; URLs are returned unchanged."""
    if is_remote(path):
        return path
    return os.path.realpath(user_path(path))
