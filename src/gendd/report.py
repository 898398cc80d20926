"""The report of a run: one comparison table, and a self-contained ``report.html``.

The page needs nothing but itself: figures are SVG and images PNG, both embedded as base64, and a
content security policy forbids everything else. Every figure is drawn twice, for a light and a dark page.

Shapes: n images · D teacher feature width · K classes · H, W image height and width.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gendd.errors import UserError

Array = NDArray[Any]

_LABELS = {
    "teacher": "teacher",
    "supervised": "student alone",
    "kl": "KL distillation",
    "kd": "KD",
    "linear_probe": "linear probe",
    "gendd": "GenDD",
}
_READOUTS = ("linear", "mean", "sample")
# by what a curve holds: the heading of its section, and what its values are
_VALIDATION = {
    "val/top1": ("Validation accuracy while training", "validation top-1"),
    "val/agreement": ("Agreement with the teacher while training", "validation agreement with the teacher"),
    "val/diffusion": ("Diffusion loss of the validation images while training", "validation diffusion loss"),
}
_LOSS_PARTS = {
    "loss": "Total loss",
    "diffusion": "Diffusion loss",
    "vlb": "Variance bound (bits)",
    "probe": "Linear readout (cross-entropy)",
}
# what a row may be judged by, the first that was measured: headings on a terminal and a page, and in words
_FIGURES = {
    "top1": ("top-1 %", "Top-1, %", "top-1 accuracy"),
    "agreement": ("agree %", "Agreement, %", "agreement with the teacher"),
    "knn": ("kNN %", "20-NN, %", "accuracy of the 20 nearest neighbours"),
    "cosine": ("cosine", "Cosine", "cosine with the teacher's feature"),
}
_COSTS = ("parameters", "multiply_adds", "latency_ms")
# how the titles of sections begin that stay true when the student's figures change
_LASTING = (
    *(title for title, _ in _VALIDATION.values()),
    "Losses of ",
    "Confusion matrix",
    "Generated features ",
    "Examples",
)
_SECTION = re.compile(r"<section><h2>(.*?)</h2>.*?</section>", re.DOTALL)
_MAX_EXAMPLES = 24
_MAX_ANNOTATED_CLASSES = 20
_MAX_NAMED_CLASSES = 20
_MAX_SCATTER = 2000


@dataclass
class Example:
    """One test image and what the student made of it.

    Args:
        image: (H, W) or (H, W, 3), uint8.
        true: Name of its class; None without labels.
        predicted: Name of the class the student chose.
        confidence: The student's probability of that class, in [0, 1].
    """

    image: Array
    true: str | None
    predicted: str
    confidence: float


@dataclass
class ReportData:
    """Everything the report shows.

    Args:
        title: Name of the run.
        metrics: The content of ``metrics.json``; accuracies in percent, latencies in ms an image.
        curves: Per method (``teacher``, ``supervised``, ``kl``, ``kd``, ``gendd``) its log in order of
            time; a row holds any of ``step``, ``epoch`` (from 0), ``train/*`` and ``val/top1`` (percent),
            or ``val/agreement`` (percent) or ``val/diffusion`` where there is no accuracy to take.
        confusion: (K, K) counts, rows true classes; None without labels.
        class_names: K names.
        teacher_features: (n, D); None where there are none to show.
        generated_features: (n, D), of the same images; None where nothing generates features.
        feature_labels: (n,) class indices; None without labels.
        examples: Test images; the first 24 are shown.
        config_yaml: The resolved config.
    """

    title: str
    metrics: dict[str, Any]
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    confusion: Tensor | Array | None = None
    class_names: list[str] = field(default_factory=list)
    teacher_features: Tensor | Array | None = None
    generated_features: Tensor | Array | None = None
    feature_labels: Tensor | Array | None = None
    examples: list[Example] = field(default_factory=list)
    config_yaml: str = ""


# The comparison table


def rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison table: teacher, baselines, then each readout of the student and its features.

    Returns:
        One dict a row: ``method`` (its label), ``key`` (the method's config name), ``network``,
        ``detail`` (the sampler's settings, else ""), ``chosen`` (the run's own readout; without one, what is
        generated), ``top1``, ``top5``, ``agreement``, ``knn`` and ``linear_probe`` in percent, ``cosine``,
        ``parameters``, ``multiply_adds`` and ``latency_ms`` an image, and ``groups`` (top-1 by training
        images a class, see :mod:`gendd.shots`). What was not measured is None.
    """
    table: list[dict[str, Any]] = []
    teacher = metrics.get("teacher")
    if teacher:
        table.append(_row("teacher", teacher | (teacher.get("embedding") or {})))
    baselines = metrics.get("baselines") or {}
    known = [key for key in _LABELS if key in baselines]
    table += [_row(key, baselines[key]) for key in known + [key for key in baselines if key not in known]]

    student = metrics["student"]
    method = _method(metrics)
    readouts = student["readouts"]
    chosen = student.get("readout") or next(iter(readouts), None)
    for name in [name for name in _READOUTS if name in readouts]:
        row = _row(method, student | readouts[name])
        if method == "gendd":
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


def _row(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    measured = ("top1", "top5", "agreement", "knn", "linear_probe", "cosine", *_COSTS, "groups")
    return {
        "method": _LABELS.get(key, key),
        "key": key,
        "network": entry.get("name", ""),
        "detail": "",
        "chosen": False,
    } | {name: entry.get(name) for name in measured}


def _shown(table: Sequence[dict[str, Any]]) -> list[str]:
    """The figures that have a column: top-1, and for rows without what they are judged by instead."""
    found = {_figure_of(row) for row in table} - {None}
    return [name for name in _FIGURES if name in found] or ["top1"]


def _figure_of(row: dict[str, Any]) -> str | None:
    return next((name for name in _FIGURES if row[name] is not None), None)


def _method(metrics: dict[str, Any]) -> str:
    """The run's own method; layouts that don't name it are told apart by their readouts."""
    named = metrics.get("run", {}).get("method")
    if named:
        return str(named)
    return "gendd" if set(metrics["student"]["readouts"]) - {"linear"} else "student"


def _sampler(readout: dict[str, Any]) -> str:
    parts = []
    if readout.get("steps") is not None:
        parts.append(f"{readout['steps']} steps")
    if readout.get("num_samples") is not None:
        parts.append(f"{readout['num_samples']} samples")
    if readout.get("guidance") is not None:
        parts.append(f"guidance {readout['guidance']:g}")
    return ", ".join(parts)


def print_table(metrics: dict[str, Any], console: Console | None = None) -> None:
    """Print the comparison table; the row of the run's own readout is bold. Fits 80 columns."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("method")
    entries = rows(metrics)
    figures = _shown(entries)
    for heading in (*(_FIGURES[name][0] for name in figures), "params", "multiply-adds", "ms/image"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in entries:
        table.add_row(
            row["method"],
            *(_number(row[name]) for name in figures),
            _count(row["parameters"]),
            _count(row["multiply_adds"]),
            _milliseconds(row["latency_ms"]),
            style="bold" if row["chosen"] else "",
        )
    console = console or Console()
    console.print(table)
    shown = [row for row in rows(metrics) if row["groups"]]
    if shown:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("top-1 % by shots")
        for name, group in shown[0]["groups"].items():
            table.add_column(f"{name} ({group['classes']})", justify="right", no_wrap=True)
        for row in shown:
            cells = [_number(group["top1"]) for group in row["groups"].values()]
            table.add_row(row["method"], *cells, style="bold" if row["chosen"] else "")
        console.print()
        console.print(table)


# Numbers for people


def _number(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def _count(value: float | None) -> str:
    """272474 → "0.27 M", 41200000 → "41.2 M"."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e5, " M"), (1e3, " k")):
        if rounded >= size:
            scaled = rounded / (1e6 if unit == " M" else size)
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def _tick_count(value: float, _: object = None) -> str:
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def _duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return "±0.00" if float(f"{value:.2f}") == 0 else text


def _ratio(large: float | None, small: float | None) -> tuple[str, str] | None:
    """How many times fewer ``small`` is: ("8.2×", "fewer"); None where either is missing or 0."""
    if not large or not small:
        return None
    factor = large / small
    word = "fewer" if factor >= 1 else "more"
    factor = max(factor, 1 / factor)
    if float(f"{factor:.2g}") == 1:
        return "1×", "as many"
    return f"{factor:.{1 if factor < 10 else 0}f}×", word


# Figures


@dataclass(frozen=True)
class _Theme:
    ink: str
    muted: str
    grid: str
    paper: str
    heat: str
    methods: dict[str, str]


# Okabe and Ito's colour-blind-safe palette, a step lighter or darker where the page asks for contrast.
_LIGHT = _Theme(
    ink="#1b2330",
    muted="#5b6675",
    grid="#e3e7ed",
    paper="#ffffff",
    heat="#0067a5",
    methods={
        "teacher": "#4b5563",
        "supervised": "#b8578f",
        "kl": "#d98200",
        "kd": "#008a64",
        "linear_probe": "#a34a16",
        "gendd": "#0072b2",
    },
)
_DARK = _Theme(
    ink="#e6eaf0",
    muted="#9aa5b4",
    grid="#2c3542",
    paper="#171d26",
    heat="#58b4ee",
    methods={
        "teacher": "#c3cad4",
        "supervised": "#dd8fbd",
        "kl": "#f0a830",
        "kd": "#2bb890",
        "linear_probe": "#e58a52",
        "gendd": "#4fabe8",
    },
)
_MARKERS = {"teacher": "s", "supervised": "v", "kl": "^", "kd": "D", "linear_probe": "P", "gendd": "o"}
# Petroff (2021): ten colours told apart under colour-vision deficiencies.
_CLASSES = [
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
]
_RC: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "gendd",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.unicode_minus": True,
}
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"

Draw = Callable[[_Theme], Figure]
Side = Literal["left", "center", "right"]


def _color(theme: _Theme, key: str) -> str:
    return theme.methods.get(key, theme.methods["gendd"])


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches; ten inches fill the page."""
    figure = Figure(figsize=(width, height), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Axes, theme: _Theme, grid: bool = True) -> None:
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(side in ("left", "bottom"))
        axes.spines[side].set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.muted, length=0, labelsize=9)
    axes.xaxis.label.set_color(theme.muted)
    axes.yaxis.label.set_color(theme.muted)
    if grid:
        axes.grid(color=theme.grid, linewidth=0.8)
        axes.set_axisbelow(True)


def _svg(draw: Draw, theme: _Theme) -> str:
    """The figure as a base64 SVG whose text is set in the page's font."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # Text stays text in the SVG, so the reader's fonts supply the glyphs that matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        draw(theme).savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    style = f"<style>text{{font-family:{_FONT}!important}}</style>"
    text = buffer.getvalue().decode().replace("<defs>", f"{style}<defs>", 1)
    return base64.b64encode(text.encode()).decode()


def _picture(draw: Draw, alt: str, width: float) -> str:
    """An ``<img>`` of a figure ``width`` inches wide, with its twin for dark pages."""
    light, dark = (f"data:image/svg+xml;base64,{_svg(draw, theme)}" for theme in (_LIGHT, _DARK))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}" style="width:{width * 96:.0f}px"></picture>'
    )


def _draw_costs(table: Sequence[dict[str, Any]], figure_name: str = "top1") -> Draw:
    def draw(theme: _Theme) -> Figure:
        figure = _figure(10, 4.6)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.07, right=0.985, top=0.97, bottom=0.12)
        _dress(axes, theme)
        axes.set_xscale("log")
        axes.set_xlabel("multiply-adds an image (log scale)")
        axes.set_ylabel(f"{_FIGURES[figure_name][2]}, %")
        costs = [row["multiply_adds"] for row in table]
        accuracies = [row[figure_name] for row in table]
        decades = math.log10(max(costs) / min(costs))
        margin = 10 ** max(0.16 * decades, 0.15)
        axes.set_xlim(min(costs) / margin, max(costs) * margin)
        spread = max(max(accuracies) - min(accuracies), 0.5)
        axes.set_ylim(min(accuracies) - 0.18 * spread, max(accuracies) + 0.18 * spread)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0), numticks=20))
        axes.xaxis.set_major_formatter(FuncFormatter(_tick_count))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))

        for row in table:
            axes.plot(
                row["multiply_adds"],
                row[figure_name],
                marker=_MARKERS.get(row["key"], "o"),
                markersize=10 if row["chosen"] else 8,
                color=_color(theme, row["key"]),
                markeredgecolor=theme.ink if row["chosen"] else theme.paper,
                markeredgewidth=1.6 if row["chosen"] else 1.0,
                zorder=3,
            )
        _label_points(figure, axes, table, theme, figure_name)
        return figure

    return draw


def _label_points(
    figure: Figure, axes: Axes, table: Sequence[dict[str, Any]], theme: _Theme, name: str = "top1"
) -> None:
    """Name every point; each label takes the spot nearest to its point that covers nothing else."""
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    places = [axes.transData.transform((row["multiply_adds"], row[name])) for row in table]
    taken = [Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale) for x, y in places]
    inside = axes.get_window_extent()
    order = sorted(range(len(table)), key=lambda index: -float(places[index][1]))
    for index in order:
        row = table[index]
        best: tuple[float, tuple[float, float], Side, Bbox] | None = None
        text = axes.annotate(
            f"{row['method']}  {row[name]:.2f}",
            xy=(row["multiply_adds"], row[name]),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            color=_color(theme, row["key"]),
            fontweight="bold" if row["chosen"] else "normal",
        )
        size = text.get_window_extent()
        for radius in (10, 18, 28, 40, 54, 70, 90):
            for degrees in (0, 20, -20, 40, -40, 60, -60, 90, -90, 180, 160, 200, 140, 220):
                dx = radius * math.cos(math.radians(degrees))
                dy = radius * math.sin(math.radians(degrees))
                side: Side = "center" if abs(degrees) == 90 else "left" if abs(degrees) < 90 else "right"
                left = places[index][0] + dx * scale
                left -= size.width * {"left": 0.0, "center": 0.5, "right": 1.0}[side]
                bottom = places[index][1] + dy * scale - size.height / 2
                box = Bbox.from_bounds(left - 2, bottom - 1, size.width + 4, size.height + 2)
                covered = sum(_overlap(box, other) for other in taken)
                outside = box.width * box.height - _overlap(box, inside)
                score = 10 * (covered + outside) + radius + 0.02 * abs(degrees)
                if best is None or score < best[0]:
                    best = (score, (dx, dy), side, box)
        assert best is not None
        _, offset, side, box = best
        text.set_position(offset)
        text.set_horizontalalignment(side)
        taken.append(box)
        if math.hypot(*offset) > 20:
            reach = 1 - 3 / math.hypot(*offset)
            axes.annotate(
                "",
                xy=(row["multiply_adds"], row[name]),
                xytext=(offset[0] * reach, offset[1] * reach),
                textcoords="offset points",
                arrowprops={
                    "arrowstyle": "-",
                    "color": theme.muted,
                    "linewidth": 0.7,
                    "shrinkA": 0,
                    "shrinkB": 5,
                },
                zorder=1,
            )


def _overlap(one: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(one, other)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _series(log: Sequence[dict[str, float]], key: str, by: str) -> tuple[Array, Array]:
    """The finite values of ``key`` and where they stand along ``by``."""
    points = [(row[by], row[key]) for row in log if row.get(key) is not None and row.get(by) is not None]
    array = np.asarray(points, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[:, 0], array[:, 1]


def _smooth(values: Array, window: int) -> Array:
    """Centred running mean; the window shrinks at the ends."""
    ones = np.ones(window)
    smooth: Array = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    return smooth


def _loss_parts(log: Sequence[dict[str, float]]) -> dict[str, tuple[Array, Array]]:
    """The recorded ``train/*`` series of at least two points, by title, the total first."""
    names = [f"train/{name}" for name in _LOSS_PARTS]
    names += sorted({key for row in log for key in row if key.startswith("train/")} - set(names))
    found = {}
    for name in names:
        series = _series(log, name, "step")
        if len(series[0]) > 1:
            part = name.removeprefix("train/")
            found[_LOSS_PARTS.get(part, part.replace("_", " ").capitalize())] = series
    return found


def _draw_losses(parts: dict[str, tuple[Array, Array]], method: str) -> tuple[Draw, float]:
    columns = min(len(parts), 4) if len(parts) != 4 else 2
    lines = math.ceil(len(parts) / columns)
    width = 10.0 if columns > 1 else 6.5

    def draw(theme: _Theme) -> Figure:
        figure = _figure(width, 2.5 * lines)
        figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        color = _color(theme, method)
        for axes, (title, (steps, values)) in zip(panels, parts.items(), strict=False):
            _dress(axes, theme)
            axes.set_title(title, loc="left", color=theme.ink)
            window = len(values) // 40
            if window > 1:
                axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
                axes.plot(steps, _smooth(values, window), color=color, linewidth=1.8)
            else:
                axes.plot(steps, values, color=color, linewidth=1.8)
            if values.min() > 0 and values.max() > 8 * values.min():
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        for axes in panels[len(parts) :]:
            axes.set_visible(False)
        for axes in panels[max(len(parts) - columns, 0) : len(parts)]:
            axes.set_xlabel("optimiser step")
        return figure

    return draw, width


def _validation_metric(curves: dict[str, list[dict[str, float]]]) -> str:
    """val/top1, or where the methods logged none (their teacher may have seen labels) what they did log."""
    methods = [log for key, log in curves.items() if key != "teacher"]
    logged = {name for log in methods for row in log for name, value in row.items() if value is not None}
    return next((name for name in _VALIDATION if name in logged), "val/top1")


def _validation(
    curves: dict[str, list[dict[str, float]]], metric: str
) -> tuple[dict[str, tuple[Array, Array]], str]:
    """Each method's metric, and what it stands along: epochs done, or steps where a log has no epochs."""
    logs = {key: [row for row in log if row.get(metric) is not None] for key, log in curves.items()}
    logs = {key: log for key, log in logs.items() if log}
    by = "epoch" if all(row.get("epoch") is not None for log in logs.values() for row in log) else "step"
    series = {}
    for key in [key for key in _LABELS if key in logs] + [key for key in logs if key not in _LABELS]:
        along, values = _series(logs[key], metric, by)
        if len(along):
            series[key] = (along + 1 if by == "epoch" else along, values)
    return series, by


def _visible(series: dict[str, tuple[Array, Array]]) -> tuple[float, float, bool]:
    """The lowest and highest value to show, and whether first epochs fall below.

    Epochs near chance would squeeze the part where the methods differ.
    """
    values = np.concatenate([values for _, values in series.values()])
    lowest, low, high = float(values.min()), float(np.quantile(values, 0.1)), float(values.max())
    cut = low - lowest > 0.5 * (high - low)
    return (low if cut else lowest), high, cut


def _draw_validation(series: dict[str, tuple[Array, Array]], by: str, what: str, share: bool = True) -> Draw:
    def draw(theme: _Theme) -> Figure:
        figure = _figure(10, 3.9)
        axes = figure.subplots()
        figure.set_layout_engine("constrained")
        _dress(axes, theme)
        for key, (along, values) in series.items():
            axes.plot(
                along,
                values,
                label=f"{_LABELS.get(key, key)}  {values[-1]:.{2 if share else 4}f}",
                color=_color(theme, key),
                marker=_MARKERS.get(key, "o"),
                markersize=5 if len(along) < 60 else 0,
                markevery=max(1, len(along) // 12),
                linewidth=2.2 if key == "gendd" else 1.6,
                linestyle="--" if key == "teacher" else "-",
                zorder=3 if key == "gendd" else 2,
            )
        axes.set_xlabel("epochs trained" if by == "epoch" else "optimiser step")
        axes.set_ylabel(f"{what}, %" if share else what)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        if share:
            low, high, _ = _visible(series)
            margin = max(0.06 * (high - low), 0.2)
            axes.set_ylim(low - margin, high + margin)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(
            loc="outside upper left",
            ncols=5,
            frameon=False,
            labelcolor=theme.ink,
            handlelength=2.4,
            fontsize=9.5,
        )
        return figure

    return draw


def _shares(counts: Array) -> Array:
    """Counts (K, K) as shares of their row; rows without images are 0."""
    totals = counts.sum(axis=1, keepdims=True)
    shares: Array = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    return shares


def _short(name: str, limit: int = 16) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _draw_confusion(shares: Array, names: Sequence[str]) -> tuple[Draw, float]:
    classes = len(shares)
    annotated = classes <= _MAX_ANNOTATED_CLASSES
    labels = [_short(name) for name in names]
    slanted = annotated and max(len(label) for label in labels) > 3
    width = min(10.0, max(4.6, 0.4 * classes + 1.6)) if annotated else 5.6

    def draw(theme: _Theme) -> Figure:
        figure = _figure(width, width * (0.92 if slanted or not annotated else 0.9))
        axes = figure.subplots()
        figure.set_layout_engine("constrained")
        _dress(axes, theme, grid=False)
        shades = LinearSegmentedColormap.from_list("shares", [theme.paper, theme.heat])
        if annotated:
            axes.pcolormesh(shares, cmap=shades, vmin=0, vmax=1, edgecolors=theme.paper, linewidth=1.5)
            for row, column in np.argwhere(shares >= 0.0005):
                share = float(shares[row, column])
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    f"{100 * share:.0f}" if share >= 0.0095 else "<1",
                    ha="center",
                    va="center",
                    fontsize=8.5 if classes <= 12 else 7,
                    color=theme.paper if share > 0.55 else theme.ink,
                )
            axes.set_xticks(
                np.arange(classes) + 0.5,
                labels,
                rotation=40 if slanted else 0,
                ha="right" if slanted else "center",
            )
            axes.set_yticks(np.arange(classes) + 0.5, labels)
        else:
            # The square root keeps rare confusions visible beside the diagonal.
            axes.imshow(
                np.sqrt(shares),
                cmap=shades,
                vmin=0,
                vmax=1,
                interpolation="none",
                extent=(0, classes, classes, 0),
            )
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_aspect("equal")
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return figure

    return draw, width


def _confusions(counts: Array, limit: int = 8) -> list[tuple[int, int, float, int]]:
    """The most frequent errors: (true class, predicted class, share of the true class, images)."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    shares = _shares(counts)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(index), len(errors)) for index in order]
    return [
        (row, column, float(shares[row, column]), int(errors[row, column]))
        for row, column in pairs
        if errors[row, column]
    ]


def _project(teacher: Array, generated: Array) -> tuple[Array, Array, Array]:
    """Both sets of features (n, D) on the teacher's first two principal components.

    Returns:
        (n, 2) of the teacher, (n, 2) of the generated features, and the (2,) shares of the teacher's
        variance along the components. With D = 1 the second component is 0.
    """
    mean = teacher.mean(axis=0)
    _, singular, components = np.linalg.svd(teacher - mean, full_matrices=False)
    axes = np.zeros((2, teacher.shape[1]))
    shares = np.zeros(2)
    found = min(2, len(components))
    axes[:found] = components[:found]
    shares[:found] = singular[:found] ** 2 / max(float((singular**2).sum()), np.finfo(float).tiny)
    return (teacher - mean) @ axes.T, (generated - mean) @ axes.T, shares


def _draw_features(teacher: Array, generated: Array, labels: Array | None, names: Sequence[str]) -> Draw:
    teacher_xy, generated_xy, shares = _project(teacher, generated)
    shown = np.linspace(0, len(teacher) - 1, min(len(teacher), _MAX_SCATTER)).astype(int)
    both = np.concatenate([teacher_xy, generated_xy])
    low, high = both.min(axis=0), both.max(axis=0)
    margin = np.maximum(0.06 * (high - low), 1e-6)

    def draw(theme: _Theme) -> Figure:
        figure = _figure(10, 4.8)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        figure.set_layout_engine("constrained", w_pad=0.1)
        if labels is None:
            colors: Any = _color(theme, "gendd")
        elif len(names) <= len(_CLASSES):
            colors = [_CLASSES[int(label)] for label in labels[shown]]
        else:
            colors = matplotlib.colormaps["turbo"](labels[shown] / max(len(names) - 1, 1))
        titles = ("Teacher's features", "Generated from the student")
        for axes, title, points in zip(panels, titles, (teacher_xy, generated_xy), strict=True):
            _dress(axes, theme)
            axes.set_title(title, loc="left", color=theme.ink)
            axes.scatter(
                points[shown, 0], points[shown, 1], c=colors, s=13, alpha=0.85, linewidths=0, rasterized=True
            )
            axes.set_xlabel(f"component 1 ({100 * shares[0]:.0f} % of the teacher's variance)")
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            if labels is not None and len(names) <= _MAX_NAMED_CLASSES:
                for label in np.unique(labels):
                    centre = np.median(points[labels == label], axis=0)
                    axes.text(
                        centre[0],
                        centre[1],
                        _short(names[int(label)], 12),
                        ha="center",
                        va="center",
                        fontsize=8.5,
                        fontweight="bold",
                        color=theme.ink,
                        bbox={
                            "boxstyle": "round,pad=0.2",
                            "facecolor": theme.paper,
                            "alpha": 0.75,
                            "edgecolor": "none",
                        },
                    )
        panels[0].set_ylabel(f"component 2 ({100 * shares[1]:.0f} %)")
        panels[0].set_xlim(low[0] - margin[0], high[0] + margin[0])
        panels[0].set_ylim(low[1] - margin[1], high[1] + margin[1])
        return figure

    return draw


# The page

_CSS = """
:root{color-scheme:light dark;--page:#f4f6f9;--paper:#fff;--ink:#1b2330;--muted:#5b6675;--line:#e3e7ed;
--accent:#0072b2;--tint:#eaf3fa;--bad:#c2410c}
@media (prefers-color-scheme:dark){:root{--page:#0f141b;--paper:#171d26;--ink:#e6eaf0;--muted:#9aa5b4;
--line:#2c3542;--accent:#4fabe8;--tint:#182b3a;--bad:#fb8a4c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 FONT}
main{max-width:1080px;margin:0 auto;padding:48px 24px 64px}
.eyebrow{margin:0;color:var(--accent);font-size:13px;font-weight:600;letter-spacing:.06em;text-transform:uppercase}
h1{margin:2px 0 6px;font-size:36px;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
h2{margin:0 0 2px;font-size:19px;letter-spacing:-.01em}
.lead{margin:0;color:var(--muted);max-width:90ch}
.cards{display:flex;flex-wrap:wrap;gap:14px;margin:28px 0 20px}
.card,section{background:var(--paper);border:1px solid var(--line);border-radius:12px}
.card{flex:1 1 200px;padding:16px 18px}
.card.own{border-color:var(--accent);background:var(--tint)}
.card b{display:block;font-size:30px;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.card b small{font-size:16px;font-weight:500;letter-spacing:0;color:var(--muted)}
.card span{display:block;font-size:13px;color:var(--muted)}
.card .name{font-weight:600;color:var(--ink)}
section{padding:22px 26px 24px;margin:0 0 20px}
picture{display:block;margin:14px 0 4px}
picture img{display:block;max-width:100%;height:auto;margin:0 auto}
.note{margin:8px 0 0;font-size:14px;color:var(--muted);max-width:110ch}
.scroll{overflow-x:auto;margin:12px 0 4px}
table{width:100%;border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th{font-size:13px;font-weight:500;color:var(--muted);text-align:left;white-space:nowrap}
th,td{padding:8px 12px;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;white-space:nowrap}
section>.scroll td:first-child{white-space:nowrap}
td small{color:var(--muted);font-size:13px;margin-left:20px}
tr:last-child td{border-bottom:0}
tr.own td{background:var(--tint);font-weight:600}
tr.own td small{font-weight:400}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:10px}
DOTS
.pair{display:flex;flex-wrap:wrap;gap:8px 36px;align-items:flex-start}
.pair>div{flex:1 1 260px}
.pair h3{font-size:14px;margin:22px 0 0}
.pair table{font-size:14px}
.pair th,.pair td{padding:6px 8px;line-height:1.35}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:14px;margin:16px 0 4px}
.grid figure{margin:0;min-width:0}
.grid img{display:block;width:100%;aspect-ratio:1;object-fit:contain;border-radius:8px;background:var(--page);
outline:1px solid var(--line)}
.grid img.tiny{image-rendering:pixelated}
.grid figcaption{margin-top:6px;font-size:13px;line-height:1.35;overflow-wrap:anywhere}
.grid figcaption span{display:block;color:var(--muted)}
.wrong img{outline:3px solid var(--bad)}
.wrong b{color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:14px 20px;margin:14px 0 18px}
dt{font-size:13px;color:var(--muted)}
dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent);font-weight:600}
pre{margin:12px 0 0;padding:16px;overflow-x:auto;background:var(--page);border-radius:8px;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}
@media (max-width:640px){main{padding:28px 14px}section{padding:18px 16px}h1{font-size:29px}}
"""


def _css() -> str:
    light = "".join(f".dot.{key}{{background:{color}}}" for key, color in _LIGHT.methods.items())
    dark = "".join(f".dot.{key}{{background:{color}}}" for key, color in _DARK.methods.items())
    dots = f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}"
    return _CSS.replace("FONT", _FONT).replace("DOTS", dots)


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{note}</section>"


def _card(name: str, value: str, unit: str, detail: str, own: bool = False) -> str:
    return (
        f'<div class="card{" own" if own else ""}"><span class="name">{escape(name)}</span>'
        f"<b>{escape(value)} <small>{escape(unit)}</small></b><span>{escape(detail)}</span></div>"
    )


def _cards(metrics: dict[str, Any], table: Sequence[dict[str, Any]]) -> str:
    own = next((row for row in table if row["chosen"]), table[-1])
    by_key = {row["key"]: row for row in table if row["key"] != own["key"]}
    teacher = by_key.get("teacher")
    cards = []
    figure = _figure_of(own)
    if figure is None:
        cards.append(_card("Student", "–", "", "no labels to measure accuracy with", own=True))
    else:
        subject = {"top1": "top-1", "knn": "20-NN"}.get(figure, figure)
        detail = f"{own['method']}, {own['network']}"
        unit = "" if figure == "cosine" else "%"
        cards.append(_card(f"Student, {subject}", f"{own[figure]:.2f}", unit, detail, own=True))
        others = [("Gap to the teacher", teacher)]
        others += [
            (f"Gain on {_LABELS.get(key, key)}", row) for key, row in by_key.items() if key != "teacher"
        ]
        for name, row in others:
            if row is not None and row[figure] is not None:
                change = own[figure] - row[figure]
                cards.append(_card(name, _signed(change), "points", f"{row['method']} {row[figure]:.2f} %"))
    for name, column in (("Parameters", "parameters"), ("Multiply-adds", "multiply_adds")):
        factor = _ratio(teacher[column], own[column]) if teacher else None
        if factor and teacher:
            detail = f"{_count(own[column])}, teacher {_count(teacher[column])}"
            cards.append(_card(name, factor[0], factor[1], detail))
    seconds = metrics["student"].get("train_seconds")
    if seconds is not None:
        device = metrics.get("run", {}).get("device")
        cards.append(_card("Training", _duration(seconds), "", f"on {device}" if device else ""))
    return f'<div class="cards">{"".join(cards)}</div>'


def _table_section(table: Sequence[dict[str, Any]], test_images: int | None) -> str:
    columns = {name: _FIGURES[name][1] for name in _shown(table)}
    others = {"top5": "Top-5, %", "linear_probe": "Linear probe, %", "cosine": "Cosine"}
    columns |= {name: title for name, title in others.items() if any(row[name] is not None for row in table)}
    headings = [*columns.values(), "Parameters", "Multiply-adds", "Latency, ms"]
    lines = [
        "<tr><th>Method</th><th>Network</th>"
        + "".join(f'<th class="n">{name}</th>' for name in headings)
        + "</tr>"
    ]
    for row in table:
        cells = [_number(row[name]) for name in columns]
        cells += [_count(row["parameters"]), _count(row["multiply_adds"]), _milliseconds(row["latency_ms"])]
        key = row["key"] if row["key"] in _LABELS else "gendd"
        detail = f"<br><small>{escape(row['detail'])}</small>" if row["detail"] else ""
        lines.append(
            f'<tr{" class=own" if row["chosen"] else ""}><td><i class="dot {key}"></i>{escape(row["method"])}'
            f"{detail}</td><td>{escape(str(row['network']))}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    note = "The highlighted row is the readout this run ships; cost and latency are those of one image."
    own = next((row["top1"] for row in table if row["chosen"]), None)
    if own is not None and test_images:
        error = 100 * math.sqrt(own / 100 * (1 - own / 100) / test_images)
        note += (
            f" With {test_images:,} test images one standard error of the student's top-1 is "
            f"{error:.2f} points, before the spread between seeds."
        )
    return _section("Comparison", f'<div class="scroll"><table>{"".join(lines)}</table></div>', note)


def _groups_section(table: Sequence[dict[str, Any]], thresholds: Sequence[int]) -> str:
    """Top-1 of every row for classes of many, a medium number and few training images."""
    shown = [row for row in table if row["groups"]]
    groups = shown[0]["groups"]
    lines = [
        "<tr><th>Method</th>"
        + "".join(f'<th class="n">{name.capitalize()}, %</th>' for name in groups)
        + "</tr>"
    ]
    for row in shown:
        key = row["key"] if row["key"] in _LABELS else "gendd"
        cells = "".join(f'<td class="n">{_number(group["top1"])}</td>' for group in row["groups"].values())
        own = " class=own" if row["chosen"] else ""
        lines.append(f'<tr{own}><td><i class="dot {key}"></i>{escape(row["method"])}</td>{cells}</tr>')
    few, many = thresholds
    sizes = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"less than {few}"}
    told = "; ".join(
        f"{name}: {sizes[name]} training images ({group['classes']} classes, {group['images']:,} test images)"
        for name, group in groups.items()
    )
    return _section(
        "Accuracy by training images a class",
        f'<div class="scroll"><table>{"".join(lines)}</table></div>',
        f"Over all test images of a group's classes alike. {told}.",
    )


def _figures(data: ReportData, table: Sequence[dict[str, Any]]) -> list[str]:
    sections = []
    figure = _figure_of(next((row for row in table if row["chosen"]), table[-1])) or "top1"
    measured = [row for row in table if row[figure] is not None and row["multiply_adds"]]
    if len(measured) > 1:
        words = _FIGURES[figure][2]
        sections.append(
            _section(
                f"{'Agreement' if figure == 'agreement' else 'Accuracy'} against inference cost",
                _picture(
                    _draw_costs(measured, figure),
                    f"{words[0].upper()}{words[1:]} of every method against its multiply-adds",
                    10,
                ),
                f"Up is {'closer to the teacher' if figure == 'agreement' else 'more accurate'} and left is "
                "cheaper; the outlined point is the readout this run ships.",
            )
        )

    metric = _validation_metric(data.curves)
    series, by = _validation(data.curves, metric)
    if series:
        title, what = _VALIDATION[metric]
        share = metric != "val/diffusion"
        sections.append(
            _section(
                title,
                _picture(
                    _draw_validation(series, by, what, share),
                    f"{what[0].upper()}{what[1:]} of every method over training",
                    10,
                ),
                "Each line is one method and the legend gives its last value"
                + ("; the lowest first epochs are below the axis." if share and _visible(series)[2] else "."),
            )
        )
    method = _method(data.metrics)
    parts = _loss_parts(data.curves.get(method, []))
    if parts:
        draw, width = _draw_losses(parts, method)
        sections.append(
            _section(
                f"Losses of {_LABELS.get(method, method)}",
                _picture(draw, "Training loss and its parts over optimiser steps", width),
                "Faint is every logged value and bold its running mean; each part has its own scale, "
                "logarithmic where it falls far.",
            )
        )

    if data.confusion is not None:
        sections.append(_confusion_section(_array(data.confusion), data.class_names))

    if data.teacher_features is not None and data.generated_features is not None:
        teacher, generated = _array(data.teacher_features), _array(data.generated_features)
        assert teacher.shape == generated.shape, (teacher.shape, generated.shape)
        labels = None if data.feature_labels is None else _array(data.feature_labels)
        if len(teacher) > 1:
            draw = _draw_features(teacher.astype(float), generated.astype(float), labels, data.class_names)
            sections.append(
                _section(
                    "Generated features beside the teacher's",
                    _picture(draw, "Teacher and generated features on two principal components", 10),
                    "The same images in both panels, on the teacher's two main directions and the same axes: "
                    "the closer the right looks to the left, the better the student generates"
                    + ("; one colour a class." if labels is not None else "."),
                )
            )
    return sections


def _confusion_section(counts: Array, names: Sequence[str]) -> str:
    assert counts.shape == (len(names), len(names)), (counts.shape, len(names))
    draw, width = _draw_confusion(_shares(counts), names)
    picture = _picture(draw, "Confusion matrix of the student", width)
    errors = _confusions(counts)
    listing = "".join(
        f"<tr><td>{escape(_short(names[true], 24))}</td><td>{escape(_short(names[predicted], 24))}</td>"
        f'<td class="n">{images:,}</td><td class="n">{100 * share:.1f} %</td></tr>'
        for true, predicted, share, images in errors
    )
    if listing:
        listing = (
            '<div><h3>Most frequent errors</h3><div class="scroll"><table><tr><th>True</th><th>Predicted</th>'
            f'<th class="n">Images</th><th class="n">Share</th></tr>{listing}</table></div></div>'
        )
    numbers = "the stronger the colour the larger the share of the row (square-root scale)"
    if len(names) <= _MAX_ANNOTATED_CLASSES:
        numbers = "numbers are percent of the row"
    return _section(
        "Confusion matrix",
        f'<div class="pair">{picture}{listing}</div>',
        f"A row is a true class and a column what the student called it; {numbers}, "
        "and everything off the diagonal is an error.",
    )


def _array(values: Tensor | Array) -> Array:
    return values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _png(image: Array) -> tuple[str, bool]:
    """The image as base64 PNG, at most 224 pixels a side, and whether it is tiny (shown as crisp pixels)."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((224, 224))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode(), max(picture.size) <= 64


def _examples_section(examples: Sequence[Example]) -> str:
    items = []
    for example in examples:
        encoded, tiny = _png(example.image)
        wrong = example.true is not None and example.true != example.predicted
        mark = "" if example.true is None else "✗ " if wrong else "✓ "
        truth = f"<span>is {escape(str(example.true))}</span>" if wrong else ""
        items.append(
            f"<figure{' class=wrong' if wrong else ''}><img{' class=tiny' if tiny else ''} "
            f'src="data:image/png;base64,{encoded}" alt="{escape(example.predicted)}">'
            f"<figcaption><b>{mark}{escape(example.predicted)}</b> {100 * example.confidence:.0f} %{truth}"
            "</figcaption></figure>"
        )
    note = "Below each image: the student's answer and its confidence"
    if any(example.true is not None for example in examples):
        note += "; errors are outlined and marked ✗, with the true class under them"
    return _section("Examples", f'<div class="grid">{"".join(items)}</div>', note + ".")


def _settings_section(data: ReportData) -> str:
    run = data.metrics.get("run", {})
    facts = [
        (label, f"{run[key]:,}" if isinstance(run[key], int) and key != "seed" else str(run[key]))
        for label, key in (
            ("Training images", "train_images"),
            ("Validation images", "val_images"),
            ("Test images", "test_images"),
            ("Epochs", "epochs"),
            ("Seed", "seed"),
            ("Device", "device"),
            ("Precision", "precision"),
        )
        if run.get(key) is not None and (key, run.get("tested_on")) != ("test_images", "validation")
    ]
    probe = data.metrics["student"].get("probe")
    if probe is not None and probe["kept"] == "refitted":
        facts.append(("Linear readout", f"fitted anew to {probe['target']}"))
    facts += [(name, str(version)) for name, version in (run.get("versions") or {}).items()]
    body = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    body = f"<dl>{body}</dl>" if body else ""
    if data.config_yaml:
        body += (
            f"<details><summary>Full configuration</summary><pre>{escape(data.config_yaml)}</pre></details>"
        )
    return _section("Settings", body) if body else ""


def _lead(metrics: dict[str, Any]) -> str:
    student, teacher, run = metrics["student"], metrics.get("teacher"), metrics.get("run", {})
    method = _LABELS.get(_method(metrics))
    subject = f"{student.get('name', 'The student')} ({_count(student.get('parameters'))} parameters)"
    text = f"{subject} trained"
    if teacher and _method(metrics) not in ("supervised", "linear_probe"):
        text = f"{subject} distilled from {teacher['name']} ({_count(teacher.get('parameters'))})"
        text += f" with {method}" if method else ""
    if run.get("train_images") is not None:
        text += f" on {run['train_images']:,} images"
    return text + "."


def _page(data: ReportData) -> str:
    table = rows(data.metrics)
    sections = [_table_section(table, data.metrics.get("run", {}).get("test_images"))]
    if any(row["groups"] for row in table):
        sections.append(_groups_section(table, data.metrics["run"]["shot_thresholds"]))
    sections += _figures(data, table)
    if data.examples:
        sections.append(_examples_section(data.examples[:_MAX_EXAMPLES]))
    sections.append(_settings_section(data))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)} · GenDD report</title><style>{_css()}</style></head><body><main>"
        f'<p class="eyebrow">Distillation report</p><h1>{escape(data.title)}</h1>'
        f'<p class="lead">{escape(_lead(data.metrics))}</p>{_cards(data.metrics, table)}'
        + "\n".join(sections)
        + "</main></body></html>\n"
    )


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report as one HTML file, replacing what is there only once it is complete.

    Returns:
        ``path``.

    Raises:
        UserError: ``path`` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(
            f"Expected a file to write the report to, got the folder '{path}'; add a file name to it."
        )
    return _write(_page(data), path)


def _write(page: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        # mkstemp makes the file private; give it the permissions a plain open() would have.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def update_report(data: ReportData, path: Path, into: Path | None = None) -> Path:
    """Write a report anew whose figures have changed.

    Its sections of the training, the confusion, the features and the examples stay where ``data`` tells
    nothing of them.

    Args:
        data: What is new.
        path: The report there is.
        into: The file to write; None: ``path``.

    Returns:
        The file written.
    """
    page = _merged(_page(data), Path(path).read_text(encoding="utf-8"))
    return _write(page, Path(into or path))


def _merged(page: str, before: str) -> str:
    """The page with those of the sections of one before it that it lacks and that are still true."""
    new = {found[1]: found[0] for found in _SECTION.finditer(page)}
    order: list[str] = []
    for found in _SECTION.finditer(before):
        title = found[1]
        if title in new or title.startswith(_LASTING):
            new.setdefault(title, found[0])
            order.append(title)
    previous = 0
    for title in new:
        if title in order:
            previous = order.index(title) + 1
        else:
            order.insert(previous, title)
            previous += 1
    first, last = page.index("<section>"), page.rindex("</section>") + len("</section>")
    return page[:first] + "\n".join(new[title] for title in order) + page[last:]


__all__ = ["Example", "ReportData", "print_table", "rows", "update_report", "write_report"]
