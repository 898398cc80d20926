"""The rows of a comparison, one per cell, as a CSV file; and the choice of learning rates."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gendd.errors import UserError
from gendd.files import write_text

Row = dict[str, Any]

# columns and the types of their values; an empty cell is None
COLUMNS: dict[str, type] = {
    "data": str,
    "pair": str,
    "method": str,
    "label": str,
    "seed": int,
    "rate": float,
    "chosen": bool,
    "epochs": int,
    "steps": int,
    "test_linear": float,
    "test_mean": float,
    "test_sample": float,
    "agreement": float,
    "readout": str,
    "test": float,
    "many": float,
    "medium": float,
    "few": float,
    "validation": float,
    "monitor": str,
    "curve": list,
    "train_seconds": float,
    "step_seconds": float,
    "peak_memory_mb": float,
    "parameters": int,
    "multiply_adds": int,
    "latency_ms": float,
    "config": str,
    "versions": str,
    "machine": str,
    "date": str,
    "error": str,
}
# columns that differ between repetitions
VARYING = ("train_seconds", "step_seconds", "latency_ms", "peak_memory_mb", "date")
# columns that earlier versions did not write
_LATER = ("many", "medium", "few")
# strings even if empty
_NAMES = ("data", "pair")


def coordinates(row: Mapping[str, Any]) -> tuple[str, str, str, int, float]:
    """Return the key of a row: data, pair, method, seed and learning rate."""
    return row["data"], row["pair"], row["method"], row["seed"], row["rate"]


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a results file; an empty list if there is no file.

    Raises:
        UserError: it is not a results file of a comparison.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return list(_parsed(csv.DictReader(stream)))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise UserError(
            f"Results {str(path)!r}: expected a CSV of gendd compare; {error}. Give another --results."
        ) from error


def _parsed(reader: csv.DictReader[str]) -> Iterator[Row]:
    found = list(reader.fieldnames or ())
    if missing := [name for name in COLUMNS if name not in (*found, *_LATER)]:
        raise ValueError(f"it lacks the columns {', '.join(missing)}")
    if unknown := [name for name in found if name not in COLUMNS]:
        raise ValueError(f"its columns {', '.join(unknown)} are unknown and would be lost")
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has more or fewer fields than the first")
        yield {name: _value(name, row.get(name) or "") for name in COLUMNS}


def _value(name: str, text: str) -> Any:
    kind = COLUMNS[name]
    if not text:
        return "" if name in _NAMES else [] if kind is list else None
    if kind is list:
        return [float(part) for part in text.split()]
    return text == "true" if kind is bool else kind(text)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def to_csv(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Format rows as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = list(columns)
    writer.writerow(names)
    writer.writerows([_text(row.get(name)) for name in names] for row in rows)
    return stream.getvalue()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a results file atomically, if its content has changed."""
    text = to_csv(COLUMNS, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def is_loss(row: Mapping[str, Any]) -> bool:
    """Return whether a lower value of a row's validation metric is better."""
    return bool(row["monitor"] == "val/diffusion")


def best_rate(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the learning rate with the best validation metric, the first of equals; None without any.

    Args:
        rows: Rows of one method and seed, one per learning rate.
    """
    told = [row for row in rows if row.get("validation") is not None and not row.get("error")]
    if not told:
        alone = [row for row in rows if not row.get("error")]
        return alone[0]["rate"] if len(rows) == len(alone) == 1 else None
    best = min(told, key=lambda row: row["validation"] if is_loss(row) else -row["validation"])
    rate: float = best["rate"]
    return rate
