"""Labels of which some may be unknown: -1, or probabilities that sum to less than 1.

Shapes: B images · K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def known(labels: Tensor) -> Tensor:
    """The share of each image whose label is known: float (B,), of labels (B,) or probabilities (B, K)."""
    return labels.float().sum(-1) if labels.ndim == 2 else (labels >= 0).float()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of logits (B, K), a mean over the batch to which unknown labels add nothing."""
    if labels.ndim == 2:
        return F.cross_entropy(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum") / len(labels)


def taught_loss(logits: Tensor, labels: Tensor | None, teacher_logits: Tensor) -> Tensor | None:
    """Cross-entropy to the labels and, of images without, to what the teacher says, if of the same classes.

    Args:
        logits: (B, K).
        labels: As of :func:`label_loss`; None: of no image.
        teacher_logits: (B, K'), of other classes where K' isn't K.
    """
    if logits.shape[-1] != teacher_logits.shape[-1]:
        return None if labels is None else label_loss(logits, labels)
    said = teacher_logits.float().softmax(-1)
    if labels is None:
        return F.cross_entropy(logits.float(), said)
    unknown = 1 - known(labels).unsqueeze(-1)
    return label_loss(logits, labels) + F.cross_entropy(logits.float(), unknown * said)
