"""What a person is told while something happens, on stderr: what a command prints on stdout is its result."""

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
# seconds without a line, at most
EVERY = 30.0
# no bar before
_QUIET_SECONDS = 2.0


class Log:
    """A file of what is said, with the time of each line; kept in memory until the file has a place."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._lines: list[str] = []

    def open(self, path: Path) -> None:
        """Append what was said, and what will be, to a file in a folder that is there."""
        self._path = path
        self._flush()

    def add(self, text: str) -> None:
        """One more line."""
        self._lines.append(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        self._flush()

    def _flush(self) -> None:
        if self._path is None:
            return
        # a log that can't be written ends nothing
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(self._lines)
        self._lines.clear()


class Steps:
    """Something of many steps, told at most every half minute, with an estimate of its end.

    Args:
        title: What it is.
        total: Its steps; 0: not known.
        unit: What they are.
    """

    def __init__(self, title: str, total: int, unit: str = "batches") -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._began = self._told = time.monotonic()

    def add(self, count: int = 1) -> None:
        """So many steps are done."""
        self.done += count
        self.beat()

    def beat(self) -> None:
        """Say how far it is, if that is due."""
        if self.due():
            total = f" of {self.total:,}" if self.total else ""
            say(f"{self.title}: {self.done:,}{total} {self.unit}{self.left()}")

    def due(self) -> bool:
        """Whether half a minute has gone by since this was last true, or since the beginning."""
        now = time.monotonic()
        due = now - self._told >= EVERY
        if due:
            self._told = now
        return due

    def left(self) -> str:
        """`` · about 3 min left``; nothing before the first step and after the last."""
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
    """Print a line at once, and note it in the logs of the runs that go on; the first of processes does."""
    if launched_rank() > 0:
        return
    print(text, file=sys.stderr, flush=True)
    for log in _logs:
        log.add(text)


@contextmanager
def logged() -> Iterator[Log]:
    """Note what is said, and how it ends if by an exception, in a log, once that is opened."""
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
    """Tell of something as it goes; :func:`beat` then tells of it too."""
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
    """Within a step that may be a long one: say how far the whole is, if that is due."""
    if _running:
        _running[-1].beat()
