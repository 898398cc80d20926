"""``gendd cache``: precompute the teacher's outputs for every view before training."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from gendd.config import RunConfig, with_settings
from gendd.data import Batch, Batches, Rows
from gendd.errors import UserError
from gendd.files import locked, trusted_code
from gendd.messages import followed, say
from gendd.models import Asked
from gendd.models.costs import synchronise
from gendd.report.numbers import duration
from gendd.run.experiment import named_code, opened, prepared_teacher
from gendd.run.settings import methods_of
from gendd.run.training import untrained
from gendd.run.view_cache import cached_teacher, open_cache, views_of
from gendd.training import (
    CachedTeacher,
    LightningMethod,
    autocast_type,
    resolve_device,
    shows_progress,
    training_precision,
)

# batches a process claims at a time, and batches timed for the estimate
_CHUNK, _TIMED = 64, 4
_TITLE = "teacher cache"


def fill_cache(config: RunConfig) -> Path:
    """Compute the missing part of a run's teacher cache; any number of processes may do so at once.

    Args:
        config: Configuration of the run; a teacher without weights is trained first.

    Returns:
        The cache folder.

    Raises:
        UserError: ``training.cache_teacher`` is 0, the disk is too full, or the run itself could not start.
    """
    config = with_settings(config)
    if not config.training.cache_teacher:
        raise UserError(
            "training.cache_teacher: expected the number of views of each image to cache, got 0; set "
            "it, for the training too."
        )
    with trusted_code(named_code(config)):
        device = resolve_device(config.training.device)
        config, data, network = opened(config, {})
        teacher, _ = prepared_teacher(config, data, network, device)
        assert teacher is not None
        cached = cached_teacher(config, data, teacher)
        modules = [
            untrained(dataclasses.replace(config, method=name), data, cached, device)
            for name in methods_of(config)
        ]
        module = max(
            (each for each in modules if each.cached), key=lambda each: len(cached.parts(each.method.asks))
        )
        open_cache(cached, config, data, module.method)
        _Filling(module, cached, config, device).run()
        return cached.answers.folder


class _Filling:
    """The batches of all views, in chunks that are each claimed by one process."""

    def __init__(
        self, module: LightningMethod, cached: CachedTeacher, config: RunConfig, device: torch.device
    ) -> None:
        self.module, self.cached, self.device = module, cached, device
        self.asked: Asked = module.method.asks
        size = module.data.channels, module.data.image_size
        precision = training_precision(config.training.precision, device, module.method.backbone, *size)
        self.autocast = autocast_type(precision, device)
        self.bar = shows_progress(config.training)
        self.epochs = [module.epoch(view) for view in range(views_of(config))]
        batches = len(self.epochs[0])
        # shards can only be read from the start, so a whole view is one chunk
        size_of = _CHUNK if isinstance(self.epochs[0].batches, Batches) else batches
        self.chunks = [
            (view, first, min(first + size_of, batches))
            for view in range(len(self.epochs))
            for first in range(0, batches, size_of)
        ]

    def run(self) -> None:
        """Compute the missing answers."""
        chunks = followed(self.chunks, len(self.chunks), f"{_TITLE}, checking", unit="parts", bar=self.bar)
        missing = [chunk for chunk in chunks if not self._is_there(*chunk)]
        total = sum(last - first for _, first, last in missing)
        if total == 0:
            say(f"{_TITLE}: complete")
            return
        say(f"{_TITLE}: {total:,} batches to compute, about {duration(total * self._seconds(*missing[0]))}")
        for _ in followed(self._filled(missing), total, _TITLE, bar=self.bar):
            pass
        say(f"{_TITLE}: complete; {self.cached.computed:,} batches were computed here")

    def _filled(self, chunks: list[tuple[int, int, int]]) -> Iterator[None]:
        """Compute chunks, those not claimed by another process first."""
        left = []
        for chunk in chunks:
            with ExitStack() as claim:
                try:
                    claim.enter_context(locked(self._claim(chunk), "claimed"))
                except UserError:
                    left.append(chunk)
                    continue
                yield from self._chunk(*chunk)
        for chunk in left:
            with locked(self._claim(chunk)):
                yield from self._chunk(*chunk)

    def _claim(self, chunk: tuple[int, int, int]) -> Path:
        view, first, _ = chunk
        return self.cached.answers.folder / f"{view}-{first}.claim"

    def _is_there(self, view: int, first: int, last: int) -> bool:
        batches = self.epochs[view].batches
        places = (batches.places_of(number).numpy() for number in range(first, last))
        unmarked = np.zeros(0, np.uint32)
        with self._arithmetic():
            return all(self.cached.kept(self.asked, view, Rows(each, unmarked)) for each in places)

    def _chunk(self, view: int, first: int, last: int) -> Iterator[None]:
        if self._is_there(view, first, last):
            yield from [None] * (last - first)
            return
        for number, batch in enumerate(self.epochs[view].part(first, last), first):
            images = self._images(batch, number, view)
            with self._arithmetic(), self.module.answering(images, view, batch.rows):
                self.cached.answer(images, self.asked)
            if self.cached.error is not None:
                raise UserError(
                    f"Teacher cache {str(self.cached.answers.folder)!r}: expected to write there, got "
                    f"{self.cached.error.strerror or self.cached.error}; what is there stays. Make room, "
                    "then give the same command."
                )
            yield

    def _images(self, batch: Batch, number: int, view: int) -> torch.Tensor:
        batch = self.module.transfer_batch_to_device(batch, self.device, 0)
        return self.module.mixed(batch, number, view)[0]

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    def _seconds(self, view: int, first: int, last: int) -> float:
        """Return the median seconds per batch including loading, excluding the first if there are several."""
        found: list[float] = []
        start = time.perf_counter()
        batches = self.epochs[view].part(first, min(first + _TIMED, last))
        for number, batch in enumerate(islice(batches, _TIMED), first):
            with self._arithmetic(), torch.no_grad():
                self.cached.computed_parts(self._images(batch, number, view), self.asked)
            synchronise(self.device)
            found.append(time.perf_counter() - start)
            start = time.perf_counter()
        return statistics.median(found[1:] or found)
