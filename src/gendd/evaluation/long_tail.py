"""Accuracy by the number of training images of a class: many-, medium- and few-shot.

Shapes: K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gendd.config import DataConfig
from gendd.data import Data

GROUPS = ("many", "medium", "few")
_PUBLISHED = (20, 100)


@dataclass(frozen=True)
class Shots:
    """Division of classes into many-shot, medium-shot and few-shot.

    Args:
        counts: Training images per class, int64 (K,).
        few: Classes with fewer images are few-shot.
        many: Classes with more images are many-shot.
    """

    counts: Tensor
    few: int = _PUBLISHED[0]
    many: int = _PUBLISHED[1]

    def masks(self) -> dict[str, Tensor]:
        """Mask of the classes of each group, bool (K,)."""
        many, few = self.counts > self.many, self.counts < self.few
        return {"many": many, "medium": ~many & ~few, "few": few}

    def accuracy(self, confusion: Tensor) -> dict[str, dict[str, Any]]:
        """Top-1 per group, over all test images of the group's classes.

        Args:
            confusion: Counts of test images, one row per true class; K or more classes, where those beyond K
                have no test images.

        Returns:
            For ``many``, ``medium`` and ``few``: ``top1`` (percent; None without test images), and the
            numbers of ``classes`` and ``images``.
        """
        size = len(self.counts)
        right, of_class = confusion.diagonal()[:size], confusion.sum(1)[:size]
        found: dict[str, dict[str, Any]] = {}
        for name, mask in self.masks().items():
            images = int(of_class[mask].sum())
            top1 = round(100 * int(right[mask].sum()) / images, 2) if images else None
            found[name] = {"top1": top1, "classes": int(mask.sum()), "images": images}
        return found


def shots_of(data: Data, config: DataConfig) -> Shots | None:
    """Groups to report accuracy by; None if it is not reported by group.

    It is reported if training and test images have labels and either ``shot_thresholds`` is set or the
    training set is long-tailed.
    """
    counts = data.class_counts
    if counts is None or data.test.labels is None:
        return None
    if config.shot_thresholds is None and not data.long_tailed:
        return None
    few, many = config.shot_thresholds or _PUBLISHED
    return Shots(counts, few, many)


def in_words(groups: dict[str, dict[str, Any]]) -> str:
    """Format as ``many (35 classes) 71.20 %   medium (35 classes) …``; groups without images are left out."""
    return "   ".join(
        f"{name} ({group['classes']} class{'es' if group['classes'] != 1 else ''}) {group['top1']:.2f} %"
        for name, group in groups.items()
        if group["top1"] is not None
    )
