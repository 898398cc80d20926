"""Follow a running training through the files it writes."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from gendd.config import RunConfig, load_config
from gendd.config.registry import label, section
from gendd.errors import UserError
from gendd.files import user_path
from gendd.report.numbers import duration
from gendd.run.exhibits import curves
from gendd.run.output import LOCK
from gendd.run.settings import methods_of

_NONE = "–"


@dataclass(frozen=True)
class Progress:
    """Progress of one of a run's trainings.

    Attributes:
        method: Label of the method.
        step: Optimiser steps taken; 0 before the first logged one.
        steps: Total steps; None if unknown.
        epoch: Epochs begun, of ``epochs``.
        epochs: Total epochs.
        loss: The last logged loss.
        validation: The last validation result, as text.
        left: Estimated seconds remaining; None if unknown.
    """

    method: str
    step: int = 0
    steps: int | None = None
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    validation: str = _NONE
    left: float | None = None


def watch_run(path: str | Path, every: float = 2.0, console: Console | None = None) -> bool:
    """Show the progress of a run until it ends.

    Args:
        path: The run folder.
        every: Seconds between updates.
        console: Where to print.

    Returns:
        True if the run finished, False if it was stopped.

    Raises:
        UserError: no run there.
    """
    folder = user_path(path)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"gendd watch: expected a run in {str(path)!r}, found none; give its folder.")
    console = console or Console()
    going = True
    with Live(console=console, auto_refresh=False) as shown:
        while going:
            going = is_running(folder)
            shown.update(_table(look(folder)), refresh=True)
            if going:
                time.sleep(every)
    if not console.is_terminal:  # Live ends no line there
        console.print()
    return (folder / "metrics.json").is_file()


def is_running(folder: Path) -> bool:
    """Return whether a process is writing to a run's folder."""
    try:
        os.kill(int((folder / LOCK).read_text(encoding="utf-8")), 0)
    except PermissionError:  # another user's process
        return True
    except (OSError, ValueError):
        return False
    return True


def look(folder: Path) -> list[Progress]:
    """Return the progress of each training of a run, in training order."""
    config = load_config(folder / "config.yaml")
    images = _training_images(folder)
    found = []
    for name in methods_of(config):
        place = folder if name == config.method else folder / "baselines" / section(name)
        found.append(_progress(config, name, place, images))
    return found


def _training_images(folder: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        images: int = json.loads((folder / "logs" / "images.json").read_text())["training"]["images"]
        return images
    return None


def _progress(config: RunConfig, name: str, place: Path, images: int | None) -> Progress:
    batch, epochs = config.data.batch_size, config.training.epochs or 0
    step_images = (batch or 1) * config.training.accumulate
    steps = None if images is None or batch is None else max(1, images // step_images) * epochs
    log = curves(place, config.readout.name)
    # a network trained alone is not called a student
    told = (
        "trained on labels" if name == "supervised" == config.method and not config.baselines else label(name)
    )
    if not log:
        return Progress(told, steps=steps, epochs=epochs)
    step = int(log[-1]["step"]) + 1
    if (place / "checkpoints" / "finished.json").is_file():
        step = steps or step
    rate = _last(log, "images/s")
    left = None if steps is None or not rate else max(0, steps - step) * step_images / rate
    return Progress(
        told, step, steps, int(_last(log, "epoch") or 0) + 1, epochs, _last(log, "train/loss"),
        _validation(log), left,
    )  # fmt: skip


def _last(log: list[dict[str, float]], key: str) -> float | None:
    return next((row[key] for row in reversed(log) if key in row), None)


def _validation(log: list[dict[str, float]]) -> str:
    for key, words in (("val/top1", "top-1 {:.2f} %"), ("val/agreement", "agreement {:.2f} %")):
        if (value := _last(log, key)) is not None:
            return words.format(value)
    value = _last(log, "val/diffusion")
    return _NONE if value is None else f"diffusion {value:.4f}"


def _table(trainings: list[Progress]) -> Table:
    table = Table("method", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("epoch", "step", "loss", "validation", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in trainings:
        table.add_row(*_cells(each))
    return table


def _cells(each: Progress) -> tuple[Any, ...]:
    begun = each.step > 0
    of = "" if each.steps is None else f"/{each.steps:,}"
    return (
        each.method,
        f"{each.epoch}/{each.epochs}" if begun else _NONE,
        f"{each.step:,}{of}" if begun else _NONE,
        _NONE if each.loss is None else f"{each.loss:.4f}",
        each.validation,
        _NONE if each.left is None else "done" if each.left == 0 else duration(each.left),
    )
