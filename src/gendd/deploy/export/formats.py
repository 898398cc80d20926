"""Export formats by name: every file ``to_*.py`` of this folder, or ``path/to/file.py:NAME``."""

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
    """An export format.

    Args:
        name: Its name in ``--to``.
        suffix: File suffix; "" if it is a folder.
        write: Writes a file and returns the network loaded from it, which is compared with PyTorch's: images
            (B, C, S, S) in [0, 1] -> logits (B, K).
        needs: Raises :class:`UserError` if a required package is missing.
        readout: Returns the readout to export, given the student and the requested one (None for the
            student's own); raises :class:`UserError` if the format can't hold the student.
        remarks: Lines to print after writing.
        unrolled: Whether it writes a graph with one copy of the head per sampling step.
        quantizable: Whether ``--quantize int8`` is supported.
        tag: Part of the default file name, for a format that shares its suffix with another.
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
    """Return the formats that come with gendd, by name."""
    files = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found: list[Format] = [
        import_module(f"gendd.deploy.export.{name}").FORMAT for name in files if name.startswith("to_")
    ]
    return {each.name: each for each in found}


def export_format(name: str) -> Format:
    """Return the format called ``name``.

    Raises:
        UserError: there is no such format.
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
