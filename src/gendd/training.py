"""Optimiser, schedules, and the Lightning module and Trainer that train any method.

Everything random in a step is a pure function of (seed, step): data order and augmentation by epoch,
mixup and CutMix by batch of an epoch, times, noise, feature mixup and dropout by step. A run that goes on
from a checkpoint therefore repeats what it would have done.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import lightning
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from gendd.config import DataConfig, MonitorName, ReadoutChoice, ReadoutName, TrainingConfig
from gendd.data import Batch, Batches, Data, Mixing, ShardBatches, eval_loader, train_loader
from gendd.errors import UserError
from gendd.files import write_json
from gendd.messages import say
from gendd.methods import Method

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}
EVAL_BATCH_SIZE = 512


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def resolve_device(name: str, key: str = "training.device") -> torch.device:
    """The device ``auto``, ``cpu``, ``cuda`` or ``mps`` stands for.

    Raises:
        UserError: of ``key``: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name):
        raise UserError(f"{key}: expected a device of this machine, got {name!r}; use 'auto' or 'cpu'.")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision ``auto`` stands for: bf16 where the device multiplies matrices in it, else fp32.

    Raises:
        UserError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("training.precision: expected fp32 or bf16 on a CPU, got 'fp16'.")
    if name != "auto":
        return cast(Literal["fp32", "bf16", "fp16"], name)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def autocast_type(name: str, device: torch.device) -> torch.dtype | None:
    """What a network is trained in on a device (see :func:`resolve_precision`), for autocast; None: fp32."""
    if name == "fp16" and device.type == "cpu":
        return None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[resolve_precision(name, device)]


def _cpu_multiplies_bf16() -> bool:
    # with either, a ResNet's step in bf16 takes about half the time of one in fp32
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def overruns(network: nn.Module, device: torch.device) -> bool:
    """Whether channels-last training of a network corrupts memory on this device.

    On CPUs without AVX-512 the backward pass of PyTorch 2.14's strided 1x1 convolutions of fewer than 8
    input channels writes beyond its buffers in that format, and the process is aborted sooner or later.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < 8
        for layer in network.modules()
    )


def shows_progress(config: TrainingConfig) -> bool:
    """Whether progress bars are drawn: as the configuration says, else when a person watches."""
    return sys.stderr.isatty() if config.progress is None else config.progress


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Factor on the peak learning rate at an optimiser step, counted from 0."""
    total = config.num_epochs(steps_per_epoch) * steps_per_epoch
    warmup = round(0.1 * total if config.warmup_epochs is None else config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        floor = config.min_lr / config.lr
        progress = (step - warmup) / max(1, total - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return config.gamma ** sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
    return 1.0


def beta2(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Adam's β2 at a step: from its start to its end on a half cosine."""
    start, end = config.beta2
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps - 1))))


def parameter_groups(method: Method, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Parameters with decay and without: biases and other 1-d ones (unless ``decay_all``), what is exempt."""
    exempt = {id(parameter) for parameter in method.undecayed()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in method.parameters():
        if parameter.requires_grad:
            spared = id(parameter) in exempt or (parameter.ndim < 2 and not decay_all)
            (plain if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def readout_classes(method: Method) -> dict[ReadoutName, int]:
    """K of each readout of a method's student that costs one pass; the data's or the teacher's classes."""
    student = method.student()
    return {name: student.num_classes(name) for name in student.readouts if name != "sample"}


def choose_monitor(
    method: Method, monitor: MonitorName, labels: bool, num_classes: int, readout: ReadoutChoice = "mean"
) -> str:
    """The validation metric that checkpoints of a method are chosen by.

    Args:
        method: What is trained.
        monitor: ``training.monitor``.
        labels: Whether training may see labels.
        num_classes: K of the data's labels.
        readout: The readout in use; for ``sample`` it is ``mean``, which costs one pass.

    Returns:
        ``val/READOUT`` (top-1 of it), ``val/agreement`` or ``val/diffusion``.

    Raises:
        UserError: the method can't be judged by what ``monitor`` names, or by anything.
    """
    classes = readout_classes(method)
    chosen = chosen_readout(classes, readout, num_classes if labels else None)
    found: dict[str, str] = {}
    if labels and chosen and classes[chosen] == num_classes:
        found["top1"] = f"val/{chosen}"
    if chosen and classes[chosen] == _teacher_classes(method):
        found["agreement"] = "val/agreement"
    if method.has_diffusion:
        found["diffusion"] = "val/diffusion"
    if not found:
        raise UserError(
            "Validation: expected a readout of the data's or the teacher's classes to judge the student by, "
            "got none; set data.validation 0 or give another teacher."
        )
    # a baseline beside the method is none the worse for what it lacks
    lacking = (monitor == "diffusion" and not method.has_diffusion) or (
        monitor == "agreement" and method.teacher is None
    )
    if monitor != "auto" and not lacking and monitor not in found:
        raise UserError(
            f"training.monitor: expected {' or '.join(found)} for this teacher, student and labels, "
            f"got {monitor!r}."
        )
    return found.get(monitor) or next(iter(found.values()))


def chosen_readout(
    classes: Mapping[ReadoutName, int], readout: ReadoutChoice, seen: int | None = None
) -> ReadoutName | None:
    """Of one-pass readouts the one in use: ``mean`` for ``sample`` and ``auto``, or what there is.

    Args:
        classes: K of each readout there is.
        readout: The one that is asked for.
        seen: K of the labels that training sees: a readout of other classes gives way to one of these.
    """
    own = [name for name, count in classes.items() if count == seen]
    there = own or list(classes)
    if "mean" in there and (readout != "linear" or "linear" not in there):
        return "mean"
    return "linear" if "linear" in there else None


def _teacher_classes(method: Method) -> int:
    return 0 if method.teacher is None else method.teacher.num_classes


class LightningMethod(lightning.LightningModule):
    """A method as Lightning trains it.

    Args:
        method: What is trained.
        data: Its images.
        config: Optimisation.
        data_config: Loading.
        seed: Of order, augmentation and the method's randomness.
        channels_last: Memory format of the images.
        readout: The readout whose validation accuracy chooses the checkpoint; for ``sample`` it is
            ``mean``, which costs one pass.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        config: TrainingConfig,
        data_config: DataConfig,
        seed: int,
        channels_last: bool,
        readout: ReadoutChoice = "mean",
    ) -> None:
        super().__init__()
        self.method = method
        self.data = data
        self.config = config
        self.data_config = data_config
        self.seed = seed
        self.channels_last = channels_last
        self.readout = readout
        self.use_labels = data_config.labels and data.labelled
        self.mixing = Mixing.from_config(data_config, data.num_classes)
        batches = len(train_loader(data, data_config, seed=seed, epoch=0))
        # a share smaller than a step is one smaller step
        self.accumulate = min(config.accumulate, batches)
        self.steps_per_epoch = batches // self.accumulate
        self.seconds = 0.0
        self._clock: float | None = None
        self._unchecked: tuple[int, list[str], Tensor, torch.cuda.Event | None] | None = None
        classes = readout_classes(method)
        seen = data.num_classes if self.use_labels else None
        self._chosen = chosen_readout(classes, readout, seen)
        self.monitor: str | None = None
        if data.val is not None:
            self.monitor = choose_monitor(method, config.monitor, self.use_labels, data.num_classes, readout)
        watched: dict[str, int] = {}
        if self.use_labels:
            watched |= {name: count for name, count in classes.items() if count == data.num_classes}
        if self.monitor == "val/agreement":
            watched["agreement"] = _teacher_classes(method)
        self.accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(max(count, 2), average="micro") for name, count in watched.items()}
        )
        self.diffusion = MeanMetric()

    def train_dataloader(self) -> Batches | ShardBatches:
        """The batches of the current epoch."""
        return train_loader(
            self.data,
            self.data_config,
            seed=self.seed,
            epoch=self.current_epoch,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )

    def val_dataloader(self) -> Batches | list[Any]:
        """The held-out images in order."""
        if self.data.val is None:
            return []
        workers = self.data_config.workers
        return eval_loader(self.data.val, EVAL_BATCH_SIZE, workers, self.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, in the memory format of the network."""
        del dataloader_idx
        batch = batch.to(device, non_blocking=True)
        if self.channels_last:
            return Batch(batch.images.contiguous(memory_format=torch.channels_last), batch.labels)
        return batch

    def on_train_epoch_start(self) -> None:
        self._clock = time.perf_counter()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self.seconds += time.perf_counter() - self._clock
            self._clock = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step, or its part of one batch; the parts of its loss are logged as ``train/NAME``."""
        self._check_finite()
        key = self._step_seed(batch_idx)
        torch.manual_seed(key)  # dropout and stochastic depth of the network
        generator = torch.Generator(self.device).manual_seed(key)
        images, labels = self._mixed(batch, batch_idx)
        out = self.method(images, labels, generator=generator)
        parts = {"loss": out.loss.detach(), **out.parts}
        self._watch(parts)
        for name, value in parts.items():
            self.log(f"train/{name}", value, prog_bar=True, batch_size=len(batch.images))
        loss: Tensor = out.loss
        return loss

    def _step_seed(self, batch_idx: int) -> int:
        part = batch_idx % self.accumulate
        # the batches of a step share its number
        more = ("part", part) if part else ()
        return derive_seed(self.seed, "step", self.global_step, self.global_rank, *more)

    def _mixed(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        """Images and labels as the method sees them."""
        key = derive_seed(self.seed, "mixing", self.current_epoch, self.global_rank, batch_idx)
        labels = batch.labels if self.use_labels else None
        return self.mixing(batch.images, labels, torch.Generator().manual_seed(key))

    def _watch(self, parts: dict[str, Tensor]) -> None:
        # copied as soon as the forward pass is done and read a step later: the device never waits
        values = torch.stack([part.float() for part in parts.values()]).to("cpu", non_blocking=True)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._unchecked = (self.global_step, list(parts), values, copied)

    def _check_finite(self) -> None:
        if self._unchecked is None:
            return
        step, names, values, copied = self._unchecked
        self._unchecked = None
        if copied is not None:
            copied.synchronize()
        if bool(torch.isfinite(values).all()):
            return
        bad = [name for name, value in zip(names, values.tolist(), strict=True) if not math.isfinite(value)]
        part = next((name for name in bad if name != "loss"), "loss")
        raise self._not_finite("loss", step, part)

    @staticmethod
    def _not_finite(what: str, step: int, part: str) -> UserError:
        return UserError(
            f"The {what} is not finite at step {step} (part {part!r}): expected a number, "
            "got NaN or infinity. Lower training.lr or set training.clip_grad_norm; "
            "the last good checkpoint is kept."
        )

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.config.optimizer != "adamw":
            return
        total = self.steps_per_epoch * self.config.num_epochs(self.steps_per_epoch)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["betas"] = (self.config.beta1, beta2(self.global_step, total, self.config))

    def on_validation_start(self) -> None:
        self._stop_clock()
        self._check_finite()

    def on_train_epoch_end(self) -> None:
        self._stop_clock()
        self._check_finite()
        # what the epoch's last step did shows in no loss before the checkpoint is written
        for name, value in self.method.named_parameters():
            if not bool(torch.isfinite(value).all()):
                raise self._not_finite("network", self.global_step, name)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy of every readout of the labels' classes that costs one pass, and what is monitored."""
        outputs = self.method.predict(batch.images)
        if self.monitor == "val/agreement":
            assert self._chosen is not None
            outputs["agreement"] = outputs[self._chosen]
        for name in self.accuracy:
            if not bool(torch.isfinite(outputs[name]).all()):
                raise self._not_finite("validation", self.global_step, f"logits of {name}")
            metric = cast(MulticlassAccuracy, self.accuracy[name])
            metric.update(outputs[name].argmax(-1), self._target(name, batch))
            self.log(f"val/{name}", metric, prog_bar=True, batch_size=len(batch.images))
        if self.monitor == "val/diffusion":
            # the same noise in every epoch: it is the student that makes the difference
            key = derive_seed(self.seed, "validation", batch_idx, self.global_rank)
            generator = torch.Generator(self.device).manual_seed(key)
            labels = batch.labels if self.use_labels else None
            loss = self.method.diffusion_loss(batch.images, labels, generator)
            if not bool(torch.isfinite(loss)):
                raise self._not_finite("validation", self.global_step, "diffusion")
            self.diffusion.update(loss, len(batch.images))
            self.log("val/diffusion", self.diffusion, prog_bar=True, batch_size=len(batch.images))

    def _target(self, name: str, batch: Batch) -> Tensor:
        if name != "agreement":
            assert batch.labels is not None
            return batch.labels
        assert self.method.teacher is not None
        predicted: Tensor = self.method.teacher(batch.images)[1].argmax(-1)
        return predicted

    def configure_optimizers(self) -> Any:
        """AdamW or SGD with decay by parameter kind, and the schedule per step."""
        config = self.config
        groups = parameter_groups(self.method, config.weight_decay, config.decay_all)
        # the fused step unscales gradients itself, which Lightning's clipping can't follow
        fused = self.device.type in ("cpu", "cuda") and config.clip_grad_norm is None
        optimiser: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimiser = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        else:
            start = beta2(0, self.steps_per_epoch * config.num_epochs(self.steps_per_epoch), config)
            optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, start), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, self.steps_per_epoch, config)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = self.seconds + (
            0 if self._clock is None else time.perf_counter() - self._clock
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds = checkpoint["seconds"]


class Throughput(Callback):
    """Images a second and the learning rate, logged with every logged step; a line an epoch without a bar."""

    def __init__(self, lines: bool, title: str) -> None:
        self.lines, self.title = lines, title
        self._since: tuple[int, float] | None = None
        self._images = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._since, self._images = (0, time.perf_counter()), 0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # after the step the schedule has moved on
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert self._since is not None
        self._images += len(batch.images) * trainer.world_size
        start = self._since[1]
        rate = self._images / max(1e-9, time.perf_counter() - start)
        pl_module.log("images/s", rate, prog_bar=True)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.lines or not trainer.is_global_zero:
            return
        shown = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/")) and not name.endswith(("_step", "_epoch"))
        }
        parts = " · ".join(
            f"{name.split('/')[1] if name.startswith('train/') else name} "
            + (f"{100 * value:.2f} %" if is_share(name) else f"{value:.4f}")
            for name, value in sorted(shown.items())
        )
        rate = float(trainer.callback_metrics.get("images/s", 0.0))
        done = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        say(f"{self.title}: {done} · {parts} · {rate:,.0f} images/s")


class Progress(RichProgressBar):
    """Lightning's bar: epochs counted from 1, and nothing of its log's version."""

    def _get_train_description(self, current_epoch: int) -> str:
        total = "" if self.trainer.max_epochs is None else f"/{self.trainer.max_epochs}"
        return f"Epoch {current_epoch + 1}{total}".ljust(len(self.validation_description))

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What the bar shows, each by the name that lines without a bar have."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in items.items()}


def is_share(name: str) -> bool:
    """Whether a logged metric is a share in [0, 1], of which more is better, and no loss."""
    return name.startswith("val/") and name != "val/diffusion"


@dataclass
class FitResult:
    """What training ended with.

    Attributes:
        seconds: Spent in training steps, interruptions left out.
        monitor: The validation metric that chose the checkpoint; None where none is held out.
        best: Its best value; None likewise.
        steps: Optimiser steps taken.
    """

    seconds: float
    monitor: str | None
    best: float | None
    steps: int


def fit(
    method: Method,
    data: Data,
    config: TrainingConfig,
    data_config: DataConfig,
    *,
    seed: int,
    folder: Path,
    readout: ReadoutChoice = "mean",
    resume: bool = False,
    title: str = "training",
) -> FitResult:
    """Train a method in place; its weights end as those of the best checkpoint.

    Args:
        method: What is trained.
        data: Training and validation images.
        config: Optimisation.
        data_config: Loading.
        seed: Of everything random.
        folder: Gets ``checkpoints/`` (last and best) and ``logs/``.
        readout: The readout whose validation accuracy or agreement chooses the checkpoint, where it is
            chosen by one (``config.monitor``).
        resume: Go on from the last checkpoint in ``folder``, if there is one.
        title: Shown with the progress.

    Raises:
        UserError: the loss is not finite, a checkpoint to resume from doesn't fit, or as
            :func:`choose_monitor`.
    """
    checkpoints = folder / "checkpoints"
    finished = checkpoints / "finished.json"
    device = resolve_device(config.device)
    channels_last = config.channels_last is not False and not overruns(method, device)
    if channels_last:
        method.to(memory_format=torch.channels_last)
    # a backbone that was trained before was left in eval mode
    method.to(device).train()
    if not resume:
        for name in ("finished.json", "last.ckpt", "best.ckpt"):
            (checkpoints / name).unlink(missing_ok=True)
    if not (resume and (finished.exists() or (checkpoints / "last.ckpt").exists())):
        _prepare(method, data, data_config, seed)
    module = LightningMethod(method, data, config, data_config, seed, channels_last, readout)
    monitor = module.monitor
    if not (resume and finished.exists()):
        result = _fit(module, config, device, folder, monitor, resume, title)
        write_json(finished, result)
    result = json.loads(finished.read_text(encoding="utf-8"))
    _load_weights(module, checkpoints / ("last.ckpt" if monitor is None else "best.ckpt"))
    method.to(device).eval()
    return FitResult(**result)


def _prepare(method: Method, data: Data, data_config: DataConfig, seed: int) -> None:
    batches = train_loader(data, data_config, seed=seed, epoch=0)
    if not (data_config.labels and data.labelled):
        method.prepare(Batch(batch.images, None) for batch in batches)
    else:
        method.prepare(batches)


def _fit(
    module: LightningMethod,
    config: TrainingConfig,
    device: torch.device,
    folder: Path,
    monitor: str | None,
    resume: bool,
    title: str,
) -> dict[str, Any]:
    checkpoints = folder / "checkpoints"
    bar = shows_progress(config)
    last = ModelCheckpoint(
        checkpoints,
        filename="last",
        every_n_epochs=config.checkpoint_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [Throughput(not bar, title)]
    best: ModelCheckpoint | None = None
    if monitor is not None:
        best = ModelCheckpoint(
            checkpoints,
            filename="best",
            monitor=monitor,
            mode="max" if is_share(monitor) else "min",
            # Lightning puts the average into whole checkpoints only
            save_weights_only=config.ema is None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks.append(best)
    callbacks.append(last)
    if config.ema is not None:
        callbacks.append(EMAWeightAveraging(device=device, decay=config.ema))
    if bar:
        callbacks.append(Progress(leave=True))
    precision, epochs = resolve_precision(config.precision, device), config.num_epochs(module.steps_per_epoch)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=device.type,
            devices=1,
            precision=_PRECISIONS[precision],
            max_epochs=epochs,
            accumulate_grad_batches=module.accumulate,
            # whole steps: Lightning would give what is left over at the end of an epoch less weight
            limit_train_batches=module.steps_per_epoch * module.accumulate if module.accumulate > 1 else 1.0,
            gradient_clip_val=config.clip_grad_norm,
            logger=_loggers(config.loggers, folder),
            callbacks=callbacks,
            log_every_n_steps=min(20, module.steps_per_epoch),
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bar,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )
        start = checkpoints / "last.ckpt"
        resumed = resume and start.exists()
        try:
            trainer.fit(module, ckpt_path=start if resumed else None, weights_only=False)
        except SystemExit as error:
            # Lightning ends the process on Ctrl-C and SIGTERM; the caller decides that here
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from error
        except (KeyError, RuntimeError) as error:
            if resumed and ("state_dict" in str(error) or isinstance(error, KeyError)):
                raise _foreign(start) from error
            raise
        if epochs % config.checkpoint_every:
            trainer.save_checkpoint(start)
    value = None if best is None or best.best_model_score is None else float(best.best_model_score)
    return {
        "seconds": module.seconds,
        "monitor": monitor,
        "best": value,
        "steps": trainer.global_step,
    }


def _load_weights(module: LightningMethod, path: Path) -> None:
    state = torch.load(path, map_location="cpu", weights_only=False)["state_dict"]
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> UserError:
    return UserError(
        f"Checkpoint {str(path)!r}: expected one of this configuration, got another's. "
        "Resume with the config.yaml of its run, or start anew with --overwrite."
    )


def _loggers(names: Iterable[str], folder: Path) -> list[Logger]:
    made: list[Logger] = []
    for name in names:
        if name == "csv":
            made.append(CSVLogger(folder, name="logs"))
        elif name == "tensorboard":
            made.append(TensorBoardLogger(folder, name="logs/tensorboard"))
        else:
            try:
                from lightning.pytorch.loggers import WandbLogger

                made.append(WandbLogger(save_dir=folder, project="gendd"))
            except ModuleNotFoundError as error:
                raise UserError(
                    "training.loggers 'wandb': expected the package wandb, which is not installed. "
                    "Run: pip install 'gendd[wandb]'"
                ) from error
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its hints: what they point at is chosen on purpose here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
