"""Section ``data``: which images, and how they are loaded and augmented."""

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

# the sections of timm's RandAugment strings
_RANDAUGMENT = re.compile(
    r"rand(-(m\d+|n[1-9]\d*|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*"
)


_RULES = {
    "shuffle_buffer": POSITIVE_INTEGER,
    "split_seed": SEED,
    "steps_per_epoch": or_null(POSITIVE_INTEGER),
    "validation": FRACTION,
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
    """Which images, and how they are fed.

    Args:
        name: demo, digits, fashion-mnist, cifar10, cifar100, folder, list, parquet, hf or webdataset.
        path: Root directory of the set (folder: holds ``train/`` and ``test/`` or ``val/``, both where there
            are images for validation, or nothing but unlabelled images); for parquet the training file, for
            list the training list (lines ``path label``, or ``path`` alone for unlabelled images), for hf a
            folder that ``save_to_disk`` of Hugging Face's datasets wrote, for webdataset a directory, glob or
            brace pattern of tar shards. Digits need none; fashion-mnist also finds Debian's package.
        test_path: Test images where they are not below ``path`` (folder, list, parquet, hf; for webdataset
            shards, a directory of images or parquet). Test images may be unlabelled, and may be missing
            where the training images are unlabelled or ``labels`` is false: evaluation is then by
            agreement with the teacher, on the validation images if need be.
        root: Folder that the paths in lists are relative to; null: each list's own.
        classes: A file of class names, one a line from class 0; null: those of the set, else numbers.
            Unlabelled images without it have the classes of the teacher.
        image_size: Side in pixels that images are resized to; null keeps the set's own size (folder and
            list: 224, unless the images are squares of one side of at most 64; webdataset: 224).
        validation: Fraction of the training set held out for choosing checkpoints, in [0, 1); by class
            where ``labels`` is true, else at random; where labels are partly unknown, of the kind of images
            that there are more of. A set with validation images of its own besides its test
            images has them used instead; 0: none.
        imbalance: Make the training set long-tailed: class c of K keeps at most n · imbalance^(-c/(K-1))
            images, n those of the largest class (Cui et al. 2019), which ones by ``split_seed``, after the
            validation images were held out, which stay as they are; at least 1, null leaves the set. Not of
            webdataset.
        train_images: Use this many training images, drawn at random by ``split_seed`` after the
            validation images were held out and ``imbalance`` was applied; null uses all.
        validation_images: Use this many validation images, drawn likewise (by class where ``labels`` is
            true), or ``all`` of them; null: the share of them that ``train_images`` is of the training
            images there are.
        split_seed: Seed of the split into training and validation images.
        labels: Whether training may see the labels. Evaluation always does. A training image whose label is
            -1, or that is in ``unlabelled/`` beside ``train/``, has none: it is distilled alone, and methods
            that need labels learn from the others.
        augment: ``crop-flip`` (random crop after padding by an eighth, horizontal flip), ``crop``,
            ``resized-crop`` (random area and ratio, flip), ``none``, or ``auto``: ``crop`` for digits,
            ``resized-crop`` for sets of one's own of more than 64 pixels a side, else ``crop-flip``.
        crop_scale: Range of the area of a resized crop.
        crop_interpolation: How a resized crop is brought to size, ``bilinear`` or ``bicubic``.
        randaugment: RandAugment of each image, in timm's words: ``rand-m7-n2-mstd0.5`` is magnitude 7
            with standard deviation 0.5, two operations an image; null: none. What it uncovers is gray.
        color_jitter: Brightness, contrast and saturation of each image are multiplied by factors from
            [1-c, 1+c]; 0 is off. Applied beside RandAugment too (timm's own training then leaves it out).
        erase_prob: Probability that a rectangle of an image (2 % to a third of its area) is replaced by
            noise, each pixel N(0.5, 0.25²) clipped to [0, 1].
        mixup: α of image mixup's Beta(α, α), one weight a batch; 0 is off. Labels are mixed alike;
            without labels the images alone are. Teacher and student see the same mixed images.
        cutmix: α of CutMix, likewise; labels are mixed by area.
        mixup_prob: Probability that a batch is mixed at all.
        mixup_switch_prob: Probability that a mixed batch is one of CutMix where both are on.
        label_smoothing: s in [0, 1): labels become (1-s) p + s/K. Nothing where training sees no labels.
        batch_size: Batch size per process (of a part of a step where ``training.accumulate`` says so);
            null: 128, and of less than 2,560 training images a twentieth, as a power of two of at least 16.
        workers: Loader processes for sets that stream from disk, and for what is done image by image
            (randaugment, color_jitter, erase_prob, bicubic crops); null: as many as there are cores,
            at most 8.
        in_memory: Hold the decoded set in memory as uint8; null: when it fits in 2 GiB. It never
            changes the images: training images for ``resized-crop`` that are not all of the final
            size are cropped from the originals, so true holds them encoded and null streams them.
        max_corrupt: Share of the images of a part (of an epoch, while they stream) that may be unreadable,
            in [0, 1). They are named in ``logs/skipped.txt``; in training the next image of the set takes
            the place of one (of shards: another one), in evaluation it is left out. With 0 the first one is
            an error. Of training shards it is also the share that may be missing from damaged ones.
        shot_thresholds: Accuracy is also told for classes of few (less than the first number), many (more
            than the second) and a medium number of training images. Null: [20, 100], where one class has
            at least three times the training images of another.
        resampled: Draw shards with replacement instead of reading each once an epoch (webdataset).
        steps_per_epoch: Steps of an epoch (parts of them where ``training.accumulate`` says so); null: one
            pass over the training images (webdataset).
        shuffle_buffer: Encoded images each process holds to shuffle what it reads (webdataset).
    """

    name: str = "digits"
    path: str | None = None
    test_path: str | None = None
    root: str | None = None
    classes: str | None = None
    image_size: int | None = None
    validation: float = 0.1
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
        """The batch size per process for so many training images: ``batch_size``, or what null becomes."""
        if self.batch_size is not None:
            return self.batch_size
        return max(16, min(128, 1 << int(math.log2(max(1, images / 20)))))
