"""From a :class:`~gendd.config.DataConfig` to training, validation and test images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.images import SMALL, Held, ImageSet, probe, resize_pixels
from gendd.data.readers import (
    Found,
    Part,
    read_cifar,
    read_digits,
    read_fashion_mnist,
    read_folder,
    read_parquet,
)
from gendd.data.shards import Shards, read_shards
from gendd.data.split import random_split, stratified_split
from gendd.errors import UserError, did_you_mean

_READERS: dict[str, Callable[[DataConfig], Found]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "folder": read_folder,
    "parquet": read_parquet,
}
_SHARDS = "webdataset"
_FOLDER_SIZE = 224
_SMALLEST = 4
_TEST_FRAMING = 0.875
_MEMORY_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Data:
    """Everything a run reads.

    Args:
        name: Name of the set.
        train: Training images, or the shards they stream from; labels None where the set has none.
        val: Images held out of the training set; None where ``data.validation`` is 0.
        test: Test images, always labelled.
        class_names: One name a class.
        channels: 1 (gray) or 3 (RGB).
        image_size: Side of the square images in pixels.
        augment: Kind of augmentation, ``auto`` resolved.
    """

    name: str
    train: ImageSet | Shards
    val: ImageSet | None
    test: ImageSet
    class_names: list[str]
    channels: int
    image_size: int
    augment: str

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels (not whether training may see them)."""
        return self.train.labels is not None


def load_data(config: DataConfig) -> Data:
    """Find the set, split it, and load what is used of it.

    Validation images are held out first (stratified where training may see labels), then
    ``train_images`` are drawn from the rest; both by ``split_seed`` alone. Only images that are used are
    decoded. Whether images are in memory never changes what they are: training images for
    ``resized-crop`` are decoded ahead only if all have the final size, as crops are taken from the
    originals; otherwise ``in_memory: true`` holds them encoded.

    Raises:
        UserError: an unknown set, files that are missing, unreadable, empty or do not match, or more
            images asked for than there are.
    """
    if config.name == _SHARDS:
        return _load_shards(config)
    if config.name not in _READERS:
        near = did_you_mean(config.name, [*_READERS, _SHARDS])
        raise UserError(f"data.name: expected a known set, got {config.name!r}.{near}")
    found = _READERS[config.name](config)
    train_rows, val_rows = _split(found.train, config)
    train = _taken(found.train, train_rows)
    val = _taken(found.train, val_rows) if len(val_rows) else None
    test = _taken(found.test, torch.arange(found.test.count))
    size, channels = _shape(train, config)
    augment = _augment(config, size)
    test_framing = _TEST_FRAMING if size > SMALL else 1.0
    train = replace(train, size=size, channels=channels)
    test = replace(test, size=size, channels=channels, framing=test_framing)
    if val is not None:
        val = replace(val, size=size, channels=channels, framing=test_framing)

    total = (len(train) + len(test) + (len(val) if val else 0)) * channels * size * size
    in_memory = config.in_memory if config.in_memory is not None else total <= _MEMORY_BYTES
    return Data(
        name=config.name,
        train=_ready_to_train(train, in_memory, config, augment),
        val=_ready(val, in_memory, "Decoding validation images") if val else None,
        test=_ready(test, in_memory, "Decoding test images"),
        class_names=found.class_names,
        channels=channels,
        image_size=size,
        augment=augment,
    )


def _load_shards(config: DataConfig) -> Data:
    """Shards to train on, the images held out of them, and their test set, of whatever kind."""
    found = read_shards(config)
    size = config.image_size or _FOLDER_SIZE
    channels = 1 if found.gray else 3
    framing = _TEST_FRAMING if size > SMALL else 1.0
    test = replace(
        _taken(found.test, torch.arange(found.test.count)), size=size, channels=channels, framing=framing
    )
    in_memory = config.in_memory
    if in_memory is None:
        in_memory = len(test) * channels * size * size <= _MEMORY_BYTES
    return Data(
        name=config.name,
        train=replace(found.train, channels=channels, size=size),
        val=None if found.val is None else ImageSet(found.val, found.val_labels, channels, size, framing),
        test=_ready(test, in_memory, "Decoding test images"),
        class_names=found.class_names,
        channels=channels,
        image_size=size,
        augment=_augment(config, size),
    )


def describe(data: Data) -> str:
    """One line for logs: images of each part, their shape, classes, augmentation, where they are."""
    if isinstance(data.train, Shards):
        place = f"streamed from {len(data.train.urls):,} shards"
    elif data.train.in_memory:
        place = "in memory"
    else:
        place = "encoded in memory" if isinstance(data.train.source, Held) else "streamed"
    counts = [f"{len(data.train):,} train", f"{len(data.test):,} test images"]
    if data.val is not None:
        counts.insert(1, f"{len(data.val):,} validation")
    classes = f"{data.num_classes} class" + ("es" if data.num_classes > 1 else "")
    return (
        f"{data.name}: {', '.join(counts)} of {data.channels}x{data.image_size}x{data.image_size}, "
        f"{classes}{'' if data.labelled else ' (training images unlabelled)'}, augment {data.augment}, "
        f"{place}"
    )


def _split(part: Part, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the validation images."""
    generator = torch.Generator().manual_seed(config.split_seed)
    if config.validation == 0:
        rest, held = torch.arange(part.count), torch.arange(0)
    elif part.labels is None or not config.labels:
        rest, held = random_split(part.count, config.validation, generator)
    else:
        rest, held = stratified_split(part.labels, config.validation, generator)
    if len(rest) == 0 or (config.validation > 0 and len(held) == 0):
        raise UserError(
            f"data.validation: expected a fraction of the {part.count} training images that leaves some on "
            f"both sides, got {config.validation}; change it, or set 0 for none."
        )
    wanted = config.train_images
    if wanted is None:
        return rest, held
    if wanted > len(rest):
        raise UserError(
            f"data.train_images: expected at most {len(rest)} (what is left of {part.count} after "
            f"validation), got {wanted}; lower it, or lower data.validation."
        )
    chosen = torch.randperm(len(rest), generator=generator)[:wanted]
    return rest[chosen].sort().values, held


def _taken(part: Part, rows: Tensor) -> ImageSet:
    """The images at ``rows``; size and channels are set when the training images have been seen."""
    labels = None if part.labels is None else part.labels[rows]
    return ImageSet(part.take(rows), labels, channels=0, size=0)


def _shape(train: ImageSet, config: DataConfig) -> tuple[int, int]:
    """Side and channels that every image is brought to."""
    if isinstance(train.source, Tensor):
        return config.image_size or train.source.shape[-1], train.source.shape[1]
    sizes, gray = probe(train.source)
    size = config.image_size
    if size is None and config.name == "folder":
        size = _FOLDER_SIZE
    if size is None:
        height, width = min(sizes)
        if len(sizes) > 1 or height != width or height < _SMALLEST:
            met = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)[:4])
            raise UserError(
                f"data.image_size: expected a size, as the images are not square, of one size and at least "
                f"{_SMALLEST}x{_SMALLEST} (height x width: {met}); set data.image_size."
            )
        size = height
    return size, 1 if gray else 3


def _augment(config: DataConfig, size: int) -> str:
    if config.augment != "auto":
        return config.augment
    if config.name == "digits":
        # A mirrored digit is another symbol.
        return "crop"
    if config.name == "folder" or (config.name in ("parquet", _SHARDS) and size > SMALL):
        return "resized-crop"
    return "crop-flip"


def _ready(images: ImageSet, in_memory: bool, title: str) -> ImageSet:
    if isinstance(images.source, Tensor):
        return replace(images, source=resize_pixels(images.source, images.size))
    return images.loaded(title) if in_memory else images


def _ready_to_train(images: ImageSet, in_memory: bool, config: DataConfig, augment: str) -> ImageSet:
    """The training images, decoded ahead only where that changes no crop."""
    if in_memory and augment == "resized-crop" and not _has_final_size(images):
        return images.held("Reading training images") if config.in_memory else images
    return _ready(images, in_memory, "Decoding training images")


def _has_final_size(images: ImageSet) -> bool:
    """Whether every image is as large as it will be used; a few are looked at before all are."""
    if isinstance(images.source, Tensor):
        return True
    final = {(images.size, images.size)}
    return probe(images.source)[0] == final and probe(images.source, len(images))[0] == final
