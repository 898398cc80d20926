"""Calibration of the student: its accuracy by confidence."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from gendd.evaluation import Answers
from gendd.report.content import Array, array
from gendd.report.drawing import Draw, Theme, picture
from gendd.report.markup import section

TITLE = "Reliability"
_BINS = 10


def reliability(said: Answers | None, method: str) -> Markup | None:
    """Return the section with the student's accuracy by confidence."""
    if said is None or said.right is None or len(said.right) == 0:
        return None
    bins, error = by_confidence(array(said.confidence), array(said.right))
    leaning = "overconfident" if error["lean"] > 0 else "underconfident"
    share = error["right"] / 100
    # two standard errors of the accuracy
    if abs(error["lean"]) < max(0.5, 200 * (share * (1 - share) / len(said.right)) ** 0.5):
        leaning = "neither overconfident nor underconfident, as far as these images show"
    return section(
        TITLE,
        picture(_draw(bins, method), "Accuracy of the predictions by confidence"),
        f"On the diagonal, predictions of 80 % confidence are right 8 times out of 10; below it the student "
        f"is overconfident. It is {leaning}: its mean confidence is {error['confidence']:.1f} %, and "
        f"{error['right']:.1f} % of its predictions are right; the mean distance over the bins is "
        f"{error['distance']:.1f} points. The bars below show the share of all predictions.",
    )


def by_confidence(confidence: Array, right: Array) -> tuple[Array, dict[str, float]]:
    """Bin predictions by confidence in ten bins of equal width: (n, 3) of mean confidence, accuracy, share.

    Empty bins are left out. The dictionary holds the mean ``confidence``, the accuracy ``right``, their
    difference ``lean`` and the mean ``distance`` of the bins, in percent.
    """
    number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    there = np.unique(number)
    bins = 100 * np.array(
        [
            [confidence[number == each].mean(), right[number == each].mean(), (number == each).mean()]
            for each in there
        ]
    )
    sure, true = 100 * float(confidence.mean()), 100 * float(right.mean())
    distance = float((np.abs(bins[:, 0] - bins[:, 1]) * bins[:, 2]).sum() / 100)
    return bins, {"confidence": sure, "right": true, "lean": sure - true, "distance": distance}


def _draw(bins: Array, method: str) -> Draw:
    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(5.6, 5.2), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        axes.plot([0, 100], [0, 100], color=theme.muted, linewidth=1, linestyle="--")
        axes.plot(bins[:, 0], bins[:, 1], color=theme.color(method), marker="o", linewidth=2)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_ylabel("right, %")
        below.bar(bins[:, 0], bins[:, 2], width=7, color=theme.color(method), alpha=0.6)
        below.set_ylabel("of all, %")
        below.set_xlabel("confidence, %")
        return figure

    return draw
