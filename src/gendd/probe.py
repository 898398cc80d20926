"""What can be read off features that stay as they are: classifiers fitted to them, neighbours, cosines.

Shapes: N fitted rows · n scored rows · d feature width · K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError

# Rows of a pass: bounds the memory of logits, whatever N and K.
_CHUNK_NUMBERS = 2**24
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def fit_classifier(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int | None = None,
    l2: float = 1e-4,
    max_iterations: int = 200,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, by L-BFGS over all rows at once.

    Minimises, over the classifier V, c of features standardised per dimension, the mean cross-entropy
    plus l2/2 · ‖V‖² (the bias is free), and folds the standardisation back. With l2 > 0 the minimum is
    unique up to what is common to all biases. l2 is 1 / (C·N) for the C of scikit-learn's
    ``LogisticRegression`` on standardised features.

    Args:
        features: (N, d) float32 or float64; its type and device are those of the work and of the result.
        targets: (N,) int64 classes, or (N, K) probabilities.
        num_classes: K of classes; None: the largest there is, and one.
        l2: Strength of the penalty, not negative.
        max_iterations: Iterations at most; it ends earlier where nothing changes any more.
        start: Weight and bias to start from, as this function returns them; None: zeros.

    Returns:
        Weight (K, d) and bias (K,) for the features as they are given.

    Raises:
        UserError: no rows, rows and targets of other numbers, a class beyond ``num_classes``, or features
            that are not finite.
    """
    _check_rows(features, targets, num_classes)
    classes = targets.shape[1] if targets.ndim == 2 else num_classes or int(targets.max()) + 1
    with torch.no_grad():
        mean = features.mean(0)
        scale = _scale(features)
        standard = (features - mean) / scale
        weight, bias = features.new_zeros(classes, features.shape[1]), features.new_zeros(classes)
        if start is not None:
            weight = start[0].to(features) * scale
            bias = start[1].to(features) + start[0].to(features) @ mean
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    tiny = torch.finfo(features.dtype).eps
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=10 * tiny,
        tolerance_change=tiny,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        with torch.no_grad():
            value, weight.grad, bias.grad = _loss_and_gradients(standard, targets, weight, bias, l2)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / scale
        return folded.detach(), (bias - folded @ mean).detach()


@dataclass
class Choice:
    """A classifier and how it was chosen.

    Attributes:
        weight: (K, d).
        bias: (K,).
        l2: Strength of its penalty.
        accuracy: Share of the held-out rows with their first class, in [0, 1].
    """

    weight: Tensor
    bias: Tensor
    l2: float
    accuracy: float


def choose_classifier(
    features: Tensor,
    targets: Tensor,
    held_features: Tensor,
    held_targets: Tensor,
    *,
    num_classes: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = 100,
) -> Choice:
    """The classifier of the penalty that does best on held-out rows; of equals the stronger penalty.

    Args:
        features: (N, d).
        targets: (N,) classes or (N, K) probabilities.
        held_features: (n, d).
        held_targets: (n,) classes or (n, K) probabilities, of which the largest counts.
        num_classes: See :func:`fit_classifier`.
        strengths: Penalties to try, each fit starting from the one before.
        max_iterations: Of each fit.
    """
    best: Choice | None = None
    start = None
    for l2 in sorted(strengths, reverse=True):
        start = fit_classifier(
            features, targets, num_classes=num_classes, l2=l2, max_iterations=max_iterations, start=start
        )
        accuracy = agreement(F.linear(held_features, *start), held_targets)
        if best is None or accuracy > best.accuracy:
            best = Choice(*start, l2, accuracy)
    assert best is not None
    return best


def agreement(logits: Tensor, targets: Tensor) -> float:
    """Share in [0, 1] of rows (n, K) whose first class is that of targets (n,) or (n, K)."""
    wanted = targets.argmax(-1) if targets.ndim == 2 else targets
    return float((logits.argmax(-1) == wanted).double().mean())


def neighbour_votes(
    features: Tensor,
    bank: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Votes of the nearest neighbours by cosine, each weighing exp(cosine / temperature) (Wu et al. 2018).

    Args:
        features: (n, d).
        bank: (N, d) features whose classes are known.
        labels: (N,) int64, theirs.
        num_classes: K.
        neighbours: How many vote; all of a smaller bank.
        temperature: Positive; the smaller, the more the nearest decide.

    Returns:
        (n, K), float32; their argmax is the class.
    """
    count = min(neighbours, len(bank))
    known = F.normalize(bank.float(), dim=-1)
    votes = []
    size = max(1, _CHUNK_NUMBERS // len(bank))
    for rows in torch.split(F.normalize(features.float(), dim=-1), size):
        cosines, nearest = (rows @ known.T).topk(count)
        # less the nearest's: only ratios count, and exp can't overflow
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        vote = weights.new_zeros(len(rows), num_classes)
        votes.append(vote.scatter_add_(1, labels[nearest], weights))
    return torch.cat(votes)


def _check_rows(features: Tensor, targets: Tensor, num_classes: int | None) -> None:
    if features.ndim != 2 or len(features) == 0 or len(targets) != len(features):
        raise UserError(
            f"Fitting a classifier: expected as many targets as features (N, d), got features of shape "
            f"{tuple(features.shape)} and targets of shape {tuple(targets.shape)}; give a row for each."
        )
    if targets.ndim == 1 and num_classes is not None and int(targets.max()) >= num_classes:
        raise UserError(
            f"Fitting a classifier: expected classes below {num_classes}, got {int(targets.max())}; "
            "give num_classes as many as there are."
        )
    if not bool(torch.isfinite(features).all()):
        raise UserError(
            "Fitting a classifier: expected finite features, got NaN or infinity; "
            "did the training of their network go well?"
        )


def _scale(features: Tensor) -> Tensor:
    """Standard deviation per dimension (d,), 1 where a dimension never varies."""
    scale = features.std(0, correction=0)
    return torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale))


def _loss_and_gradients(
    features: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, l2: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Penalised mean cross-entropy and its gradients, in passes of bounded memory."""
    count = len(features)
    value = 0.5 * l2 * weight.square().sum()
    weight_gradient, bias_gradient = l2 * weight, torch.zeros_like(bias)
    size = max(1, _CHUNK_NUMBERS // len(bias))
    for rows, wanted in zip(torch.split(features, size), torch.split(targets, size), strict=True):
        log_probabilities = torch.addmm(bias, rows, weight.T).log_softmax(-1)
        residual = log_probabilities.exp()
        if wanted.ndim == 1:
            value = value - log_probabilities.gather(1, wanted[:, None]).sum() / count
            residual.scatter_add_(1, wanted[:, None], residual.new_full((len(rows), 1), -1.0))
        else:
            soft = wanted.to(rows)
            value = value - (soft * log_probabilities).sum() / count
            residual -= soft
        weight_gradient = weight_gradient + residual.T @ rows / count
        bias_gradient = bias_gradient + residual.sum(0) / count
    return value, weight_gradient, bias_gradient
