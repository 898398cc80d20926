"""Progress: a bar where a person watches, else a line an epoch and at least one every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar, WeightAveraging
from torch import Tensor

from gendd.config import TrainingConfig
from gendd.messages import Steps, say
from gendd.training.monitor import is_share

# a training that waits for its images longer than this share of its time is told so
WAITS = 0.2


def shows_progress(config: TrainingConfig) -> bool:
    """Whether progress bars are drawn: as the configuration says, else when a person watches."""
    return sys.stderr.isatty() if config.progress is None else config.progress


def is_logged(trainer: lightning.Trainer) -> bool:
    """Whether the current step's values are written, or shown as the epoch's last.

    Logging them at every step would take longer than a small network's step.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (trainer.global_step + 1) % every == 0 or trainer.is_last_batch


class Throughput(Callback):
    """Images a second and the learning rate, logged with every logged step; lines where there is no bar.

    Args:
        lines: Whether there are lines.
        title: Of the training.
        waited: Tells the seconds in which a batch has been waited for so far.
    """

    def __init__(self, lines: bool, title: str, waited: Callable[[], float]) -> None:
        self.lines, self.title, self.waited = lines, title, waited
        self._steps = Steps(title, 0)
        self._since: float | None = None
        self._images, self._waited = 0, 0.0
        self._logged = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._steps = Steps(self.title, 0)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._since is None:  # an epoch begins, or is gone on with
            self._since, self._images, self._waited = time.perf_counter(), 0, self.waited()
        # after the step the schedule has moved on
        self._logged = is_logged(trainer)
        if self._logged:
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
        self._steps.done += 1
        if self._says(trainer) and self._steps.due():
            rate = self._images / max(1e-9, time.perf_counter() - self._since)
            at = f"batch {batch_idx + 1:,} of {int(trainer.num_training_batches):,} · {rate:,.0f} images/s"
            say(f"{self._epoch(trainer)} · {at}{self._left(trainer, batch_idx + 1)}")
        if not self._logged:
            return
        rate = self._images / max(1e-9, time.perf_counter() - self._since)
        pl_module.log("images/s", rate, prog_bar=True)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._says(trainer) and self._steps.due():
            say(f"{self._epoch(trainer)} · validation, batch {batch_idx + 1:,}")

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert self._since is not None
        share = (self.waited() - self._waited) / max(1e-9, time.perf_counter() - self._since)
        self._since = None
        if not self._says(trainer):
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
        left = self._left(trainer, int(trainer.num_training_batches))
        waits = f", {share:.0%} of it waiting for images" if share > WAITS else ""
        say(f"{self._epoch(trainer)} · {parts} · {rate:,.0f} images/s{waits}{left}")

    def _says(self, trainer: lightning.Trainer) -> bool:
        return self.lines and trainer.is_global_zero

    def _epoch(self, trainer: lightning.Trainer) -> str:
        return f"{self.title}: epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _left(self, trainer: lightning.Trainer, batches: int) -> str:
        """How long it takes yet, ``batches`` of this epoch being done."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        self._steps.total = self._steps.done + epochs * int(trainer.num_training_batches) - batches
        return self._steps.left()


class WarmAverage(WeightAveraging):
    """An exponential moving average of the weights that follows them closely at first.

    After n updates the decay is min(``decay``, (1 + n) / (10 + n)): a constant one would keep the
    initialisation for the first 1 / (1 - decay) steps.

    Args:
        device: Where the average is kept.
        decay: In (0, 1).
    """

    def __init__(self, device: torch.device, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
            updates = int(count)
            weight = 1 - min(decay, (1 + updates) / (10 + updates))
            for mean, value in zip(averaged, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value.to(mean.dtype), weight)
                else:
                    mean.copy_(value)

        super().__init__(device=device, use_buffers=True, multi_avg_fn=torch.no_grad()(average))


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
