"""Errors of the student: its hardest classes, and its errors compared with the teacher's.

Shapes: N images · K classes.
"""

from __future__ import annotations

import numpy as np
from markupsafe import Markup

from gendd.evaluation import Answers
from gendd.report.content import Array, Example, ReportData, array
from gendd.report.markup import Line, part, section, table
from gendd.report.sections.examples import figures

HARDEST, BESIDE = "Hardest classes", "Mistakes beside the teacher's"
_CLASSES, _PICTURES = 3, 8


def hardest(data: ReportData, method: str) -> Markup | None:
    """Return the classes with the lowest accuracy, with misclassified images."""
    said, teacher = data.answers.get(method), data.answers.get("teacher")
    if said is None or said.right is None or said.labels is None:
        return None
    labels, right = array(said.labels).astype(int), array(said.right)
    taught = None if teacher is None or teacher.right is None else array(teacher.right)
    parts = []
    for label in least_right(labels, right):
        of_class = labels == label
        told = f"{100 * right[of_class].mean():.1f} % right"
        if taught is not None:
            told += f", teacher {100 * taught[of_class].mean():.1f} %"
        wrong = _surest(array(said.confidence), of_class & (right == 0))
        parts.append((data.class_names[label], told, _pictures(data, said, teacher, wrong)))
    if not parts:
        return None
    note = "" if data.picture is None else "The images shown are the most confident wrong predictions."
    return section(HARDEST, part("classes", parts), note)


def beside(data: ReportData, method: str) -> Markup | None:
    """Compare the correct predictions of student and teacher, with images that only the student got wrong."""
    said, teacher = data.answers.get(method), data.answers.get("teacher")
    if said is None or teacher is None or said.right is None or teacher.right is None:
        return None
    own, taught = array(said.right) > 0, array(teacher.right) > 0
    if len(own) != len(taught):
        return None
    same = array(said.predicted) == array(teacher.predicted)
    lines = [
        Line([words], [f"{int(rows.sum()):,}", f"{100 * rows.mean():.1f} %"])
        for words, rows in (
            ("Both right", own & taught),
            ("Only the teacher right", ~own & taught),
            ("Only the student right", own & ~taught),
            ("Both wrong, with the same class", ~own & ~taught & same),
            ("Both wrong, with different classes", ~own & ~taught & ~same),
        )
    ]
    lost = _surest(array(said.confidence), ~own & taught)
    shown = _pictures(data, said, teacher, lost)
    note = "The images shown are those that only the teacher got right, the student's most confident first."
    return section(BESIDE, table(["Test images"], ["Number", "Share"], lines) + shown, note if shown else "")


def least_right(labels: Array, right: Array) -> list[int]:
    """Return the classes with the lowest accuracy, lowest first, without those that have no errors."""
    shares = {int(label): float(right[labels == label].mean()) for label in np.unique(labels)}
    wrong = sorted((share, label) for label, share in shares.items() if share < 1)
    return [label for _, label in wrong[:_CLASSES]]


def _surest(confidence: Array, rows: Array) -> list[int]:
    """Return the few most confident of the selected rows, bool (N,)."""
    chosen = np.flatnonzero(rows)
    return [int(row) for row in chosen[np.argsort(-confidence[chosen], kind="stable")][:_PICTURES]]


def _pictures(data: ReportData, said: Answers, teacher: Answers | None, rows: list[int]) -> Markup:
    if data.picture is None or not rows or said.labels is None:
        return Markup()
    names = data.class_names
    fits = teacher is not None and teacher.right is not None
    return figures(
        [
            Example(
                data.picture(row),
                names[int(said.labels[row])],
                names[int(said.predicted[row])],
                float(said.confidence[row]),
                names[int(teacher.predicted[row])] if fits and teacher is not None else None,
            )
            for row in rows
        ]
    )
