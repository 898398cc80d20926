"""Checkpoints within an epoch: every few minutes, and when a job scheduler asks training to stop."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from gendd.errors import TrainingStopped
from gendd.messages import say
from gendd.processes import any_of
from gendd.training.module import LightningMethod

# a job scheduler's termination, and its warning before (SLURM's --signal=USR1@120)
_SIGNALS = ("SIGTERM", "SIGUSR1")


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]


def stopped(trainer: lightning.Trainer, module: LightningMethod) -> TrainingStopped:
    """Report that training stops as requested, and return the exception to raise."""
    say(
        f"gendd: asked to stop after {trainer.global_step:,} of {module.total_steps:,} steps; the checkpoint "
        "is written. Go on with the same command and --resume."
    )
    return TrainingStopped(0)


class Saving(Callback):
    """Save the last checkpoint between two steps of an epoch.

    It is saved every ``minutes`` minutes, and on SIGTERM or SIGUSR1 in any process, which also stops
    training. At the end of an epoch this is left to the regular checkpoint callback.

    Args:
        path: The checkpoint file.
        minutes: Interval in minutes; None: only on signals.

    Attributes:
        signal: The signal that asked this process to stop, if any.
        stopped: Whether training ended after an epoch because of a signal.
    """

    def __init__(self, path: Path, minutes: float | None) -> None:
        self.path, self.minutes = path, minutes
        self._written = time.monotonic()
        # before Lightning installs its own
        self._before = {number: signal.getsignal(number) for number in _numbers()}
        self.signal: int | None = None
        self.stopped = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._written = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _numbers():
            if signal.getsignal(number) is not signal.SIG_IGN:
                # Lightning restores the previous handlers
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # second signal: act immediately, as without training
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.signal = number

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, LightningMethod)
        # between two steps, not between the batches of one
        if trainer.is_last_batch or (batch_idx + 1) % pl_module.accumulate:
            return
        minutes = (time.monotonic() - self._written) / 60
        due = self.minutes is not None and minutes >= self.minutes
        asked = self.signal is not None
        if not any_of(due or asked):
            return
        stop = any_of(asked)
        pl_module.check()
        trainer.save_checkpoint(self.path)
        self._written = time.monotonic()
        if stop:
            raise stopped(trainer, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._written = time.monotonic()
        self.stopped = any_of(self.signal is not None)
        # after the callbacks that save the epoch's checkpoints
        trainer.should_stop = trainer.should_stop or self.stopped
