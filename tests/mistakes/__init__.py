"""User errors, by kind; each must print one line, exit with code 2, and leave existing files unchanged."""

from __future__ import annotations

from mistakes import commands, folders, images, networks, paths, settings
from mistakes.case import Case, Made, Place

__all__ = ["Case", "Made", "Place", "cases"]


def cases() -> list[Case]:
    """All user errors."""
    return [case for each in (settings, paths, images, networks, folders, commands) for case in each.cases()]
