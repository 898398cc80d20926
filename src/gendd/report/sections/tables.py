"""The comparison as tables: of all measurements, and by training images per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from gendd.config import registry
from gendd.report.comparison import MEASURES, Row, measures_of
from gendd.report.markup import Line, part, section, table
from gendd.report.numbers import count, milliseconds, number

_COLUMNS = {"top5": "Top-5, %", "linear_probe": "Linear probe, %", "cosine": "Cosine"}


def comparison(rows: Sequence[Row], run: dict[str, Any]) -> Markup:
    """Return the table of every row with its network, measures and costs."""
    columns = {name: MEASURES[name].page for name in measures_of(rows)}
    columns |= {name: title for name, title in _COLUMNS.items() if any(row[name] is not None for row in rows)}
    lines = []
    for row in rows:
        numbers = [number(row[name]) for name in columns]
        numbers += [count(row["parameters"]), count(row["multiply_adds"]), milliseconds(row["latency_ms"])]
        lines.append(Line([_method(row), str(row["network"])], numbers, own=row["chosen"]))
    note = "The highlighted row is the readout of the finished student; cost and latency are per image."
    own, images = next((row["top1"] for row in rows if row["chosen"]), None), run.get("test_images")
    if own is not None and images:
        error = 100 * math.sqrt(own / 100 * (1 - own / 100) / images)
        note += (
            f" With {images:,} test images the standard error of the student's top-1 is "
            f"{error:.2f} points, not counting the spread between seeds."
        )
    headings = [*columns.values(), "Parameters", "Multiply-adds", "Latency, ms"]
    return section("Comparison", table(["Method", "Network"], headings, lines), note)


def groups(rows: Sequence[Row], run: dict[str, Any]) -> Markup | None:
    """Return the table of top-1 for classes with many, a medium number and few training images."""
    shown = [row for row in rows if row["groups"]]
    if not shown:
        return None
    lines = [
        Line(
            [_method(row | {"detail": ""})],
            [number(group["top1"]) for group in row["groups"].values()],
            own=row["chosen"],
        )
        for row in shown
    ]
    few, many = run["shot_thresholds"]
    sizes = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    found = shown[0]["groups"]
    told = "; ".join(
        f"{name}: {sizes[name]} training images ({group['classes']} classes, {group['images']:,} test images)"
        for name, group in found.items()
    )
    return section(
        "Accuracy by training images per class",
        table(["Method"], [f"{name.capitalize()}, %" for name in found], lines),
        f"Over all test images of the classes in a group. {told}.",
    )


def _method(row: Row) -> Markup:
    key = row["key"] if row["key"] in ("teacher", *registry.names()) else "gendd"
    return part("method", key, row["method"], row["detail"])
