"""Training images streamed from tar shards, shared out over processes, loader workers and steps.

An epoch is one line of images: the shards in shuffled order, each in its own. Every process takes an equal
interval of it, and each of the process's STREAMS reads an equal part of that in sequence through a shuffle
buffer; step i is a batch of stream i mod STREAMS. Loader workers share the streams, so that what is given
does not depend on how many workers there are. Shapes: B images a batch, C channels, S side.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gendd.config import DataConfig
from gendd.data.corrupt import Skipped, allowed, too_many
from gendd.data.fingerprint import base_name, digest, fingerprint, tensor_bytes
from gendd.data.images import ImageSet, cores, decode, watched
from gendd.data.readers import Part, by_split, class_numbers, given_names, read_part, untested
from gendd.data.tars import (
    BAD_LABEL,
    NO_LABEL,
    Contents,
    Sample,
    find_tars,
    hash_of,
    hold,
    image_of,
    images_at,
    is_remote,
    label_of,
    library,
    read_samples,
    survey,
)
from gendd.data.workers import ignore_interrupts, unchanged
from gendd.errors import UserError
from gendd.files import user_path

# a step's stream depends on this number and not on the workers, which must divide it
STREAMS = 24
MOST_HELD_OUT = 10_000
_NO_BOUND = 2**63 - 1


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

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        loader: DataLoader[Any] = DataLoader(
            _Reader(self),
            batch_size=None,
            num_workers=_helpers(min(self.workers, self.steps)),
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
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        tally = Tally(len(self.epoch.shards), self.epoch.max_corrupt)
        streams: dict[int, Iterator[Sample]] = {}
        try:
            for step in range(worker, self.epoch.steps, workers):
                number = step % STREAMS
                if number not in streams:
                    streams[number] = self.epoch.stream(number, tally)
                pixels, labels = self.batch(streams[number], step, tally)
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
        first = (epoch.rank * epoch.steps + step) * epoch.batch_size
        row = 0
        while row < epoch.batch_size:
            sample = next(stream)
            image = ImageSet(sample, None, shards.channels, shards.size)
            try:
                pixels[row] = epoch.vary(image, 0, first + row)
            except UserError:
                tally.add(Problem(sample.url, sample.row, sample.place))
                continue
            labels[row] = sample.label
            row += 1
        return pixels, None if shards.labels is None else labels


def _helpers(most: int) -> int:
    """The largest number of workers that shares the streams evenly."""
    return max(number for number in range(most + 1) if number == 0 or STREAMS % number == 0)


# --- from a configuration ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Shards and the test set beside them, as they were found.

    Args:
        train: Training images; channels and size not set yet.
        val: Images held out of them, encoded, size not set yet; None where there are none.
        own_val: Validation images of the set's own in their place; None likewise.
        test: Test images, labelled or not; None where there are none, which only unlabelled training
            images allow.
        class_names: One name a class; none where nothing tells the classes.
        channels: 1 where the training images are gray, else 3.
    """

    train: Shards
    val: ImageSet | None
    test: Part | None
    class_names: list[str]
    channels: int
    own_val: Part | None = None


def read_shards(config: DataConfig) -> Found:
    """What ``data.path`` and ``data.test_path`` name.

    In the order of their hashes (of tar and key, by ``split_seed``) the first images are held out,
    ``validation`` of them and at most 10,000, none where there are shards of validation images besides the
    test images; the ``train_images`` that follow are trained on.

    Raises:
        UserError: shards that are missing, hold no images or too many unreadable ones, labels that are no
            class numbers or have no name, or labelled images without test images.
    """
    path, val_path, test_path = _paths(config)
    mask = int(torch.randint(_NO_BOUND, (), generator=torch.Generator().manual_seed(config.split_seed)))
    contents = survey(path, config.workers)
    lost = _check_whole(contents, config.max_corrupt, "mend them, or raise data.max_corrupt")
    labels = _labels(contents, config.labels)
    test, names = (None, []) if test_path is None else _test(test_path, config)
    tested = None if test is None else test.labels
    if labels is not None and config.labels and test is None:
        raise untested(config, "test images (shards, a directory of class folders or parquet)")
    own_val = None
    if val_path:
        own_val, _ = _test(val_path, config)
        if labels is not None and config.labels and own_val.labels is None:
            raise UserError(
                f"Expected a cls with every image of {val_path[0]!r}, as the training images have one, found "
                "none; add them, or set data.labels to false."
            )
    # what training may not see and no test image has needs to be no class
    useful = config.labels or tested is not None
    labels, names = _classes(labels if useful else None, tested, names, config)

    hashes = torch.from_numpy(np.concatenate([each.hashes for each in contents])) ^ mask
    choice, held = _chosen(hashes, mask, config, 0.0 if own_val is not None else config.validation)
    held_rows = (hashes < choice.first).nonzero()[:, 0]
    train_rows = (hashes >= choice.first) & (hashes <= choice.last)
    parts = torch.split(train_rows, [len(each) for each in contents])
    counts = torch.tensor([int(part.sum()) for part in parts])
    starts = torch.from_numpy(np.concatenate([each.starts for each in contents]))
    train = Shards(
        urls=[each.url for each, count in zip(contents, counts.tolist(), strict=True) if count],
        counts=counts[counts > 0],
        starts=starts[train_rows],
        labels=None if labels is None else labels[train_rows],
        choice=choice,
        max_corrupt=config.max_corrupt,
    )
    for missing, what in lost:
        train.skipped.add_missing(missing, what)
    # said before anything is trained
    steps_of(train, config, 1)
    channels = 1 if all(each.gray for each in contents if len(each)) else 3
    val = None
    if held:
        held_labels = None if labels is None else labels[held_rows]
        source = images_at(contents, held_rows)
        val = ImageSet(
            source,
            held_labels,
            channels,
            size=0,
            max_corrupt=config.max_corrupt,
            skipped=Skipped("validation"),
            fingerprint=fingerprint(source, held_labels),
        )
        val = val if config.in_memory is False else _held(val)
    return Found(train, val, test, names, channels, own_val)


def _classes(
    labels: Tensor | None, tested: Tensor | None, names: list[str], config: DataConfig
) -> tuple[Tensor | None, list[str]]:
    """The labels of the training images, which may be of no use, and a name for each class.

    Args:
        labels: Of the training images.
        tested: Of the test images.
        names: What the test set calls the classes; none where it doesn't tell.
        config: Names them otherwise, and tells whether the labels of the training images are needed.
    """
    if config.classes is not None:
        names = given_names(config.classes, labels if config.labels else None, tested)
    if labels is not None and names and int(labels.max()) >= len(names):
        if config.labels:
            raise UserError(
                f"Expected labels below {len(names)}, the number of classes in data.test_path, got "
                f"{int(labels.max())} in data.path; give their test set, or set data.labels to false."
            )
        labels = None
    return labels, names or class_numbers(labels, tested)


def _paths(config: DataConfig) -> tuple[list[str], list[str], str | list[str] | None]:
    """The shards of training and validation; the test set: shards, the path of another kind, or none."""
    if config.path is None:
        raise UserError("data.path: expected tar shards for data.name 'webdataset', got none; set data.path.")
    train, val, test = find_tars(config.path, "data.path"), list[str](), list[str]()
    root = user_path(config.path)
    if os.path.isdir(root):
        train, val, test = by_split(train, root)
    if config.validation == 0 and (test or config.test_path is not None):
        val = []
    if config.test_path is not None:
        other = user_path(config.test_path)
        holds_tars = os.path.isdir(other) and next(other.rglob("*.tar"), None) is not None
        if (
            not is_remote(config.test_path)
            and (os.path.isdir(other) or other.suffix == ".parquet")
            and not holds_tars
        ):
            return train, val, config.test_path
        test = find_tars(config.test_path, "data.test_path")
    return (train, val, test) if test else (train, [], val or None)


def _test(given: str | list[str], config: DataConfig) -> tuple[Part, list[str]]:
    """The test or validation images, and their class names where they have any."""
    if isinstance(given, str):
        return read_part(given, "data.test_path")
    contents = survey(given, config.workers)
    _check_whole(contents, 0.0, "mend them, or give others")
    count = sum(len(each) for each in contents)
    return Part(count, _labels(contents, True), lambda rows: images_at(contents, rows)), []


def _check_whole(contents: Sequence[Contents], limit: float, remedy: str) -> list[tuple[int, str]]:
    """How many images which shards lack; raises :class:`UserError` where they lack too many, or all.

    A damaged shard is taken to have lost what it lacks of the median whole one, and one image at least.
    """
    total = sum(len(each) for each in contents)
    whole = [len(each) for each in contents if not each.damage]
    typical = int(np.median(whole)) if whole else 0
    lost: list[tuple[int, str]] = []
    for each in contents:
        if each.damage:
            lost.append((max(1, typical - len(each)), f"{each.url!r}: {each.damage}"))
        if each.imageless:
            lost.append((each.imageless, f"no image in {each.stray}"))
    count = sum(missing for missing, _ in lost)
    if total == 0:
        raise UserError(
            f"Expected samples with a jpg, jpeg, png or webp in {contents[0].url!r}"
            f"{' and the other shards' if len(contents) > 1 else ''}, found none"
            f"{f' ({lost[0][1]})' if lost else ''}; give other shards."
        )
    if count > limit * (total + count):
        raise UserError(
            f"Expected at most {limit:g} of the images of the shards to be missing or damaged, got about "
            f"{count} of {total + count} ({lost[0][1]}); {remedy}."
        )
    return lost


def _labels(contents: Sequence[Contents], needed: bool) -> Tensor | None:
    """The labels of all images; None where there are none, or not for all though they are not needed."""
    labels = torch.from_numpy(np.concatenate([each.labels for each in contents]))
    if bool((labels >= 0).all()):
        return labels
    if not needed or bool((labels == NO_LABEL).all()):
        return None
    if bool((labels == BAD_LABEL).any()):
        odd = next(each.odd_label for each in contents if each.odd_label)
        raise UserError(f"Expected a class number, counted from 0, in every cls, got {odd}; correct it.")
    url = next(each.url for each in contents if (each.labels == NO_LABEL).any())
    raise UserError(
        f"Expected a cls with every image or with none, got {int((labels == NO_LABEL).sum())} without of "
        f"{len(labels)}, the first in {url!r}; add them, or set data.labels to false."
    )


def _chosen(hashes: Tensor, mask: int, config: DataConfig, share: float) -> tuple[Choice, int]:
    """Which images are trained on, and how many are held out, ``share`` of all."""
    total = len(hashes)
    held = min(round(share * total), MOST_HELD_OUT)
    if held == total or (share > 0 and held == 0):
        raise UserError(
            f"data.validation: expected a fraction of the {total} training images that leaves some on both "
            f"sides, got {config.validation}; change it, or set 0 for none."
        )
    wanted = config.train_images
    if wanted is not None and wanted > total - held:
        raise UserError(
            f"data.train_images: expected at most {total - held} (what is left of {total} after "
            f"validation), got {wanted}; lower it, or lower data.validation."
        )
    ordered = hashes.sort().values
    first = int(ordered[held - 1]) + 1 if held else 0
    last = _NO_BOUND if wanted is None else int(ordered[held + wanted - 1])
    return Choice(mask, first, last), held


def _held(images: ImageSet) -> ImageSet:
    """The readable ones of encoded images, in memory as they are; each is decoded once to tell."""
    source, tally = images.source, images.tally(len(images))
    assert tally is not None and not isinstance(source, Tensor)

    def read(index: int) -> bytes | UserError:
        try:
            content = source.read(index)
            decode(content, source.where(index), images.channels)
        except UserError as error:
            return error
        return content

    found: dict[int, bytes] = {}

    def join(parts: Iterable[bytes | UserError]) -> Iterator[int]:
        for index, part in enumerate(parts):
            if isinstance(part, UserError):
                tally.add([(index, part)])
            else:
                found[index] = part
            yield 1

    with ThreadPoolExecutor(cores()) as pool:
        for _ in watched(join(pool.map(read, range(len(images)))), len(images), "Reading validation images"):
            pass
    held = hold(list(found.values()), [source.where(index) for index in found])
    return replace(
        images, source=held, labels=None if images.labels is None else images.labels[torch.tensor([*found])]
    )
