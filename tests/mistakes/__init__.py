"""Mistakes of a user, by kind; each must cost one line and exit code 2, and nothing that was written."""

from __future__ import annotations

from mistakes import commands, folders, images, networks, paths, settings
from mistakes.case import Case, Made, Place

__all__ = ["Case", "Made", "Place", "cases"]


def cases() -> list[Case]:
    """All mistakes there are."""
    return [case for each in (settings, paths, images, networks, folders, commands) for case in each.cases()]
