"""Loader processes: their number and shared behaviour."""

from __future__ import annotations

import os
import signal
from typing import Any


def unchanged(batch: Any) -> Any:
    """Collate function for data sets that already return batches."""
    return batch


# seconds after SIGTERM until a loader process ends by itself
_PATIENCE = 20


def ignore_interrupts(worker: int) -> None:
    """Ignore Ctrl-C, a closed terminal and a scheduler's signals; the parent process ends this one.

    A scheduler's SIGTERM may reach all processes at once, and the parent may need batches to end its step.
    """
    del worker
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_PATIENCE) and None)


def cores() -> int:
    """Return the number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
