"""What loader processes have in common."""

from __future__ import annotations

import signal
from typing import Any


def unchanged(batch: Any) -> Any:
    """What a dataset gives is a batch already."""
    return batch


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the process that started this one, which ends its loader processes."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
