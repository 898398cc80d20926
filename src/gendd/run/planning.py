"""What a run would train and what that would take, of a few steps that are timed; nothing is written."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import count as counted
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from gendd.config import RunConfig, with_settings
from gendd.data import Batch, Data, Mixing, describe, load_data, train_loader
from gendd.errors import UserError
from gendd.files import trusted_code
from gendd.models import Asked, Frozen, count_parameters, load_weights, multiply_adds
from gendd.models.costs import synchronise
from gendd.report.numbers import count, duration
from gendd.run.experiment import named_code, opened
from gendd.run.networks import student_network
from gendd.run.output import check_folder
from gendd.run.settings import methods_of, sees_labels, sized, trains_teacher
from gendd.run.teacher import freeze, teacher_run
from gendd.run.training import untrained
from gendd.run.view_cache import cached_teacher, told, views_of
from gendd.training import CachedTeacher, LightningMethod, autocast_type, resolve_device
from gendd.training.memory import peak_memory, reset_peak

_WARMUP, _TIMED = 2, 8
# no more are timed after so many seconds
_ENOUGH = 20.0
# batches that statistics are taken of here
_FEW = 4


class _Repeating(CachedTeacher):
    """A cached teacher that can say of every batch what it said of the one before, without being asked."""

    repeats = False
    last: Sequence[Tensor] = ()

    def answer(self, images: Tensor, asked: Asked) -> list[Tensor]:
        if not self.repeats:
            self.last = super().answer(images, asked)
        return [*self.last]


def plan_run(
    config: RunConfig, *, overwrite: bool = False, networks: Mapping[str, nn.Module] | None = None
) -> list[str]:
    """Lines that tell what a run would train, with what, for how long; a few steps of each are timed.

    Args:
        config: The run's.
        overwrite: Whether it would replace a run in its folder.
        networks: The ``teacher`` or ``student`` that was made in Python.

    Raises:
        UserError: as the run would at its beginning.
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
        lines.append(f"stage 1  {config.training.stage1_epochs} epochs more, not timed here")
    return [
        *lines,
        f"memory   {peak_memory():,.0f} MB at the peak of these steps, on {device}",
        f"in all   about {duration(seconds)} for the training steps; validation, scoring and the report come "
        "on top; nothing was written",
    ]


def _timed(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    device: torch.device,
    networks: Mapping[str, nn.Module],
) -> tuple[str, float]:
    """What a method's training is, and about how many seconds its steps take."""
    if teacher is not None and config.training.cache_teacher:
        teacher = _Repeating(teacher, cached_teacher(config, data, teacher).answers)
    module, optimiser = _ready(config, data, teacher, device, networks)
    steps = module.total_steps
    each = _step_seconds(module, optimiser, config, device)
    batch = config.data.batch_of(len(data.train)) * module.accumulate
    rows = module.method.rows(batch)
    of_head = "" if rows == batch else f" ({rows:,} rows of the head)"
    epochs = steps // module.steps_per_epoch
    seconds, took = steps * each, f"{1000 * each:,.0f} ms"
    cache = ""
    if isinstance(module.cached, _Repeating):
        module.cached.repeats = True
        later = _step_seconds(module, optimiser, config, device)
        first = views_of(config) * module.steps_per_epoch
        seconds = first * each + (steps - first) * later
        took = f"{1000 * later:,.0f} ms ({1000 * each:,.0f} ms while the teacher answers)"
        cache = f"; teacher cache of {told(module.cached, config, data, module.method)[0]}"
    return (
        f"{epochs:,} epochs of {module.steps_per_epoch:,} steps of {batch:,} images{of_head}: "
        f"{steps:,} steps of {took}, about {duration(seconds)}{cache}",
        seconds,
    )


def _ready(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    device: torch.device,
    networks: Mapping[str, nn.Module],
) -> tuple[LightningMethod, torch.optim.Optimizer]:
    """A method as its training begins, and its optimiser."""
    module = untrained(config, data, teacher, device, networks.get("student"))
    method, seen = module.method, sees_labels(config, data)
    batches = train_loader(module.data, config.data, seed=config.seed, epoch=0)
    pairs = (Batch(batch.images, batch.labels if seen else None) for batch in batches)
    try:
        method.prepare(islice(pairs, _FEW))
    except UserError:  # it needs an image of every class
        method.prepare(Batch(batch.images, batch.labels) for batch in batches)
    return module, module.configure_optimizers()["optimizer"]


def _step_seconds(
    module: LightningMethod, optimiser: torch.optim.Optimizer, config: RunConfig, device: torch.device
) -> float:
    """Median seconds of a step, its images' loading included."""
    batches = _endless(module, config)
    found: list[float] = []
    autocast = autocast_type(config.training.precision, device)
    mixing = Mixing.from_config(config.data, module.data.num_classes)
    began = time.perf_counter()
    while len(found) < _WARMUP + _TIMED and (not found or time.perf_counter() - began < _ENOUGH):
        start = time.perf_counter()
        optimiser.zero_grad()
        for batch in islice(batches, module.accumulate):
            batch = module.transfer_batch_to_device(batch, device, 0)
            labels = batch.labels if module.use_labels else None
            images, labels = mixing(batch.images, labels, torch.Generator().manual_seed(len(found)))
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                out = module.method(images, labels, generator=torch.Generator(device).manual_seed(len(found)))
            (out.loss / module.accumulate).backward()
        optimiser.step()
        synchronise(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[_WARMUP:] or found)


def _endless(module: LightningMethod, config: RunConfig) -> Iterator[Batch]:
    for epoch in counted():
        yield from train_loader(module.data, config.data, seed=config.seed, epoch=epoch)
