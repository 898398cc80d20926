"""Stream training images from tar shards, divided among processes, loader workers and steps.

An epoch is a sequence of images: the shards in shuffled order, each read sequentially. Every process takes an
equal interval of it, and each of the process's STREAMS reads an equal part of that through a shuffle buffer;
step i is a batch of stream i mod STREAMS. Loader workers divide the streams, so that the number of workers
does not change the batches. Shapes: B batch size, C channels, S side.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gendd.config import DataConfig
from gendd.data.corrupt import Skipped, allowed, too_many
from gendd.data.fingerprint import base_name, digest, tensor_bytes
from gendd.data.images import ImageSet
from gendd.data.tars import (
    NO_LABEL,
    Sample,
    hash_of,
    image_of,
    label_of,
    library,
    read_samples,
)
from gendd.data.workers import ignore_interrupts, unchanged
from gendd.errors import UserError

# the number of workers must divide it
STREAMS = 24


@dataclass(frozen=True)
class Choice:
    """Selects the training images: those whose hash of tar and key lies between ``first`` and ``last``.

    Args:
        mask: Derived from ``data.split_seed``.
        first: Images with lower hashes are held out for validation.
        last: Images with higher hashes are not used.
    """

    mask: int
    first: int
    last: int

    def takes(self, url: str, key: str) -> bool:
        """Return whether an image is a training image."""
        return self.first <= hash_of(url, key) ^ self.mask <= self.last


@dataclass(frozen=True)
class Shards:
    """N training images in tar shards, read sequentially.

    Args:
        urls: The shards that contain training images.
        counts: int64 (shards,): training images in each.
        starts: int64 (N,): byte offset of each image's sample; -1 if its shard can only be read from the
            start.
        labels: int64 (N,), or None.
        choice: Selects the training images among those of a shard.
        channels: C, 1 or 3.
        size: S.
        max_corrupt: Maximum fraction of unreadable images.
        skipped: Records the unreadable images.
    """

    urls: Sequence[str]
    counts: Tensor
    starts: Tensor
    labels: Tensor | None
    choice: Choice
    channels: int = 0
    size: int = 0
    max_corrupt: float = 0.0
    skipped: Skipped = field(default_factory=lambda: Skipped("training"), compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def fingerprint(self) -> str:
        """Digest of the shards' names, the positions of their training images, and the labels."""
        return digest(
            [*map(base_name, self.urls), *map(tensor_bytes, (self.counts, self.starts, self.labels))]
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Shards:
        # immutable: copies share it
        return self

    def segments(self, order: Tensor, begin: int, end: int) -> Iterator[Segment]:
        """Yield the segments of images ``begin`` to ``end`` of the shards concatenated in ``order``."""
        first = 0
        for shard, count in zip(order.tolist(), self.counts[order].tolist(), strict=True):
            low, high = max(begin, first), min(end, first + count)
            if low < high:
                yield Segment(shard, low - first, high - first)
            first += count

    def drawn(self, rng: random.Random) -> Iterator[Segment]:
        """Yield shards drawn with replacement, endlessly.

        The first begins at a random image: otherwise, in epochs shorter than a shard, images at the ends of
        shards would rarely be seen.
        """
        ends = self.counts.cumsum(0)
        image = rng.randrange(len(self))
        shard = int(torch.searchsorted(ends, image, right=True))
        count = int(self.counts[shard])
        yield Segment(shard, image - int(ends[shard]) + count, count)
        while True:
            shard = rng.randrange(len(self.urls))
            yield Segment(shard, 0, int(self.counts[shard]))

    def read(self, segment: Segment, tally: Tally) -> Iterator[Sample]:
        """Yield the images of a segment; missing ones are added to ``tally``."""
        url = self.urls[segment.shard]
        start = int(self.starts[int(self.counts[: segment.shard].sum()) + segment.first])
        skipped = 0 if start >= 0 else segment.first
        wanted = segment.last - segment.first
        reasons: list[str] = []
        row = segment.first
        samples = self._chosen(url, read_samples(url, start, reasons))
        for key, image, label in itertools.islice(samples, skipped, skipped + wanted):
            yield Sample(url, key, image, label, row)
            row += 1
        if row < segment.last:
            why = reasons[0] if reasons else "it has changed"
            for missing in range(row, segment.last):
                tally.add(Problem(url, missing, f"training image {missing} of {url!r} ({why})"))

    def _chosen(self, url: str, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[str, bytes, int]]:
        """Yield key, image and label of the training images."""
        for sample in samples:
            key, image = sample["__key__"], image_of(sample)
            label = label_of(sample.get("cls")) if self.labels is not None else NO_LABEL
            usable = image is not None and (self.labels is None or label >= 0)
            if usable and self.choice.takes(url, key):
                yield key, image, label


@dataclass(frozen=True)
class Segment:
    """Training images ``first`` (inclusive) to ``last`` (exclusive) of one shard."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class Problem:
    """An unreadable training image of a shard: its index there, and its name."""

    url: str
    row: int
    name: str


class Tally:
    """Unreadable images of an epoch, each counted once.

    Args:
        total: Number of training images.
        share: Maximum fraction of unreadable images, in [0, 1).
    """

    def __init__(self, total: int, share: float) -> None:
        self.total = total
        self.allowed = allowed(total, share)
        self.met: set[tuple[str, int]] = set()
        self.problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Count a problem; raises :class:`UserError` if there are too many."""
        place = (problem.url, problem.row)
        if place in self.met:
            return
        self.met.add(place)
        self.problems.append(problem)
        if len(self.met) > self.allowed:
            raise too_many(self.allowed, self.total, "training", problem.name)


# --- an epoch ----------------------------------------------------------------------------------------


def steps_of(shards: Shards, config: DataConfig, world_size: int) -> tuple[int, int]:
    """Return the steps per epoch and the batch size, equal in all processes.

    Raises:
        UserError: fewer images than processes, or fewer than ``data.steps_per_epoch`` needs.
    """
    share = len(shards) // world_size
    if share == 0:
        raise UserError(
            f"Expected at most one training process an image, got {world_size} for {len(shards)} training "
            "images; start fewer processes, or give more images."
        )
    batch_size = config.batch_of(len(shards))
    if config.resampled:
        return config.steps_per_epoch or max(1, share // batch_size), batch_size
    batch_size = min(share, batch_size)
    steps = config.steps_per_epoch or share // batch_size
    if steps * batch_size > share:
        raise UserError(
            f"data.steps_per_epoch: expected at most {share // batch_size} ({len(shards)} training images, "
            f"{world_size} x {batch_size} a step), got {steps}; lower it, or set data.resampled to true."
        )
    return steps, batch_size


@dataclass(frozen=True)
class Epoch:
    """A sized iterable of batches: uint8 (B, C, S, S) and int64 (B,) or None; all of the same size.

    Unreadable images are skipped, recorded and replaced by others.

    Args:
        shards: The images.
        order: int64 (shards,): order of the shards.
        seeds: One per stream, for its shuffle buffer and, if ``resampled``, its draws.
        vary: Augmentation: set, index and draw number → uint8 (C, S, S).
        steps: Number of batches.
        batch_size: B.
        rank: Rank of this process.
        resampled: Draw the shards with replacement.
        buffer: Total size of the process's shuffle buffers, in images.
        workers: Maximum number of loader processes; 0 reads in this process.
        max_corrupt: Maximum fraction of unreadable training images per epoch, counted in each process.
        first: Index of the first batch to yield; those before it are read and dropped.

    Raises:
        UserError: during iteration, if more images are unreadable.
    """

    shards: Shards
    order: Tensor
    seeds: Sequence[int]
    vary: Callable[[ImageSet, int, int], Tensor]
    steps: int
    batch_size: int
    rank: int
    resampled: bool
    buffer: int
    workers: int
    max_corrupt: float
    first: int = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        loader: DataLoader[Any] = DataLoader(
            _Reader(self),
            batch_size=None,
            num_workers=_helpers(min(self.workers, self.steps - self.first)),
            collate_fn=unchanged,
            worker_init_fn=ignore_interrupts,
            # without one the loader would draw from the global generator
            generator=torch.Generator(),
        )
        tally = Tally(len(self.shards), self.max_corrupt)
        for found in loader:
            if isinstance(found, UserError):
                raise found
            pixels, labels, problems = found
            for problem in problems:
                self.shards.skipped.add(problem.name)
                tally.add(problem)
            yield pixels, labels

    def places_of(self, step: int) -> Tensor:
        """Return the positions of a batch's images in the epoch, int64 (B,)."""
        first = (self.rank * self.steps + step) * self.batch_size
        return torch.arange(first, first + self.batch_size)

    def stream(self, number: int, tally: Tally) -> Iterator[Sample]:
        """Yield the shuffled images of one stream, then endlessly others to replace unreadable ones."""
        rng = random.Random(self.seeds[number])
        begin, end = self.interval(number)
        # a buffer needs no more than the stream has
        size = min(-(-self.buffer // STREAMS), end - begin)
        shuffle = library().shuffle(size, initial=size, rng=rng)
        planned = self.shards.drawn(rng) if self.resampled else self.shards.segments(self.order, begin, end)
        for segments, stage in ((planned, shuffle), (self.shards.drawn(rng), iter)):
            yield from stage(self._readable(segments, tally))

    def _readable(self, segments: Iterable[Segment], tally: Tally) -> Iterator[Sample]:
        """Yield the readable images of segments; raises :class:`UserError` if a whole pass has none."""
        barren = 0
        for segment in segments:
            found = False
            for sample in self.shards.read(segment, tally):
                found = True
                yield sample
            barren = 0 if found else barren + 1
            if barren > len(self.shards.urls):
                more = " and the other shards" if len(self.shards.urls) > 1 else ""
                raise UserError(
                    f"Expected readable images in {self.shards.urls[0]!r}{more}, found none in a whole pass; "
                    "mend the shards, or give others."
                )

    def interval(self, number: int) -> tuple[int, int]:
        """Return the range of the epoch's images that a stream reads."""
        steps = [len(range(each, self.steps, STREAMS)) for each in range(number + 1)]
        begin = (self.rank * self.steps + sum(steps[:-1])) * self.batch_size
        return begin, begin + steps[-1] * self.batch_size


class _Reader(IterableDataset[Any]):
    """Reads, decodes and augments the batches of a loader process's streams."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None, list[Problem]] | UserError]:
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        # the loader asks worker 0 first
        worker = (self.epoch.first + (0 if info is None else info.id)) % workers
        tally = Tally(len(self.epoch.shards), self.epoch.max_corrupt)
        streams: dict[int, Iterator[Sample]] = {}
        try:
            for step in range(worker, self.epoch.steps, workers):
                number = step % STREAMS
                if number not in streams:
                    streams[number] = self.epoch.stream(number, tally)
                pixels, labels = self.batch(streams[number], step, tally)
                if step >= self.epoch.first:
                    yield pixels, labels, tally.problems[:]
                    tally.problems.clear()
        except UserError as error:
            # returned, not raised: a loader would rewrite its message
            yield error

    def batch(self, stream: Iterator[Sample], step: int, tally: Tally) -> tuple[Tensor, Tensor | None]:
        epoch, shards = self.epoch, self.epoch.shards
        shape = (epoch.batch_size, shards.channels, shards.size, shards.size)
        pixels = torch.empty(shape, dtype=torch.uint8)
        labels = torch.empty(epoch.batch_size, dtype=torch.int64)
        # by position, not by image: an image drawn twice is augmented in two ways
        places = epoch.places_of(step).tolist()
        row = 0
        while row < epoch.batch_size:
            sample = next(stream)
            image = ImageSet(sample, None, shards.channels, shards.size)
            try:
                pixels[row] = epoch.vary(image, 0, places[row])
            except UserError:
                tally.add(Problem(sample.url, sample.row, sample.place))
                continue
            labels[row] = sample.label
            row += 1
        return pixels, None if shards.labels is None else labels


def _helpers(most: int) -> int:
    """Return the largest number of workers that divides the streams evenly."""
    return max(number for number in range(most + 1) if number == 0 or STREAMS % number == 0)
