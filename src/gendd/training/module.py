"""The Lightning module that trains any method.

All randomness in a step is a pure function of (seed, step): data order per epoch; augmentation, mixup and
CutMix per step of an epoch; times, noise and feature mixup per step. A resumed run therefore does what it
would have done without the interruption, and several processes compute the same step as one would (except
for dropout inside networks, which each draws itself). With ``training.cache_teacher`` K, epochs with the
same number modulo K use the same images.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from gendd.config import DataConfig, ReadoutChoice, TrainingConfig
from gendd.data import Batch, Batches, Data, Mixing, Rows, ShardBatches, eval_loader, train_loader
from gendd.data.draws import derive_seed
from gendd.errors import UserError
from gendd.methods import Method
from gendd.processes import rank, world_size
from gendd.training.cached_teacher import CachedTeacher
from gendd.training.callbacks import is_logged
from gendd.training.epochs import Empty, Epoch, InStep
from gendd.training.graphed import GraphedSteps
from gendd.training.monitor import choose_monitor, chosen_readouts, readout_classes, teacher_classes
from gendd.training.resuming import Layout, convert
from gendd.training.schedule import beta2, learning_rate_factor, parameter_groups
from gendd.training.strategies import is_sharded

EVAL_BATCH_SIZE = 512


def _seed(key: int, device: torch.device) -> None:
    """Seed the global generators used by a step on ``device``.

    ``torch.manual_seed`` would also seed those of absent devices, which takes milliseconds.
    """
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    elif device.type == "mps":
        torch.mps.manual_seed(key)


class LightningMethod(lightning.LightningModule):
    """Lightning module of a method.

    Args:
        method: The method to train.
        data: Its images.
        config: Optimisation.
        data_config: Loading.
        seed: Seed of order, augmentation and the method's randomness.
        channels_last: Whether images are in the channels-last memory format.
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
        self.use_labels = data_config.labels and data.labelled
        # the images that the method learns from
        self.data = data if method.takes_unknown or not self.use_labels else data.labelled_alone()
        self.config = config
        self.data_config = data_config
        self.seed = seed
        self.channels_last = channels_last
        self.readout = readout
        judged = self.use_labels and data.judged
        self.mixing = Mixing.from_config(data_config, data.num_classes)
        self.views = 0 if method.teacher is None else config.cache_teacher
        self.cached = method.teacher if self.views and isinstance(method.teacher, CachedTeacher) else None
        if method.teacher is not None:
            method.teacher.stages = method.asked_stages
        self.part = method.part = (rank(), world_size())
        # whether all processes must run the networks the same number of times
        self.in_step = is_sharded(config)
        self._own_batches: int | None = None
        batches = len(self._batches(0))
        # if a process has fewer batches than a step, they make one smaller step
        self.accumulate = min(config.accumulate, batches)
        self.steps_per_epoch = batches // self.accumulate
        self.seconds = 0.0
        # part of them spent waiting for the next batch
        self.waited = 0.0
        self._clock: float | None = None
        self._unchecked: tuple[int, list[str], Tensor, torch.cuda.Event | None] | None = None
        classes = readout_classes(method)
        seen = data.num_classes if self.use_labels else None
        self._chosen = chosen_readouts(classes, readout, seen)
        self.monitor: str | None = None
        if data.val is not None:
            self.monitor = choose_monitor(method, config.monitor, judged, data.num_classes, readout)
        watched: dict[str, int] = {}
        if judged:
            watched |= {name: count for name, count in classes.items() if count == data.num_classes}
        if self.monitor == "val/agreement":
            watched |= {f"agreement_{name}": teacher_classes(method) for name in self._chosen}
        self.accuracy = nn.ModuleDict(
            {name: MulticlassAccuracy(max(count, 2), average="micro") for name, count in watched.items()}
        )
        self.diffusion = MeanMetric()

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.steps_per_epoch * self.config.num_epochs(self.steps_per_epoch)

    def view_of(self, epoch: int) -> int:
        """Number of the view of an epoch, which seeds its order, augmentation and mixing."""
        return epoch % self.views if self.views else epoch

    def _batches(self, epoch: int) -> Batches | ShardBatches:
        rank, world_size = self.part
        return train_loader(
            self.data,
            self.data_config,
            seed=self.seed,
            epoch=self.view_of(epoch),
            rank=rank,
            world_size=world_size,
        )

    def train_dataloader(self) -> Epoch:
        """The batches of the current epoch."""
        return self.epoch(self.current_epoch)

    def epoch(self, number: int) -> Epoch:
        """The batches of an epoch."""
        return Epoch(self._batches(number), number, self.cached is not None, self._wait)

    def _wait(self, seconds: float) -> None:
        if self._clock is not None:
            self.waited += seconds

    def val_dataloader(self) -> Batches | Empty | InStep | list[Any]:
        """The validation images, in order."""
        if self.data.val is None:
            return []
        size, workers = EVAL_BATCH_SIZE, self.data_config.workers
        loader = eval_loader(self.data.val, size, workers, *self.part)
        if self.in_step:
            self._own_batches = len(loader)
            most = len(eval_loader(self.data.val, size, workers, 0, self.part[1]))
            return InStep(loader, most, eval_loader(self.data.val, size, workers))
        return loader if len(loader) > 0 else Empty()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch to the device, in the memory format of the network."""
        del dataloader_idx
        batch = batch.to(device, non_blocking=True)
        if self.channels_last and batch.images.ndim == 4:
            return replace(batch, images=batch.images.contiguous(memory_format=torch.channels_last))
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._clock is None:
            self._clock = time.perf_counter()
        if self.config.optimizer == "adamw":
            betas = (self.config.beta1, beta2(self.global_step, self.total_steps, self.config))
            for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
                group["betas"] = betas

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self.seconds += time.perf_counter() - self._clock
            self._clock = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch of a step; the parts of its loss are logged as ``train/NAME``."""
        self._check_finite()
        # for dropout and stochastic depth of the network
        _seed(self._step_seed(batch_idx, self.part[0]), self.device)
        generator = torch.Generator(self.device).manual_seed(self._step_seed(batch_idx))
        images, labels = self._mixed(batch, batch_idx)
        try:
            with self.answering(images, self.current_epoch, batch.rows):
                out = self._steps(images, labels, generator=generator)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"data.batch_size: expected at least 2 images for a network with BatchNorm on maps of one "
                f"position, got {len(images)}; raise it, or give larger images."
            ) from error
        parts = {"loss": out.loss.detach(), **out.parts}
        self._watch(parts)
        if is_logged(self.trainer):
            for name, value in parts.items():
                self.log(f"train/{name}", value, prog_bar=True, batch_size=len(batch.images))
        loss: Tensor = out.loss
        return loss

    @cached_property
    def _steps(self) -> GraphedSteps:
        # made at the first step, when the method may have been replaced by a sharded copy
        return GraphedSteps(self.method, self.config.cuda_graphs)

    def release(self) -> None:
        """Free the memory of recorded steps, which Lightning's references would keep after the training."""
        self.__dict__.pop("_steps", None)

    def _step_seed(self, batch_idx: int, rank: int = 0) -> int:
        part = batch_idx % self.accumulate
        # the batches of a step share its step number
        more = ("part", part) if part else ()
        return derive_seed(self.seed, "step", self.global_step, rank, *more)

    def _mixed(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        """Images and labels after mixing, for the current epoch."""
        return self.mixed(batch, batch_idx, self.current_epoch)

    def mixed(self, batch: Batch, number: int, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Images and labels of an epoch's batch after mixing."""
        key = derive_seed(self.seed, "mixing", self.view_of(epoch), 0, number)
        labels = batch.labels if self.use_labels else None
        return self.mixing(batch.images, labels, torch.Generator().manual_seed(key))

    def answering(self, images: Tensor, epoch: int, rows: Rows | None) -> AbstractContextManager[None]:
        """Context in which a cached teacher looks up an epoch's mixed batch."""
        if self.cached is None or rows is None:
            return nullcontext()
        return self.cached.answering(images, self.view_of(epoch), rows)

    def _watch(self, parts: dict[str, Tensor]) -> None:
        # copied asynchronously after the forward pass and read one step later, to avoid synchronising
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
            "got NaN or infinity. Go on from the last good checkpoint with --resume and a lower training.lr, "
            "a training.clip_grad_norm or training.precision fp32."
        )

    def on_validation_start(self) -> None:
        self._stop_clock()
        self._check_finite()

    def on_validation_epoch_start(self) -> None:
        if self.part[1] > 1:
            # each process has its own BatchNorm averages; those of the first are saved
            for value in self.method.buffers():
                torch.distributed.broadcast(value, src=0)

    def on_train_epoch_end(self) -> None:
        self._stop_clock()
        self.check()

    def check(self) -> None:
        """Raise :class:`UserError` if the last step's loss or the weights are not finite."""
        self._check_finite()
        # the effect of the last update is in no loss yet when the checkpoint is written
        for name, value in self.method.named_parameters():
            # of a sharded weight, this process's shard
            part = value.to_local() if hasattr(value, "to_local") else value
            if not bool(torch.isfinite(part).all()):
                raise self._not_finite("network", self.global_step, name)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the accuracy of every one-pass readout of the labels' classes, and the monitored metric."""
        if len(batch.images) == 0:
            return
        outputs = self.method.predict(batch.images)
        told: Tensor | None = None
        if self.monitor == "val/agreement":
            assert self.method.teacher is not None
            told = self.method.teacher(batch.images)[1].argmax(-1)
            outputs |= {f"agreement_{name}": outputs[name] for name in self._chosen}
        counts = self._own_batches is None or batch_idx < self._own_batches
        for name in self.accuracy if counts else ():
            if not bool(torch.isfinite(outputs[name]).all()):
                raise self._not_finite("validation", self.global_step, f"logits of {name}")
            metric = cast(MulticlassAccuracy, self.accuracy[name])
            agrees = name.startswith("agreement_")
            target = told if agrees else batch.labels
            assert target is not None
            metric.update(outputs[name].argmax(-1), target)
        if self.monitor == "val/diffusion":
            # the same noise in every epoch, so that only the student changes the loss
            rank, world_size = self.part
            key = derive_seed(self.seed, "validation", batch_idx * world_size + rank, 0)
            generator = torch.Generator(self.device).manual_seed(key)
            labels = batch.labels if self.use_labels else None
            loss = self.method.diffusion_loss(batch.images, labels, generator)
            if not bool(torch.isfinite(loss)):
                raise self._not_finite("validation", self.global_step, "diffusion")
            if counts:
                self.diffusion.update(loss, len(batch.images))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; done here, as a process may have had no images."""
        for name, module in self.accuracy.items():
            if not name.startswith("agreement_"):
                self.log(f"val/{name}", cast(MulticlassAccuracy, module), prog_bar=True)
        if self.monitor == "val/diffusion":
            self.log("val/diffusion", self.diffusion, prog_bar=True)
        # the monitored value if it is the better of two readouts, or the agreement
        if self.monitor not in ("val/best", "val/agreement"):
            return
        agrees = self.monitor == "val/agreement"
        names = [f"agreement_{name}" if agrees else name for name in self._chosen]
        metrics = [cast(MulticlassAccuracy, self.accuracy[name]) for name in names]
        self.log(self.monitor, torch.stack([metric.compute() for metric in metrics]).max(), prog_bar=True)
        for metric in metrics if agrees else ():
            metric.reset()

    def configure_optimizers(self) -> Any:
        """AdamW or SGD with weight decay per parameter group, and the schedule per step."""
        config = self.config
        groups = parameter_groups(self.method, config.weight_decay, config.decay_all)
        fused = self._fused
        optimiser: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimiser = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
        else:
            start = beta2(0, self.total_steps, config)
            optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, start), fused=fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: learning_rate_factor(step, self.steps_per_epoch, config)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _fused(self) -> bool:
        # the fused step unscales gradients itself, which is incompatible with Lightning's clipping
        return self.device.type in ("cpu", "cuda") and self.config.clip_grad_norm is None

    @property
    def layout(self) -> Layout:
        """Composition of a step."""
        batch = self.data_config.batch_of(len(self.data.train))
        processes = self.part[1]
        return {
            "processes": processes,
            "images": batch * processes * self.accumulate,
            "batches": self.accumulate,
            "steps": self.steps_per_epoch,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["layout"] = self.layout
        checkpoint["seconds"] = self.seconds + (
            0 if self._clock is None else time.perf_counter() - self._clock
        )
        checkpoint["waited"] = self.waited

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds, self.waited = checkpoint["seconds"], checkpoint.get("waited", 0.0)
        convert(checkpoint, self.layout)
        # a resumed training uses the current configuration
        for state in checkpoint.get("lr_schedulers", ()):
            count = len(state["base_lrs"])
            rate = self.config.lr * learning_rate_factor(
                state["last_epoch"], self.steps_per_epoch, self.config
            )
            state["base_lrs"], state["_last_lr"] = [self.config.lr] * count, [rate] * count
            for group in checkpoint["optimizer_states"][0]["param_groups"]:
                group |= {"initial_lr": self.config.lr, "lr": rate, "fused": self._fused}
