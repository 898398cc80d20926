"""The batches of an epoch, as loaders for Lightning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from gendd.data import Batch, Batches, Rows, ShardBatches


class Epoch:
    """The batches of an epoch as a stateful loader for Lightning, which counts the batches it has returned.

    Args:
        batches: All batches.
        number: Number of the epoch.
        told: Whether batches carry their ``rows``.
        waited: Called with the seconds spent waiting for each batch.
    """

    def __init__(
        self,
        batches: Batches | ShardBatches,
        number: int,
        told: bool = False,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self.batches, self.number, self.told, self.waited, self.given = batches, number, told, waited, 0

    def part(self, first: int, last: int) -> Epoch:
        """The batches from ``first`` up to but excluding ``last``; for shards, up to the end."""
        batches = self.batches.until(last) if isinstance(self.batches, Batches) else self.batches
        found = Epoch(batches, self.number, self.told, self.waited)
        found.given = first
        return found

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches.since(self.given))
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if self.waited is not None:
                self.waited(time.perf_counter() - began)
            if batch is None:
                return
            number = self.given
            self.given += 1
            yield self._with_rows(batch, number) if self.told else batch

    def _with_rows(self, batch: Batch, number: int) -> Batch:
        places = self.batches.places_of(number)
        # if an image was left out, it is not known which
        whole = len(places) == len(batch.images)
        return replace(batch, rows=Rows.of(places, batch.images) if whole else None)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.number, "given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # a checkpoint from the end of an epoch resumes with the next one
        self.given = state["given"] if state["epoch"] == self.number else 0


class Empty:
    """A single batch without images: Lightning would skip validation in a process without any batch."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        yield Batch(torch.empty(0), None)


class InStep:
    """Batches, padded with one that is not counted if another process has one more."""

    def __init__(self, own: Batches, most: int, spare: Batches) -> None:
        self.own, self.most, self.spare = own, most, spare

    def __len__(self) -> int:
        return self.most

    def __iter__(self) -> Iterator[Batch]:
        yield from self.own
        for _ in range(self.most - len(self.own)):
            yield next(iter(self.spare))
