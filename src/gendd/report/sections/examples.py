"""Example test images with the student's predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from gendd.report.content import Array, Example
from gendd.report.markup import section

TITLE = "Examples"
_MAX_SHOWN = 24
# sides in pixels: the maximum, and the limit up to which images are shown with crisp pixels
_LARGE, _TINY = 224, 64


def examples(found: Sequence[Example]) -> str:
    """Return the section with the first 24 images and the student's predictions."""
    shown = found[:_MAX_SHOWN]
    if not shown:
        return ""
    note = "Below each image: the predicted class and its confidence"
    if any(example.true is not None for example in shown):
        note += "; errors are outlined and marked ✗, with the true class under them"
    return section(TITLE, figures(shown), note + ".")


def figures(shown: Sequence[Example]) -> str:
    """Return a grid of images, each with its prediction below."""
    return f'<div class="grid">{"".join(map(_figure, shown))}</div>'


def _figure(example: Example) -> str:
    encoded, tiny = _png(example.image)
    predicted = escape(example.predicted)
    wrong = example.true is not None and example.true != example.predicted
    mark = "" if example.true is None else "✗ " if wrong else "✓ "
    truth = f"<span>is {escape(str(example.true))}</span>" if wrong else ""
    if example.teacher is not None and example.teacher != example.true:
        truth += f"<span>teacher: {escape(example.teacher)}</span>"
    sure = f"{100 * example.confidence:.0f}\N{NO-BREAK SPACE}%"
    return (
        f"<figure{' class=wrong' if wrong else ''}><img{' class=tiny' if tiny else ''} "
        f'src="data:image/png;base64,{encoded}" alt="{predicted}">'
        f"<figcaption><b>{mark}{predicted}</b> {sure}{truth}</figcaption></figure>"
    )


def _png(image: Array) -> tuple[str, bool]:
    """Return the image as base64 PNG, reduced if it is large, and whether it is tiny."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_LARGE, _LARGE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode(), max(picture.size) <= _TINY
