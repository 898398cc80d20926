"""GenDD that sees no label, to have beside the one that does."""

from __future__ import annotations

from typing import Any

from gendd.config import GenDDConfig
from gendd.methods.gendd import GenDD
from gendd.models import Backbone, Frozen


class GenDDNoLabels(GenDD):
    """GenDD as with ``data.labels false``, beside methods that see labels."""

    name = "gendd_no_labels"
    label = "GenDD, no labels"
    colors = ("#56a3d9", "#8cc8f2")
    marker = "s"

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        config: GenDDConfig | None = None,
        *,
        labels: bool | None = None,
        **settings: Any,
    ) -> None:
        del labels
        super().__init__(backbone, teacher, config, labels=False, **settings)
