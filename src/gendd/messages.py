"""Progress and log messages, on stderr; a command's result goes to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from gendd.errors import typed_line
from gendd.processes import launched_rank

T = TypeVar("T")
# maximum seconds between progress lines
EVERY = 30.0
# seconds before a progress bar appears
_QUIET_SECONDS = 2.0


class Log:
    """Log file with a timestamp per line; lines are kept in memory until the file is opened."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._lines: list[str] = []

    def open(self, path: Path) -> None:
        """Append the lines so far, and all later ones, to a file in an existing folder."""
        self._path = path
        self._flush()

    def add(self, text: str) -> None:
        """Add a line."""
        self._lines.append(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self._flush()

    def _flush(self) -> None:
        if self._path is None:
            return
        # a log that can't be written must not end a run
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(self._lines)
        self._lines.clear()


class Steps:
    """Progress of a task, reported at most every half minute with the estimated time left.

    Args:
        title: Name of the task.
        total: Number of steps; 0 if unknown.
        unit: What a step is.
    """

    def __init__(self, title: str, total: int, unit: str = "batches") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._began = self._told = time.monotonic()

    def add(self, count: int = 1) -> None:
        """Count ``count`` more steps as done."""
        self.done += count
        self.beat()

    def beat(self) -> None:
        """Report the progress if a report is due."""
        if self.due():
            total = f" of {self.total:,}" if self.total else ""
            say(f"{self.title}: {self.done:,}{total} {self.unit}{self.left()}")

    def due(self) -> bool:
        """Return whether half a minute has passed since this was last true, or since the start."""
        now = time.monotonic()
        due = now - self._told >= EVERY
        if due:
            self._told = now
        return due

    def left(self) -> str:
        """Return `` · about 3 min left``; empty before the first step and after the last."""
        if not 0 < self.done < self.total:
            return ""
        seconds = (time.monotonic() - self._began) / self.done * (self.total - self.done)
        minutes = round(seconds / 60)
        spelled = f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min"
        if minutes >= 90:
            spelled = f"{minutes // 60} h {minutes % 60:02} min"
        return f" · about {spelled} left"


_logs: list[Log] = []
_running: list[Steps] = []


def say(text: str) -> None:
    """Print a line and add it to the logs of running runs; only the first process does."""
    if launched_rank() > 0:
        return
    print(text, file=sys.stderr, flush=True)
    for log in _logs:
        log.add(text)


@contextmanager
def logged() -> Iterator[Log]:
    """Log all messages, and the exception that ends the block, if any."""
    log = Log()
    _logs.append(log)
    try:
        yield log
    except BaseException as error:
        log.add(f"ended by {typed_line(error)}")
        raise
    finally:
        _logs.remove(log)


@contextmanager
def following(title: str, total: int, unit: str = "batches") -> Iterator[Steps]:
    """Report the progress of a task; :func:`beat` then reports it too."""
    steps = Steps(title, total, unit)
    _running.append(steps)
    try:
        yield steps
    finally:
        _running.remove(steps)


def followed(
    items: Iterable[T],
    total: int,
    title: str,
    *,
    unit: str = "batches",
    bar: bool = False,
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Pass items on and report the progress, on lines or, on a terminal, with a progress bar.

    Args:
        items: What is worked through.
        total: Sum of their sizes.
        title: Names the work.
        unit: What is counted.
        bar: Draw a bar on a terminal, once the work has taken a while.
        size: Units of work of an item.
    """
    if not (bar and sys.stderr.isatty()):
        with following(title, total, unit) as steps:
            for item in items:
                yield item
                steps.add(size(item))
        return
    from rich.console import Console
    from rich.progress import Progress

    began = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(title, total=total, visible=False)
        for item in items:
            yield item
            drawn.update(task, advance=size(item), visible=time.monotonic() - began > _QUIET_SECONDS)


def beat() -> None:
    """Report the progress of the current task if due; for use within a long step."""
    if _running:
        _running[-1].beat()
