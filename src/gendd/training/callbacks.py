"""Progress: a bar on a terminal, else a line per epoch and at least one every half minute."""

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

# training that waits for images for more than this fraction of its time reports it
WAITS = 0.2


def shows_progress(config: TrainingConfig) -> bool:
    """Whether to show progress bars: as configured, else if stderr is a terminal."""
    return sys.stderr.isatty() if config.progress is None else config.progress


def is_logged(trainer: lightning.Trainer) -> bool:
    """Whether the current step's values are logged: every few steps, and at the end of an epoch.

    Logging at every step would take longer than the step of a small network.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return (trainer.global_step + 1) % every == 0 or trainer.is_last_batch


class Throughput(Callback):
    """Log images per second and the learning rate; print progress lines if there is no bar.

    Args:
        lines: Whether to print lines.
        title: Title of the training.
        waited: Returns the seconds spent waiting for batches so far.
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
        if self._since is None:  # an epoch begins or is resumed
            self._since, self._images, self._waited = time.perf_counter(), 0, self.waited()
        # before the step, as the schedule then advances
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
        """Remaining time, after ``batches`` batches of this epoch."""
        epochs = (trainer.max_epochs or 0) - trainer.current_epoch
        self._steps.total = self._steps.done + epochs * int(trainer.num_training_batches) - batches
        return self._steps.left()


class WarmAverage(WeightAveraging):
    """Exponential moving average of the weights, with a warm-up of the decay.

    After n updates the decay is min(``decay``, (1 + n) / (10 + n)): a constant decay would retain the
    initialisation for the first 1 / (1 - decay) steps.

    Args:
        device: Device of the average.
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
    """Lightning's progress bar, with epochs counted from 1 and without the version number of the log."""

    def _get_train_description(self, current_epoch: int) -> str:
        total = "" if self.trainer.max_epochs is None else f"/{self.trainer.max_epochs}"
        return f"Epoch {current_epoch + 1}{total}".ljust(len(self.validation_description))

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Metrics shown in the bar, under the names used in progress lines."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return {name.removeprefix("train/"): value for name, value in items.items()}
