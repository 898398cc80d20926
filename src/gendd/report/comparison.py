"""Comparison of a run's methods: teacher, baselines and student as rows, and as a printed table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from gendd.config import registry
from gendd.report.numbers import count, milliseconds, number

Row = dict[str, Any]


class Measure(NamedTuple):
    """Names of a measure: the heading in the terminal and on the page, and in words."""

    terminal: str
    page: str
    words: str


# the main measure of a row is the first one available
MEASURES = {
    "top1": Measure("top-1 %", "Top-1, %", "top-1 accuracy"),
    "agreement": Measure("agree %", "Agreement, %", "agreement with the teacher"),
    "knn": Measure("kNN %", "20-NN, %", "accuracy of the 20 nearest neighbours"),
    "cosine": Measure("cosine", "Cosine", "cosine with the teacher's feature"),
}
_READOUTS = ("linear", "mean", "sample")
_COSTS = ("parameters", "multiply_adds", "latency_ms", "latency_quartiles_ms")
_MEASURED = ("top1", "top5", "agreement", "knn", "linear_probe", "cosine", *_COSTS, "groups")
_SAMPLER = {"steps": "{} steps", "num_samples": "{} samples", "guidance": "guidance {:g}"}


def rows(metrics: dict[str, Any]) -> list[Row]:
    """Return the comparison table: teacher, baselines, then each readout of the student and its features.

    Returns:
        One dict per row: ``method`` (its label), ``key`` (the method's config name), ``network``,
        ``detail`` (the sampler's settings, else ""), ``chosen`` (whether it is the run's chosen readout, or
        the generated features without readouts), ``top1``, ``top5``, ``agreement``, ``knn`` and
        ``linear_probe`` in percent, ``cosine``, ``parameters``, ``multiply_adds`` and ``latency_ms`` per
        image, and ``groups`` (top-1 by training images per class, see :mod:`gendd.evaluation.long_tail`).
        Values that were not measured are None.
    """
    table: list[Row] = []
    teacher = metrics.get("teacher")
    if teacher:
        table.append(_row("teacher", teacher | (teacher.get("embedding") or {})))
    baselines = metrics.get("baselines") or {}
    table += [_row(key, baseline) for key, baseline in baselines.items()]

    student = metrics["student"]
    method = method_of(metrics)
    readouts = student["readouts"]
    chosen = student.get("readout") or next(iter(readouts), None)
    for name in [name for name in _READOUTS if name in readouts]:
        row = _row(method, student | readouts[name])
        if method == "supervised" and is_training(metrics):
            row["method"] = "trained on labels"
        if len(readouts) > 1 or name != "linear":
            row["method"] += f" · {name}"
        row["chosen"] = name == chosen
        if name == "sample":
            row["detail"] = _sampler(readouts[name])
        table.append(row)
    features = student.get("embedding") or {}
    for name, figures in features.items():
        row = _row(method, student | figures)
        row["method"] += f" · {name}"
        row["chosen"] = not readouts and name == list(features)[-1]
        table.append(row)
    return table


def _row(key: str, entry: dict[str, Any]) -> Row:
    return {
        "method": entry.get("label") or label(key),
        "key": key,
        "network": entry.get("name", ""),
        "detail": "",
        "chosen": False,
    } | {name: entry.get(name) for name in _MEASURED}


def _sampler(readout: dict[str, Any]) -> str:
    return ", ".join(
        text.format(readout[name]) for name, text in _SAMPLER.items() if readout.get(name) is not None
    )


def label(key: str) -> str:
    """Return the label of a method, or of the teacher."""
    return key if key == "teacher" else registry.label(key)


def in_order(methods: Iterable[str]) -> list[str]:
    """Sort methods: the teacher first, the others in their order."""
    return sorted(methods, key=lambda method: method != "teacher")


def method_of(metrics: dict[str, Any]) -> str:
    """Return the run's method, inferred from the readouts in older layouts that don't name it."""
    named = metrics.get("run", {}).get("method")
    if named:
        return str(named)
    return "gendd" if set(metrics["student"]["readouts"]) - {"linear"} else "student"


def is_training(metrics: dict[str, Any]) -> bool:
    """Return whether the run trained a single network without baselines or teacher."""
    beside = metrics.get("teacher") or metrics.get("baselines")
    return (
        not beside
        and metrics.get("run", {}).get("method") is not None
        and not registry.learns_from_teacher(method_of(metrics))
    )


def own_row(table: Sequence[Row]) -> Row:
    """Return the row of the run's chosen readout."""
    return next((row for row in table if row["chosen"]), table[-1])


def measure_of(row: Row) -> str | None:
    """Return the main measure of a row; None if nothing was measured."""
    return next((name for name in MEASURES if row[name] is not None), None)


def measures_of(table: Sequence[Row]) -> list[str]:
    """Return the measures that get a column: top-1, and the main measure of rows without it."""
    found = {measure_of(row) for row in table}
    return [name for name in MEASURES if name in found] or ["top1"]


def print_table(
    metrics: dict[str, Any],
    console: Console | None = None,
    recorded: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Print the comparison table, with the run's chosen readout in bold. Fits 80 columns.

    Args:
        metrics: Metrics of the run.
        console: Where to print.
        recorded: Recorded top-1 over several seeds, by method, shown for comparison.
    """
    console = console or Console()
    table = rows(metrics)
    measures = measures_of(table)
    columns = [*(MEASURES[name].terminal for name in measures), "params", "multiply-adds", "ms/image"]
    seeds = max(map(len, recorded.values())) if recorded else 0
    if seeds:
        columns.insert(len(measures), "recorded")
    printed = _empty("method", columns)
    for row in table:
        printed.add_row(
            row["method"],
            *(number(row[name]) for name in measures),
            *([_spread(recorded, row, method_of(metrics))] if recorded else []),
            count(row["parameters"]),
            count(row["multiply_adds"]),
            milliseconds(row["latency_ms"]),
            style="bold" if row["chosen"] else "",
        )
    for key in [key for key in recorded or () if key not in {row["key"] for row in table}]:
        beside = _mean_std((recorded or {})[key])
        printed.add_row(label(key), *("–" for _ in measures), beside, "", "", "", style="dim")
    console.print(printed)
    if seeds:
        told = f"recorded: mean ± standard deviation of {seeds} seeds of the recipe as it ships"
        console.print(told, style="dim", highlight=False)
    grouped = [row for row in table if row["groups"]]
    if grouped:
        columns = [f"{name} ({group['classes']})" for name, group in grouped[0]["groups"].items()]
        printed = _empty("top-1 % by shots", columns)
        for row in grouped:
            cells = [number(group["top1"]) for group in row["groups"].values()]
            printed.add_row(row["method"], *cells, style="bold" if row["chosen"] else "")
        console.print()
        console.print(printed)


def _spread(recorded: Mapping[str, Sequence[float]], row: Row, method: str) -> str:
    """Format mean and deviation of recorded results; of the run's method for its chosen readout only."""
    if row["key"] not in recorded or (row["key"] == method and not row["chosen"]):
        return ""
    return _mean_std(recorded[row["key"]])


def _mean_std(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    return number(mean) if len({*values}) == 1 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"


def _empty(first: str, columns: Sequence[str]) -> Table:
    table = Table(first, box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
