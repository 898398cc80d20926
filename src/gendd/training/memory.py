"""Measurement of peak memory."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import torch


def reset_peak() -> None:
    """Reset the peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # resets the peak on Linux; elsewhere it is that of the whole process so far
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Peak memory in MB: the device's if it has its own memory, else that of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)
