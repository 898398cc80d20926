"""Confusion matrix of the student.

Shapes: K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from gendd.report.content import Array, array
from gendd.report.drawing import Draw, Theme, picture, short
from gendd.report.markup import Line, part, section, table

TITLE = "Confusion matrix"
_MAX_ANNOTATED = 20


def confusion(matrix: Tensor | Array | None, names: Sequence[str]) -> Markup | None:
    """Return the section with the matrix (K, K) of counts and the most frequent errors."""
    if matrix is None:
        return None
    counts = array(matrix)
    assert counts.shape == (len(names), len(names)), (counts.shape, len(names))
    errors = [
        Line(
            [short(names[true], 24), short(names[predicted], 24)],
            [f"{images:,}", f"{100 * share:.1f} %"],
        )
        for true, predicted, share, images in most_frequent(counts)
    ]
    listing = table(["True", "Predicted"], ["Images", "Share"], errors) if errors else None
    numbers = "colour shows the share of the row (square-root scale)"
    if len(names) <= _MAX_ANNOTATED:
        numbers = "numbers are percent of the row"
    drawn = picture(_draw_confusion(shares_of_rows(counts), names), "Confusion matrix of the student")
    return section(
        TITLE,
        part("pair", drawn, "Most frequent errors", listing),
        f"Rows are true classes and columns predicted ones; {numbers}, "
        "and everything off the diagonal is an error.",
    )


def shares_of_rows(counts: Array) -> Array:
    """Normalise counts (K, K) by row; rows without images are 0."""
    totals = counts.sum(axis=1, keepdims=True)
    shares: Array = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    return shares


def most_frequent(counts: Array, limit: int = 8) -> list[tuple[int, int, float, int]]:
    """Return the most frequent errors: (true class, predicted class, share of the true class, images)."""
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    shares = shares_of_rows(counts)
    order = np.argsort(-errors, axis=None, kind="stable")[:limit]
    pairs = [divmod(int(index), len(errors)) for index in order]
    return [(*pair, float(shares[pair]), int(errors[pair])) for pair in pairs if errors[pair]]


def _draw_confusion(shares: Array, names: Sequence[str]) -> Draw:
    classes = len(shares)
    annotated = classes <= _MAX_ANNOTATED
    labels = [short(name) for name in names]
    slanted = annotated and max(len(label) for label in labels) > 3
    width = min(10.0, max(4.6, 0.4 * classes + 1.6)) if annotated else 5.6
    height = width * (0.92 if slanted or not annotated else 0.9)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(False)
        axes.spines[:].set_visible(False)
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
            middles = np.arange(classes) + 0.5
            rotation, side = (40, "right") if slanted else (0, "center")
            axes.set_xticks(middles, labels, rotation=rotation, ha=side)
            axes.set_yticks(middles, labels)
        else:
            # The square root keeps rare confusions visible beside the diagonal.
            edges = (0, classes, classes, 0)
            axes.imshow(np.sqrt(shares), cmap=shades, vmin=0, vmax=1, interpolation="none", extent=edges)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_aspect("equal")
        axes.set_xlim(0, classes)
        axes.set_ylim(classes, 0)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        return figure

    return draw
