"""GenDD without labels, for comparison with GenDD with labels in the same run."""

from __future__ import annotations

from typing import Any

from gendd.methods.gendd import GenDD


class GenDDNoLabels(GenDD):
    """GenDD as with ``data.labels false``, for comparison with methods that see labels."""

    name = "gendd_no_labels"
    label = "GenDD, no labels"
    colors = ("#56a3d9", "#8cc8f2")
    marker = "s"
    may_see_labels = False

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"labels": False})
