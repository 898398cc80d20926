"""Accuracy by how many training images a class has: many, a medium number, few.

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
    """Which classes are many-shot, medium-shot and few-shot.

    Args:
        counts: Training images a class, int64 (K,).
        few: Classes of less are few-shot.
        many: Classes of more are many-shot.
    """

    counts: Tensor
    few: int = _PUBLISHED[0]
    many: int = _PUBLISHED[1]

    def masks(self) -> dict[str, Tensor]:
        """The classes of each group, bool (K,)."""
        many, few = self.counts > self.many, self.counts < self.few
        return {"many": many, "medium": ~many & ~few, "few": few}

    def accuracy(self, confusion: Tensor) -> dict[str, dict[str, Any]]:
        """Top-1 by group, over all test images of the group's classes alike.

        Args:
            confusion: Counts of test images, a row a true class; K or more classes, of which those beyond
                have no test images.

        Returns:
            For ``many``, ``medium`` and ``few``: ``top1`` (percent; None without test images),
            ``classes`` and ``images``, how many of each.
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
    """How accuracy is told by group; None where it is not.

    It is where training and test images have labels and either ``shot_thresholds`` are set or the training
    set is long-tailed.
    """
    counts = data.class_counts
    if counts is None or data.test.labels is None:
        return None
    if config.shot_thresholds is None and not data.long_tailed:
        return None
    few, many = config.shot_thresholds or _PUBLISHED
    return Shots(counts, few, many)


def in_words(groups: dict[str, dict[str, Any]]) -> str:
    """One line, ``many (35 classes) 71.20 %   medium (35 classes) …``; groups without images are left out."""
    return "   ".join(
        f"{name} ({group['classes']} class{'es' if group['classes'] != 1 else ''}) {group['top1']:.2f} %"
        for name, group in groups.items()
        if group["top1"] is not None
    )
