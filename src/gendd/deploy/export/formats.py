"""The formats by name: every file ``to_*.py`` of this folder, or ``path/to/file.py:NAME``."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from gendd.config import ReadoutName
from gendd.deploy.export.source import Network, Source
from gendd.errors import UserError, nearest
from gendd.files import import_name, is_python_name
from gendd.student import Student


def _no_remarks(source: Source, path: Path) -> list[str]:
    return []


@dataclass(frozen=True)
class Format:
    """A kind of file that a readout is exported to.

    Args:
        name: What ``--to`` calls it.
        suffix: Of its files; "" where it is a folder.
        write: Writes a file and gives the network as it is loaded from there, which is compared with
            PyTorch's: images (B, C, S, S) in [0, 1] -> logits (B, K).
        needs: Raises :class:`UserError` where a package it needs is missing.
        readout: The readout that is exported of a student that is asked for one or for its own (None); raises
            :class:`UserError` where the format can't hold the student.
        remarks: Lines to print beside what was written.
        unrolled: Whether a graph is written, with a copy of the head per sampling step.
        quantizable: Whether ``--quantize int8`` can follow.
        tag: Part of the file's default name, where another format has the same suffix.
    """

    name: str
    suffix: str
    write: Callable[[Source, Path], Network]
    needs: Callable[[], None] = lambda: None
    readout: Callable[[Student, ReadoutName | None], ReadoutName] = Student.checked
    remarks: Callable[[Source, Path], list[str]] = _no_remarks
    unrolled: bool = False
    quantizable: bool = False
    tag: str = ""


@cache
def formats() -> dict[str, Format]:
    """The formats that come with gendd by their names."""
    files = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found: list[Format] = [
        import_module(f"gendd.deploy.export.{name}").FORMAT for name in files if name.startswith("to_")
    ]
    return {each.name: each for each in found}


def export_format(name: str) -> Format:
    """The format called ``name``.

    Raises:
        UserError: there is none.
    """
    if is_python_name(name):
        expected = "a gendd.deploy.export.Format"
        found: Format = import_name(name, expected, lambda each: isinstance(each, Format))
        return found
    if name not in formats():
        raise UserError(
            f"Export: expected one of {', '.join(formats())}, or path/to/file.py:NAME, got {name!r}."
            f"{nearest(name, formats())}"
        )
    return formats()[name]
