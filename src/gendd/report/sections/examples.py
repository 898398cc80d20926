"""Example test images with the student's predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from gendd.report.content import Array, Example
from gendd.report.markup import part, section

TITLE = "Examples"
_MAX_SHOWN = 24
# sides in pixels: the maximum, and the limit up to which images are shown with crisp pixels
_LARGE, _TINY = 224, 64


def examples(found: Sequence[Example]) -> Markup | None:
    """Return the section with the first 24 images and the student's predictions."""
    shown = found[:_MAX_SHOWN]
    if not shown:
        return None
    note = "Below each image: the predicted class and its confidence"
    if any(example.true is not None for example in shown):
        note += "; errors are outlined and marked ✗, with the true class under them"
    return section(TITLE, figures(shown), note + ".")


def figures(shown: Sequence[Example]) -> Markup:
    """Return a grid of images, each with its prediction below."""
    return part("examples", [_figure(example) for example in shown])


def _figure(example: Example) -> dict[str, Any]:
    encoded, tiny = _png(example.image)
    wrong = example.true is not None and example.true != example.predicted
    remarks = [f"is {example.true}"] if wrong else []
    if example.teacher is not None and example.teacher != example.true:
        remarks.append(f"teacher: {example.teacher}")
    return {
        "source": f"data:image/png;base64,{encoded}",
        "tiny": tiny,
        "wrong": wrong,
        "mark": "" if example.true is None else "✗ " if wrong else "✓ ",
        "predicted": example.predicted,
        "sure": f"{100 * example.confidence:.0f}\N{NO-BREAK SPACE}%",
        "remarks": remarks,
    }


def _png(image: Array) -> tuple[str, bool]:
    """Return the image as base64 PNG, reduced if it is large, and whether it is tiny."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_LARGE, _LARGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode(), max(picture.size) <= _TINY
