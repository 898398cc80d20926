"""Train a method with Lightning's Trainer, from its statistics to the weights of the best checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from gendd.config import DataConfig, ReadoutChoice, TrainingConfig
from gendd.data import Batch, Data, train_loader
from gendd.errors import TrainingStopped, UserError
from gendd.files import write_json
from gendd.messages import say
from gendd.methods import Method
from gendd.processes import barrier, from_first, is_first, world_size
from gendd.training.callbacks import Progress, Throughput, WarmAverage, shows_progress
from gendd.training.checkpoints import SafeCheckpointIO, is_whole, read, usable
from gendd.training.device import (
    overruns,
    resolve_device,
    resolve_precision,
    training_precision,
    with_images_on,
)
from gendd.training.launch import Joined, local_world_size
from gendd.training.module import LightningMethod
from gendd.training.monitor import is_share
from gendd.training.saving import Saving, stopped
from gendd.training.strategies import is_sharded, strategy

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


@dataclass
class FitResult:
    """Result of training.

    Attributes:
        seconds: Time spent in training steps, without interruptions.
        monitor: The validation metric that chose the checkpoint; None without validation images.
        best: Its best value; None likewise.
        steps: Optimiser steps taken.
        waited: Part of the seconds spent waiting for the next batch.
    """

    seconds: float
    monitor: str | None
    best: float | None
    steps: int
    waited: float = 0.0


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
    """Train a method in place; it ends with the weights of the best checkpoint.

    Args:
        method: The method to train.
        data: Training and validation images; a method that takes no unknown labels is given only the
            labelled training images, in as many steps.
        config: Optimisation.
        data_config: Loading.
        seed: Seed of all randomness.
        folder: Folder for ``checkpoints/`` (last and best) and ``logs/``.
        readout: The readout whose validation accuracy or agreement chooses the checkpoint, if it is chosen
            by one of these (``config.monitor``).
        resume: Resume from the last checkpoint in ``folder``, if there is one.
        title: Title shown with the progress.

    Raises:
        UserError: the loss is not finite, a checkpoint to resume from doesn't fit, or as in
            :func:`choose_monitor`.
    """
    checkpoints = folder / "checkpoints"
    finished, best = checkpoints / "finished.json", checkpoints / "best.ckpt"
    device = resolve_device(config.device)
    config = _scaled(config)
    channels_last = placed(method, config, device)
    if config.compile:
        method.compile_losses()
    if not resume and is_first():
        finished.unlink(missing_ok=True)
        for name in ("last.ckpt", "best.ckpt"):
            SafeCheckpointIO().remove_checkpoint(checkpoints / name)
    module = LightningMethod(method, data, config, data_config, seed, channels_last, readout)
    # answers recorded by a cached teacher are found by checksums that are computed on the CPU
    if module.cached is None:
        module.data = with_images_on(module.data, device)
    monitor = module.monitor

    def begin() -> tuple[bool, Path | None]:
        # a finished training continues if it is given more epochs
        if finished.exists() and _result(finished)["steps"] >= module.total_steps:
            return False, None
        start = usable(checkpoints / "last.ckpt") if resume else None
        if start is not None and best.exists() and not is_whole(best):
            say(f"checkpoint {best} is damaged: the training can end only if a later epoch is better")
        return True, start

    unfinished, start = from_first(begin)
    if unfinished:
        if start is None:
            _prepare(module)
        try:
            result = _fit(module, config, device, folder, monitor, start, title)
        finally:
            module.release()
        # a sharded copy may have been trained in its place
        module.method = method
        if is_first():
            write_json(finished, result)
        barrier()
    result = _result(finished)
    _load_weights(module, checkpoints / "last.ckpt" if monitor is None else best)
    method.to(device).eval()
    return FitResult(**result)


def _scaled(config: TrainingConfig) -> TrainingConfig:
    """Scale the learning rates of the configuration for the number of processes."""
    count = world_size()
    factor = {"none": 1.0, "linear": float(count), "sqrt": math.sqrt(count)}[config.scale_lr]
    return dataclasses.replace(config, lr=config.lr * factor, min_lr=config.min_lr * factor)


def _result(finished: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return {each.name: found[each.name] for each in dataclasses.fields(FitResult)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(finished)!r}: expected the result of a training, got a file that is damaged; "
            "start again with --overwrite."
        ) from error


def placed(method: Method, config: TrainingConfig, device: torch.device) -> bool:
    """Move a method to the device, ready to train; returns whether it is in the channels-last format."""
    # sharded weights must be contiguous
    channels_last = not (config.channels_last is False or is_sharded(config) or overruns(method, device))
    if channels_last:
        method.to(memory_format=torch.channels_last)
    # a backbone trained before is still in eval mode
    method.to(device).train()
    return channels_last


def _prepare(module: LightningMethod) -> None:
    batches = train_loader(module.data, module.data_config, seed=module.seed, epoch=0)
    if module.use_labels:
        module.method.prepare(batches)
    else:
        module.method.prepare(Batch(batch.images, None) for batch in batches)
    if module.method.teacher is not None:
        module.method.teacher.drop_graphs()


def _fit(
    module: LightningMethod,
    config: TrainingConfig,
    device: torch.device,
    folder: Path,
    monitor: str | None,
    start: Path | None,
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
    saving = Saving(checkpoints / "last.ckpt", config.checkpoint_minutes)
    callbacks: list[Callback] = [Throughput(not bar, title, lambda: module.waited), saving]
    best: ModelCheckpoint | None = None
    if monitor is not None:
        best = ModelCheckpoint(
            checkpoints,
            filename="best",
            monitor=monitor,
            mode="max" if is_share(monitor) else "min",
            # Lightning stores the average only in full checkpoints
            save_weights_only=config.ema is None,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        callbacks.append(best)
    callbacks.append(last)
    if config.ema is not None:
        callbacks.append(WarmAverage(device, config.ema))
    if bar:
        callbacks.append(Progress(leave=True))
    epochs = config.num_epochs(module.steps_per_epoch)
    size = module.data.channels, module.data.image_size
    precision = training_precision(config.precision, device, module.method.backbone, *size)
    if precision != resolve_precision(config.precision, device):
        say("training in fp32: bf16 gradients of strided convolutions on maps of 1x1 are undefined on CPUs")
    processes = world_size()
    # not Lightning's own SLURM environment, whose signal handlers would save checkpoints elsewhere
    shared: dict[str, Any] = {"devices": 1, "plugins": [SafeCheckpointIO(), LightningEnvironment()]}
    if processes > 1:
        shared = {
            "devices": config.devices if isinstance(config.devices, list) else local_world_size(),
            "num_nodes": processes // local_world_size(),
            "strategy": strategy(config, module.accumulate),
            "sync_batchnorm": config.sync_batchnorm,
            "plugins": [SafeCheckpointIO(), Joined()],
        }
        batch = module.data_config.batch_of(len(module.data.train))
        more = f" x {module.accumulate} batches" if module.accumulate > 1 else ""
        told = "kept" if config.scale_lr == "none" else f"scaled by training.scale_lr {config.scale_lr}"
        say(
            f"{title}: {processes} processes x {batch} images{more} per step, {module.steps_per_epoch:,} "
            f"steps per epoch; learning rate {config.lr:g} ({told})"
        )
    on_interrupt = signal.getsignal(signal.SIGINT)
    # an empty root folder, as Lightning would resume by itself from a SLURM checkpoint found there
    with _quiet(), tempfile.TemporaryDirectory() as root:
        trainer = lightning.Trainer(
            accelerator=device.type,
            precision=_PRECISIONS[precision],
            max_epochs=epochs,
            accumulate_grad_batches=module.accumulate,
            # whole steps only: Lightning would give leftover batches at the end of an epoch less weight
            limit_train_batches=module.steps_per_epoch * module.accumulate if module.accumulate > 1 else 1.0,
            gradient_clip_val=config.clip_grad_norm,
            logger=make_loggers(config.loggers, folder),
            callbacks=callbacks,
            log_every_n_steps=min(20, module.steps_per_epoch),
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bar,
            use_distributed_sampler=False,
            default_root_dir=root,
            reload_dataloaders_every_n_epochs=1,
            **shared,
        )
        try:
            trainer.fit(module, ckpt_path=start, weights_only=True)
        except TrainingStopped:
            raise
        except BaseException as error:
            if isinstance(error, SystemExit):
                # Lightning exits on Ctrl-C; here this is left to the caller
                signal.signal(signal.SIGINT, on_interrupt)
                raise KeyboardInterrupt from error
            if saving.signal is not None:  # interrupted before the end of the step
                signal.raise_signal(saving.signal)
            odd = isinstance(error, KeyError) or (
                isinstance(error, RuntimeError) and "state_dict" in str(error)
            )
            if start is not None and odd:
                raise _foreign(start) from error
            raise
        if trainer.current_epoch % config.checkpoint_every:
            trainer.save_checkpoint(checkpoints / "last.ckpt")
        if saving.stopped and trainer.current_epoch < epochs:
            raise stopped(trainer, module)
    value = None if best is None or best.best_model_score is None else float(best.best_model_score)
    return {
        "seconds": module.seconds,
        "monitor": monitor,
        "best": value,
        "steps": trainer.global_step,
        "waited": module.waited,
    }


def _load_weights(module: LightningMethod, path: Path) -> None:
    try:
        module.load_state_dict(read(path)["state_dict"])
    except RuntimeError as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> UserError:
    return UserError(
        f"Checkpoint {str(path)!r}: expected one of this configuration, got another's. "
        "Resume with the config.yaml of its run, or start again with --overwrite."
    )


def make_loggers(names: Iterable[str], folder: Path) -> list[Logger]:
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
    """Silence Lightning's hints, which are about deliberate choices here."""
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
