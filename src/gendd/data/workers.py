"""Loader processes: their number and shared behaviour."""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType
from typing import Any


def unchanged(batch: Any) -> Any:
    """Collate function for data sets that already return batches."""
    return batch


# seconds after SIGTERM until a loader process ends by itself
_PATIENCE = 20


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C, a closed terminal and a scheduler's signals; the parent process ends this one.

    A scheduler's SIGTERM may reach all processes at once, and the parent may need batches to end its step. If
    it ends while it takes over a batch, nothing is printed.
    """
    del worker
    sys.excepthook = _unless_disconnected
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_PATIENCE) and None)


def _unless_disconnected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an exception of the thread that hands over batches, unless the parent closed the connection."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def cores() -> int:
    """Return the number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
