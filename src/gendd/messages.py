"""Lines that tell a person what happens, on stderr: what a command prints on stdout is its result."""

from __future__ import annotations

import sys

from gendd.processes import launched_rank


def say(text: str) -> None:
    """Print a line at once; of several processes the first one does."""
    if launched_rank() == 0:
        print(text, file=sys.stderr, flush=True)
