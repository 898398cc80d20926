"""Lines that tell a person what happens, on stderr: what a command prints on stdout is its result."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line at once."""
    print(text, file=sys.stderr, flush=True)
