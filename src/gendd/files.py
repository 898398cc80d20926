"""Atomic file writes, the cache folder, and Python files of the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gendd.errors import UserError, did_you_mean, typed_line


def write_text(path: Path, text: str) -> None:
    """Write a file by replacing it: a process that is killed leaves the old one or the new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of plain data."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def cache_folder() -> Path:
    """Where what took long is kept: ``$GENDD_CACHE``, else ``gendd`` in the user's cache folder."""
    if "GENDD_CACHE" in os.environ:
        return Path(os.environ["GENDD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gendd"


def is_python_name(name: str) -> bool:
    """Whether a name is spelled ``path/to/file.py:NAME``."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def import_name(name: str, expected: str, fits: Callable[[object], bool]) -> Any:
    """What ``path/to/file.py:NAME`` names.

    Args:
        name: Spelled like that.
        expected: What it should be, for errors: ``a function``.
        fits: Whether something in the file is that.

    Raises:
        UserError: no such file, it can't be imported, or NAME is something else.
    """
    path, _, wanted = name.rpartition(":")
    module = import_file(Path(path), name)
    found = getattr(module, wanted, None)
    if not fits(found):
        own = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
        raise UserError(f"{name}: expected {expected} {wanted!r} in {path}.{did_you_mean(wanted, own)}")
    return found


def import_file(path: Path, name: str) -> ModuleType:
    """Import a Python file by its path; anew each time, as it may have changed.

    Args:
        path: The file.
        name: What it was asked by, for errors.

    Raises:
        UserError: there is none, or it can't be imported.
    """
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"{name}: expected a Python file, found none at {path}; check the path.")
    # by its path: two files of one name are two modules
    key = "gendd_file_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a class's module up there
    sys.modules[key] = module
    # its neighbours can be imported as if it had been run
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of the user's own code
        raise UserError(
            f"{name}: expected a Python file that can be imported; {typed_line(error)}"
        ) from error
    finally:
        sys.path.remove(folder)
    return module
