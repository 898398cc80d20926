"""The computations behind the figures."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.text import Text
from reports import metrics

from gendd.report import rows
from gendd.report.drawing import LIGHT
from gendd.report.sections.confusion import most_frequent, shares_of_rows
from gendd.report.sections.costs import draw_costs
from gendd.report.sections.features import project
from gendd.report.sections.training import running_mean, series, validation_metric


def test_projection_uses_the_teachers_components_for_both() -> None:
    direction = np.array([0.6, 0.8, 0.0])
    other = np.array([0.0, 0.0, 1.0])
    first, second = np.array([-3.0, -1.0, 1.0, 3.0]), np.array([1.0, -1.0, -1.0, 1.0])
    teacher = 5 + np.outer(first, direction) + np.outer(second, other)
    generated = teacher + 10 * direction
    teacher_xy, generated_xy, shares = project(teacher, generated)
    signs = np.sign(teacher_xy[-1])
    np.testing.assert_allclose(teacher_xy * signs, np.stack([first, second], 1), atol=1e-12)
    np.testing.assert_allclose(generated_xy * signs, np.stack([first + 10, second], 1), atol=1e-12)
    np.testing.assert_allclose(shares, [20 / 24, 4 / 24], atol=1e-12)


def test_projection_of_one_dimension() -> None:
    points, _, shares = project(np.array([[1.0], [3.0]]), np.zeros((2, 1)))
    np.testing.assert_allclose(np.abs(points), [[1, 0], [1, 0]])
    np.testing.assert_allclose(shares, [1, 0])


def test_shares_and_confusions() -> None:
    counts = np.array([[6, 2, 0], [5, 5, 0], [0, 0, 0]])
    np.testing.assert_array_equal(shares_of_rows(counts), [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]])
    assert most_frequent(counts) == [(1, 0, 0.5, 5), (0, 1, 0.25, 2)]


def test_running_mean() -> None:
    np.testing.assert_allclose(running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 3), [1.5, 3, 6, 7.5])


def test_series_leaves_out_gaps() -> None:
    history = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": float("nan")}, {"a": 1.0}]
    steps, values = series(history, "a", "step")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.0])


def test_what_validation_measured() -> None:
    accuracy, agreement = [{"val/top1": 1.0}], [{"val/agreement": 1.0}]
    assert validation_metric({"gendd": accuracy, "teacher": accuracy}) == "val/top1"
    assert validation_metric({"gendd": agreement, "teacher": accuracy}) == "val/agreement"
    assert validation_metric({"gendd": [{"val/top1": 1.0, "val/agreement": 1.0}]}) == "val/top1"
    assert validation_metric({}) == "val/top1"


def test_labels_of_crowded_points_do_not_touch() -> None:
    plain = metrics()
    for top1, entry in zip((72.0, 72.02), plain["baselines"].values(), strict=True):
        entry["top1"] = top1
    plain["student"]["readouts"]["linear"]["top1"] = 72.01
    figure = draw_costs(rows(plain))(LIGHT)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text for text in axes.texts if text.get_text()]
    assert len(labels) == 6
    boxes = [Text.get_window_extent(text) for text in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    inside = axes.get_window_extent().padded(3)
    assert all(inside.containsx(x) for box in boxes for x in (box.x0, box.x1))
    assert all(inside.containsy(y) for box in boxes for y in (box.y0, box.y1))
