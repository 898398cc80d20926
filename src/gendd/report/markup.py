"""HTML building blocks of the page's sections."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{body}{note}</section>"


def table(words: Sequence[str], numbers: Sequence[str], lines: Sequence[str]) -> str:
    """Return a table of :func:`line` rows, with headings for its columns of words and of numbers."""
    return f'<div class="scroll"><table>{_tr("th", words, numbers)}{"".join(lines)}</table></div>'


def line(words: Sequence[str], numbers: Sequence[str], own: bool = False) -> str:
    """Return a table row: cells of words, then of numbers; ``own`` marks the run's chosen readout."""
    return _tr("td", words, numbers, " class=own" if own else "")


def _tr(tag: str, words: Sequence[str], numbers: Sequence[str], attribute: str = "") -> str:
    cells = [f"<{tag}>{word}</{tag}>" for word in words]
    cells += [f'<{tag} class="n">{number}</{tag}>' for number in numbers]
    return f"<tr{attribute}>{''.join(cells)}</tr>"


def sentence(words: str) -> str:
    """Capitalise the first letter."""
    return words[:1].upper() + words[1:]
