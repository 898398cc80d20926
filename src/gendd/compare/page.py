"""HTML report of a comparison: a table and plots per data set and pair; one file, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gendd.compare.plan import Plan
from gendd.compare.results import Row, is_loss
from gendd.compare.summary import cells, headings, places, seconds
from gendd.config import registry
from gendd.files import write_text
from gendd.report.drawing import DARK, LIGHT, Theme, picture
from gendd.report.markup import Line, document, part, section, sentence, table

# for methods whose own colours are taken: Okabe and Ito's for light pages, and lighter ones for dark
_COLORS = (
    ("#d55e00", "#ff8a3d"),
    ("#009e73", "#35cfa2"),
    ("#b0568f", "#e08fc2"),
    ("#8a6d00", "#e6c229"),
    ("#4b5fc4", "#93a4ff"),
    ("#7a4b2a", "#c99a76"),
    ("#00808a", "#4fd0da"),
    ("#5b6675", "#9aa5b4"),
)
_MARKERS = "oDs^vPX*<>"


@dataclass(frozen=True)
class _Look:
    """The colours and marker of a method."""

    label: str
    colors: tuple[str, str]
    marker: str

    def color(self, theme: Theme) -> str:
        return self.colors[theme.dark]


def looks(plan: Plan) -> dict[str, _Look]:
    """Return the look of each method: that of the registry, unless another method already has it."""
    found: dict[str, _Look] = {}
    groups = {group.method: group for group in plan.groups}
    for name, group in groups.items():
        method = group.config.method
        taken = {look.colors for look in found.values()}
        own = registry.colors(method)
        rest = [own, *_COLORS] if own is not None else list(_COLORS)
        colors = next((each for each in rest if each is not None and each not in taken), _COLORS[-1])
        used = {look.marker for look in found.values()}
        marker = next((each for each in (registry.marker(method), *_MARKERS) if each not in used), "o")
        found[name] = _Look(group.label, colors, marker)
    return found


def write_page(plan: Plan, rows: Sequence[Mapping[str, Any]], summary: Sequence[Row], path: Path) -> None:
    """Write the page atomically."""
    write_text(path, page(plan, rows, summary))


def page(plan: Plan, rows: Sequence[Mapping[str, Any]], summary: Sequence[Row]) -> str:
    """Return the whole page as HTML."""
    drawn = looks(plan)
    parts: list[Markup | None] = []
    for place, mine in places(summary).items():
        chosen = [
            row
            for row in rows
            if (row["data"], row["pair"]) == place and row["chosen"] and row["seed"] in plan.seeds
        ]
        title = " · ".join(filter(None, place))
        parts += [
            _table(title, mine, plan, drawn),
            _curves(title, chosen, drawn, by_seconds=False),
            _curves(title, chosen, drawn, by_seconds=True),
            _costs(title, mine, drawn),
        ]
    parts.append(_errors(rows))
    seeds = f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    lead = f"{len(drawn)} methods, {seeds}{_budget(plan)}."
    dots = [(f"m{number}", look.color(LIGHT), look.color(DARK)) for number, look in enumerate(drawn.values())]
    return document(plan.name, "comparison", "Comparison of methods", lead, dots, parts)


def _budget(plan: Plan) -> str:
    if plan.budget is None:
        return ""
    amount, kind = plan.budget.amount, plan.budget.kind
    of = {"seconds": " seconds of training each", "steps": " training steps or more each"}
    return f", {amount:g}{of.get(kind, f' {kind} each')}"


def _titled(title: str, what: str) -> str:
    return f"{title}: {what[:1].lower()}{what[1:]}" if title else what


def _table(title: str, rows: Sequence[Row], plan: Plan, drawn: Mapping[str, _Look]) -> Markup:
    columns = headings(rows)
    order = list(drawn)
    lines = [
        Line(
            [part("method", f"m{order.index(row['method'])}", row["label"], "")],
            cells(row, columns),
            own=row["method"] == plan.reference,
        )
        for row in rows
    ]
    note = "Mean ± standard deviation over seeds of each method at its chosen learning rate, on test images."
    if plan.reference is not None:
        label = drawn[plan.reference].label
        note += (
            f" Differences are to {label}, in points, paired by seed. A bootstrap over few seeds is "
            "too narrow; the t interval next to it is not."
        )
    shown = [sentence(heading) for heading in columns.values()]
    return section(title or "Methods", table(["Method"], shown, lines), note)


def _curves(
    title: str, rows: Sequence[Mapping[str, Any]], drawn: Mapping[str, _Look], by_seconds: bool
) -> Markup | None:
    """Plot the mean validation metric after each epoch, against epochs or seconds."""
    series: dict[str, tuple[Any, Any]] = {}
    losses = False
    for name in drawn:
        mine = [row for row in rows if row["method"] == name and row["curve"]]
        length = min((len(row["curve"]) for row in mine), default=0)
        if length == 0:
            continue
        values = np.array([row["curve"][:length] for row in mine])
        share = np.arange(1, length + 1)
        along = share.astype(float)
        if by_seconds:
            per_epoch = [seconds(row) / len(row["curve"]) for row in mine]
            along = share * float(np.mean(per_epoch))
        losses = losses or is_loss(mine[0])
        series[name] = along, values
    if not series:
        return None
    what = "Validation figure" if losses else "Validation accuracy"
    label = "seconds of training" if by_seconds else "epochs trained"

    def draw(theme: Theme) -> Figure:
        def fill(axes: Axes) -> None:
            for name, (along, values) in series.items():
                look = drawn[name]
                mean = values.mean(axis=0)
                axes.plot(
                    along,
                    mean,
                    color=look.color(theme),
                    label=f"{look.label}  {mean[-1]:.2f}",
                    linewidth=1.8,
                    marker=look.marker,
                    markersize=5 if len(along) < 60 else 0,
                    markevery=max(1, len(along) // 12),
                )
                if len(values) > 1:
                    low, high = values.min(axis=0), values.max(axis=0)
                    axes.fill_between(along, low, high, color=look.color(theme), alpha=0.15, linewidth=0)
            axes.set_xlabel(label)
            axes.set_ylabel("validation" if losses else "validation, %")
            if by_seconds:
                axes.set_xlim(left=0)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))

        return _figure(fill)

    heading = _titled(title, f"{what} over {'seconds' if by_seconds else 'epochs'}")
    note = "Lines are means over seeds, bands their range; the legend gives the last mean."
    return section(heading, picture(draw, heading), note)


def _costs(title: str, rows: Sequence[Row], drawn: Mapping[str, _Look]) -> Markup | None:
    """Plot the test metric against multiply-adds per image."""
    shown = [row for row in rows if row["test"] is not None and row["multiply_adds"]]
    if not shown:
        return None
    most = max(row["multiply_adds"] for row in shown)
    size, unit = (1e9, "billions") if most >= 1e9 else (1e6, "millions")

    def draw(theme: Theme) -> Figure:
        def fill(axes: Axes) -> None:
            for row in shown:
                look = drawn[row["method"]]
                axes.errorbar(
                    row["multiply_adds"] / size,
                    row["test"],
                    yerr=row["test_sd"],
                    color=look.color(theme),
                    marker=look.marker,
                    markersize=8,
                    linestyle="none",
                    capsize=3,
                    label=look.label,
                )
            axes.set_xlabel(f"multiply-adds per image, {unit}")
            axes.set_ylabel("test, %")
            axes.set_xlim(left=0)

        return _figure(fill)

    heading = _titled(title, "Test accuracy over inference multiply-adds")
    note = "Each student with its chosen readout; bars are ± one standard deviation over seeds."
    return section(heading, picture(draw, heading), note)


def _figure(fill: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    axes = figure.subplots()
    fill(axes)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, handlelength=2.4, fontsize=9.5)
    return figure


def _errors(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    failed = [row for row in rows if row["error"]]
    if not failed:
        return None
    lines = [
        Line(
            [" · ".join(filter(None, (row["data"], row["pair"], row["label"]))), row["error"]],
            [f"{row['rate']:g}", str(row["seed"])],
        )
        for row in failed
    ]
    return section("Cells that failed", table(["Cell", "Error"], ["Rate", "Seed"], lines))
