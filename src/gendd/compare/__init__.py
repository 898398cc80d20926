"""Fair comparison of methods: the same images, networks, seeds, budget and learning-rate search.

:func:`compare` runs or resumes a comparison from its file; see ``docs/compare.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendd.compare.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]


def __getattr__(name: str) -> Any:
    # imported on first use, as modules of this package are also run as scripts
    if name in __all__:
        return getattr(import_module("gendd.compare.comparison"), name)
    raise AttributeError(f"module 'gendd.compare' has no attribute {name!r}")
