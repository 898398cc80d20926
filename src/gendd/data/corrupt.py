"""Images that can't be read or decoded: told once, counted, and refused beyond a limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from gendd.errors import UserError
from gendd.messages import say

_TOLD = 10


class Named(Protocol):
    """What tells where images came from."""

    def where(self, index: int) -> str:
        """What an error calls this image."""
        ...


class Skipped:
    """The images of one part of a set that were skipped.

    Each is told once: the first ten on stderr, all of them in a file once there is one.

    Args:
        part: What the images are, as lines call them: ``training``, ``validation`` or ``test``.
    """

    def __init__(self, part: str = "set") -> None:
        self.part = part
        # of each what it stands for in images
        self.names: dict[str, int] = {}
        self._told = 0
        self._file: Path | None = None

    def __len__(self) -> int:
        return sum(self.names.values())

    def add_missing(self, count: int, what: str) -> None:
        """Tell of images that are missing altogether, about so many."""
        say(f"unreadable, skipped: about {count} images ({what})")
        self.names[what] = count

    def add(self, name: str) -> None:
        """Tell of an image, unless it was told before."""
        if name in self.names:
            return
        self.names[name] = 1
        if self._file is not None:
            self._write([name])
        self._told += 1
        if self._told <= _TOLD:
            say(f"skipped an image of the {self.part} images that can't be decoded: {name}")
        elif self._told == _TOLD + 1:
            rest = "not told here" if self._file is None else f"named in {self._file}"
            say(f"further skipped {self.part} images are {rest}")

    def record(self, file: Path) -> None:
        """Name those skipped so far and from now on in a file, a line each; those already in it count."""
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
    """Counts the corrupt images of one pass over some images.

    Args:
        names: Where they came from.
        skipped: Told of each.
        total: Images of the pass.
        share: The largest share of them that may be corrupt, in [0, 1).
    """

    def __init__(self, names: Named, skipped: Skipped, total: int, share: float) -> None:
        self.names = names
        self.skipped = skipped
        self.total = total
        self.allowed = allowed(total, share)
        # of so few images none may be corrupt
        self.remedy = ", or raise data.max_corrupt." if share > 0 else "."
        self.indices: set[int] = set()

    def add(self, corrupt: Iterable[tuple[int, UserError]]) -> None:
        """Count images by index with what was wrong with each; the same one counts once.

        Raises:
            UserError: more than are allowed; where none is, the error of the image itself.
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
    """How many of ``total`` images are at most ``share`` of them; always fewer than all."""
    # 0.29 · 100 is a little less than 29
    return min(math.floor(share * total + 1e-9), max(total - 1, 0))


def too_many(most: int, total: int, part: str, last: str) -> UserError:
    """The error of more than ``most`` corrupt images of ``total``."""
    return UserError(
        f"data.max_corrupt: expected at most {most:,} of {total:,} {part} images that can't be decoded, got "
        f"more, the last {last}; replace or remove them, or raise it."
    )


def substitutes(index: int, count: int, most: int) -> Iterator[int]:
    """An image and those to take in its place, in order: the following ones of the set, ``most`` at most."""
    for step in range(min(most + 1, count)):
        yield (index + step) % count
