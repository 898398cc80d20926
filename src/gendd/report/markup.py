"""HTML of the pages, from templates that escape every value that isn't :class:`Markup`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif"


class Line(NamedTuple):
    """A table row: cells of words, then of numbers; ``own`` marks the run's chosen readout."""

    words: Sequence[str]
    numbers: Sequence[str]
    own: bool = False


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("gendd.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def part(name: str, *values: Any) -> Markup:
    """Return the macro ``name`` of ``templates/parts.html``, filled in."""
    return Markup(getattr(_templates().get_template("parts.html").module, name)(*values))


def section(title: str, body: str, note: str = "") -> Markup:
    return part("section", title, body, note)


def table(words: Sequence[str], numbers: Sequence[str], lines: Sequence[Line]) -> Markup:
    """Return a table with headings for its columns of words and of numbers."""
    return part("table", words, numbers, lines)


def document(
    title: str,
    what: str,
    eyebrow: str,
    lead: str,
    dots: Iterable[tuple[str, str, str]],
    parts: Iterable[Markup | None],
) -> str:
    """Return a whole page.

    Args:
        title: Its heading.
        what: The kind of page, for the title of the browser's window.
        eyebrow: The line above the heading.
        lead: The paragraph below it.
        dots: Class, light and dark colour of the dots that identify methods.
        parts: Its content, without those that are None.
    """
    return (
        _templates()
        .get_template("page.html")
        .render(
            title=title,
            what=what,
            eyebrow=eyebrow,
            lead=lead,
            dots=list(dots),
            parts=parts,
            font=Markup(FONT),
        )
        + "\n"
    )


def sentence(words: str) -> str:
    """Capitalise the first letter."""
    return words[:1].upper() + words[1:]
