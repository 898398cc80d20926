"""Time the training steps of several methods side by side.

Every step trains each method in turn on the same batch, so that other load on the machine slows all of them
alike. The time of a step includes loading its batch, the teacher's pass if the method uses the teacher,
forward, backward and the optimiser.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gendd.config import RunConfig, to_dict
from gendd.data import Batch, Data, Mixing, load_data, train_loader
from gendd.errors import UserError, first_line
from gendd.methods import build_method
from gendd.models import Frozen, Stages
from gendd.models.costs import synchronise
from gendd.run.checks import check_names, check_networks
from gendd.run.experiment import prepared_teacher
from gendd.run.networks import student_network, teacher_network, with_classes
from gendd.run.settings import sees_labels
from gendd.training import GraphedSteps, LightningMethod, autocast_type, derive_seed, overruns, resolve_device

WARMUP = 3
# feature, logits, map and the stages' maps
_Answer = tuple[Tensor, Tensor, Tensor | None, list[Tensor]]


def steps_per_epoch(config: RunConfig) -> int:
    """Return the optimiser steps per epoch; this opens the images.

    Raises:
        UserError: the images can't be opened.
    """
    batches = len(train_loader(load_data(config.data), config.data, seed=config.seed, epoch=0))
    return batches // min(config.training.accumulate, batches)


class _Shared(Frozen):
    """A teacher that computes each batch once, and charges its cost to every method that asks for it.

    Attributes:
        spent: Seconds spent in it since :meth:`restart`.
        charged: Seconds that the answers given since then originally took to compute.
    """

    def __init__(self, teacher: Frozen) -> None:
        super().__init__(teacher.backbone)
        self._compiled = teacher._compiled
        self.spent = self.charged = 0.0
        self._last: dict[tuple[str, Stages], tuple[Tensor, _Answer, float]] = {}

    def restart(self) -> None:
        self.spent = self.charged = 0.0

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._answer(images, "feature")[:2]

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._answer(images, "map")[:3]

    def with_stages(self, images: Tensor, stages: Stages = None) -> _Answer:
        return self._answer(images, "stages", stages)

    def _answer(self, images: Tensor, kind: str, stages: Stages = None) -> _Answer:
        start = time.perf_counter()
        last = self._last.get((kind, stages))
        if last is None or last[0] is not images:
            answer: _Answer
            if kind == "stages":
                answer = super().with_stages(images, stages)
            elif kind == "map":
                answer = (*super().with_map(images), [])
            else:
                answer = (*super().forward(images), None, [])
            synchronise(images.device)
            last = self._last[kind, stages] = images, answer, time.perf_counter() - start
        self.spent += time.perf_counter() - start
        self.charged += last[2]
        return last[1]


class _Feed:
    """The batches of one data configuration, epoch after epoch, and the loading time of the last one."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.mixing = Mixing.from_config(config.data, data.num_classes)
        self.seconds = 0.0
        self._batches = self._endless()
        self._last: deque[tuple[Batch, Batch]] = deque(maxlen=64)

    def _endless(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from train_loader(self.data, self.config.data, seed=self.config.seed, epoch=epoch)
            epoch += 1

    def next(self) -> Batch:
        """Return the next batch, mixed, on the device."""
        start = time.perf_counter()
        batch = next(self._batches).to(self.device)
        # the value used for unknown labels does not affect the time of a step
        labels = batch.labels if sees_labels(self.config, self.data) else None
        labels = None if labels is None else labels.clamp(min=0)
        images, labels = self.mixing(batch.images, labels, torch.Generator().manual_seed(0))
        synchronise(self.device)
        self.seconds = time.perf_counter() - start
        return Batch(images, labels)

    def channels_last(self, batch: Batch) -> Batch:
        """Convert the batch to channels-last; one object for all methods, so the teacher recognises it."""
        if not any(each is batch for each, _ in self._last):
            images = batch.images.contiguous(memory_format=torch.channels_last)
            self._last.append((batch, Batch(images, batch.labels)))
        return next(found for each, found in self._last if each is batch)


class _Runner:
    """A method being timed."""

    def __init__(self, config: RunConfig, feed: _Feed, teacher: Frozen | None) -> None:
        self.config, self.feed, self.teacher = config, feed, teacher
        data, device = feed.data, feed.device
        torch.manual_seed(derive_seed(config.seed, "student"))
        backbone = student_network(config, data, teacher, None)
        torch.manual_seed(derive_seed(config.seed, "method"))
        self.method = build_method(config, backbone, teacher, sees_labels(config, data))
        # as in fit()
        self.channels_last = config.training.channels_last is not False
        self.channels_last = self.channels_last and not overruns(self.method, device)
        if self.channels_last:
            self.method.to(memory_format=torch.channels_last)
        self.method.to(device).train()
        loader = train_loader(data, config.data, seed=config.seed, epoch=0)
        seen = sees_labels(config, data)
        self.method.prepare(Batch(batch.images, batch.labels if seen else None) for batch in loader)
        module = LightningMethod(
            self.method,
            data,
            config.training,
            config.data,
            config.seed,
            self.channels_last,
            config.readout.name,
        ).to(device)
        self.accumulate = module.accumulate
        self.losses = GraphedSteps(self.method, config.training.cuda_graphs)
        self.optimiser: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
        self.autocast = autocast_type(config.training.precision, device)

    def step(self, batches: list[Batch], loading: list[float]) -> float:
        """Train a step of one or more batches and return the seconds it would take alone."""
        device, training = self.feed.device, self.config.training
        shared = self.teacher if isinstance(self.teacher, _Shared) else None
        if shared is not None:
            shared.restart()
        if self.channels_last:
            batches = [self.feed.channels_last(batch) for batch in batches]
        start = time.perf_counter()
        self.optimiser.zero_grad()
        for number, batch in enumerate(batches[: self.accumulate]):
            generator = torch.Generator(device).manual_seed(number)
            with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                loss: Tensor = self.losses(batch.images, batch.labels, generator=generator).loss
            (loss / self.accumulate).backward()  # type: ignore[no-untyped-call]
            # its graph of gradients would be part of the capture of the next
            del loss
        if training.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), training.clip_grad_norm)
        self.optimiser.step()
        synchronise(device)
        seconds = time.perf_counter() - start + sum(loading[: self.accumulate])
        if shared is not None:
            seconds += shared.charged - shared.spent
        return seconds


def step_seconds(configs: Mapping[str, RunConfig], steps: int) -> dict[str, float | UserError]:
    """Return the median seconds per step of every method, measured side by side.

    Methods with the same images share their batches, and those with the same teacher share its passes.

    Args:
        configs: Configurations, by name of the method.
        steps: Number of steps to time, after three warm-up steps.

    Returns:
        Seconds by the same names, or the error of a method that can't be trained.
    """
    feeds: dict[str, _Feed] = {}
    teachers: dict[str, Frozen] = {}
    runners: dict[str, _Runner] = {}
    found: dict[str, float | UserError] = {}
    for name, config in configs.items():
        try:
            runners[name] = _runner(config, feeds, teachers)
        except Exception as error:  # whatever a method or its images raise is reported for that method alone
            found[name] = UserError(first_line(error))
    times: dict[str, list[float]] = {name: [] for name in runners}
    most = {id(runner.feed): 0 for runner in runners.values()}
    for runner in runners.values():
        most[id(runner.feed)] = max(most[id(runner.feed)], runner.accumulate)
    for _ in range(steps + WARMUP if runners else 0):
        taken: dict[int, tuple[list[Batch], list[float]]] = {}
        for name, runner in list(runners.items()):
            feed = runner.feed
            try:
                if id(feed) not in taken:
                    taken[id(feed)] = _batches(feed, most[id(feed)])
                times[name].append(runner.step(*taken[id(feed)]))
            except Exception as error:
                found[name] = UserError(first_line(error))
                del runners[name]
    found |= {name: statistics.median(times[name][WARMUP:]) for name in runners}
    return {name: found[name] for name in configs}


def _batches(feed: _Feed, count: int) -> tuple[list[Batch], list[float]]:
    batches, seconds = [], []
    for _ in range(count):
        batches.append(feed.next())
        seconds.append(feed.seconds)
    return batches, seconds


def _runner(config: RunConfig, feeds: dict[str, _Feed], teachers: dict[str, Frozen]) -> _Runner:
    device = resolve_device(config.training.device)
    check_names(config, {})
    plain = to_dict(config)
    looks = json.dumps([plain["data"], str(device)])
    if looks not in feeds:
        feeds[looks] = _Feed(config, load_data(config.data), device)
    feed = feeds[looks]
    network = teacher_network(config, feed.data, {})
    feed.data = with_classes(config, feed.data, network)
    check_networks(config, feed.data, network, {})
    teacher: Frozen | None = None
    if network is not None:
        # teachers are trained with labels whatever this setting is
        made_of = [plain["teacher"], plain["teacher_training"], {**plain["data"], "labels": True}]
        which = json.dumps([*made_of, config.seed, str(device)])
        if which not in teachers:
            frozen, _ = prepared_teacher(config, feed.data, network, device)
            assert frozen is not None
            # on CUDA the teacher's pass is part of a recorded step
            teachers[which] = frozen if device.type == "cuda" else _Shared(frozen)
        teacher = teachers[which]
    return _Runner(config, feed, teacher)


def scaled(measured: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """Rescale new measurements to match earlier ones made at another time or on another machine.

    Args:
        measured: Seconds by method, measured side by side.
        known: Earlier measurements of some of the methods; they are kept.
    """
    ratios = [known[name] / seconds for name, seconds in measured.items() if name in known]
    factor = statistics.median(ratios) if ratios else 1.0
    return {name: known.get(name, factor * seconds) for name, seconds in measured.items()}
