"""What loader processes have in common."""

from __future__ import annotations

import signal
from typing import Any


def unchanged(batch: Any) -> Any:
    """What a dataset gives is a batch already."""
    return batch


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C and a closed terminal to the process that started this one, which ends it."""
    del worker
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
