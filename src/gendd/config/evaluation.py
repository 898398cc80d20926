"""Section ``evaluation``: what a finished student is scored on."""

from __future__ import annotations

from dataclasses import dataclass

from gendd.config.checks import POSITIVE_INTEGER, check_section, or_null

_RULES = {"images": or_null(POSITIVE_INTEGER)}


@dataclass
class EvaluationConfig:
    """What a finished student, its teacher and its baselines are scored on.

    Args:
        images: At most so many test images, evenly spread over them; null: all. Training and the choice of
            the checkpoint stay as they are.
    """

    images: int | None = None

    def __post_init__(self) -> None:
        check_section(self, "evaluation.", _RULES)
