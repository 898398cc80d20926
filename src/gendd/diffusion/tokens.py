"""Processing of features before diffusion: contraction, mixup, splitting into tokens.

Shapes: B images · D feature width · C token width · N = ceil(D / C) tokens · M repeats · K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def class_probabilities(labels: Tensor, num_classes: int) -> Tensor:
    """Convert labels to probabilities: (B,) int64 -> one-hot (B, K) float32; (B, K) soft labels are kept.

    The row of an unknown label, -1, is zero.
    """
    if labels.ndim == 1:
        known = (labels >= 0).unsqueeze(-1)
        return F.one_hot(labels.clamp(min=0), num_classes).float() * known
    return labels.float()


def contract(features: Tensor, probabilities: Tensor, centres: Tensor, strength: float) -> Tensor:
    """Distribution Contraction: (1-λ) f + λ p @ centres; if p sums to less than 1, f gets the rest.

    Args:
        features: (B, D).
        probabilities: (B, K) of the classes, one-hot for hard labels; zero if the class is unknown.
        centres: (K, D).
        strength: λ in [0, 1].
    """
    if strength == 0:
        return features
    unknown = 1 - probabilities.sum(-1, keepdim=True)
    centre = probabilities.to(centres.dtype) @ centres + unknown * features
    return (1 - strength) * features + strength * centre


def mix(values: Tensor, weight: Tensor | float, permutation: Tensor) -> Tensor:
    """Feature mixup: m x + (1-m) x[permutation], rows (B, …)."""
    return weight * values + (1 - weight) * values[permutation]


def num_tokens(feature_width: int, token_width: int) -> int:
    """N = ceil(D / C)."""
    return -(-feature_width // token_width)


def split(features: Tensor, token_width: int) -> Tensor:
    """Split Tokenization: (B, D) -> (B, N, C); token n is f[nC : (n+1)C], the last padded with zeros."""
    count = num_tokens(features.shape[-1], token_width)
    padding = count * token_width - features.shape[-1]
    return F.pad(features, (0, padding)).reshape(*features.shape[:-1], count, token_width)


def merge(tokens: Tensor, feature_width: int) -> Tensor:
    """Inverse of :func:`split`: (…, N, C) -> (…, D), padding dropped."""
    return tokens.flatten(-2)[..., :feature_width]


def repeat_rows(values: Tensor, repeats: int) -> Tensor:
    """(B, N, …) -> (M·B·N, …), repeat-major: row = (m·B + i)·N + n."""
    flat = values.flatten(0, 1)
    return flat.expand(repeats, *flat.shape).flatten(0, 1)
