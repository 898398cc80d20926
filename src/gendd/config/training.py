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
# default of ``training.epochs``: at least LEAST_EPOCHS, more if they are fewer than ENOUGH_STEPS steps
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
        epochs: Passes over the training images; null: 30, or more to reach 2,000 steps, at most 300.
        lr: Peak learning rate.
        optimizer: ``adamw``, or ``sgd`` with ``momentum`` (not Nesterov's).
        momentum: Momentum of sgd.
        weight_decay: Decoupled for adamw, added to the gradient for sgd; not applied to 1-d parameters,
            biases or the head.
        decay_all: Also decay 1-d parameters and biases, that is everything but the head, as published
            experiments with sgd do.
        beta1: Adam's β1.
        beta2: Adam's β2 at the start and the end of its cosine ramp.
        schedule: ``cosine`` to ``min_lr``, ``step`` (times ``gamma`` at each milestone) or ``constant``,
            updated per optimiser step.
        min_lr: Final learning rate of the cosine schedule.
        warmup_epochs: Linear warmup to the full learning rate, shorter than the training; may be fractional.
            Null: a tenth of the epochs.
        milestones: Epochs at which the ``step`` schedule decays.
        gamma: Factor on the learning rate at each milestone of the ``step`` schedule.
        accumulate: Batches whose gradients are averaged into one optimiser step: with ``data.batch_size``
            128, four make a step of 512 images (BatchNorm still sees each batch alone). Batches left over
            at the end of an epoch are dropped.
        clip_grad_norm: Maximum norm of the gradient; null: no clipping.
        ema: Decay of an exponential moving average of the student; null: none. The average is what
            is evaluated and saved.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast); ``auto``: bf16 if the device supports it
            natively, else fp32.
        channels_last: Use the channels-last memory format for images and convolutions; null: on. Always off
            where it would corrupt memory (see :func:`gendd.training.overruns`).
        stage1_epochs: Epochs of pretraining on the labels through the frozen teacher classifier, with warmup
            over a tenth of them and a cosine schedule.
        stage1_lr: Peak learning rate of the pretraining.
        monitor: Metric that selects the checkpoint on the validation images: ``top1``, ``agreement`` with the
            teacher, ``diffusion`` (the smallest diffusion loss, on the same noise each time), or ``auto``:
            the first of these that the teacher and the labels allow. Methods without the named metric
            (a baseline has no diffusion loss) use auto.
        cache_teacher: Number of fixed views per image that a method with a teacher trains on repeatedly. The
            teacher's outputs for them are kept on disk, so that it runs on each only once (see ``gendd
            cache``). 0: new views in every epoch, and the teacher runs on every batch.
        cache_dtype: Data type of those outputs: ``fp16``, ``int8`` with one scale per image, or ``fp32``.
        cuda_graphs: On one CUDA device, record a training step and replay it in one launch, which makes small
            networks faster. Steps that can't be recorded run as usual. Set false for networks whose Python
            code changes from step to step, and to save the memory that a recorded step keeps.
        compile: Compile GenDD's head and losses with ``torch.compile``, which takes up to a minute at the
            start; they run uncompiled where there is no compiler.
        checkpoint_every: Epochs between checkpoints.
        checkpoint_minutes: Minutes of training between checkpoints within an epoch; null: none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: Number of processes to train with, one per CUDA device, or a list of CUDA devices ([0, 2]).
            ``auto``: as many as torchrun, srun or PyTorchJob has started, else one.
        strategy: How several processes share the networks: each holds them in full (``ddp``), or a shard of
            every weight, gradient and optimiser state, gathered block by block when needed (``fsdp``; for
            students and teachers too large for one device; without ``ema``, fp16 or ``cache_teacher``).
        sync_batchnorm: Compute BatchNorm's statistics over the batches of all processes (CUDA).
        scale_lr: Factor on the learning rates: the number of processes (``linear``), its square root
            (``sqrt``), or 1 (``none``).
        loggers: Any of ``csv``, ``tensorboard``, ``wandb``.
        progress: Show a progress bar; null: if stderr is a terminal.
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
    cuda_graphs: bool = True
    compile: bool = False
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
        """Number of epochs for so many steps per epoch: ``epochs``, or its default if null."""
        if self.epochs is not None:
            return self.epochs
        return min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-ENOUGH_STEPS // max(1, steps_per_epoch))))
