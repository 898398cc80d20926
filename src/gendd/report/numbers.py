"""Human-readable numbers."""

from __future__ import annotations


def number(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


def count(value: float | None) -> str:
    """272474 → "0.27 M", 41200000 → "41.2 M"."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    # millions begin at 0.1
    for least, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e5, 1e6, "M"), (1e3, 1e3, "k")):
        if rounded >= least:
            scaled = rounded / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{value:.0f}"


def megabytes(parameters: float) -> str:
    """Format the size of this many 32-bit numbers: 19810 → "0.08 MB"."""
    size = 4 * parameters / 1e6
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f} MB"


def milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def duration(seconds: float) -> str:
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return "±0.00" if float(f"{value:.2f}") == 0 else text


def ratio(large: float | None, small: float | None) -> tuple[str, str] | None:
    """Format how many times fewer ``small`` is: ("8.2×", "fewer"); None if either is missing or 0."""
    if not large or not small:
        return None
    factor = large / small
    word = "fewer" if factor >= 1 else "more"
    factor = max(factor, 1 / factor)
    if float(f"{factor:.2g}") == 1:
        return "1×", "as many"
    return f"{factor:.{1 if factor < 10 else 0}f}×", word
