"""Write the page to a file, and update it when the metrics of its run have changed."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from gendd.errors import UserError
from gendd.files import write_text
from gendd.report.content import ReportData
from gendd.report.page import page
from gendd.report.sections import confusion, examples, features, mistakes, reliability, training

_SECTION = re.compile(r"<section><h2>(.*?)</h2>.*?</section>", re.DOTALL)
# starts of the titles of sections that remain valid when the student's metrics change
_LASTING = (
    *(what.title for what in training.VALIDATED.values()),
    training.LOSSES,
    confusion.TITLE,
    reliability.TITLE,
    mistakes.HARDEST,
    mistakes.BESIDE,
    features.TITLE,
    examples.TITLE,
)


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report as one HTML file, atomically.

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
    return _write(page(data), path)


def update_report(data: ReportData, path: Path, into: Path | None = None) -> Path:
    """Rewrite a report with new metrics.

    Its sections on training, confusion, features and examples are kept where ``data`` does not contain them.

    Args:
        data: The new content.
        path: The existing report.
        into: The file to write; None: ``path``.

    Returns:
        The file written.
    """
    # new predictions of the student invalidate the comparison with the teacher's
    lasting = tuple(title for title in _LASTING if not (data.answers and title == mistakes.BESIDE))
    return _write(_merged(page(data), Path(path).read_text(encoding="utf-8"), lasting), Path(into or path))


def _write(text: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _merged(new: str, before: str, lasting: tuple[str, ...]) -> str:
    """Add to a page the still valid sections of the previous page that it lacks."""
    sections = {unescape(found[1]): found[0] for found in _SECTION.finditer(new)}
    order: list[str] = []
    for found in _SECTION.finditer(before):
        title = unescape(found[1])
        if title in sections or title.startswith(lasting):
            sections.setdefault(title, found[0])
            order.append(title)
    previous = 0
    for title in sections:
        if title in order:
            previous = order.index(title) + 1
        else:
            order.insert(previous, title)
            previous += 1
    first, last = new.index("<section>"), new.rindex("</section>") + len("</section>")
    return new[:first] + "\n".join(sections[title] for title in order) + new[last:]
