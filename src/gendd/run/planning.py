"""Plan a run: what it would train and how long it would take, from a few timed steps; nothing is written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gendd.config import RunConfig, with_settings
from gendd.data import Data, describe, load_data
from gendd.files import trusted_code
from gendd.models import Asked, Frozen, count_parameters, load_weights, multiply_adds
from gendd.report.numbers import count, duration
from gendd.run.experiment import named_code, opened
from gendd.run.networks import student_network
from gendd.run.output import check_folder
from gendd.run.settings import methods_of, sized, trains_teacher
from gendd.run.steps import Steps
from gendd.run.teacher import freeze, teacher_run
from gendd.run.view_cache import cached_teacher, told, views_of
from gendd.training import CachedTeacher, resolve_device
from gendd.training.memory import peak_memory, reset_peak


class _Repeating(CachedTeacher):
    """A cached teacher that can repeat its previous answer for every batch instead of computing one."""

    repeats = False
    last: Sequence[Tensor] = ()

    def answer(self, images: Tensor, asked: Asked) -> list[Tensor]:
        if not self.repeats:
            self.last = super().answer(images, asked)
        return [*self.last]


def plan_run(
    config: RunConfig, *, overwrite: bool = False, networks: Mapping[str, nn.Module] | None = None
) -> list[str]:
    """Describe what a run would train, with what and for how long, after timing a few steps of each training.

    Args:
        config: Configuration of the run.
        overwrite: Whether it would replace a run in its folder.
        networks: A ``teacher`` or ``student`` built in Python.

    Returns:
        The lines of the plan.

    Raises:
        UserError: the run could not start.
    """
    config = with_settings(config)
    if config.out is not None:
        check_folder(Path(os.path.expanduser(config.out)), config, overwrite, resume=False)
    with trusted_code(named_code(config)):
        return _plan(config, networks or {})


def _plan(config: RunConfig, networks: Mapping[str, nn.Module]) -> list[str]:
    device = resolve_device(config.training.device)
    reset_peak()
    config, data, network = opened(config, networks)
    images = torch.zeros(1, data.channels, data.image_size, data.image_size)
    lines, seconds = [f"images   {describe(data)}"], 0.0
    student = student_network(config, data, network, networks.get("student"))
    for role, each in (("teacher", network), ("student", student)):
        if each is not None:
            costs = f"{count(count_parameters(each))} parameters"
            lines.append(
                f"{role}  {each.describe()}, {costs}, {count(multiply_adds(each, images))} multiply-adds"
            )
    if network is not None and trains_teacher(config):
        folder, training = teacher_run(config, data, network, device)
        if (folder / "metrics.json").is_file():
            lines.append(f"teacher  cached in {folder}")
            load_weights(network, folder)
        else:
            own = data if config.data.labels else load_data(training.data)
            told, spent = _timed(sized(training, own), own, None, device, {})
            lines, seconds = [*lines, f"teacher  trained first: {told}"], seconds + spent
    teacher = None if network is None else freeze(network, config, device)
    for name in methods_of(config):
        told, spent = _timed(dataclasses.replace(config, method=name), data, teacher, device, networks)
        lines, seconds = [*lines, f"{name:7}  {told}"], seconds + spent
    if config.training.stage1_epochs and config.method == "gendd":
        lines.append(f"stage 1  {config.training.stage1_epochs} more epochs, not timed here")
    return [
        *lines,
        f"memory   {peak_memory():,.0f} MB at the peak of these steps, on {device}",
        f"in all   about {duration(seconds)} for the training steps; validation, scoring and the report not "
        "included; nothing was written",
    ]


def _timed(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    device: torch.device,
    networks: Mapping[str, nn.Module],
) -> tuple[str, float]:
    """Describe a method's training and estimate the seconds that its steps take."""
    if teacher is not None and config.training.cache_teacher:
        teacher = _Repeating(teacher, cached_teacher(config, data, teacher).answers)
    steps = Steps(config, data, teacher, device, networks.get("student"))
    module, batch = steps.module, steps.images
    total, each = module.total_steps, steps.seconds()
    rows = module.method.rows(batch)
    of_head = "" if rows == batch else f" ({rows:,} rows of the head)"
    epochs = total // module.steps_per_epoch
    seconds, took = total * each, f"{1000 * each:,.0f} ms"
    cache = ""
    if isinstance(module.cached, _Repeating):
        module.cached.repeats = True
        later = steps.seconds()
        first = views_of(config) * module.steps_per_epoch
        seconds = first * each + (total - first) * later
        took = f"{1000 * later:,.0f} ms ({1000 * each:,.0f} ms while the cache is filled)"
        cache = f"; teacher cache of {told(module.cached, config, data, module.method)[0]}"
    return (
        f"{epochs:,} epochs of {module.steps_per_epoch:,} steps of {batch:,} images{of_head}: "
        f"{total:,} steps of {took}, about {duration(seconds)}{cache}",
        seconds,
    )
