"""Style of the figures for light and dark pages, and their embedding in a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from gendd.config import registry
from gendd.report.markup import FONT, part


@dataclass(frozen=True)
class Theme:
    """The colours of the figures of a light or a dark page."""

    ink: str
    muted: str
    grid: str
    paper: str
    heat: str
    teacher: str
    dark: bool

    def color(self, method: str) -> str:
        """Return the colour of a method, or of the teacher."""
        if method == "teacher":
            return self.teacher
        colors = registry.colors(method) or registry.colors("gendd")
        assert colors is not None
        return colors[self.dark]

    def style(self) -> dict[str, Any]:
        """Return the theme as matplotlib settings."""
        return {
            "axes.edgecolor": self.grid,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.ink,
            "grid.color": self.grid,
            "legend.labelcolor": self.ink,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
        }


# Okabe and Ito's colour-blind-safe palette, slightly lighter or darker where contrast requires it.
LIGHT = Theme(
    ink="#1b2330",
    muted="#5b6675",
    grid="#e3e7ed",
    paper="#ffffff",
    heat="#0067a5",
    teacher="#4b5563",
    dark=False,
)
DARK = Theme(
    ink="#e6eaf0",
    muted="#9aa5b4",
    grid="#2c3542",
    paper="#171d26",
    heat="#58b4ee",
    teacher="#c3cad4",
    dark=True,
)
# Any, as matplotlib's type of its settings lists every one of them
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "gendd",
    "text.parse_math": False,
    **{f"{axis}tick.labelsize": 9 for axis in "xy"},
    **{f"{axis}tick.{size}.size": 0 for axis in "xy" for size in ("major", "minor")},
}

# draws a figure in the colours of a theme; ten inches fill the page
Draw = Callable[[Theme], Figure]


def marker(method: str) -> str:
    """Return the marker that identifies a method without its colour."""
    return "s" if method == "teacher" else registry.marker(method)


def short(name: str, limit: int = 16) -> str:
    """Truncate a name to ``limit`` characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def picture(draw: Draw, alt: str) -> Markup:
    """Return a figure, 96 pixels per inch, with its counterpart for dark pages."""
    (light, width), (dark, _) = (_svg(draw, theme) for theme in (LIGHT, DARK))
    return part("picture", light, dark, round(width * 96), alt)


def _svg(draw: Draw, theme: Theme) -> tuple[str, float]:
    """Return the figure as the URL of an SVG with text in the page's font, and its width in inches."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE | theme.style()), warnings.catch_warnings():
        # Text stays text in the SVG, so the reader's fonts supply the glyphs that matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = draw(theme)
        figure.savefig(buffer, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    style = f"<style>text{{font-family:{FONT}!important}}</style>"
    text = buffer.getvalue().decode().replace("<defs>", f"{style}<defs>", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}", figure.get_figwidth()
