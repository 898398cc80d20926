"""Losses for partly unknown labels: -1, or probabilities that sum to less than 1.

Shapes: B images · K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gendd.config import GenDDConfig
from gendd.diffusion import tokens


def known(labels: Tensor) -> Tensor:
    """Fraction of each image's label that is known: float (B,), from labels (B,) or probabilities (B, K)."""
    return labels.float().sum(-1) if labels.ndim == 2 else (labels >= 0).float()


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K), averaged over the whole batch; unknown labels contribute zero."""
    if labels.ndim == 2:
        return F.cross_entropy(logits.float(), labels)
    return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum") / len(labels)


def contracted_classes(labels: Tensor, teacher_logits: Tensor, classes: int, config: GenDDConfig) -> Tensor:
    """Class probabilities (B, K) for the contraction of each image's target; their sum scales it.

    Args:
        labels: As in :func:`label_loss`.
        teacher_logits: (B, K'); for other classes if K' differs from K, and then not used.
        classes: K.
        config: ``alpha`` and ``contract``.
    """
    given = tokens.class_probabilities(labels, classes)
    if teacher_logits.shape[-1] != classes:
        return given
    said = teacher_logits.float().softmax(-1)
    found = config.alpha * given + (1 - config.alpha) * known(labels).unsqueeze(-1) * said
    if config.contract == "errors":
        # total variation distance: 1 - the teacher's probability of a hard label
        found = found * (given - said).abs().sum(-1, keepdim=True) / 2
    return found


def taught_loss(logits: Tensor, labels: Tensor | None, teacher_logits: Tensor) -> Tensor | None:
    """Cross-entropy with the labels; for unlabelled images, with the teacher's probabilities.

    Args:
        logits: (B, K).
        labels: As in :func:`label_loss`; None: no image is labelled.
        teacher_logits: (B, K'); for other classes if K' differs from K, and then not used.
    """
    if logits.shape[-1] != teacher_logits.shape[-1]:
        return None if labels is None else label_loss(logits, labels)
    said = teacher_logits.float().softmax(-1)
    if labels is None:
        return F.cross_entropy(logits.float(), said)
    unknown = 1 - known(labels).unsqueeze(-1)
    return label_loss(logits, labels) + F.cross_entropy(logits.float(), unknown * said)
