"""Training curves: validation and losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from gendd.report.comparison import in_order, label
from gendd.report.content import Array, Log
from gendd.report.drawing import Draw, Theme, marker, picture
from gendd.report.markup import section, sentence


class Validated(NamedTuple):
    """A validation metric: the heading of its section, and the name of its values."""

    title: str
    values: str
    percent: bool = True


# the validation metrics; a curve shows the first one that was logged
VALIDATED = {
    "val/top1": Validated("Validation accuracy while training", "validation top-1"),
    "val/agreement": Validated(
        "Agreement with the teacher while training", "validation agreement with the teacher"
    ),
    "val/diffusion": Validated(
        "Diffusion loss of the validation images while training", "validation diffusion loss", percent=False
    ),
}
# start of the title of the losses section
LOSSES = "Losses of "
_LOSS_PARTS = {
    "loss": "Total loss",
    "diffusion": "Diffusion loss",
    "vlb": "Variance bound (bits)",
    "probe": "Linear readout (cross-entropy)",
    "map": "Regression of the last map",
    "stages": "Regression of earlier maps",
}

# positions of points and their values
Series = tuple[Array, Array]


def validation(curves: dict[str, Log]) -> Markup | None:
    """Return the validation curves of every method."""
    metric = validation_metric(curves)
    found, by = _validated(curves, metric)
    if not found:
        return None
    what = VALIDATED[metric]
    cut = what.percent and _visible(found)[2]
    return section(
        what.title,
        picture(_draw_validation(found, by, what), f"{sentence(what.values)} of every method over training"),
        "Each line is one method and the legend gives its last value"
        + ("; the lowest first epochs are below the axis." if cut else "."),
    )


def losses(log: Log, method: str) -> Markup | None:
    """Return the loss curves of the run's method."""
    parts = _loss_parts(log)
    if not parts:
        return None
    return section(
        f"{LOSSES}{label(method)}",
        picture(_draw_losses(parts, method), "Training loss and its parts over optimiser steps"),
        "Faint lines are the logged values, bold ones their running means; each part has its own scale, "
        "logarithmic if it decreases by much.",
    )


def series(log: Sequence[dict[str, float]], key: str, by: str) -> Series:
    """Return the finite values of ``key`` and their positions along ``by``."""
    points = [(row[by], row[key]) for row in log if row.get(key) is not None and row.get(by) is not None]
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def running_mean(values: Array, window: int) -> Array:
    """Return the centred running mean; the window shrinks at the ends."""
    ones = np.ones(window)
    mean: Array = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    return mean


def validation_metric(curves: dict[str, Log]) -> str:
    """Return val/top1, or another metric if the methods (whose teacher may have seen labels) logged none."""
    methods = [log for key, log in curves.items() if key != "teacher"]
    logged = {name for log in methods for row in log for name, value in row.items() if value is not None}
    return next((name for name in VALIDATED if name in logged), "val/top1")


def _validated(curves: dict[str, Log], metric: str) -> tuple[dict[str, Series], str]:
    """Return each method's curve and its x axis: epochs completed, or steps if a log has no epochs."""
    logs = {key: [row for row in curves[key] if row.get(metric) is not None] for key in in_order(curves)}
    by = "epoch" if all(row.get("epoch") is not None for log in logs.values() for row in log) else "step"
    found = {}
    for key, log in logs.items():
        along, values = series(log, metric, by)
        if len(along):
            found[key] = (along + 1 if by == "epoch" else along, values)
    return found, by


def _visible(found: dict[str, Series]) -> tuple[float, float, bool]:
    """Return the lowest and highest value to show, and whether the first epochs fall below.

    Showing epochs near chance would compress the range where the methods differ.
    """
    values = np.concatenate([values for _, values in found.values()])
    lowest, low, high = float(values.min()), float(np.quantile(values, 0.1)), float(values.max())
    cut = low - lowest > 0.5 * (high - low)
    return (low if cut else lowest), high, cut


def _draw_validation(found: dict[str, Series], by: str, what: Validated) -> Draw:
    decimals = 2 if what.percent else 4

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10, 3.9), layout="constrained")
        axes = figure.subplots()
        for key, (along, values) in found.items():
            axes.plot(
                along,
                values,
                label=f"{label(key)}  {values[-1]:.{decimals}f}",
                color=theme.color(key),
                marker=marker(key),
                markersize=5 if len(along) < 60 else 0,
                markevery=max(1, len(along) // 12),
                linewidth=2.2 if key == "gendd" else 1.6,
                linestyle="--" if key == "teacher" else "-",
                zorder=3 if key == "gendd" else 2,
            )
        axes.set_xlabel("epochs trained" if by == "epoch" else "optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        if what.percent:
            axes.set_ylabel(f"{what.values}, %")
            axes.yaxis.set_major_locator(MaxNLocator(6))
            low, high, _ = _visible(found)
            margin = max(0.06 * (high - low), 0.2)
            axes.set_ylim(low - margin, high + margin)
        else:
            axes.set_ylabel(what.values)
            _logarithmic(axes)
        figure.legend(loc="outside upper left", ncols=5, frameon=False, handlelength=2.4, fontsize=9.5)
        return figure

    return draw


def _loss_parts(log: Log) -> dict[str, Series]:
    """Return the logged ``train/*`` series of at least two points, by title, the total first."""
    names = [f"train/{name}" for name in _LOSS_PARTS]
    names += sorted({key for row in log for key in row if key.startswith("train/")} - set(names))
    found = {}
    for name in names:
        steps, values = series(log, name, "step")
        if len(steps) > 1:
            part = name.removeprefix("train/")
            found[_LOSS_PARTS.get(part, part.replace("_", " ").capitalize())] = steps, values
    return found


def _draw_losses(parts: dict[str, Series], method: str) -> Draw:
    columns = {4: 2, 5: 3, 6: 3}.get(len(parts), min(len(parts), 4))
    lines = math.ceil(len(parts) / columns)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10.0 if columns > 1 else 6.5, 2.5 * lines))
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        color = theme.color(method)
        for axes, (title, (steps, values)) in zip(panels, parts.items(), strict=False):
            axes.set_title(title)
            window = len(values) // 40
            if window > 1:
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
                values = running_mean(values, window)
            axes.plot(steps, values, color=color, linewidth=1.8)
            if values.min() > 0 and values.max() > 8 * values.min():
                _logarithmic(axes)
            else:
                axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axes in panels[len(parts) :]:
            axes.set_visible(False)
        for axes in panels[max(len(parts) - columns, 0) : len(parts)]:
            axes.set_xlabel("optimiser step")
        return figure

    return draw


def _logarithmic(axes: Axes) -> None:
    """Use a log scale with ticks at 1, 2 and 5."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
