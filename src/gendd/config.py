"""The typed run configuration.

Every section checks its own ranges when it is built. Loading is strict: an unknown key names its
dotted path and the nearest valid one (see :mod:`gendd.cli` and :func:`from_dict`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import yaml

from gendd.errors import UserError, did_you_mean
from gendd.methods import registry
from gendd.recipes import recipe_path

ReadoutName = Literal["linear", "mean", "sample"]
ReadoutChoice = Literal["linear", "mean", "sample", "auto"]
SamplerName = Literal["ddpm", "ddim", "dpm-solver"]
Prediction = Literal["sample", "epsilon", "v"]
MonitorName = Literal["auto", "top1", "agreement", "diffusion"]
# what in a file names the recipes it is laid over; no setting of a run
EXTENDS = "extends"
# what a null ``training.epochs`` becomes: at least so many, more where they are few steps
LEAST_EPOCHS, MOST_EPOCHS, ENOUGH_STEPS = 30, 300, 2000
# the sections of timm's RandAugment strings
_RANDAUGMENT = re.compile(
    r"rand(-(m\d+|n[1-9]\d*|p\d+(\.\d+)?|mstd\d+(\.\d+)?|mmax[1-9]\d*|inc[01]|t(weights|3aw?)))*"
)


def check(ok: bool, key: str, expected: str, came: object) -> None:
    """Raise :class:`UserError` of a config key where what came is not as expected."""
    if not ok:
        raise UserError(f"{key}: expected {expected}, got {came!r}.")


@dataclass
class DataConfig:
    """Which images, and how they are fed.

    Args:
        name: digits, fashion-mnist, cifar10, cifar100, folder, list, parquet, hf or webdataset.
        path: Root directory of the set (folder: holds ``train/`` and ``test/`` or ``val/``, or nothing but
            unlabelled images); for parquet the training file, for list the training list (lines
            ``path label``, or ``path`` alone for unlabelled images), for hf a folder that ``save_to_disk``
            of Hugging Face's datasets wrote, for webdataset a directory, glob or brace pattern of tar
            shards. Digits need none; fashion-mnist also finds Debian's package.
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
            where ``labels`` is true, else at random.
        imbalance: Make the training set long-tailed: class c of K keeps at most n · imbalance^(-c/(K-1))
            images, n those of the largest class (Cui et al. 2019), which ones by ``split_seed``, after the
            validation images were held out, which stay as they are; at least 1, null leaves the set. Not of
            webdataset.
        train_images: Use this many training images, drawn at random by ``split_seed`` after the
            validation images were held out and ``imbalance`` was applied; null uses all.
        split_seed: Seed of the split into training and validation images.
        labels: Whether training may see the labels. Evaluation always does.
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
        check(self.shuffle_buffer >= 1, "data.shuffle_buffer", "a positive integer", self.shuffle_buffer)
        check(
            self.steps_per_epoch is None or self.steps_per_epoch >= 1,
            "data.steps_per_epoch",
            "a positive integer or null",
            self.steps_per_epoch,
        )
        if self.name == "webdataset":
            check(self.imbalance is None, "data.imbalance", "null for tar shards", self.imbalance)
        else:
            alone = f"for data.name {self.name!r} (webdataset has it)"
            check(not self.resampled, "data.resampled", f"false {alone}", self.resampled)
            check(self.steps_per_epoch is None, "data.steps_per_epoch", f"null {alone}", self.steps_per_epoch)
        check(0 <= self.validation < 1, "data.validation", "a fraction in [0, 1)", self.validation)
        check(
            self.imbalance is None or self.imbalance >= 1,
            "data.imbalance",
            "a factor of at least 1 or null",
            self.imbalance,
        )
        check(0 <= self.max_corrupt < 1, "data.max_corrupt", "a fraction in [0, 1)", self.max_corrupt)
        few, many = self.shot_thresholds or (1, 1)
        check(1 <= few <= many, "data.shot_thresholds", "1 <= few <= many, or null", self.shot_thresholds)
        check(
            self.batch_size is None or self.batch_size >= 1,
            "data.batch_size",
            "a positive integer or null",
            self.batch_size,
        )
        check(
            self.train_images is None or self.train_images >= 1,
            "data.train_images",
            "a positive integer or null",
            self.train_images,
        )
        check(
            self.image_size is None or self.image_size >= 4,
            "data.image_size",
            "an integer of at least 4 or null",
            self.image_size,
        )
        check(
            self.workers is None or self.workers >= 0,
            "data.workers",
            "a non-negative integer or null",
            self.workers,
        )
        low, high = self.crop_scale
        check(0 < low <= high <= 1, "data.crop_scale", "0 < low <= high <= 1", self.crop_scale)
        check(
            self.randaugment is None or _RANDAUGMENT.fullmatch(self.randaugment) is not None,
            "data.randaugment",
            "timm's words for it such as 'rand-m7-n2-mstd0.5', or null",
            self.randaugment,
        )
        for name in ("color_jitter", "mixup", "cutmix"):
            check(getattr(self, name) >= 0, f"data.{name}", "a non-negative number", getattr(self, name))
        for name in ("erase_prob", "mixup_prob", "mixup_switch_prob"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"data.{name}", "a probability in [0, 1]", value)
        check(
            0 <= self.label_smoothing < 1,
            "data.label_smoothing",
            "a number in [0, 1)",
            self.label_smoothing,
        )

    def batch_of(self, images: int) -> int:
        """The batch size per process for so many training images: ``batch_size``, or what null becomes."""
        if self.batch_size is not None:
            return self.batch_size
        return max(16, min(128, 1 << int(math.log2(max(1, images / 20)))))


@dataclass
class ModelConfig:
    """A network and where its weights come from.

    Args:
        name: ``cifar/NAME``, ``timm/NAME`` or ``torchvision/NAME`` (``gendd models`` lists them); ``hf/ID``
            of transformers (a local folder as ``hf/./FOLDER`` or ``hf//FOLDER``), or
            ``path/to/file.py:factory``, a function that returns a network.
        weights: A .safetensors file, a state dict saved by torch, or a run's folder; null for random
            weights.
        pretrained: Take the library's pretrained weights; of a file's network: it comes trained.
        mean: Per-channel mean the network's input is normalised with, for images in [0, 1]; null:
            the network's own (timm, torchvision, hf), 0 for a file's, else 0.5.
        std: Likewise the standard deviation; null: the network's own, 1 for a file's, else 0.25.
        feature: Dotted name of the module where the feature is: a Linear layer, whose input it is and
            which is the classifier, or any other, whose pooled output it is (``NAME[0]``: its first
            token); ``output``: the network's own; null: found, as the input of the classifier.
        classifier: Use the network's classifier; false: a teacher of features alone, an embedding.
        classes: Classes of a teacher whose weights are of other classes than the data's; null: as many as
            its weights have. A student's follow from the data and the teacher.
        input_size: Side in pixels that images are resized to for this network; null: as the data come,
            or the size that the network takes alone.
        channels: The network's channels, where 1 or 3 of the data are to become 3 or 1; null: the
            data's, where the network can be built with them.
        dtype: Weights and arithmetic of the frozen teacher: ``fp32`` or ``bf16``.
        compile: Compile the frozen teacher.
        license: What the model card tells of the teacher's weights, or of the finished student; null: what
            timm tells of its pretrained weights, or a run of its student.
    """

    name: str = "cifar/resnet8"
    weights: str | None = None
    pretrained: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    feature: str | None = None
    classifier: bool = True
    classes: int | None = None
    input_size: int | None = None
    channels: int | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        check(
            self.classes is None or self.classes >= 1, "classes", "a positive integer or null", self.classes
        )
        check(
            self.std is None or all(value > 0 for value in self.std),
            "std",
            "positive numbers",
            self.std,
        )
        for name in ("input_size", "channels"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "a positive integer or null", value)


@dataclass
class GenDDConfig:
    """The method. Symbols as in the paper: s student feature, f teacher feature, z condition.

    Args:
        contraction: λ in [0, 1]; f ← (1-λ) f + λ c_y. Without labels it is 0. Null: 0.3, or 0 where nothing
            is a centre of the labels' classes (the teacher has others, and ``centres`` is not ``means``).
        alpha: Weight of the label against the teacher's own prediction in the contraction's class
            probabilities, in [0, 1].
        centres: What c_y is: ``classifier`` (row y of the teacher's classifier, as published) or
            ``means`` (mean teacher feature of class y over the training images). Where the teacher has no
            classifier, or one of other classes than the data, the means also read what is generated.
        centre_scale: ``none`` takes the centres as they are; ``match`` scales them so that their
            mean squared norm equals that of the teacher's features.
        mixup: β of the feature mixup's Beta(β, β); 0 is off.
        token_width: τ, at most the teacher's feature width; where it does not divide it, the last token is
            padded.
        repeats: M, rows a token and step, each with its own t and noise.
        condition_dropout: Probability that a row's condition is zeroed, in [0, 1). Guided sampling
            needs it, and it costs the student as much of its gradient.
        prediction: What the head predicts: ``sample`` (x0), ``epsilon`` or ``v``.
        learned_variance: Also predict the variance (the VLB term), as published.
        standardise: Centre and scale the teacher's feature per dimension.
        time_power: p in t = T (1 - (1-u)^p), u uniform: 1 is uniform, more is denser towards pure
            noise, where only the condition tells what to generate.
        head_width: Width of the head; null: 256, or less where a pass of it would cost more than a quarter of
            the student's multiply-adds, or a training step's rows more than the student.
        head_depth: Residual blocks of the head.
        zero_init: Start the head's modulations and output layer at zero, as published; the student
            gets no gradient until they have grown.
        timesteps: T, length of the diffusion schedule.
        probe: What the linear readout learns from: ``labels``, ``teacher`` (the teacher's
            predictions), ``none``, or ``auto``: labels where training may see them, else the teacher.
        map_weight: Weight of the regression of the teacher's last map, at every position, from the student's;
            0: learn from the pooled feature alone, as published. Networks without maps always do.
        stage_weight: Weight of the regression of maps of finer grids, of the two stages before the last.
        projector: Channels between the convolutions that map the student's last map to the teacher's, which
            are part of the student: its feature, which conditions the head, is the mean of the projected
            map. 0: the projector serves the training alone. Null: half the teacher's width, or less where
            it would cost more than a quarter of the student's multiply-adds.
        diffusion_weight: Weight of the diffusion loss.
        label_weight: Weight with which the cross-entropy of the linear readout reaches the student itself,
            where labels are seen; null: 1 where the teacher does not have the classes of the labels, else 0.
        refit: Fit the linear readout anew after the training, to ``labels``, the ``teacher``'s
            probabilities or those of readout ``mean`` on the training images as they are, and keep the
            better of the two on the validation images; ``none`` leaves the one that was trained along.
    """

    contraction: float | None = None
    alpha: float = 1.0
    centres: Literal["classifier", "means"] = "classifier"
    centre_scale: Literal["none", "match"] = "none"
    mixup: float = 0.0
    token_width: int = 64
    repeats: int = 8
    condition_dropout: float = 0.0
    prediction: Prediction = "sample"
    learned_variance: bool = False
    standardise: bool = True
    time_power: float = 2.0
    head_width: int | None = None
    head_depth: int = 3
    zero_init: bool = False
    timesteps: int = 1000
    map_weight: float = 1.0
    stage_weight: float = 4.0
    projector: int | None = None
    diffusion_weight: float = 1.0
    label_weight: float | None = None
    probe: Literal["auto", "labels", "teacher", "none"] = "auto"
    refit: Literal["none", "labels", "teacher", "mean"] = "none"

    def __post_init__(self) -> None:
        check(
            self.contraction is None or 0 <= self.contraction <= 1,
            "gendd.contraction",
            "a number in [0, 1] or null",
            self.contraction,
        )
        check(0 <= self.alpha <= 1, "gendd.alpha", "a number in [0, 1]", self.alpha)
        check(self.time_power > 0, "gendd.time_power", "a positive number", self.time_power)
        check(self.mixup >= 0, "gendd.mixup", "a non-negative number", self.mixup)
        check(
            0 <= self.condition_dropout < 1,
            "gendd.condition_dropout",
            "a probability in [0, 1)",
            self.condition_dropout,
        )
        for name in ("token_width", "repeats", "head_depth"):
            check(getattr(self, name) >= 1, f"gendd.{name}", "a positive integer", getattr(self, name))
        check(
            self.head_width is None or self.head_width >= 1,
            "gendd.head_width",
            "a positive integer or null",
            self.head_width,
        )
        check(
            self.projector is None or self.projector >= 0,
            "gendd.projector",
            "a non-negative integer or null",
            self.projector,
        )
        for name in ("map_weight", "stage_weight", "diffusion_weight"):
            value = getattr(self, name)
            check(value >= 0, f"gendd.{name}", "a non-negative number", value)
        check(
            self.label_weight is None or self.label_weight >= 0,
            "gendd.label_weight",
            "a non-negative number or null",
            self.label_weight,
        )
        check(self.timesteps >= 2, "gendd.timesteps", "an integer of at least 2", self.timesteps)


@dataclass
class TrainingConfig:
    """Optimisation, common to every method.

    Args:
        epochs: Passes over the training images; null: 30, or as many more as make 2,000 steps, at most 300.
        lr: Peak learning rate.
        optimizer: ``adamw``, or ``sgd`` with ``momentum`` (not Nesterov's).
        momentum: Of sgd.
        weight_decay: Decoupled for adamw, added to the gradient for sgd; not on 1-d parameters, biases
            or the head.
        decay_all: Decay 1-d parameters and biases too, everything but the head; what is published
            with sgd does.
        beta1: Adam's β1.
        beta2: Adam's β2 at the start and the end of its cosine ramp.
        schedule: ``cosine`` to ``min_lr``, ``step`` (times ``gamma`` at each milestone) or ``constant``,
            per optimiser step.
        min_lr: Where the cosine ends.
        warmup_epochs: Linear warmup to the full rate, shorter than the training; may be fractional.
            Null: a tenth of the epochs.
        milestones: Epochs at which the ``step`` schedule decays.
        gamma: What the ``step`` schedule multiplies the rate with at each milestone.
        accumulate: Batches whose gradients are averaged to one optimiser step: ``data.batch_size`` 128
            four times is a step of 512 (BatchNorm still sees each batch alone). Batches left over at
            the end of an epoch are dropped.
        clip_grad_norm: Largest norm of the gradient; null: no clipping.
        ema: Decay of an exponential moving average of the student; null: none. The average is what
            is evaluated and saved.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast); ``auto``: bf16 where the device
            computes in it, else fp32.
        channels_last: Memory format of images and convolutions; null: on. Never on where it would corrupt
            memory (see :func:`gendd.training.overruns`).
        stage1_epochs: Epochs of pretraining on the labels through the frozen teacher classifier, with a
            warmup of a tenth and a cosine.
        stage1_lr: Peak learning rate of the pretraining.
        monitor: What chooses the checkpoint on the validation images: ``top1``, ``agreement`` with the
            teacher, ``diffusion`` (the smallest diffusion loss, on the same noise each time), or ``auto``:
            the first of these that the teacher and the labels allow. A method that lacks what is named
            (a baseline has no diffusion loss) is judged as by auto.
        checkpoint_every: Epochs between checkpoints.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        loggers: Any of ``csv``, ``tensorboard``, ``wandb``.
        progress: Show a progress bar; null: when a person watches.
    """

    epochs: int | None = None
    lr: float = 3e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.05
    decay_all: bool = False
    beta1: float = 0.9
    beta2: tuple[float, float] = (0.95, 0.999)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    min_lr: float = 0.0
    warmup_epochs: float | None = None
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    accumulate: int = 1
    clip_grad_norm: float | None = None
    ema: float | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool | None = None
    stage1_epochs: int = 0
    stage1_lr: float = 3e-3
    monitor: MonitorName = "auto"
    checkpoint_every: int = 1
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    loggers: list[Literal["csv", "tensorboard", "wandb"]] = field(
        default_factory=lambda: ["csv", "tensorboard"]
    )
    progress: bool | None = None

    def __post_init__(self) -> None:
        check(
            self.epochs is None or self.epochs >= 1,
            "training.epochs",
            "a positive integer or null",
            self.epochs,
        )
        check(self.lr > 0, "training.lr", "a positive number", self.lr)
        check(self.weight_decay >= 0, "training.weight_decay", "a non-negative number", self.weight_decay)
        check(0 <= self.momentum < 1, "training.momentum", "a number in [0, 1)", self.momentum)
        check(0 < self.gamma <= 1, "training.gamma", "a number in (0, 1]", self.gamma)
        check(self.accumulate >= 1, "training.accumulate", "a positive integer", self.accumulate)
        check(0 <= self.beta1 < 1, "training.beta1", "a number in [0, 1)", self.beta1)
        check(
            all(0 <= beta < 1 for beta in self.beta2), "training.beta2", "two numbers in [0, 1)", self.beta2
        )
        check(
            self.warmup_epochs is None or 0 <= self.warmup_epochs < (self.epochs or LEAST_EPOCHS),
            "training.warmup_epochs",
            f"null or a number in [0, {self.epochs or LEAST_EPOCHS}), the training's epochs",
            self.warmup_epochs,
        )
        check(self.ema is None or 0 < self.ema < 1, "training.ema", "a number in (0, 1) or null", self.ema)
        check(self.min_lr >= 0, "training.min_lr", "a non-negative number", self.min_lr)
        check(self.stage1_lr > 0, "training.stage1_lr", "a positive number", self.stage1_lr)
        check(
            all(epoch >= 0 for epoch in self.milestones),
            "training.milestones",
            "non-negative integers",
            self.milestones,
        )
        check(
            self.clip_grad_norm is None or self.clip_grad_norm > 0,
            "training.clip_grad_norm",
            "a positive number or null",
            self.clip_grad_norm,
        )
        check(self.stage1_epochs >= 0, "training.stage1_epochs", "a non-negative integer", self.stage1_epochs)
        check(
            self.checkpoint_every >= 1,
            "training.checkpoint_every",
            "a positive integer",
            self.checkpoint_every,
        )

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of so many steps: ``epochs``, or what null becomes."""
        if self.epochs is not None:
            return self.epochs
        return min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-ENOUGH_STEPS // max(1, steps_per_epoch))))


@dataclass
class ReadoutConfig:
    """How logits are read from the student.

    Args:
        name: ``linear`` (the probe on the student's feature), ``mean`` (one head pass: E[f | z]),
            ``sample`` (generated features) or ``auto`` (the cheapest that is within 0.1 point of the best
            on the validation images).
        sampler: ``ddpm`` (ancestral, as published), ``ddim`` or ``dpm-solver`` (DPM-Solver++(2M)).
        steps: Steps of the respaced schedule.
        guidance: Scale of classifier-free guidance; 1 is none.
        num_samples: Features generated an image and averaged.
        temperature: Factor on the step noise of ddpm.
        eta: η of ddim, in [0, 1]: 0 is deterministic, 1 as noisy as ddpm.
    """

    name: ReadoutChoice = "mean"
    sampler: SamplerName = "ddpm"
    steps: int = 10
    guidance: float = 1.0
    num_samples: int = 5
    temperature: float = 1.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        for key, choices in (("name", ReadoutChoice), ("sampler", SamplerName)):
            value = getattr(self, key)
            check(
                value in get_args(choices), f"readout.{key}", f"one of {', '.join(get_args(choices))}", value
            )
        check(0 <= self.eta <= 1, "readout.eta", "a number in [0, 1]", self.eta)
        check(self.steps >= 1, "readout.steps", "a positive integer", self.steps)
        check(self.num_samples >= 1, "readout.num_samples", "a positive integer", self.num_samples)
        check(self.temperature >= 0, "readout.temperature", "a non-negative number", self.temperature)


@dataclass
class RunConfig:
    """Everything a run depends on; saved as ``config.yaml`` in its folder.

    Args:
        method: What trains the student: a method's name (``gendd methods`` lists them), or
            ``path/to/file.py:CLASS`` for one of your own.
        baselines: Methods trained beside it from the same seed for the table and the report.
        teacher: The frozen network that is distilled. Without weights it is trained first, on the
            labels, by ``teacher_training``, and cached.
        student: The network that is trained.
        data: The images.
        gendd: Settings of method gendd.
        settings: Settings of other methods by name; in files and options each is a section of its own,
            ``kd.temperature``.
        training: Optimisation of the student.
        teacher_training: Optimisation of a teacher that comes without weights.
        readout: How the finished student gives its logits, and the sampler's settings.
        seed: Seed of everything random: weights, order, augmentation, diffusion, sampling.
        out: Output folder; null: below ``runs/``.
    """

    method: str = "gendd"
    baselines: list[str] = field(default_factory=list)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig("cifar/resnet20"))
    student: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    gendd: GenDDConfig = field(default_factory=GenDDConfig)
    settings: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    teacher_training: TrainingConfig = field(default_factory=TrainingConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        registry.check_name("method", self.method)
        for name in self.baselines:
            registry.check_name("baselines", name)
        check(
            self.student.classes is None,
            "student.classes",
            "null, as the student's classes follow from the data and the teacher",
            self.student.classes,
        )
        check(
            self.data.labels or self.gendd.refit != "labels",
            "gendd.refit",
            "none, teacher or mean where data.labels is false",
            self.gendd.refit,
        )
        check(
            self.method != "gendd" or self.readout.guidance == 1 or self.gendd.condition_dropout > 0,
            "readout.guidance",
            "1 where gendd.condition_dropout is 0 (dropout trains the unconditional branch)",
            self.readout.guidance,
        )
        frozen = "{} (only the frozen teacher has another)"
        check(self.student.dtype == "fp32", "student.dtype", frozen.format("fp32"), self.student.dtype)
        check(not self.student.compile, "student.compile", frozen.format("false"), self.student.compile)
        check(self.student.classifier, "student.classifier", frozen.format("true"), self.student.classifier)

    def settings_of(self, method: str) -> Any:
        """The settings of a method, by default its own defaults."""
        if method in _OWN_SECTIONS:
            return getattr(self, method)
        return self.settings.get(registry.section(method)) or registry.settings_type(method)()


C = TypeVar("C")
# methods whose settings have a section that is a field of its own
_OWN_SECTIONS = {"gendd"}


# of a run what is no section or key by its own name
_UNSPELLED = {"settings"}


def keys(section: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """Every valid dotted key below ``section``, sections included; of a run without those of its methods."""
    found: list[str] = []
    hints = get_type_hints(section)
    for entry in dataclasses.fields(section):
        if section is RunConfig and entry.name in _UNSPELLED:
            continue
        found.append(prefix + entry.name)
        if dataclasses.is_dataclass(hints[entry.name]):
            found += keys(hints[entry.name], f"{prefix}{entry.name}.")
    return found


def check_keys(
    values: dict[str, Any],
    section: type[Any] = RunConfig,
    prefix: str = "",
    root: type[Any] | None = None,
) -> None:
    """Raise :class:`UserError` at the first key that ``section`` does not know, or null it can't be."""
    known = keys(root or section) if root is not None or not prefix else keys(section, prefix)
    hints = get_type_hints(section)
    for key, value in values.items():
        if section is RunConfig and key not in hints and key in registry.sections(values):
            _check_section(key, value)
            continue
        if key not in hints or prefix + str(key) not in known:
            name = prefix + str(key)
            choices = [*known, *registry.names()] if section is RunConfig else known
            raise UserError(f"Unknown config key {name!r}.{did_you_mean(name, choices)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key}: expected a section (key: value lines), got {value!r}.")
            check_keys(value, hints[key], f"{prefix}{key}.", root or section)
        elif value is None and type(None) not in get_args(hints[key]):
            # jsonargparse lets null pass for any type
            raise UserError(f"{prefix}{key}: expected {_words(hints[key])}, got null.")


def _check_section(name: str, values: Any) -> None:
    """Raise :class:`UserError` where values are no settings of the method of that name."""
    if not isinstance(values, dict):
        raise UserError(f"{name}: expected a section (key: value lines), got {values!r}.")
    check_keys(values, registry.settings_type(name), f"{name}.")


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain nested dictionaries and lists, ready for YAML or JSON."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    if isinstance(config, RunConfig):
        # each method's settings are a section by its name, where the others are
        sections = plain.pop("settings")
        place = list(plain).index("gendd") + 1
        items = list(plain.items())
        plain = dict([*items[:place], *sections.items(), *items[place:]])
    return plain


def with_settings(config: RunConfig) -> RunConfig:
    """The configuration with the settings of the methods it names in full, and of no others."""
    sections = {}
    for name in dict.fromkeys([*config.baselines, config.method]):
        section, kind = registry.section(name), registry.settings_type(name)
        if section not in _OWN_SECTIONS and dataclasses.fields(kind):
            sections[section] = config.settings.get(section) or kind()
    return dataclasses.replace(config, settings=sections)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_dict(values: dict[str, Any], section: type[C]) -> C:
    """Build a config from plain dictionaries; keys not given keep their defaults.

    Raises:
        UserError: an unknown key, or a value of the wrong type or range.
    """
    check_keys(values, section)
    if section is not RunConfig:
        return _built(values, section)
    names = [name for name in values if name not in get_type_hints(RunConfig)]
    settings = {name: _built(values[name], registry.settings_type(name), name) for name in names}
    return _built({key: value for key, value in values.items() if key not in names}, section, given=settings)


def _built(
    values: dict[str, Any], section: type[C], name: str | None = None, given: dict[str, Any] | None = None
) -> C:
    """A section, called ``name`` where it is one of several, of values whose keys were checked."""
    from jsonargparse import ArgumentParser

    skipped = set(_UNSPELLED) if section is RunConfig else set()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(section, name, fail_untyped=True, skip=skipped)
    try:
        parsed = parser.instantiate(parser.parse_object(values if name is None else {name: values}))
        parsed = parsed if name is None or not dataclasses.fields(cast(Any, section)) else parsed[name]
        if name is not None:
            return parsed if isinstance(parsed, section) else section()
        fields = {key: getattr(parsed, key) for key in get_type_hints(section) if key not in skipped}
        return section(**fields, **({} if given is None else {"settings": given}))
    except UserError:
        raise
    except Exception as error:
        raise UserError(one_line(error, section, name)) from error


def load_config(path: Path) -> RunConfig:
    """A configuration file.

    Raises:
        UserError: it can't be read, or holds what is no configuration.
    """
    return from_dict(read_yaml(path), RunConfig)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file laid over those it extends; raises as :func:`load_config`."""
    return extended(read_mapping(path))


def read_mapping(path: Path) -> dict[str, Any]:
    """What a YAML file itself says, ``extends`` included, its keys checked; raises as :func:`load_config`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"Config {str(path)!r}: expected a readable YAML file; {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"Config {str(path)!r}: expected key: value lines, got {type(values).__name__}.")
    check_keys({key: value for key, value in values.items() if key != EXTENDS})
    return values


def extended(values: dict[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values laid over those of the shipped recipes that they extend, the first undermost.

    Args:
        values: A file's mapping, which may hold ``extends: NAME`` or ``extends: [NAME, …]``.
        below: The recipes that are being extended already.

    Raises:
        UserError: ``extends`` is no list of recipes' names, or a recipe extends itself.
    """
    own = dict(values)
    names = own.pop(EXTENDS, [])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{EXTENDS}: expected a recipe's name or a list of them, got {names!r}.")
    merged: dict[str, Any] = {}
    for name in names:
        if name in below:
            way = " → ".join([*below[below.index(name) :], name])
            raise UserError(f"{EXTENDS}: expected recipes that don't extend themselves, got {way}.")
        merge(merged, extended(read_mapping(recipe_path(name)), (*below, name)))
    merge(merged, own)
    return merged


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Lay nested ``values`` over ``into``, in place."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def one_line(error: BaseException, section: type[Any] = RunConfig, name: str | None = None) -> str:
    """The message of an exception on one line; jsonargparse's in the words of the others.

    Args:
        error: What was raised.
        section: Whose keys it may name.
        name: What the section is called in front of its keys.
    """
    text = " ".join(str(error).split())
    key = re.search(r"[Kk]ey \"([\w.]+)\"", text)
    values = re.findall(r"(?:Got|Given) value: (.*?)(?= Given value| Got value| - |$)", text)
    if key is None or not values:
        return text
    own = key[1] if name is None else key[1].removeprefix(f"{name}.")
    return f"{key[1]}: expected {_expected(own, section)}, got {values[-1]}."


def _expected(key: str, section: type[Any]) -> str:
    """What a dotted key of a section takes, in words."""
    hint: Any = section
    for part in key.split("."):
        hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return "another type" if hint is None else _words(hint)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is list:
        return f"a list of {_words(inner[0])}"
    if origin is tuple:
        return "[" + ", ".join(map(_words, inner)) + "]"
    if inner:
        return " or ".join(map(_words, inner))
    names = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def dump(config: RunConfig) -> str:
    """The config as YAML, every key resolved."""
    text: str = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    return text
