"""Training steps outside a training run, as timed by plans and profiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count as counted
from itertools import islice

import torch
from torch import nn

from gendd.config import RunConfig
from gendd.data import Batch, Data, Mixing, train_loader
from gendd.errors import UserError
from gendd.models import Frozen
from gendd.models.costs import synchronise
from gendd.run.settings import sees_labels
from gendd.run.training import untrained
from gendd.training import GraphedSteps, autocast_type

WARMUP, TIMED = 3, 8
# stop timing after this many seconds
_ENOUGH = 20.0
# batches used for feature statistics
_FEW = 4

# context manager for a named part of a step
Part = Callable[[str], AbstractContextManager[object]]


def _whole(name: str) -> AbstractContextManager[object]:
    del name
    return nullcontext()


class Steps:
    """The first training steps of a method; nothing is logged or written.

    Args:
        config: Configuration of the run, with this method.
        data: Data of the run.
        teacher: On the device; None for a method without one.
        device: Where to compute.
        given: The student, if it was built in Python.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Data,
        teacher: Frozen | None,
        device: torch.device,
        given: nn.Module | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.module = untrained(config, data, teacher, device, given)
        self._prepare(data)
        self.optimiser: torch.optim.Optimizer = self.module.configure_optimizers()["optimizer"]
        self._autocast = autocast_type(config.training.precision, device)
        self._steps = GraphedSteps(self.module.method, config.training.cuda_graphs)
        self._mixing = Mixing.from_config(config.data, self.module.data.num_classes)
        self._batches = self._endless()
        self.taken = 0

    def _prepare(self, data: Data) -> None:
        seen = sees_labels(self.config, data)
        batches = train_loader(self.module.data, self.config.data, seed=self.config.seed, epoch=0)
        pairs = (Batch(batch.images, batch.labels if seen else None) for batch in batches)
        try:
            self.module.method.prepare(islice(pairs, _FEW))
        except UserError:  # the statistics need an image of every class
            self.module.method.prepare(Batch(batch.images, batch.labels) for batch in batches)

    def _endless(self) -> Iterator[Batch]:
        for epoch in counted():
            yield from train_loader(self.module.data, self.config.data, seed=self.config.seed, epoch=epoch)

    @property
    def images(self) -> int:
        """Return the number of images per step."""
        return self.config.data.batch_of(len(self.module.data.train)) * self.module.accumulate

    def take(self, part: Part = _whole) -> float:
        """Take a step and return its seconds, including data loading.

        Args:
            part: Entered for each part: loading, augmentation, losses (all of the method), backward,
                optimiser.
        """
        module, device = self.module, self.device
        start = time.perf_counter()
        with part("optimiser"):
            self.optimiser.zero_grad()
        for _ in range(module.accumulate):
            with part("loading"):
                batch = next(self._batches)
            with part("augmentation"):
                batch = module.transfer_batch_to_device(batch, device, 0)
                labels = batch.labels if module.use_labels else None
                generator = torch.Generator().manual_seed(self.taken)
                images, labels = self._mixing(batch.images, labels, generator)
            generator = torch.Generator(device).manual_seed(self.taken)
            autocast = torch.autocast(device.type, self._autocast, enabled=self._autocast is not None)
            with part("losses"), autocast:
                # a replayed step has no parts
                losses = self._steps if part is _whole else module.method
                out = losses(images, labels, generator=generator)
            with part("backward"):
                (out.loss / module.accumulate).backward()
            # its graph of gradients would be part of the capture of the next
            del out
        with part("optimiser"):
            self.optimiser.step()
        synchronise(device)
        self.taken += 1
        return time.perf_counter() - start

    def seconds(self) -> float:
        """Return the median seconds of a few steps."""
        found: list[float] = []
        began = time.perf_counter()
        while len(found) < WARMUP + TIMED and (not found or time.perf_counter() - began < _ENOUGH):
            found.append(self.take())
        return statistics.median(found[WARMUP:] or found)
