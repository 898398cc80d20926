"""Section ``data``: the images, and how they are loaded and augmented."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from gendd.config.checks import (
    BELOW_ONE,
    FRACTION,
    INTEGER,
    NON_NEGATIVE,
    POSITIVE_INTEGER,
    PROBABILITY,
    SEED,
    SIDE,
    Rule,
    check,
    check_section,
    or_null,
)

# timm's syntax of RandAugment strings
_RANDAUGMENT = re.compile(
    r"rand(-(m\d+|n[1-9]\d*|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*"
)


_RULES = {
    "shuffle_buffer": POSITIVE_INTEGER,
    "split_seed": SEED,
    "steps_per_epoch": or_null(POSITIVE_INTEGER),
    "validation": FRACTION,
    "test": FRACTION,
    "imbalance": or_null(Rule(lambda value: value >= 1, "a factor of at least 1")),
    "max_corrupt": FRACTION,
    "shot_thresholds": Rule(
        lambda value: value is None or 1 <= value[0] <= value[1], "1 <= few <= many, or null"
    ),
    "batch_size": or_null(POSITIVE_INTEGER),
    "train_images": or_null(POSITIVE_INTEGER),
    "validation_images": Rule(
        lambda value: value in (None, "all") or value >= 1, "a positive integer, all or null"
    ),
    "image_size": or_null(SIDE),
    "workers": or_null(INTEGER),
    "crop_scale": Rule(lambda value: 0 < value[0] <= value[1] <= 1, "0 < low <= high <= 1"),
    "randaugment": Rule(
        lambda value: value is None or _RANDAUGMENT.fullmatch(value) is not None,
        "timm's words for it such as 'rand-m7-n2-mstd0.5', or null",
    ),
    **dict.fromkeys(("color_jitter", "mixup", "cutmix"), NON_NEGATIVE),
    **dict.fromkeys(("erase_prob", "mixup_prob", "mixup_switch_prob"), PROBABILITY),
    "label_smoothing": BELOW_ONE,
}


@dataclass
class DataConfig:
    """The images, and how they are loaded and augmented.

    Args:
        name: demo, digits, fashion-mnist, cifar10, cifar100, folder, list, parquet, hf or webdataset.
        path: Root directory of the data set (folder: holds ``train/`` and ``test/`` or ``val/``, both if
            there are separate validation images, or only class folders, or only unlabelled images). For
            parquet the training file, for list the training list (lines ``path label``, or ``path`` alone
            for unlabelled images), for hf a folder written by ``save_to_disk`` of Hugging Face's datasets,
            for webdataset a directory, glob or brace pattern of tar shards. Digits need none; fashion-mnist
            is also found in Debian's package.
        test_path: Test images that are not below ``path`` (folder, list, parquet, hf; for webdataset
            shards, a directory of images or parquet). They may be unlabelled: evaluation then measures
            agreement with the teacher. A labelled set without any uses ``test``; if the training images are
            unlabelled or ``labels`` is false, the agreement on the validation images is measured.
        root: Folder that the paths in lists are relative to; null: the folder of each list.
        classes: A file of class names, one per line, starting with class 0; null: the set's own names, else
            numbers. Unlabelled images without it have the teacher's classes.
        image_size: Side in pixels that images are resized to; null keeps the set's own size (folder and
            list: 224, unless all images are squares of the same side of at most 64; webdataset: 224).
        validation: Fraction of the training set held out to choose checkpoints, in [0, 1); stratified by
            class if ``labels`` is true, else random; where only some images are labelled, taken from the
            labelled or the unlabelled ones, whichever are more. A set that has validation images of its own
            besides its test images uses those instead. 0: no validation images.
        test: Fraction of the labelled training images held out for testing, before the validation images,
            if the set has no test images and ``labels`` is true (not for webdataset): of each class the
            rounded number, at least one of two or more.
        imbalance: Make the training set long-tailed: class c of K keeps at most n · imbalance^(-c/(K-1))
            images, where n is the size of the largest class (Cui et al. 2019). They are drawn by
            ``split_seed`` after the validation images were held out, which are unaffected. At least 1; null
            leaves the set as it is. Not for webdataset.
        train_images: Number of training images to use, drawn at random by ``split_seed`` after the
            validation images were held out and ``imbalance`` was applied; null: all.
        validation_images: Number of validation images to use, drawn likewise (by class if ``labels`` is
            true), or ``all``; null: the same fraction as ``train_images`` is of the available training
            images.
        split_seed: Seed of the split into training, validation and test images.
        labels: Whether training may use the labels; evaluation always does. A training image labelled -1,
            or in ``unlabelled/`` beside ``train/``, has no label: it is only distilled, and methods that
            need labels learn from the other images.
        augment: ``crop-flip`` (random crop after padding by an eighth, horizontal flip), ``crop``,
            ``resized-crop`` (random area and ratio, flip), ``none``, or ``auto``: ``crop`` for digits,
            ``resized-crop`` for your own sets of more than 64 pixels per side, else ``crop-flip``.
        crop_scale: Range of the relative area of a resized crop.
        crop_interpolation: Interpolation of resized crops, ``bilinear`` or ``bicubic``.
        randaugment: RandAugment policy in timm's syntax: ``rand-m7-n2-mstd0.5`` is magnitude 7 with standard
            deviation 0.5, two operations per image; null: none. Uncovered areas are filled with grey.
        color_jitter: Strength c of colour jitter: brightness, contrast and saturation of each image are
            multiplied by factors from [1-c, 1+c]; 0 is off. Unlike in timm's own training, it also applies
            together with RandAugment.
        erase_prob: Probability that a rectangle of an image (2 % to a third of its area) is replaced by
            noise, each pixel drawn from N(0.5, 0.25²) and clipped to [0, 1].
        mixup: α of image mixup's Beta(α, α), one weight per batch; 0 is off. Labels are mixed with the same
            weight; without labels only the images are mixed. Teacher and student see the same mixed images.
        cutmix: α of CutMix, likewise; labels are mixed by area.
        mixup_prob: Probability that a batch is mixed at all.
        mixup_switch_prob: Probability that a mixed batch uses CutMix instead of mixup, if both are on.
        label_smoothing: s in [0, 1): labels become (1-s) p + s/K. No effect if training uses no labels.
        batch_size: Batch size per process; ``training.accumulate`` such batches make a step. Null: 128, or
            for fewer than 2,560 training images a twentieth of them, rounded down to a power of two of at
            least 16.
        workers: Loader processes for sets that stream from disk and for augmentation done per image
            (randaugment, color_jitter, erase_prob, bicubic crops); null: one per core, at most 8.
        in_memory: Keep the decoded set in memory as uint8; null: if it fits in 2 GiB. It never
            changes the images: training images for ``resized-crop`` that are not all of the final
            size are cropped from the originals, so true keeps them encoded and null streams them.
        max_corrupt: Fraction of the images of a split (of an epoch, when streaming) that may be unreadable,
            in [0, 1). They are listed in ``logs/skipped.txt``; in training each is replaced by the next image
            of the set (for shards, by another one), in evaluation it is left out. With 0 the first unreadable
            image is an error. For training shards, also the fraction that may be missing from damaged shards.
        shot_thresholds: Thresholds for reporting accuracy by class size: few-shot classes have fewer training
            images than the first number, many-shot ones more than the second, medium-shot ones neither. Null:
            [20, 100], if one class has at least three times the training images of another.
        resampled: Draw shards with replacement instead of reading each once per epoch (webdataset).
        steps_per_epoch: Steps per epoch, counted in batches (``training.accumulate`` of which make one
            optimiser step); null: one pass over the training images (webdataset).
        shuffle_buffer: Encoded images in each process's shuffle buffer (webdataset).
    """

    name: str = "digits"
    path: str | None = None
    test_path: str | None = None
    root: str | None = None
    classes: str | None = None
    image_size: int | None = None
    validation: float = 0.1
    test: float = 0.1
    imbalance: float | None = None
    train_images: int | None = None
    validation_images: int | Literal["all"] | None = None
    split_seed: int = 0
    labels: bool = True
    augment: Literal["auto", "none", "crop", "crop-flip", "resized-crop"] = "auto"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    randaugment: str | None = None
    color_jitter: float = 0.0
    erase_prob: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    label_smoothing: float = 0.0
    batch_size: int | None = None
    workers: int | None = None
    in_memory: bool | None = None
    max_corrupt: float = 0.01
    shot_thresholds: tuple[int, int] | None = None
    resampled: bool = False
    steps_per_epoch: int | None = None
    shuffle_buffer: int = 12_000

    def __post_init__(self) -> None:
        check_section(self, "data.", _RULES)
        if self.name == "webdataset":
            check(self.imbalance is None, "data.imbalance", "null for tar shards", self.imbalance)
        else:
            alone = f"for data.name {self.name!r} (webdataset has it)"
            check(not self.resampled, "data.resampled", f"false {alone}", self.resampled)
            check(self.steps_per_epoch is None, "data.steps_per_epoch", f"null {alone}", self.steps_per_epoch)

    def batch_of(self, images: int) -> int:
        """Batch size per process for a number of training images: ``batch_size``, or its default if null."""
        if self.batch_size is not None:
            return self.batch_size
        return max(16, min(128, 1 << int(math.log2(max(1, images / 20)))))
