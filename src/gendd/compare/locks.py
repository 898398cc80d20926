"""The lock of a comparison's folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gendd.errors import UserError
from gendd.messages import say

# seconds for which cells of a comparison that was just killed may still lock the folder
_PATIENCE = 60.0


@contextmanager
def alone(folder: Path) -> Iterator[int | None]:
    """Lock the folder against a second comparison; yields the descriptor of the locked file.

    Raises:
        UserError: another comparison is running there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    with (folder / "lock").open("a") as stream:
        deadline, told = time.monotonic() + _PATIENCE, False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not told:
                    say(f"waiting for another comparison in {folder}")
                    told = True
                if time.monotonic() > deadline:
                    raise UserError(
                        f"--out: expected a folder without another comparison, got {str(folder)!r}, where "
                        "one is running; wait for it, or give another --out."
                    ) from error
                time.sleep(0.1)
        yield stream.fileno()
