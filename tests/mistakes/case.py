"""A user error, and the folder it occurs in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# command-line arguments, or a call of the library
Made = list[str] | Callable[[], object]


@dataclass(frozen=True)
class Place:
    """Environment of a user error.

    Attributes:
        folder: An empty folder of its own.
        run: A finished run, which is read only.
        images: A folder of images with train/ and test/, of two classes, which is read only.
        out: A finished run that must stay as it is.
    """

    folder: Path
    run: Path
    images: Path
    out: Path

    def write(self, name: str, content: str | bytes) -> str:
        """The path of a new file."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    def copy(self, of: Path, name: str = "copy") -> Path:
        """A copy of a folder, to be damaged."""
        return Path(shutil.copytree(of, self.folder / name))

    def distill(self, *words: str, command: str = "distill") -> list[str]:
        """A run that would replace the finished one."""
        return [command, "--out", str(self.out), "--overwrite", *words]


@dataclass(frozen=True)
class Case:
    """A user error.

    Attributes:
        kind: Its group.
        name: Its name within the group.
        make: Sets it up, and returns the call.
        quick: Whether it is part of the short test.
        unprivileged: Whether it is not an error for root.
    """

    kind: str
    name: str
    make: Callable[[Place], Made]
    quick: bool = False
    unprivileged: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"
