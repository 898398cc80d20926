"""Batches: in order for evaluation, shuffled and augmented for training.

Order and augmentation depend only on (seed, epoch, rank), so that a resumed run repeats them. A corrupt image
is replaced by the next one of the set in training, and left out in evaluation.
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
from gendd.data.drawing import spread_rows
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
    """A sized iterable of :class:`Batch`; every iteration yields the same batches.

    In evaluation a batch with only corrupt images is left out, so there may be fewer batches than its length.

    Args:
        images: The image set.
        order: int64: indices in the order they are yielded.
        batch_size: B; the last batch may be smaller.
        workers: Loader processes if images are decoded or augmented one by one; 0: use this process.
        augmentation: None for images without augmentation.
        places: int64: the position in the epoch of each of ``order``, which determines its augmentation.
        first: First batch of an iteration; the length is that of all batches.
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
        """Return the same batches, without those from ``last`` on."""
        end = last * self.batch_size
        places = None if self.places is None else self.places[:end]
        return replace(self, order=self.order[:end], places=places)

    def places_of(self, number: int) -> Tensor:
        """Return int64 (B,), the positions in the epoch of the images of a training batch."""
        assert self.places is not None
        return self.places[number * self.batch_size : (number + 1) * self.batch_size]

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    @property
    def _whole(self) -> bool:
        """Whether batches are taken directly from pixels in memory, not image by image."""
        return self.images.in_memory and (self.augmentation is None or self.augmentation.batchwise)

    @property
    def processes(self) -> int:
        """Number of loader processes; 0: this process."""
        return 0 if self._whole else self.workers

    def __iter__(self) -> Iterator[Batch]:
        if self._whole:
            yield from self._from_memory()
        else:
            yield from self._one_by_one()

    def _batches(self, values: Tensor) -> tuple[Tensor, ...]:
        """Split values with one row per image into the batches to yield."""
        left = values[self.first * self.batch_size :]
        return torch.split(left, self.batch_size) if len(left) else ()

    def _from_memory(self) -> Iterator[Batch]:
        how, device = self.augmentation, self.images.device
        batches = self._batches(self.order.to(device))
        if how is None or self.places is None:
            for indices in batches:
                yield self._batch(self.images.images(indices), indices)
            return
        size = self.images.size, self.images.size
        # drawn on the CPU, so that they are the same wherever the images are
        draws = draw(how.kind, len(self.images), size, how.generator("batches"), how.crop_scale).to(device)
        for indices, places in zip(batches, self._batches(self.places.to(device)), strict=True):
            yield self._batch(draws.of(places)(self.images.images(indices)), indices)

    def _one_by_one(self) -> Iterator[Batch]:
        batches = [indices.tolist() for indices in self._batches(self.order)]
        # pixels in memory have already been decoded, so none is corrupt
        tally = self.images.tally(len(self.order))
        loader: DataLoader[Any] = DataLoader(
            _Stream(self.images, self.augmentation, 0 if tally is None else tally.allowed),
            batch_sampler=batches,
            num_workers=min(self.workers, len(batches)),
            collate_fn=unchanged,
            worker_init_fn=ignore_interrupts,
            # Given, as the loader would otherwise draw from the global generator.
            generator=torch.Generator(),
        )
        for pixels, indices, corrupt in loader:
            if tally is not None:
                tally.add(corrupt)
            if indices:
                yield self._batch(pixels, torch.tensor(indices))

    def _batch(self, pixels: Tensor, indices: Tensor) -> Batch:
        labels = self.images.labels
        labels = None if labels is None else labels.index_select(0, indices)
        return _on_host(pixels, labels) if pixels.device.type == "cpu" else _on_device(pixels, labels)


@dataclass(frozen=True)
class ShardBatches:
    """A sized iterable of :class:`Batch` from shards; every iteration yields the same batches.

    Args:
        epoch: What to read, and in which order.
    """

    epoch: Epoch

    def since(self, first: int) -> ShardBatches:
        """The same, given from batch ``first`` on."""
        return ShardBatches(replace(self.epoch, first=first))

    def places_of(self, number: int) -> Tensor:
        """See :meth:`Batches.places_of`."""
        return self.epoch.places_of(number)

    @property
    def processes(self) -> int:
        """See :attr:`Batches.processes`."""
        return self.epoch.workers

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in self.epoch:
            yield _on_host(pixels, labels)


class _Stream(Dataset[Any]):
    """Decodes and augments whole batches in a loader process.

    Args:
        images: The image set.
        augmentation: None for images without augmentation, where corrupt images are left out; otherwise the
            next image of the set replaces a corrupt one.
        allowed: Maximum number of consecutive corrupt images.
    """

    def __init__(self, images: ImageSet, augmentation: Variation | None, allowed: int) -> None:
        self.images = images
        self.augmentation = augmentation
        self.allowed = allowed

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, list[int], list[tuple[int, UserError]]]:
        """Return images uint8 (n, C, S, S), their indices, and the corrupt images found.

        Errors are returned, not raised, as a loader would rewrite their messages.
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
    """Make a batch of uint8 images (B, C, S, S) and their labels (B,)."""
    images = _host(pixels.shape, torch.float32).copy_(pixels).div_(255)
    return Batch(images, None if labels is None else _host(labels.shape, torch.int64).copy_(labels))


def _on_device(pixels: Tensor, labels: Tensor | None) -> Batch:
    """:func:`_on_host` of images on a device, bit for bit."""
    # CUDA would multiply by the reciprocal of a number
    most = torch.full((), 255.0, device=pixels.device)
    return Batch(pixels.float().div_(most), labels)


def _host(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return an empty CPU tensor, pinned if there is CUDA, for asynchronous copies."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def _workers(workers: int | None) -> int:
    return min(cores(), _MOST_WORKERS) if workers is None else workers


def train_loader(
    data: Data, config: DataConfig, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> Batches | ShardBatches:
    """Return one epoch of shuffled, augmented training batches.

    The images of a step are split equally among the processes. They and their augmentation are the same for
    any number of processes (except with shards, where every process reads its own). Images left over at the
    end are dropped, different ones each epoch. A set smaller than a step yields one smaller step. Shards may
    also be drawn with replacement, or their epoch limited to a number of steps.

    Args:
        data: The data set.
        config: Batch size, workers and augmentation. Batches are not mixed and their labels are hard:
            see :class:`~gendd.data.mixing.Mixing`.
        seed: Seed of the run.
        epoch: Number of the epoch; each has its own order and augmentation.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: fewer images than processes; when iterated, more undecodable images than the set allows.
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
            f"Expected at most one training process per image, got {world_size} for {len(data.train)} "
            "training images; start fewer processes, or give more images."
        )
    order = torch.randperm(len(data.train), generator=keyed_generator(seed, epoch, "order"))
    batch_size = min(own, config.batch_of(len(data.train)))
    steps = own // batch_size
    # the images of each step, the same for any number of processes
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
    """Yield every image once, in order, not augmented; corrupt ones are left out, so batches may be smaller.

    Args:
        image_set: The images.
        batch_size: B.
        workers: Loader processes for streamed sets; None: the number of cores, at most 8.
        rank: Rank of this process; it gets batches rank, rank + world_size, …
        world_size: Number of processes. Their numbers of batches may differ by one.

    Raises:
        UserError: when iterated, more undecodable images than the set allows.
    """
    return _in_order(image_set, torch.arange(len(image_set)), batch_size, workers, rank, world_size)


def _in_order(
    images: ImageSet, order: Tensor, batch_size: int, workers: int | None, rank: int, world_size: int
) -> Batches:
    """Return one process's batches of images in a given order."""
    batches = [each for each in torch.split(order, batch_size) if len(each)][rank::world_size]
    mine = torch.cat(batches) if batches else order[:0]
    return Batches(images, mine, batch_size, _workers(workers), None)


def _divisor(count: int, most: int) -> int:
    """Return the size between ``most`` and half of it that leaves the smallest remainder of ``count``."""
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
    """Yield images without augmentation, each at most once: all of them, or a representative sample.

    The sample of a set is evenly spread over it and in order. Shards are read sequentially, so their sample
    is that of the first shards in an order of its own; all its batches have one size, the one of up to
    ``batch_size`` that leaves out the fewest images.

    Args:
        images: The images.
        batch_size: B.
        limit: Maximum number of images; None: all.
        workers: See :func:`eval_loader`.
        framing: See :class:`ImageSet`; None: the set's own.
        part: Rank of this process, which gets its batches in turn, and number of processes; for sets only.

    Raises:
        UserError: when iterated, more undecodable images than the set allows.
    """
    count = len(images) if limit is None else min(limit, len(images))
    if isinstance(images, ImageSet):
        framed = images if framing is None else replace(images, framing=framing)
        return _in_order(framed, spread_rows(len(images), count), batch_size, workers, *part)
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
