"""Batches: in order for evaluation, shuffled and augmented for training.

Order and augmentation are functions of (seed, epoch, rank) alone, so that a resumed run repeats them.
Shapes: B images, C channels, H = W side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as VF

from gendd.config import DataConfig
from gendd.data.augment import augment, draw_boxes, draw_flips
from gendd.data.images import ImageSet, cores
from gendd.data.sets import Data
from gendd.data.shards import STREAMS, Epoch, Shards, steps_of
from gendd.errors import UserError

_MOST_WORKERS = 8


@dataclass(frozen=True)
class Batch:
    """Images and labels.

    Args:
        images: float32 (B, C, H, W) in [0, 1]; each network normalises its own input.
        labels: int64 (B,); None only where the set has none.
    """

    images: Tensor
    labels: Tensor | None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on ``device``."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return Batch(self.images.to(device, non_blocking=non_blocking), labels)


@dataclass(frozen=True)
class _Augmentation:
    """How training images are varied, and the key that decides every draw."""

    kind: str
    crop_scale: tuple[float, float]
    seed: int
    epoch: int
    rank: int

    def generator(self, *more: int | str) -> torch.Generator:
        return _generator(self.seed, self.epoch, *more)

    def streamed(self, images: ImageSet, index: int) -> Tensor:
        """One image decoded and augmented: uint8 (C, S, S)."""
        generator = self.generator("image", index)
        if self.kind != "resized-crop":
            return augment(images.images([index]), self.kind, generator)[0]
        image = images.original(index)
        height, width = image.shape[-2:]
        top, left, tall, wide = draw_boxes(1, height, width, self.crop_scale, generator)[0].tolist()
        crop: Tensor = VF.resized_crop(
            image, top, left, tall, wide, [images.size, images.size], antialias=True
        )
        return crop.flip(-1) if bool(draw_flips(1, generator)) else crop


@dataclass(frozen=True)
class Batches:
    """A sized iterable of :class:`Batch`; iterating again gives the same batches again.

    Args:
        images: Where they come from.
        order: int64: indices in the order they are given.
        batch_size: B; the last batch may be smaller.
        workers: Loader processes where the set streams from disk; 0 decodes in this process.
        augmentation: None for images as they are.
    """

    images: ImageSet
    order: Tensor
    batch_size: int
    workers: int
    augmentation: _Augmentation | None

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.images.in_memory:
            yield from self._from_memory()
        else:
            yield from self._from_disk()

    def _from_memory(self) -> Iterator[Batch]:
        how = self.augmentation
        generator = None if how is None else how.generator("batches", how.rank)
        for indices in torch.split(self.order, self.batch_size):
            pixels = self.images.images(indices)
            if how is not None and generator is not None:
                pixels = augment(pixels, how.kind, generator, how.crop_scale)
            yield self._batch(pixels, indices)

    def _from_disk(self) -> Iterator[Batch]:
        batches = [indices.tolist() for indices in torch.split(self.order, self.batch_size)]
        loader: DataLoader[Any] = DataLoader(
            _Stream(self.images, self.augmentation),
            batch_sampler=batches,
            num_workers=min(self.workers, len(batches)),
            collate_fn=_unchanged,
            # Given, because the loader would otherwise draw from the global generator.
            generator=torch.Generator(),
        )
        for indices, pixels in zip(batches, loader, strict=True):
            if isinstance(pixels, UserError):
                raise pixels
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

    def __len__(self) -> int:
        return len(self.epoch)

    def __iter__(self) -> Iterator[Batch]:
        for pixels, labels in self.epoch:
            yield _on_host(pixels, labels)


class _Stream(Dataset[Any]):
    """Decodes whole batches in a loader process."""

    def __init__(self, images: ImageSet, augmentation: _Augmentation | None) -> None:
        self.images = images
        self.augmentation = augmentation

    def __getitems__(self, indices: Sequence[int]) -> Tensor | UserError:
        """uint8 (B, C, S, S). An error is returned, not raised: a loader would rewrite its message."""
        try:
            if self.augmentation is None:
                return self.images.images(indices)
            return torch.stack([self.augmentation.streamed(self.images, index) for index in indices])
        except UserError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def _on_host(pixels: Tensor, labels: Tensor | None) -> Batch:
    """The batch of uint8 images (B, C, S, S) and their labels (B,)."""
    images = _host(pixels.shape, torch.float32).copy_(pixels).div_(255)
    return Batch(images, None if labels is None else _host(labels.shape, torch.int64).copy_(labels))


def _host(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty CPU tensor; page-locked where there is CUDA, which can copy only such without waiting."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


def _generator(*key: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _workers(workers: int | None) -> int:
    return min(cores(), _MOST_WORKERS) if workers is None else workers


def train_loader(
    data: Data, config: DataConfig, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> Batches | ShardBatches:
    """One epoch of shuffled, augmented training batches.

    Every process gets the same number of images, disjoint from the others'; those left over by the
    division, and the last batch where it is not full, are dropped (others the next epoch). A share
    smaller than one batch is given as one smaller batch. Shards may also be drawn with replacement, or
    their epoch be cut to a number of steps.

    Args:
        data: The set.
        config: Gives batch size, workers and ``crop_scale``.
        seed: Seed of the run.
        epoch: Number of the epoch; every one has its own order and augmentation.
        rank: This process.
        world_size: Number of processes.

    Raises:
        UserError: fewer images than processes; when iterated, an image that can't be decoded (of shards:
            more of them than ``max_corrupt``).
    """
    if isinstance(data.train, Shards):
        return ShardBatches(_shard_epoch(data.train, data.augment, config, seed, epoch, rank, world_size))
    share = len(data.train) // world_size
    if share == 0:
        raise UserError(
            f"Expected at most one training process an image, got {world_size} for {len(data.train)} "
            "training images; start fewer processes, or give more images."
        )
    order = torch.randperm(len(data.train), generator=_generator(seed, epoch, "order"))
    mine = order[rank * share : (rank + 1) * share]
    full = share // config.batch_size * config.batch_size
    return Batches(
        data.train,
        mine[: full or share],
        config.batch_size,
        _workers(config.workers),
        _Augmentation(data.augment, config.crop_scale, seed, epoch, rank),
    )


def _shard_epoch(
    shards: Shards, augment: str, config: DataConfig, seed: int, epoch: int, rank: int, world_size: int
) -> Epoch:
    steps, batch_size = steps_of(shards, config, world_size)
    seeds = torch.randint(2**62, (STREAMS,), generator=_generator(seed, epoch, "streams", rank))
    return Epoch(
        shards=shards,
        order=torch.randperm(len(shards.urls), generator=_generator(seed, epoch, "order")),
        seeds=seeds.tolist(),
        vary=_Augmentation(augment, config.crop_scale, seed, epoch, rank).streamed,
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
    """Every image once, in order, not augmented.

    Args:
        image_set: The images.
        batch_size: B.
        workers: Loader processes where the set streams; None: as many as there are cores, at most 8.
        rank: This process; it gets images rank, rank + world_size, …
        world_size: Number of processes. Their numbers of images may differ by one.

    Raises:
        UserError: when iterated, an image that can't be decoded.
    """
    order = torch.arange(rank, len(image_set), world_size)
    return Batches(image_set, order, batch_size, _workers(workers), None)
