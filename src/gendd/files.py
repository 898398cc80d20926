"""Files that are whole whenever they are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file by replacing it: a process that is killed leaves the old one or the new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of plain data."""
    write_text(path, json.dumps(content, indent=2) + "\n")
