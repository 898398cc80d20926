"""Readers by name: every file of this folder that has a ``READER``, or a user's own.

``path/to/file.py:NAME`` names a user's :class:`Reader`, or a function that takes the configuration and
returns a :class:`Found`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from gendd.data.readers.common import Reader
from gendd.errors import UserError, nearest
from gendd.files import import_name, is_python_name


@cache
def readers() -> dict[str, Reader]:
    """Return the readers that come with gendd, by the names of their data sets."""
    files = [each.name for each in pkgutil.iter_modules([str(Path(__file__).parent)])]
    found = [getattr(import_module(f"gendd.data.readers.{name}"), "READER", None) for name in files]
    return {name: reader for reader in found if reader is not None for name in reader.names}


@cache
def reader(name: str) -> Reader:
    """Return the reader of the data set called ``name``.

    Raises:
        UserError: there is no such data set.
    """
    if is_python_name(name):
        found: Any = import_name(name, "a reader", lambda each: isinstance(each, Reader) or callable(each))
        return found if isinstance(found, Reader) else Reader(found)
    if name not in readers():
        known = [*readers(), "webdataset"]
        raise UserError(
            f"data.name: expected one of {', '.join(known)}, or path/to/file.py:NAME, got {name!r}."
            f"{nearest(name, known)}"
        )
    return readers()[name]
