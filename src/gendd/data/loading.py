"""Batches: in order for evaluation, shuffled and augmented for training.

Order and augmentation are functions of (seed, epoch, rank) alone, so that a resumed run repeats them. In the
place of a corrupt image training gets the next one of the set, and evaluation none.
Shapes: B images, C channels, H = W side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gendd.config import DataConfig
from gendd.data.appearance import Appearance
from gendd.data.augment import draw
from gendd.data.batch import Batch
from gendd.data.corrupt import substitutes
from gendd.data.draws import keyed_generator
from gendd.data.images import ImageSet
from gendd.data.sets import Data
from gendd.data.shards import STREAMS, Epoch, Shards, steps_of
from gendd.data.variation import Variation
from gendd.data.workers import cores, ignore_interrupts, unchanged
from gendd.errors import UserError
from gendd.processes import share

_MOST_WORKERS = 8


@dataclass(frozen=True)
class Batches:
    """A sized iterable of :class:`Batch`; iterating again gives the same batches again.

    A batch of nothing but corrupt images is left out in evaluation; there may then be fewer than its length.

    Args:
        images: Where they come from.
        order: int64: indices in the order they are given.
        batch_size: B; the last batch may be smaller.
        workers: Loader processes where images are decoded or changed one by one; 0 does that in this
            process.
        augmentation: None for images as they are.
        places: int64: of each of ``order`` its place in the epoch, which decides its augmentation.
        first: Where iteration begins; the length is that of all.
    """

    images: ImageSet
    order: Tensor
    batch_size: int
    workers: int
    augmentation: Variation | None
    places: Tensor | None = None
    first: int = 0

    def since(self, first: int) -> Batches:
        """The same, given from batch ``first`` on."""
        return replace(self, first=first)

    def until(self, last: int) -> Batches:
        """The same without the batches from ``last`` on."""
        end = last * self.batch_size
        places = None if self.places is None else self.places[:end]
        return replace(self, order=self.order[:end], places=places)

    def places_of(self, number: int) -> Tensor:
        """int64 (B,): the places in the epoch of the images of a batch; of training batches."""
        assert self.places is not None
        return self.places[number * self.batch_size : (number + 1) * self.batch_size]

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    @property
    def _whole(self) -> bool:
        """Whether batches are made of pixels in memory as they are, not image by image."""
        return self.images.in_memory and (self.augmentation is None or self.augmentation.batchwise)

    @property
    def processes(self) -> int:
        """Loader processes that it is read by; 0: this process reads it."""
        return 0 if self._whole else self.workers

    def __iter__(self) -> Iterator[Batch]:
        if self._whole:
            yield from self._from_memory()
        else:
            yield from self._one_by_one()

    def _batches(self, values: Tensor) -> tuple[Tensor, ...]:
        """Of values a row an image, those of the batches that are given."""
        left = values[self.first * self.batch_size :]
        return torch.split(left, self.batch_size) if len(left) else ()

    def _from_memory(self) -> Iterator[Batch]:
        how = self.augmentation
        if how is None or self.places is None:
            for indices in self._batches(self.order):
                yield self._batch(self.images.images(indices), indices)
            return
        size = self.images.size, self.images.size
        draws = draw(how.kind, len(self.images), size, how.generator("batches"), how.crop_scale)
        for indices, places in zip(self._batches(self.order), self._batches(self.places), strict=True):
            yield self._batch(draws.of(places)(self.images.images(indices)), indices)

    def _one_by_one(self) -> Iterator[Batch]:
        batches = [indices.tolist() for indices in self._batches(self.order)]
        # pixels in memory have been decoded: none of them is corrupt
        tally = self.images.tally(len(self.order))
        loader: DataLoader[Any] = DataLoader(
            _Stream(self.images, self.augmentation, 0 if tally is None else tally.allowed),
            batch_sampler=batches,
            num_workers=min(self.workers, len(batches)),
            collate_fn=unchanged,
            worker_init_fn=ignore_interrupts,
            # Given, because the loader would otherwise draw from the global generator.
            generator=torch.Generator(),
        )
        for pixels, indices, corrupt in loader:
            if tally is not None:
                tally.add(corrupt)
            if indices:
                yield self._batch(pixels, torch.tensor(indices))

    def _batch(self, pixels: Tensor, indices: Tensor) -> Batch:
        labels = self.images.labels
        return _on_host(pixels, None if labels is None else labels.index_select(0, indices))


@dataclass(frozen=True)
class ShardBatches:
    """A sized iterable of :class:`Batch` from shards; iterating again gives the same batches again.

    Args:
        epoch: What is read, in which order.
    """

    epoch: Epoch

    def since(self, first: int) -> ShardBatches:
        """The same, given from batch ``first`` on."""
        return ShardBatches(replace(self.epoch, first=first))

    def places_of(self, number: int) -> Tensor:
        """As :meth:`Batches.places_of`."""
        return self.epoch.places_of(number)

    @property
    def processes(self) -> int:
        """As :attr:`Batches.processes`."""
        return self.epoch.workers

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in self.epoch:
            yield _on_host(pixels, labels)


class _Stream(Dataset[Any]):
    """Decodes and augments whole batches in a loader process.

    Args:
        images: The set.
        augmentation: None for images as they are; a corrupt one is then left out. Else the next image of
            the set takes its place.
        allowed: How many corrupt images in a row are passed over at most.
    """

    def __init__(self, images: ImageSet, augmentation: Variation | None, allowed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.allowed = allowed

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[int], list[tuple[int, UserError]]]:
        """Images uint8 (n, C, S, S), their indices, and the corrupt ones met.

        Errors are returned, not raised: a loader would rewrite their messages.
        """
        pixels: list[Tensor] = []
        used: list[int] = []
        corrupt: list[tuple[int, UserError]] = []
        for place in indices:
            most = 0 if self.augmentation is None else self.allowed
            for index in substitutes(place, len(self.images), most):
                try:
                    pixels.append(self._decoded(index, place))
                    used.append(index)
                    break
                except UserError as error:
                    corrupt.append((index, error))
        return torch.stack(pixels) if pixels else torch.empty(0), used, corrupt

    def _decoded(self, index: int, place: int) -> Tensor:
        if self.augmentation is None:
            return self.images.images([index])[0]
        return self.augmentation.streamed(self.images, index, place)


def _on_host(pixels: Tensor, labels: Tensor | None) -> Batch:
    """The batch of uint8 images (B, C, S, S) and their labels (B,)."""
    images = _host(pixels.shape, torch.float32).copy_(pixels).div_(255)
    return Batch(images, None if labels is None else _host(labels.shape, torch.int64).copy_(labels))


def _host(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty CPU tensor; page-locked where there is CUDA, which can copy only such without waiting."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def _workers(workers: int | None) -> int:
    return min(cores(), _MOST_WORKERS) if workers is None else workers


def train_loader(
    data: Data, config: DataConfig, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> Batches | ShardBatches:
    """One epoch of shuffled, augmented training batches.

    A step's images are its batches of all processes, an equal part for each: the same images, augmented
    alike, whatever the number of processes they are shared out to (of shards every process reads its own).
    Those left over at the end are dropped, others the next epoch. A set smaller than a step is given as
    one smaller step. Shards may also be drawn with replacement, or their epoch be cut to a number of steps.

    Args:
        data: The set.
        config: Gives batch size, workers and augmentation. Batches are not mixed and their labels hard:
            see :class:`~gendd.data.mixing.Mixing`.
        seed: Seed of the run.
        epoch: Number of the epoch; every one has its own order and augmentation.
        rank: This process.
        world_size: Number of processes.

    Raises:
        UserError: fewer images than processes; when iterated, more images that can't be decoded than the
            set allows.
    """
    how = Variation(
        data.augment,
        config.crop_scale,
        seed,
        epoch,
        config.crop_interpolation,
        Appearance.from_config(config),
    )
    if isinstance(data.train, Shards):
        return ShardBatches(_shard_epoch(data.train, how, config, rank, world_size))
    own = len(data.train) // world_size
    if own == 0:
        raise UserError(
            f"Expected at most one training process an image, got {world_size} for {len(data.train)} "
            "training images; start fewer processes, or give more images."
        )
    order = torch.randperm(len(data.train), generator=keyed_generator(seed, epoch, "order"))
    batch_size = min(own, config.batch_of(len(data.train)))
    steps = own // batch_size
    # of each step's images, which are the same whatever the number of processes
    whole = torch.arange(steps * batch_size * world_size).view(steps, -1)
    places = whole[:, share(whole.shape[1], rank, world_size)].flatten()
    return Batches(data.train, order[places], batch_size, _workers(config.workers), how, places)


def _shard_epoch(shards: Shards, how: Variation, config: DataConfig, rank: int, world_size: int) -> Epoch:
    steps, batch_size = steps_of(shards, config, world_size)
    seeds = torch.randint(2**62, (STREAMS,), generator=how.generator("streams", rank))
    return Epoch(
        shards=shards,
        order=torch.randperm(len(shards.urls), generator=how.generator("order")),
        seeds=seeds.tolist(),
        vary=how.streamed,
        steps=steps,
        batch_size=batch_size,
        rank=rank,
        resampled=config.resampled,
        buffer=config.shuffle_buffer,
        workers=_workers(config.workers),
        max_corrupt=config.max_corrupt,
    )


def eval_loader(
    image_set: ImageSet, batch_size: int, workers: int | None = 0, rank: int = 0, world_size: int = 1
) -> Batches:
    """Every image once, in order, not augmented; corrupt ones are left out, so that batches may be smaller.

    Args:
        image_set: The images.
        batch_size: B.
        workers: Loader processes where the set streams; None: as many as there are cores, at most 8.
        rank: This process; it gets batches rank, rank + world_size, …
        world_size: Number of processes. Their numbers of batches may differ by one.

    Raises:
        UserError: when iterated, more images that can't be decoded than the set allows.
    """
    return _in_order(image_set, torch.arange(len(image_set)), batch_size, workers, rank, world_size)


def _in_order(
    images: ImageSet, order: Tensor, batch_size: int, workers: int | None, rank: int, world_size: int
) -> Batches:
    """One process's batches of images in an order."""
    batches = [each for each in torch.split(order, batch_size) if len(each)][rank::world_size]
    mine = torch.cat(batches) if batches else order[:0]
    return Batches(images, mine, batch_size, _workers(workers), None)


def _divisor(count: int, most: int) -> int:
    """Of the sizes from ``most`` down to half of it the one that leaves least of ``count`` over."""
    most = min(most, count)
    return min(range(most, most // 2, -1), key=lambda size: count % size)


def sample_loader(
    images: ImageSet | Shards,
    batch_size: int,
    limit: int | None = None,
    workers: int | None = 0,
    framing: float | None = None,
    part: tuple[int, int] = (0, 1),
) -> Batches | ShardBatches:
    """Images as they are, each once at most: all of them, or a number that stands for them.

    Of a set they are evenly spread over it and given in order. Of shards, which are read in sequence, they
    are those of the first of the shards in an order of their own; their batches are all of one size, that
    of up to ``batch_size`` which leaves out the fewest.

    Args:
        images: The images.
        batch_size: B.
        limit: How many at most; None: all.
        workers: As for :func:`eval_loader`.
        framing: See :class:`ImageSet`; None: the set's own.
        part: This process, which gets its batches in turn, and the number of processes; of a set only.

    Raises:
        UserError: when iterated, more images that can't be decoded than the set allows.
    """
    count = len(images) if limit is None else min(limit, len(images))
    if isinstance(images, ImageSet):
        framed = images if framing is None else replace(images, framing=framing)
        order = torch.linspace(0, len(images) - 1, count).round().long()
        if count == len(images):
            order = torch.arange(count)
        return _in_order(framed, order, batch_size, workers, *part)
    how = Variation("none", (1.0, 1.0), seed=0, epoch=0, framing=framing)
    batch_size = _divisor(count, batch_size)
    epoch = Epoch(
        shards=images,
        order=torch.randperm(len(images.urls), generator=how.generator("order")),
        seeds=list(range(STREAMS)),
        vary=how.streamed,
        steps=count // batch_size,
        batch_size=batch_size,
        rank=0,
        resampled=False,
        buffer=1,
        workers=_workers(workers),
        max_corrupt=images.max_corrupt,
    )
    return ShardBatches(epoch)
