"""Section ``evaluation``: evaluation of the finished student."""

from __future__ import annotations

from dataclasses import dataclass

from gendd.config.checks import POSITIVE_INTEGER, check_section, or_null

_RULES = {"images": or_null(POSITIVE_INTEGER)}


@dataclass
class EvaluationConfig:
    """Evaluation of the finished student, its teacher and its baselines.

    Args:
        images: Maximum number of test images to use, spread evenly over the set; null: all. Training and the
            choice of the checkpoint are unaffected.
    """

    images: int | None = None

    def __post_init__(self) -> None:
        check_section(self, "evaluation.", _RULES)
