"""Files that are whole whenever they are there, and where what can be made again is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


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
