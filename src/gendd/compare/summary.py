"""Summarise the rows of a comparison: means over seeds, and paired differences to the reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gendd.compare.plan import Plan
from gendd.compare.results import Row, is_loss, to_csv
from gendd.evaluation.long_tail import GROUPS
from gendd.files import write_text
from gendd.report.numbers import count, number

RESAMPLES = 10_000
# metrics of a cell that are averaged over seeds, and their columns in its row
_METRICS = {"test": "test", "linear": "test_linear", "mean": "test_mean", **{name: name for name in GROUPS}}
SUMMARY = (
    "data",
    "pair",
    "method",
    "label",
    "rate",
    "seeds",
    "test",
    "test_sd",
    "linear",
    "linear_sd",
    "mean",
    "mean_sd",
    *(f"{name}{part}" for name in GROUPS for part in ("", "_sd")),
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "difference_t_low",
    "difference_t_high",
    "epochs",
    "train_seconds",
    "step_seconds",
    "seconds_to_reference",
    "peak_memory_mb",
    "multiply_adds",
    "parameters",
    "errors",
)
Interval = tuple[float | None, float | None]


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % percentile bootstrap interval of a mean; None, None for fewer than two values.

    Uses 10,000 resamples from a fixed seed. For two or three values the interval is their range, since more
    than 2.5 % of the resamples contain only the smallest: it covers the true mean of a symmetric distribution
    in 50 and 75 % of cases, not in 95. It is too narrow up to about ten values, so :func:`t_interval` is
    given beside it. Three seeds can show a difference of several times its spread between seeds; they can't
    show that two methods are equal, nor rank methods whose difference is within that spread.
    """
    if len(values) < 2:
        return None, None
    array = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(0).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def t_interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of a mean by Student's t; None, None for fewer than two values.

    Exact for normally distributed values at any n; for n of 2 or 3 it is wide (12.7 and 4.3 standard errors
    to each side), as so few seeds are little evidence.
    """
    if len(values) < 2:
        return None, None
    from scipy import special  # type: ignore[import-untyped]

    mean, error = statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5
    reach = float(special.stdtrit(len(values) - 1, 0.975)) * error
    return mean - reach, mean + reach


def summarise(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one row per method, pair and data set, by the columns of :data:`SUMMARY`; None for unknowns.

    Args:
        plan: Plan of the comparison.
        rows: Rows of its cells; only the chosen ones of the plan's seeds count.
    """
    found = []
    for group in plan.groups:
        mine = [
            row for row in rows if (row["data"], row["pair"], row["method"]) == (*group.place, group.method)
        ]
        chosen = _by_seed(plan, mine)
        reference = _by_seed(
            plan,
            [
                row
                for row in rows
                if (row["data"], row["pair"], row["method"]) == (*group.place, plan.reference)
            ],
        )
        summary: Row = dict.fromkeys(SUMMARY)
        summary |= {"data": group.data, "pair": group.pair, "method": group.method, "label": group.label}
        runs = list(chosen.values())
        summary |= {"seeds": len(runs), "errors": sum(bool(row["error"]) for row in mine)}
        if runs:
            summary |= {"rate": runs[0]["rate"], "epochs": runs[0]["epochs"]}
        for name, column in _METRICS.items():
            summary[name], summary[f"{name}_sd"] = _mean_sd(_values(runs, column))
        for name in ("multiply_adds", "parameters"):
            summary[name] = _mean(_values(runs, name))
        timed = _of_one_machine(chosen, reference)
        for name in ("train_seconds", "step_seconds"):
            summary[name] = _mean(_values(timed.values(), name))
        summary["peak_memory_mb"] = max(_values(timed.values(), "peak_memory_mb"), default=None)
        if group.method != plan.reference:
            summary |= _difference(chosen, reference)
        summary["seconds_to_reference"] = _seconds_to(timed, reference)
        found.append(summary)
    return found


def _by_seed(plan: Plan, rows: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    chosen = {row["seed"]: row for row in rows if row["chosen"] and not row["error"]}
    return {seed: chosen[seed] for seed in plan.seeds if seed in chosen}


def _of_one_machine(
    chosen: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> dict[int, Mapping[str, Any]]:
    """Return the cells whose seconds and memory count: those run on the reference's most frequent machine.

    If there are none, those run on their own most frequent machine.
    """
    machines = [row["machine"] for row in reference.values()]
    own = [row["machine"] for row in chosen.values()]
    known = [each for each in machines if each in own] or own
    if not known:
        return {}
    machine = statistics.mode(known)
    return {seed: row for seed, row in chosen.items() if row["machine"] == machine}


def _values(rows: Iterable[Mapping[str, Any]], column: str) -> list[float]:
    return [row[column] for row in rows if row[column] is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    return _mean(values), statistics.stdev(values) if len(values) > 1 else None


def _difference(chosen: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]) -> Row:
    """Return the paired difference in the test metric over the seeds that both have."""
    pairs = [
        row["test"] - reference[seed]["test"]
        for seed, row in chosen.items()
        if seed in reference
        and None not in (row["test"], reference[seed]["test"])
        and _is_top1(row) == _is_top1(reference[seed])
    ]
    low, high = bootstrap_interval(pairs)
    t_low, t_high = t_interval(pairs)
    return {
        "pairs": len(pairs),
        "difference": _mean(pairs),
        "difference_low": low,
        "difference_high": high,
        "difference_t_low": t_low,
        "difference_t_high": t_high,
    }


def _is_top1(row: Mapping[str, Any]) -> bool:
    """Whether a row's test metric is a top-1, not the agreement with the teacher."""
    readout = row.get("readout")
    return not readout or row.get(f"test_{readout}") is not None


def seconds(row: Mapping[str, Any]) -> float:
    """Return a cell's training seconds, from the steps timed side by side if there are any."""
    if row["step_seconds"] and row["steps"]:
        return float(row["step_seconds"] * row["steps"])
    return float(row["train_seconds"] or 0.0)


def _seconds_to(
    chosen: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]]
) -> float | None:
    """Return the training seconds until validation reached the reference's final value for the same seed.

    The mean over the seeds that both have; None if one of them never did.
    """
    found = []
    for seed in (seed for seed in chosen if seed in reference):
        row, other = chosen[seed], reference[seed]
        if not row["curve"] or not other["curve"] or not seconds(row) or _kind(row) != _kind(other):
            return None
        better: Callable[[float], bool] = _reaches(other["curve"][-1], is_loss(row))
        epoch = next((done for done, value in enumerate(row["curve"], 1) if better(value)), None)
        if epoch is None:
            return None
        found.append(seconds(row) * epoch / len(row["curve"]))
    return _mean(found)


def _kind(row: Mapping[str, Any]) -> str:
    return {"val/agreement": "agreement", "val/diffusion": "loss"}.get(row["monitor"] or "", "top1")


def _reaches(figure: float, loss: bool) -> Callable[[float], bool]:
    return (lambda value: value <= figure) if loss else (lambda value: value >= figure)


def write_summary(summary: Sequence[Row], folder: Path) -> None:
    """Write ``summary.csv`` and ``summary.md``."""
    rounded = [
        {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        for row in summary
    ]
    write_text(folder / "summary.csv", to_csv(SUMMARY, rounded))
    write_text(folder / "summary.md", markdown(summary))


def headings(summary: Sequence[Row]) -> dict[str, str]:
    """Return the headings of the non-empty columns of the readable tables, by column name."""
    shown = {
        "rate": "lr",
        "test": "test, %",
        "linear": "linear, %",
        "mean": "mean, %",
        **{name: f"{name}, %" for name in GROUPS},
        "difference": "difference",
        "interval": "95 % bootstrap",
        "t_interval": "95 % t",
        "epochs": "epochs",
        "train_seconds": "train s",
        "step_seconds": "step ms",
        "seconds_to_reference": "s to reference",
        "peak_memory_mb": "peak MB",
        "multiply_adds": "multiply-adds",
        "parameters": "parameters",
        "seeds": "seeds",
    }
    told = {"interval": "difference_low", "t_interval": "difference_t_low"}
    always = ("rate", "test", "seeds")
    return {
        name: heading
        for name, heading in shown.items()
        if name in always or any(row[told.get(name, name)] is not None for row in summary)
    }


def cells(row: Row, columns: Iterable[str]) -> list[str]:
    """Format a row of the readable tables."""
    return [_cell(row, name) for name in columns]


def _cell(row: Row, name: str) -> str:
    if name in ("interval", "t_interval"):
        stem = "difference" if name == "interval" else "difference_t"
        low, high = row[f"{stem}_low"], row[f"{stem}_high"]
        return "–" if low is None else f"{_signed(low)} to {_signed(high)}"
    value = row[name]
    if value is None:
        return "–"
    if name in _METRICS:
        spread = row[f"{name}_sd"]
        return number(value) if spread is None else f"{number(value)} ± {number(spread)}"
    if name == "difference":
        return _signed(value)
    if name == "rate":
        return f"{value:g}"
    if name in ("multiply_adds", "parameters"):
        return count(value)
    if name == "step_seconds":
        return number(1000 * value)
    if name in ("seeds", "epochs"):
        return str(value)
    return number(value, 1 if value < 100 else 0)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def places(summary: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Group the rows by data set and pair, one table each."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in summary:
        found.setdefault((row["data"], row["pair"]), []).append(row)
    return found


def markdown(summary: Sequence[Row]) -> str:
    """Return a Markdown table per data set and pair."""
    parts = []
    for names, rows in places(summary).items():
        columns = headings(rows)
        lines = [["method", *columns.values()], ["---"] * (len(columns) + 1)]
        lines += [[row["label"], *cells(row, columns)] for row in rows]
        title = " · ".join(filter(None, names))
        parts.append(
            (f"## {title}\n\n" if title else "") + "\n".join(f"| {' | '.join(line)} |" for line in lines)
        )
    return "\n\n".join(parts) + "\n"
