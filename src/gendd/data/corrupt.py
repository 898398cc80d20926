"""Images that can't be read or decoded: report each once, count them, and fail beyond a limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from gendd.errors import UserError
from gendd.messages import say

_TOLD = 10


class Named(Protocol):
    """Something that knows where images came from."""

    def where(self, index: int) -> str:
        """Return the name of this image in error messages."""
        ...


class Skipped:
    """The skipped images of one part of a data set.

    Each is reported once: the first ten on stderr, all of them in a file once one is set.

    Args:
        part: The part, as named in messages: ``training``, ``validation`` or ``test``.
    """

    def __init__(self, part: str = "set") -> None:
        self.part = part
        # number of images that each entry stands for
        self.names: dict[str, int] = {}
        self._told = 0
        self._file: Path | None = None

    def __len__(self) -> int:
        return sum(self.names.values())

    def add_missing(self, count: int, what: str) -> None:
        """Report images that are missing altogether, with their approximate number."""
        say(f"unreadable, skipped: about {count} images ({what})")
        self.names[what] = count

    def add(self, name: str) -> None:
        """Report an image, unless it was reported before."""
        if name in self.names:
            return
        self.names[name] = 1
        if self._file is not None:
            self._write([name])
        self._told += 1
        if self._told <= _TOLD:
            say(f"skipped a {self.part} image that can't be decoded: {name}")
        elif self._told == _TOLD + 1:
            rest = "not listed" if self._file is None else f"listed in {self._file}"
            say(f"further skipped {self.part} images are {rest}")

    def record(self, file: Path) -> None:
        """List past and future skipped images in a file, one per line; those already listed count too."""
        before: dict[str, int] = {}
        if file.is_file():
            start = f"{self.part}: "
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            before = {line.removeprefix(start): 1 for line in lines if line.startswith(start)}
        self._file = file
        self._write([name for name in self.names if name not in before])
        self.names = before | self.names

    def _write(self, names: Iterable[str]) -> None:
        lines = [f"{self.part}: {name}\n" for name in names]
        if lines:
            assert self._file is not None
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", errors="surrogateescape") as stream:
                stream.writelines(lines)


class Tally:
    """Count the corrupt images of one pass over a set.

    Args:
        names: The source of the images, for their names.
        skipped: Receives each corrupt image.
        total: Number of images of the pass.
        share: Maximum share of them that may be corrupt, in [0, 1).
    """

    def __init__(self, names: Named, skipped: Skipped, total: int, share: float) -> None:
        self.names = names
        self.skipped = skipped
        self.total = total
        self.allowed = allowed(total, share)
        # with so few images none may be corrupt
        self.remedy = ", or raise data.max_corrupt." if share > 0 else "."
        self.indices: set[int] = set()

    def add(self, corrupt: Iterable[tuple[int, UserError]]) -> None:
        """Count corrupt images, given as index and error; each image counts once.

        Raises:
            UserError: more than allowed; if none is allowed, the error of the image itself.
        """
        for index, error in corrupt:
            self.indices.add(index)
            if self.allowed == 0:
                raise UserError(f"{str(error).rstrip('.')}{self.remedy}") from error
            name = self.names.where(index)
            self.skipped.add(name)
            if len(self.indices) > self.allowed:
                raise too_many(self.allowed, self.total, self.skipped.part, name)


def allowed(total: int, share: float) -> int:
    """Return the largest number of images within ``share`` of ``total``; always fewer than all."""
    # in floating point 0.29 · 100 is slightly less than 29
    return min(math.floor(share * total + 1e-9), max(total - 1, 0))


def too_many(most: int, total: int, part: str, last: str) -> UserError:
    """Return the error for more than ``most`` corrupt images of ``total``."""
    return UserError(
        f"data.max_corrupt: expected at most {most:,} of {total:,} {part} images that can't be decoded, got "
        f"more, the last {last}; replace or remove them, or raise it."
    )


def substitutes(index: int, count: int, most: int) -> Iterator[int]:
    """Yield an image and its substitutes, in order: the following images of the set, at most ``most``."""
    for step in range(min(most + 1, count)):
        yield (index + step) % count
