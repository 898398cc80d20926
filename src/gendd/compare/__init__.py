"""Methods compared fairly: the same images, networks, seeds, budget and search of the learning rate.

:func:`compare` runs a comparison from its file, or goes on with it; see ``docs/compare.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendd.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    # imported at first use: the cells are modules that are run by themselves
    if name in __all__:
        return getattr(import_module("gendd.compare.comparison"), name)
    raise AttributeError(f"module 'gendd.compare' has no attribute {name!r}")
