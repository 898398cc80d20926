"""Loader processes: how many there may be, and what they have in common."""

from __future__ import annotations

import os
import signal
from typing import Any


def unchanged(batch: Any) -> Any:
    """What a dataset gives is a batch already."""
    return batch


# seconds
_PATIENCE = 20


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, a closed terminal and a scheduler to the process that started this one, which ends it.

    A scheduler's SIGTERM may reach all processes at once: the other one may need batches until its step ends.
    """
    del worker
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_PATIENCE) and None)


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
