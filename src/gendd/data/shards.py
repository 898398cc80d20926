"""Training images streamed from tar shards, shared out over processes, loader workers and steps.

An epoch is one line of images: the shards in shuffled order, each in its own. Every process takes an equal
interval of it, and each of the process's STREAMS reads an equal part of that in sequence through a shuffle
buffer; step i is a batch of stream i mod STREAMS. Loader workers share the streams, so that what is given
does not depend on how many workers there are. Shapes: B images a batch, C channels, S side.
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

# a step's stream depends on this number and not on the workers, which must divide it
STREAMS = 24


@dataclass(frozen=True)
class Choice:
    """Which images are trained on, by the hash of tar and key: those that lie from ``first`` to ``last``.

    Args:
        mask: Of ``data.split_seed``; another one gives another split.
        first: Hashes below are held out.
        last: Hashes above are not used.
    """

    mask: int
    first: int
    last: int

    def takes(self, url: str, key: str) -> bool:
        """Whether an image is trained on."""
        return self.first <= hash_of(url, key) ^ self.mask <= self.last


@dataclass(frozen=True)
class Shards:
    """N training images in tar shards, only ever read in sequence.

    Args:
        urls: The shards that hold some.
        counts: int64 (shards,): training images in each.
        starts: int64 (N,): byte at which each image's sample begins; -1 where its shard is only read from
            its start.
        labels: int64 (N,), or None.
        choice: Tells the training images among those of a shard.
        channels: C, 1 or 3.
        size: S.
        max_corrupt: The largest share of them that may be unreadable where they are read as they are.
        skipped: Told of the images that can't be read.
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
        """A digest of the shards' names, of where their training images lie, and of the labels."""
        return digest(
            [*map(base_name, self.urls), *map(tensor_bytes, (self.counts, self.starts, self.labels))]
        )

    def __deepcopy__(self, memo: dict[int, object]) -> Shards:
        # never written to: a copy of what holds it shares the labels
        return self

    def segments(self, order: Tensor, begin: int, end: int) -> Iterator[Segment]:
        """What images ``begin`` to ``end`` of the line are: the shards end to end in ``order``."""
        first = 0
        for shard, count in zip(order.tolist(), self.counts[order].tolist(), strict=True):
            low, high = max(begin, first), min(end, first + count)
            if low < high:
                yield Segment(shard, low - first, high - first)
            first += count

    def drawn(self, rng: random.Random) -> Iterator[Segment]:
        """Shards drawn with replacement, without end.

        The first is entered at an image drawn at random: entered at its beginning, images at the ends of
        shards would hardly be met in epochs that are shorter than a shard.
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
        """The images of a segment; those that are missing are told to ``tally``."""
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
        """Key, image and label of those that are trained on."""
        for sample in samples:
            key, image = sample["__key__"], image_of(sample)
            label = label_of(sample.get("cls")) if self.labels is not None else NO_LABEL
            usable = image is not None and (self.labels is None or label >= 0)
            if usable and self.choice.takes(url, key):
                yield key, image, label


@dataclass(frozen=True)
class Segment:
    """Training images ``first`` to ``last`` (exclusive) of one shard."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class Problem:
    """A training image of a shard that can't be read: its place among them, and its name."""

    url: str
    row: int
    name: str


class Tally:
    """The unreadable images met in an epoch, each counted once.

    Args:
        total: Number of training images.
        share: The largest share of them that may be unreadable, in [0, 1).
    """

    def __init__(self, total: int, share: float) -> None:
        self.total = total
        self.allowed = allowed(total, share)
        self.met: set[tuple[str, int]] = set()
        self.problems: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Raises :class:`UserError` where there are too many."""
        place = (problem.url, problem.row)
        if place in self.met:
            return
        self.met.add(place)
        self.problems.append(problem)
        if len(self.met) > self.allowed:
            raise too_many(self.allowed, self.total, "training", problem.name)


# --- an epoch ----------------------------------------------------------------------------------------


def steps_of(shards: Shards, config: DataConfig, world_size: int) -> tuple[int, int]:
    """Steps of an epoch and images of a batch, the same for every process.

    Raises:
        UserError: fewer images than processes, or fewer than the steps asked for take.
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

    Unreadable images are skipped and told of; others take their places.

    Args:
        shards: The images.
        order: int64 (shards,): order of the shards.
        seeds: One a stream: of its shuffle buffer, and of its draws where ``resampled``.
        vary: Augments: from a set, an index and the number of the draws, uint8 (C, S, S).
        steps: Batches.
        batch_size: B.
        rank: This process.
        resampled: Draw the shards with replacement.
        buffer: Images that the streams of the process hold together.
        workers: Loader processes, at most; 0 reads in this one.
        max_corrupt: The largest share of the training images that may be unreadable, as each process
            counts them in an epoch.
        first: The batch that iteration begins at; those before it are read and left out.

    Raises:
        UserError: when iterated, more unreadable images than that.
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
            # given, because the loader would otherwise draw from the global generator
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
        """int64 (B,): the places of a batch's images in the epoch."""
        first = (self.rank * self.steps + step) * self.batch_size
        return torch.arange(first, first + self.batch_size)

    def stream(self, number: int, tally: Tally) -> Iterator[Sample]:
        """The images of one stream, shuffled; then others, without end, in the places of unreadable ones."""
        rng = random.Random(self.seeds[number])
        begin, end = self.interval(number)
        # more than the stream gives need not be read
        size = min(-(-self.buffer // STREAMS), end - begin)
        shuffle = library().shuffle(size, initial=size, rng=rng)
        planned = self.shards.drawn(rng) if self.resampled else self.shards.segments(self.order, begin, end)
        for segments, stage in ((planned, shuffle), (self.shards.drawn(rng), iter)):
            yield from stage(self._readable(segments, tally))

    def _readable(self, segments: Iterable[Segment], tally: Tally) -> Iterator[Sample]:
        """The images of segments that can be read; raises :class:`UserError` where a whole pass has none."""
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
        """The images of the epoch's line that a stream reads."""
        steps = [len(range(each, self.steps, STREAMS)) for each in range(number + 1)]
        begin = (self.rank * self.steps + sum(steps[:-1])) * self.batch_size
        return begin, begin + steps[-1] * self.batch_size


class _Reader(IterableDataset[Any]):
    """Reads, decodes and augments the batches of some streams, in a loader process."""

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
        # by place, not by image: drawn twice in an epoch, it is augmented in two ways
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
    """The largest number of workers that shares the streams evenly."""
    return max(number for number in range(most + 1) if number == 0 or STREAMS % number == 0)
