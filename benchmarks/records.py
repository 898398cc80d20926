"""The CSVs of results: whole whenever they are there, whatever ends the benchmark that writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendd.files import write_text


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a result; none where it is not measured yet."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def best_rate(rows: Iterable[Mapping[str, str]]) -> str:
    """The learning rate of the row that does best on validation images, by readout mean where it has one."""
    return max(rows, key=lambda row: float(row["val_mean"] or row["val_linear"]))["lr"]


def _text(fields: Sequence[str], rows: Iterable[Mapping[str, Any]], header: bool) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file by replacing it.

    Raises:
        ValueError: If a row has what is not among the fields; the file is as it was.
    """
    write_text(path, _text(fields, rows, header=True))


def append(path: Path, fields: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows in one piece, so that several benchmarks can add to one file.

    Raises:
        ValueError: If the file has other fields, or a row has; nothing is added.
    """
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as stream:
            there = next(csv.reader(stream), [])
        if there != list(fields):
            raise ValueError(f"{path} has the columns {there}, not {list(fields)}: move it away first")
    text = _text(fields, rows, header=new)
    with path.open("a", newline="", encoding="utf-8") as stream:
        stream.write(text)


def replace(
    path: Path, fields: Sequence[str], key: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write rows that share a key in the place of those with the same key."""
    kept = [row for row in read(path) if any(row[name] != str(value) for name, value in key.items())]
    write(path, fields, [*kept, *rows])
