"""Accuracy of the methods against their costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from gendd.report.comparison import MEASURES, Row, measure_of, own_row
from gendd.report.drawing import Draw, Theme, marker, picture
from gendd.report.markup import section, sentence

Side = Literal["left", "center", "right"]


def costs(rows: Sequence[Row]) -> Markup | None:
    """Return the plot of the main measure against multiply-adds, if at least two rows have both."""
    measure = measure_of(own_row(rows)) or "top1"
    shown = [row for row in rows if row[measure] is not None and row["multiply_adds"]]
    if len(shown) < 2:
        return None
    title, better = "Accuracy", "more accurate"
    if measure == "agreement":
        title, better = "Agreement", "closer to the teacher"
    return section(
        f"{title} against inference cost",
        picture(
            draw_costs(shown, measure),
            f"{sentence(MEASURES[measure].words)} of every method against its multiply-adds",
        ),
        f"Up is {better} and left is cheaper; the outlined point is the readout of the finished student.",
    )


def draw_costs(rows: Sequence[Row], measure: str = "top1") -> Draw:
    """Draw every row as a labelled point; each has the measure and ``multiply_adds``."""
    costs, values = [row["multiply_adds"] for row in rows], [row[measure] for row in rows]
    decades = math.log10(max(costs) / min(costs))
    beside = 10 ** max(0.16 * decades, 0.15)
    above = 0.18 * max(max(values) - min(values), 0.5)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10, 4.6))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.07, right=0.985, top=0.97, bottom=0.12)
        axes.set_xscale("log")
        axes.set_xlabel("multiply-adds per image (log scale)")
        axes.set_ylabel(f"{MEASURES[measure].words}, %")
        axes.set_xlim(min(costs) / beside, max(costs) * beside)
        axes.set_ylim(min(values) - above, max(values) + above)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=20))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        for row in rows:
            axes.plot(
                row["multiply_adds"],
                row[measure],
                marker=marker(row["key"]),
                markersize=10 if row["chosen"] else 8,
                color=theme.color(row["key"]),
                markeredgecolor=theme.ink if row["chosen"] else theme.paper,
                markeredgewidth=1.6 if row["chosen"] else 1.0,
                zorder=3,
            )
        _label_points(figure, axes, rows, theme, measure)
        return figure

    return draw


def _label_points(figure: Figure, axes: Axes, rows: Sequence[Row], theme: Theme, measure: str) -> None:
    """Label every point, as near to it as possible without covering anything."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    places = [axes.transData.transform((row["multiply_adds"], row[measure])) for row in rows]
    taken = [Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale) for x, y in places]
    inside = axes.get_window_extent()
    for index in sorted(range(len(rows)), key=lambda index: -float(places[index][1])):
        row, (x, y) = rows[index], places[index]
        point = row["multiply_adds"], row[measure]
        text = axes.annotate(
            f"{row['method']}  {row[measure]:.2f}",
            xy=point,
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            color=theme.color(row["key"]),
            fontweight="bold" if row["chosen"] else "normal",
        )
        size = text.get_window_extent()
        spots = []
        for dx, dy, side, distance in _offsets():
            left = x + dx * scale - size.width * {"left": 0.0, "center": 0.5, "right": 1.0}[side]
            bottom = y + dy * scale - size.height / 2
            box = Bbox.from_bounds(left - 2, bottom - 1, size.width + 4, size.height + 2)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, inside)
            spots.append((10 * (covered + outside) + distance, (dx, dy), side, box))
        _, offset, side, box = min(spots, key=lambda spot: spot[0])
        text.set_position(offset)
        text.set_horizontalalignment(side)
        taken.append(box)
        if math.hypot(*offset) > 20:
            reach = 1 - 3 / math.hypot(*offset)
            line = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
            axes.annotate(
                "",
                xy=point,
                xytext=(offset[0] * reach, offset[1] * reach),
                textcoords="offset points",
                arrowprops=line,
                zorder=1,
            )


def _offsets() -> Iterator[tuple[float, float, Side, float]]:
    """Yield candidate label positions: offset in points, the side facing the point, and the distance."""
    for radius in (10, 18, 28, 40, 54, 70, 90):
        for degrees in (0, 20, -20, 40, -40, 60, -60, 90, -90, 180, 160, 200, 140, 220):
            side: Side = "center" if abs(degrees) == 90 else "left" if abs(degrees) < 90 else "right"
            angle = math.radians(degrees)
            yield radius * math.cos(angle), radius * math.sin(angle), side, radius + 0.02 * abs(degrees)


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)
