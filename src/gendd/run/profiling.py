"""Profile a training step; nothing is written."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from gendd.config import RunConfig, with_settings
from gendd.config.registry import label, method_class
from gendd.data import train_loader
from gendd.files import trusted_code
from gendd.messages import following
from gendd.models import Backbone, Frozen, count_parameters, multiply_adds
from gendd.models.costs import synchronise
from gendd.report.numbers import count
from gendd.run.experiment import named_code, opened
from gendd.run.settings import sees_labels
from gendd.run.steps import WARMUP, Steps
from gendd.run.teacher import freeze
from gendd.student.generator import FeatureGenerator
from gendd.training import WAITS, resolve_device, resolve_precision
from gendd.training.memory import peak_memory, reset_peak

STEPS = 20
# maximum seconds spent measuring the loader alone
_LOADER_SECONDS = 5.0
_PARTS = ("loading", "augmentation", "teacher", "student", "head", "losses", "backward", "optimiser")


@dataclass(frozen=True)
class Profile:
    """Cost of a training step.

    Attributes:
        method: Name of the method.
        device: Device of the training step.
        precision: Arithmetic precision.
        images: Images per step.
        rows: Rows of the head per step; ``images`` for a method without a head.
        seconds: Median seconds per step.
        parts: Median seconds of the parts of a step: loading (waiting for the loader), augmentation (and
            the copy to the device), teacher, student and head (forward passes), losses (the rest of the
            method), backward, optimiser. Measured separately from ``seconds``, without CUDA graphs and
            synchronising the device after each part, so their sum may be larger.
        loader: Images per second of the loader alone.
        workers: Number of loader processes.
        beside: Name of a logit-based method timed in alternation for comparison, if there is one.
        ratio: Median ratio of the seconds of a step to those of ``beside``.
        peak_memory_mb: Peak memory during the steps, of the device or, on CPUs, of the process.
        parameters: Parameters of teacher, student and head.
        multiply_adds: Multiply-adds per image of teacher and student.
    """

    method: str
    device: str
    precision: str
    images: int
    rows: int
    seconds: float
    parts: dict[str, float]
    loader: float
    workers: int
    beside: str | None
    ratio: float | None
    peak_memory_mb: float
    parameters: dict[str, int]
    multiply_adds: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the profile as a JSON-ready dict."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        rows = "" if self.rows == self.images else f" ({self.rows:,} rows of the head)"
        beside = ""
        if self.beside is not None:
            beside = f"; {self.ratio:.2f} times a step of {label(self.beside)}"
        lines = [
            f"step          {label(self.method)} on {self.device}, {self.precision}: {self.images:,} "
            f"images{rows} in {1000 * self.seconds:,.1f} ms, {self.images / self.seconds:,.0f} images/s"
            f"{beside}"
        ]
        whole = sum(self.parts.values())
        for part, seconds in self.parts.items():
            share = seconds / whole
            lines.append(
                f"{part:12} {1000 * seconds:8,.1f} ms {share:5.0%}  {'█' * round(30 * share)}".rstrip()
            )
        costs = [f"{role} {count(number)}" for role, number in self.multiply_adds.items()]
        sizes = [f"{role} {count(number)}" for role, number in self.parameters.items()]
        lines += [
            f"loader        {self.loader:,.0f} images/s alone, {_of_loader(self.workers)}",
            f"memory        {self.peak_memory_mb:,.0f} MB at the peak",
            f"costs         multiply-adds per image: {', '.join(costs)}; parameters: {', '.join(sizes)}",
        ]
        waits = self.parts["loading"] / whole
        if waits > WAITS:
            computes = self.images / (whole - self.parts["loading"])
            lines.append(
                f"{waits:.0%} of the step is spent waiting for images; without that it would reach "
                f"{computes:,.0f} images/s. Give the loader more processes (--data.workers), keep images in "
                "memory (--data.in_memory true) or store them smaller."
            )
        return "\n".join(lines)


class _Clock:
    """Accumulates the seconds of named parts, each excluding the parts nested in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        synchronise(self.device)
        now = time.perf_counter()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def on(self, name: str, owner: type, *methods: str) -> Iterator[None]:
        """Attribute the time of a class's methods to a part; the teacher's calls stay the teacher's."""

        def timed(call: Callable[..., Any]) -> Callable[..., Any]:
            def within(*given: Any, **options: Any) -> Any:
                with self.part("teacher" if "teacher" in self._open else name):
                    return call(*given, **options)

            return within

        with ExitStack() as stack:
            for method in methods:
                stack.enter_context(patch.object(owner, method, timed(getattr(owner, method))))
            yield


def profile_run(
    config: RunConfig, *, steps: int = STEPS, networks: Mapping[str, nn.Module] | None = None
) -> Profile:
    """Time the parts of a training step of the run's method; nothing is trained or written.

    A teacher that the run would train first is used untrained, which takes the same time.

    Args:
        config: Configuration of the run.
        steps: Number of steps to time, after three warm-up steps.
        networks: A ``teacher`` or ``student`` built in Python.

    Raises:
        UserError: the run could not start.
    """
    config = with_settings(config)
    # the teacher's passes are to be timed, not its cache
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, cache_teacher=0))
    with trusted_code(named_code(config)):
        return _profile(config, steps, networks or {})


def _profile(config: RunConfig, steps: int, networks: Mapping[str, nn.Module]) -> Profile:
    device = resolve_device(config.training.device)
    config, data, network = opened(config, networks)
    # counted before freezing, which folds BatchNorms into the convolutions
    sizes = {} if network is None else {"teacher": count_parameters(network)}
    teacher = None if network is None else freeze(network, config, device)
    given = networks.get("student")
    reset_peak()
    own = Steps(config, data, teacher, device, given)
    for _ in range(WARMUP):
        own.take()
    # peak of the method alone
    peak = peak_memory()
    classes = teacher is not None and teacher.num_classes == data.num_classes
    name = _beside(config.method, classes, sees_labels(config, data))
    other = None
    if name is not None:
        other = Steps(dataclasses.replace(config, method=name), data, teacher, device, given)
    seconds: list[float] = []
    ratios: list[float] = []
    apart: list[dict[str, float]] = []
    with following("steps", WARMUP + steps, "steps") as progress:
        for taken in range(WARMUP + steps):
            whole, beside = own.take(), None if other is None else other.take()
            parts = _parts(own, device)
            progress.add()
            if taken < WARMUP:
                continue
            seconds.append(whole)
            apart.append(parts)
            if beside is not None:
                ratios.append(whole / beside)
    loader, workers = _loader(own)
    method = own.module.method
    images = torch.zeros(1, data.channels, data.image_size, data.image_size)
    built = {} if teacher is None else {"teacher": teacher.backbone}
    built["student"] = method.backbone
    sizes["student"] = count_parameters(method.backbone)
    if (head := getattr(method, "generator", None)) is not None:
        sizes["head"] = count_parameters(head)
    return Profile(
        method=config.method,
        device=str(device),
        precision=resolve_precision(config.training.precision, device),
        images=own.images,
        rows=method.rows(own.images),
        seconds=statistics.median(seconds),
        parts={part: statistics.median(each[part] for each in apart) for part in _PARTS if part in apart[0]},
        loader=loader,
        workers=workers,
        beside=name,
        ratio=statistics.median(ratios) if ratios else None,
        peak_memory_mb=peak,
        parameters=sizes,
        multiply_adds={role: multiply_adds(each, images.to(device)) for role, each in built.items()},
    )


def _of_loader(workers: int) -> str:
    return f"by {workers} processes" if workers else "in this process"


def _beside(method: str, classes: bool, labels: bool) -> str | None:
    """Return the method to compare with: KD with labels, KL without, supervised without teacher classes."""
    name = "supervised"
    if method_class(method).needs_teacher and classes:
        name = "kd" if labels else "kl"
    return None if name == method or (method_class(name).needs_labels and not labels) else name


def _parts(steps: Steps, device: torch.device) -> dict[str, float]:
    """Return the seconds of the parts of one step."""
    clock, passes = _Clock(device), ("forward", "features", "with_map", "with_stages")
    with (
        clock.on("teacher", Frozen, "forward", "with_map", "with_stages"),
        clock.on("student", Backbone, *passes),
        clock.on("head", FeatureGenerator, "condition", "loss_rows"),
    ):
        steps.take(clock.part)
    return clock.seconds


def _loader(steps: Steps) -> tuple[float, int]:
    """Return the images per second of the loader alone, from its second batch on, and its processes."""
    config, data = steps.config, steps.module.data
    epoch = train_loader(data, config.data, seed=config.seed, epoch=1)
    batches = iter(epoch)
    first = next(batches)
    images, began = 0, time.perf_counter()
    for batch in batches:
        images += len(batch.images)
        if time.perf_counter() - began > _LOADER_SECONDS:
            break
    if images == 0:  # an epoch of one batch
        images, began = len(first.images), time.perf_counter()
        next(iter(epoch))
    return images / (time.perf_counter() - began), epoch.processes
