"""Sections ``training`` and ``teacher_training``: optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gendd.config.checks import (
    BELOW_ONE,
    INTEGER,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INTEGER,
    Rule,
    check,
    check_section,
    or_null,
)

MonitorName = Literal["auto", "top1", "agreement", "diffusion"]
# what a null ``training.epochs`` becomes: at least so many, more where they are few steps
LEAST_EPOCHS, MOST_EPOCHS, ENOUGH_STEPS = 30, 300, 2000


def _names_devices(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and min(value) >= 0 and len({*value}) == len(value)
    return value == "auto" or (isinstance(value, int) and value >= 1)


_RULES = {
    "epochs": or_null(POSITIVE_INTEGER),
    "lr": POSITIVE,
    "weight_decay": NON_NEGATIVE,
    "momentum": BELOW_ONE,
    "gamma": Rule(lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "accumulate": POSITIVE_INTEGER,
    "beta1": BELOW_ONE,
    "beta2": Rule(lambda value: all(0 <= beta < 1 for beta in value), "two numbers in [0, 1)"),
    "ema": or_null(Rule(lambda value: 0 < value < 1, "a number in (0, 1)")),
    "min_lr": NON_NEGATIVE,
    "stage1_lr": POSITIVE,
    "milestones": Rule(lambda value: all(epoch >= 0 for epoch in value), "non-negative integers"),
    "clip_grad_norm": or_null(POSITIVE),
    "stage1_epochs": INTEGER,
    "checkpoint_every": POSITIVE_INTEGER,
    "checkpoint_minutes": or_null(POSITIVE),
    "cache_teacher": INTEGER,
    "devices": Rule(_names_devices, "'auto', a positive number, or a list of different CUDA devices"),
}


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
        cache_teacher: Views of each image that a method with a teacher trains on, over and over; what the
            teacher says of each is kept on disk, so that it runs once (see ``gendd cache``). 0: every epoch
            has its own, and the teacher answers each batch.
        cache_dtype: How that is kept: ``fp16``, ``int8`` with a scale for each image, or ``fp32``.
        checkpoint_every: Epochs between checkpoints.
        checkpoint_minutes: Minutes of training between those within an epoch; null: none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: How many train together, a process each, or a list of CUDA devices ([0, 2]). ``auto``: as
            many as torchrun, srun or PyTorchJob has started, else one.
        strategy: How several processes share the networks: each has all of them (``ddp``), or a part of each
            weight, gradient and optimiser state, gathered block by block as it is needed (``fsdp``; for
            students and teachers too large for one device; without ``ema``, fp16 or ``cache_teacher``).
        sync_batchnorm: BatchNorm's statistics are those of the batches of all processes (CUDA).
        scale_lr: What the learning rates are multiplied with: the number of processes (``linear``), its
            square root (``sqrt``), or 1 (``none``).
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
    cache_teacher: int = 0
    cache_dtype: Literal["fp16", "int8", "fp32"] = "fp16"
    checkpoint_every: int = 1
    checkpoint_minutes: float | None = 10.0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | list[int] | Literal["auto"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    sync_batchnorm: bool = False
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    loggers: list[Literal["csv", "tensorboard", "wandb"]] = field(
        default_factory=lambda: ["csv", "tensorboard"]
    )
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_section(self, "training.", _RULES)
        epochs = self.epochs or LEAST_EPOCHS
        check(
            self.warmup_epochs is None or 0 <= self.warmup_epochs < epochs,
            "training.warmup_epochs",
            f"null or a number in [0, {epochs}), the training's epochs",
            self.warmup_epochs,
        )
        if self.strategy == "fsdp":
            check(self.ema is None, "training.ema", "null with training.strategy fsdp", self.ema)
            whole = self.precision != "fp16"
            check(whole, "training.precision", "bf16 or fp32 with training.strategy fsdp", self.precision)
            views = self.cache_teacher
            check(views == 0, "training.cache_teacher", "0 with training.strategy fsdp", views)

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Epochs of so many steps: ``epochs``, or what null becomes."""
        if self.epochs is not None:
            return self.epochs
        return min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-ENOUGH_STEPS // max(1, steps_per_epoch))))
