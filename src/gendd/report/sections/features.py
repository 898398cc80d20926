"""Generated features compared with the teacher's.

Shapes: n images · D teacher feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gendd.report.content import Array, ReportData, array
from gendd.report.drawing import Draw, Theme, picture, short
from gendd.report.markup import section

TITLE = "Generated features beside the teacher's"
_MAX_NAMED_CLASSES = 20
_MAX_SCATTER = 2000
# Petroff (2021): ten colours distinguishable under colour-vision deficiencies.
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


def features(data: ReportData) -> Markup | None:
    """Return the plot of both sets of features in the plane of the teacher's largest variance."""
    if data.teacher_features is None or data.generated_features is None:
        return None
    teacher, generated = array(data.teacher_features), array(data.generated_features)
    assert teacher.shape == generated.shape, (teacher.shape, generated.shape)
    if len(teacher) < 2:
        return None
    labels = None if data.feature_labels is None else array(data.feature_labels)
    draw = _draw_features(teacher.astype(float), generated.astype(float), labels, data.class_names)
    return section(
        TITLE,
        picture(draw, "Teacher and generated features on two principal components"),
        "The same images in both panels, on the teacher's two main directions and the same axes: "
        "the more similar the two, the better the generated features"
        + ("; one colour per class." if labels is not None else "."),
    )


def project(teacher: Array, generated: Array) -> tuple[Array, Array, Array]:
    """Project both sets of features (n, D) onto the teacher's first two principal components.

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
    teacher_xy, generated_xy, shares = project(teacher, generated)
    panels_xy = {"Teacher's features": teacher_xy, "Generated from the student": generated_xy}
    shown = np.linspace(0, len(teacher) - 1, min(len(teacher), _MAX_SCATTER)).astype(int)
    both = np.concatenate([teacher_xy, generated_xy])
    low, high = both.min(axis=0), both.max(axis=0)
    margin = np.maximum(0.06 * (high - low), 1e-6)

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(10, 4.8))
        figure.set_layout_engine("constrained", w_pad=0.1)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        if labels is None:
            colors: Any = theme.color("gendd")
        elif len(names) <= len(_CLASSES):
            colors = [_CLASSES[int(label)] for label in labels[shown]]
        else:
            colors = matplotlib.colormaps["turbo"](labels[shown] / max(len(names) - 1, 1))
        for axes, (title, points) in zip(panels, panels_xy.items(), strict=True):
            axes.set_title(title)
            axes.scatter(*points[shown].T, c=colors, s=13, alpha=0.85, linewidths=0, rasterized=True)
            axes.set_xlabel(f"component 1 ({100 * shares[0]:.0f} % of the teacher's variance)")
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            if labels is not None and len(names) <= _MAX_NAMED_CLASSES:
                for label in np.unique(labels):
                    axes.text(
                        *np.median(points[labels == label], axis=0),
                        short(names[int(label)], 12),
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
