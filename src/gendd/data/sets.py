"""Load training, validation and test images from a :class:`~gendd.config.DataConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.corrupt import Skipped
from gendd.data.decoding import resize_pixels
from gendd.data.drawing import spread, used_rows, with_test_images
from gendd.data.encoded import probe
from gendd.data.fingerprint import fingerprint
from gendd.data.found_shards import read_shards
from gendd.data.images import SMALL, ImageSet
from gendd.data.readers import Found, Part, Reader, given_names, reader, renumbered
from gendd.data.shards import Shards
from gendd.errors import UserError
from gendd.messages import say

_SHARDS = "webdataset"
_FOLDER_SIZE = 224
_SMALLEST = 4
_LONG_TAILED = 3
_TEST_FRAMING = 0.875
_MEMORY_BYTES = 2 * 1024**3
_OWN = "{:,} validation images of the set's own (data.validation 0: none)"


@dataclass(frozen=True)
class Data:
    """All data of a run.

    Args:
        name: Name of the data set.
        train: Training images, or the shards they stream from; labels are None if the set has none.
        val: Validation images; None if ``data.validation`` is 0.
        test: Test images, labels None if the set has none for them; those of ``val`` if it has no test
            images.
        class_names: One name per class; empty if neither labels nor names are known and the teacher's
            classes are used.
        channels: 1 (gray) or 3 (RGB).
        image_size: Side of the square images in pixels.
        augment: Kind of augmentation, ``auto`` resolved.
        tested_on: Which images ``test`` holds: the set's test images, labelled ones held out of its training
            images, or its validation images.
    """

    name: str
    train: ImageSet | Shards
    val: ImageSet | None
    test: ImageSet
    class_names: list[str]
    channels: int
    image_size: int
    augment: str
    tested_on: Literal["test", "held-out", "validation"] = "test"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels (not whether training may use them)."""
        return self.train.labels is not None

    @property
    def known_labels(self) -> int:
        """Number of training images with a label."""
        return 0 if self.train.labels is None else int((self.train.labels >= 0).sum())

    @property
    def partly_labelled(self) -> bool:
        """Whether only some of the training images have a label."""
        return 0 < self.known_labels < len(self.train)

    @property
    def judged(self) -> bool:
        """Whether there are validation images with labels."""
        return self.val is not None and self.val.labels is not None

    def labelled_alone(self) -> Data:
        """Return the data with only the labelled training images, repeated to make up for the others.

        An epoch then has as many steps as one over all images.
        """
        if not self.partly_labelled or isinstance(self.train, Shards):
            return self
        assert self.train.labels is not None
        there = (self.train.labels >= 0).nonzero()[:, 0]
        count = len(self.train)
        return replace(self, train=self.train.rows(there[torch.arange(count) * len(there) // count]))

    @property
    def class_counts(self) -> Tensor | None:
        """Labelled training images per class, int64 (K,); None without labels."""
        labels = self.train.labels
        return None if labels is None else torch.bincount(labels[labels >= 0], minlength=self.num_classes)

    @property
    def long_tailed(self) -> bool:
        """Whether a class has at least three times the training images of another, beyond chance."""
        if self.class_counts is None:
            return False
        low, high = int(self.class_counts.min()), int(self.class_counts.max())
        # three standard deviations of the difference between random counts
        return high >= _LONG_TAILED * low and high - low > 3 * math.sqrt(high + low)

    @property
    def parts(self) -> dict[str, ImageSet | Shards]:
        """The available training, validation and test images, by name."""
        parts = {"training": self.train, "validation": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def skipped(self) -> list[Skipped]:
        """The skipped training, validation and test images."""
        return list(dict.fromkeys(part.skipped for part in self.parts.values()))


def load_data(config: DataConfig, scored: int | None = None, *, trained: bool = True) -> Data:
    """Find the data set, split it, and load the images that are used.

    A labelled set without test images holds some out (``test``) before anything else. Validation images are
    the set's own, if it has some besides its test images, or held out next (stratified if training may see
    labels); then the rest is made long-tailed by ``imbalance``, then ``train_images`` are
    drawn from it; all determined by ``split_seed``. Only images that are used are decoded. Holding images in
    memory never changes their content: training images for ``resized-crop`` are decoded ahead only if all
    have the final size, as crops are taken from the originals; else ``in_memory: true`` keeps them encoded.

    A set is RGB if any of the inspected training images has colour: sixteen spread over it, or all if those
    are gray. Every image is converted accordingly, including gray images of a colour set.

    Args:
        config: The data configuration.
        scored: Maximum number of test images, evenly spread (``evaluation.images``); None: all.
        trained: Whether a network is trained on the set. If not, a labelled set without test images holds
            none out: all its labelled images are test images.

    Raises:
        UserError: the set is unknown, files are missing, empty or do not match, there are more unreadable
            images than ``max_corrupt`` allows, or more images are requested than there are.
    """
    if config.name == _SHARDS:
        return _load_shards(config, scored)
    kind = reader(config.name)
    found = _named(kind.read(config), config)
    _check_classes(found.train.labels, found.class_names, config)
    split = found.test is None
    found = with_test_images(found, config, trained)
    train, val = _held_out(found, config)
    test = None
    if found.test is not None:
        test = _taken(found.test, torch.arange(found.test.count), "test", config)
    elif val is None:
        raise _untested(config)
    size, channels, large = _shape(train, config, kind)
    augment = _augment(config, large, kind)
    test_framing = _TEST_FRAMING if size > SMALL else 1.0
    train = replace(train, size=size, channels=channels)
    if test is not None:
        test = replace(_scored(test, scored), size=size, channels=channels, framing=test_framing)
    if val is not None:
        val = replace(val, size=size, channels=channels, framing=test_framing)

    total = sum(len(part) for part in (train, val, test) if part is not None) * channels * size * size
    in_memory = config.in_memory if config.in_memory is not None else total <= _MEMORY_BYTES
    train = _ready_to_train(train, in_memory, config, augment)
    val = None if val is None else _ready(val, in_memory, "Decoding validation images")
    test = None if test is None else _ready(test, in_memory, "Decoding test images")
    tested = _scored(val, scored) if test is None else test
    return Data(
        # for path/to/file.py:NAME only NAME
        name=config.name.rpartition(":")[2],
        train=train,
        val=val,
        test=tested,
        class_names=found.class_names,
        channels=channels,
        image_size=size,
        augment=augment,
        tested_on="validation" if test is None else "held-out" if split and trained else "test",
    )


def _load_shards(config: DataConfig, scored: int | None) -> Data:
    """Load shards to train on, validation images held out of them, and a test set of any kind."""
    found = read_shards(config)
    if found.test is None and found.val is None:
        raise _untested(config)
    _check_classes(found.train.labels, found.class_names, config)
    size = config.image_size or _FOLDER_SIZE
    channels = found.channels
    framing = _TEST_FRAMING if size > SMALL else 1.0
    val = None if found.val is None else replace(found.val, size=size, framing=framing)

    def loaded(part: Part, name: str) -> ImageSet:
        images = _taken(part, torch.arange(part.count), name, config)
        images = replace(images, size=size, channels=channels, framing=framing)
        in_memory = config.in_memory
        if in_memory is None:
            in_memory = len(images) * channels * size * size <= _MEMORY_BYTES
        return _ready(images, in_memory, f"Decoding {name} images")

    if found.own_val is not None:
        say(_OWN.format(found.own_val.count))
        val = loaded(found.own_val, "validation")
    test = None if found.test is None else loaded(found.test, "test")
    tested = val if test is None else test
    assert tested is not None
    tested = _scored(tested, scored)
    return Data(
        name=config.name,
        train=replace(found.train, channels=channels, size=size),
        val=val,
        test=tested,
        class_names=found.class_names,
        channels=channels,
        image_size=size,
        augment=_augment(config, size > SMALL),
        tested_on="validation" if test is None else "test",
    )


def _scored(images: ImageSet | None, most: int | None) -> ImageSet:
    """Select the images that students are scored on."""
    assert images is not None
    fewer = images if most is None else spread(images, most)
    if len(fewer) < len(images):
        say(f"scored on {len(fewer):,} of {len(images):,} images, evenly spread (evaluation.images)")
    return fewer


def _check_classes(labels: Tensor | None, names: list[str], config: DataConfig) -> None:
    """Raise :class:`UserError` if training would use labels of a single class."""
    known = labels is not None and bool((labels >= 0).any())
    if config.labels and known and len(names) < 2:
        raise UserError(
            f"Images of {config.path or config.name!r}: expected at least 2 classes to learn from, got 1 "
            f"({names[0]}); correct data.path, or set data.labels to false where that is no label."
        )


def _untested(config: DataConfig) -> UserError:
    """Return the error for a set without images to evaluate on."""
    return UserError(
        f"data.validation: expected a fraction above 0, as there are no test images, got "
        f"{config.validation}; hold some out to evaluate on, or set data.test_path."
    )


def _named(found: Found, config: DataConfig) -> Found:
    """Apply the class names of ``data.classes``, if given."""
    if config.classes is None:
        return found
    others = [part.labels for part in (found.test, found.val) if part is not None]
    names = given_names(config.classes, found.train.labels, *others)
    own = set(found.class_names)
    if names != found.class_names and own & set(names):
        # the set's own names, in the order of the file
        if missing := sorted(own - set(names)):
            raise UserError(
                f"data.classes: expected the names of all classes, as {config.classes!r} has some of them, "
                f"got none for {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; add them."
            )
        parts = [
            None if part is None else renumbered(part, found.class_names, names)
            for part in (found.test, found.val)
        ]
        return Found(renumbered(found.train, found.class_names, names), parts[0], names, parts[1])
    return replace(found, class_names=names)


def _held_out(found: Found, config: DataConfig) -> tuple[ImageSet, ImageSet | None]:
    """Return the training and the validation images."""
    own = found.val if config.validation > 0 else None
    if own is not None:
        say(_OWN.format(own.count))
        labels = found.train.labels
        every = labels is not None and bool((labels >= 0).all())
        if config.labels and every and own.labels is None:
            raise UserError(
                f"Expected labels with the validation images in {config.path!r}, as the training images have "
                "some, got none; add them, or set data.labels to false."
            )
    rows, held = used_rows(found.train, own, len(found.class_names), config)
    train = _taken(found.train, rows, "training", config)
    part = found.train if own is None else own
    return train, _taken(part, held, "validation", config) if len(held) else None


def _taken(part: Part, rows: Tensor, name: str, config: DataConfig) -> ImageSet:
    """Return the images at ``rows``; size and channels are set once the training images were inspected."""
    labels = None if part.labels is None else part.labels[rows]
    if labels is not None and bool((labels < 0).any()):
        labels = _partly(labels, name, config)
    source = part.take(rows)
    return ImageSet(
        source,
        labels,
        channels=0,
        size=0,
        max_corrupt=config.max_corrupt,
        skipped=Skipped(name),
        fingerprint=fingerprint(source, labels),
    )


def _partly(labels: Tensor, name: str, config: DataConfig) -> Tensor | None:
    """Return the labels of possibly partly labelled images; None if none of the training labels is known.

    Raises:
        UserError: test images, or the set's own validation images, are partly labelled.
    """
    known = int((labels >= 0).sum())
    if not config.labels and name != "training":
        return None
    if name == "training" or (name == "validation" and known == 0):
        return labels if known else None
    raise UserError(
        f"Expected a label with every one of the {len(labels):,} {name} images, got {known:,} labelled; take "
        "the others out, or give a split that has its labels."
    )


def _shape(train: ImageSet, config: DataConfig, kind: Reader) -> tuple[int, int, bool]:
    """Return the side and channels all images are converted to, and whether the originals are large."""
    if isinstance(train.source, Tensor):
        size = config.image_size or train.source.shape[-1]
        return size, train.source.shape[1], size > SMALL
    sizes, gray = probe(train.source)
    if gray:
        gray = probe(train.source, len(train))[1]
    size = _side(sizes, config, kind)
    return size, 1 if gray else 3, max(size, *map(max, sizes)) > SMALL


def _side(sizes: set[tuple[int, int]], config: DataConfig, kind: Reader) -> int:
    """Return the side of the images: configured, or inferred from the inspected (height, width)."""
    if config.image_size is not None:
        return config.image_size
    height, width = min(sizes)
    alike = len(sizes) == 1 and height == width >= _SMALLEST
    if kind.any_size:
        # photographs are of any size
        return height if alike and height <= SMALL else _FOLDER_SIZE
    if not alike:
        met = ", ".join(f"{h}x{w}" for h, w in sorted(sizes)[:4])
        raise UserError(
            f"data.image_size: expected a size, as the images are not square, of one size and at least "
            f"{_SMALLEST}x{_SMALLEST} (height x width: {met}); set data.image_size."
        )
    return height


def _augment(config: DataConfig, large: bool, kind: Reader | None = None) -> str:
    """Resolve augmentation ``auto``; ``kind`` is None for shards, which hold photographs."""
    if config.augment != "auto":
        return config.augment
    if kind is not None and not kind.mirrored:
        return "crop"
    return "resized-crop" if large and (kind is None or kind.photographs) else "crop-flip"


def _ready(images: ImageSet, in_memory: bool, title: str, full: bool = False) -> ImageSet:
    if isinstance(images.source, Tensor):
        return replace(images, source=resize_pixels(images.source, images.size))
    return images.loaded(title, full) if in_memory else images


def _ready_to_train(images: ImageSet, in_memory: bool, config: DataConfig, augment: str) -> ImageSet:
    """Return the training images, decoded ahead only if that does not affect crops."""
    if in_memory and augment == "resized-crop" and not _has_final_size(images):
        return images.held("Reading training images") if config.in_memory else images
    return _ready(images, in_memory, "Decoding training images", full=True)


def _has_final_size(images: ImageSet) -> bool:
    """Return whether every image has its final size; a few are checked before all are."""
    if isinstance(images.source, Tensor):
        return True
    final = {(images.size, images.size)}
    return probe(images.source)[0] == final and probe(images.source, len(images))[0] == final
