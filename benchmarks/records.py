"""Read and atomically write the CSVs of results.

Every row ends with the versions, the machine and the date of its measurement.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendd.compare.cells import circumstances
from gendd.files import write_text

CIRCUMSTANCES = ["versions", "machine", "date"]


def read(path: Path) -> list[dict[str, str]]:
    """Read the rows of a result; an empty list if it has not been measured."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _text(fields: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*fields, *CIRCUMSTANCES], restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    now = circumstances()
    # rows read from a file have their own
    writer.writerows(now | dict(row) for row in rows)
    return stream.getvalue()


def write(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file atomically.

    Raises:
        ValueError: If a row has a key that is not among the fields; the file is unchanged.
    """
    write_text(path, _text(fields, rows, header=True))


def append(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows atomically, so that several benchmarks can write to one file.

    Raises:
        ValueError: If the file or a row has other fields; nothing is added.
    """
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as stream:
            there = next(csv.reader(stream), [])
        if there != (wanted := [*fields, *CIRCUMSTANCES]):
            raise ValueError(f"{path} has the columns {there}, not {wanted}: move it away first")
    text = _text(fields, rows, header=new)
    with path.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text)


def replace(
    path: Path, fields: Sequence[str], key: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Replace the rows that have the given key."""
    kept = [row for row in read(path) if any(row[name] != str(value) for name, value in key.items())]
    write(path, fields, [*kept, *rows])
