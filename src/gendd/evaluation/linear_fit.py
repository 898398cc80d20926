"""Linear classifiers fitted to fixed features.

Shapes: N fitted rows · n scored rows · d feature width · K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError
from gendd.messages import beat

# numbers per pass, to bound the memory of logits and rows for any N, d and K
_CHUNK_NUMBERS = 2**24
# rows of more numbers (a gibibyte of float32) are not copied but read chunk by chunk
HELD_NUMBERS = 2**28
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# iterations on all rows, starting from the fit to a part of them
_FURTHER_ITERATIONS = 30


def fit_classifier(
    features: Tensor,
    targets: Tensor,
    *,
    num_classes: int | None = None,
    l2: float = 1e-4,
    max_iterations: int = 200,
    start: tuple[Tensor, Tensor] | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by full-batch L-BFGS.

    Minimises, over a classifier V, c of features standardised per dimension, the mean cross-entropy plus
    l2/2 · ‖V‖² (the bias is not penalised), and folds the standardisation into the result. With l2 > 0 the
    minimum is unique up to a constant added to all biases. l2 is 1 / (C·N) for the C of scikit-learn's
    ``LogisticRegression`` on standardised features.

    Rows of more than :data:`HELD_NUMBERS` numbers, which may be memory-mapped, are not copied: every pass
    reads them in chunks.

    Args:
        features: (N, d) float32 or float64, which is also the dtype of the computation and the result.
        targets: (N,) int64 classes, or (N, K) probabilities.
        num_classes: K for integer targets; None: the largest class plus one.
        l2: Strength of the penalty, not negative.
        max_iterations: Maximum number of iterations; stops earlier on convergence.
        start: Weight and bias to start from, as returned by this function; None: zeros.
        device: Device of the computation and the result; None: that of the features.

    Returns:
        Weight (K, d) and bias (K,) for unstandardised features.

    Raises:
        UserError: no rows, different numbers of rows and targets, a class beyond ``num_classes``, or
            features that are not finite.
    """
    _check_rows(features, targets, num_classes)
    classes = targets.shape[1] if targets.ndim == 2 else num_classes or int(targets.max()) + 1
    with torch.no_grad():
        rows = _Rows.standardised(features, targets, device or features.device, classes)
        mean, scale = rows.mean, rows.scale
        weight, bias = mean.new_zeros(classes, len(mean)), mean.new_zeros(classes)
        if start is not None:
            weight = start[0].to(mean) * scale
            bias = start[1].to(mean) + start[0].to(mean) @ mean
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
        beat()
        with torch.no_grad():
            value, weight.grad, bias.grad = _loss_and_gradients(rows, weight, bias, l2)
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / scale
        return folded.detach(), (bias - folded @ mean).detach()


@dataclass
class Choice:
    """The chosen classifier.

    Attributes:
        weight: (K, d).
        bias: (K,).
        l2: Strength of its penalty.
        accuracy: Its top-1 accuracy on the held-out rows, in [0, 1].
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
    device: torch.device | str | None = None,
    watch: Callable[[Sequence[float]], Iterable[float]] = iter,
) -> Choice:
    """Fit a classifier with the penalty that is best on held-out rows; ties go to the stronger penalty.

    If the rows have more than :data:`HELD_NUMBERS` numbers, all penalties are tried on an evenly spread
    subset; the best and the next weaker one are then continued on all rows, and the better is chosen.

    Args:
        features: (N, d).
        targets: (N,) classes or (N, K) probabilities.
        held_features: (n, d).
        held_targets: (n,) classes, or (n, K) probabilities, of which the argmax counts.
        num_classes: See :func:`fit_classifier`.
        strengths: Penalties to try, each fit starting from the previous one.
        max_iterations: Maximum iterations of each fit.
        device: Device of the computation and the result; None: that of the features.
        watch: Wraps the iteration over penalties, for example with a progress bar.
    """
    place = device or features.device
    best: Choice | None = None
    fits: dict[float, tuple[Tensor, Tensor]] = {}

    def consider(l2: float) -> None:
        nonlocal best
        share = accuracy(*fits[l2], held_features, held_targets)
        if best is None or share > best.accuracy:
            best = Choice(*fits[l2], l2, share)

    stride = max(1, math.ceil(_numbers(features, targets) / HELD_NUMBERS))
    some, wanted = features[::stride].to(place), targets[::stride].to(place)
    start = None
    order = sorted(strengths, reverse=True)
    for l2 in watch(order):
        start = fits[l2] = fit_classifier(
            some, wanted, num_classes=num_classes, l2=l2, max_iterations=max_iterations, start=start
        )
        consider(l2)
    assert best is not None
    if stride > 1:
        del some, wanted
        first, best = order.index(best.l2), None
        # more rows call for a weaker penalty
        for l2 in watch(order[first : first + 2]):
            fits[l2] = fit_classifier(
                features,
                targets,
                num_classes=num_classes,
                l2=l2,
                max_iterations=_FURTHER_ITERATIONS,
                start=fits[l2],
                device=place,
            )
            consider(l2)
        assert best is not None
    return best


def _numbers(features: Tensor, targets: Tensor) -> int:
    """Total number of values in the rows; integer classes are not counted."""
    return features.numel() + (targets.numel() if targets.ndim == 2 else 0)


@torch.no_grad()
def accuracy(weight: Tensor, bias: Tensor, features: Tensor, targets: Tensor) -> float:
    """Top-1 accuracy of a classifier in [0, 1], computed in passes of bounded memory.

    Args:
        weight: (K, d); the computation is done on its device, which is also the bias's.
        bias: (K,).
        features: (n, d).
        targets: (n,) classes or (n, K) probabilities.
    """
    size, right = _chunk(*weight.shape), 0
    for rows, wanted in zip(torch.split(features, size), torch.split(targets, size), strict=True):
        right += _right(F.linear(rows.to(weight), weight, bias), wanted.to(weight.device))
    return right / len(features)


def agreement(logits: Tensor, targets: Tensor) -> float:
    """Fraction in [0, 1] of logits (n, K) whose top class is that of targets (n,) or (n, K)."""
    return _right(logits, targets) / len(logits)


def _right(logits: Tensor, targets: Tensor) -> int:
    wanted = targets.argmax(-1) if targets.ndim == 2 else targets
    return int((logits.argmax(-1) == wanted).sum())


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
    if not all(bool(torch.isfinite(rows).all()) for rows in torch.split(features, _chunk(features.shape[1]))):
        raise UserError(
            "Fitting a classifier: expected finite features, got NaN or infinity; "
            "did the training of their network go well?"
        )


def _chunk(*widths: int) -> int:
    """Number of rows per pass for tensors of these widths."""
    return max(1, _CHUNK_NUMBERS // max(1, *widths))


@dataclass(frozen=True)
class _Rows:
    """Training rows, iterated in chunks: standardised features (n, d) and their targets, on the device.

    Attributes:
        features: (N, d), already standardised if ``held``.
        targets: (N,) or (N, K).
        mean: (d,), on the device, like ``scale``.
        scale: Standard deviation per dimension (d,), 1 for constant dimensions.
        size: Rows per chunk.
        held: Whether the rows are few enough to hold a standardised copy.
    """

    features: Tensor
    targets: Tensor
    mean: Tensor
    scale: Tensor
    size: int
    held: bool

    @classmethod
    def standardised(
        cls, features: Tensor, targets: Tensor, device: torch.device | str, classes: int
    ) -> _Rows:
        held = _numbers(features, targets) <= HELD_NUMBERS
        if held:
            features, targets = features.to(device), targets.to(device)
        mean, scale = (part.to(device) for part in _moments(features))
        if held:
            features = (features - mean) / scale
        return cls(features, targets, mean, scale, _chunk(features.shape[1], classes), held)

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        parts = (torch.split(each, self.size) for each in (self.features, self.targets))
        for rows, wanted in zip(*parts, strict=True):
            if not self.held:
                rows = (rows.to(self.mean) - self.mean) / self.scale
            yield rows, wanted.to(rows.device)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension (d,), the latter 1 for constant dimensions."""
    size, mean, square = _chunk(features.shape[1]), features.new_zeros(()), features.new_zeros(())
    for rows in torch.split(features, size):
        mean = mean + rows.sum(0) / len(features)
    for rows in torch.split(features, size):
        square = square + (rows - mean).square().sum(0) / len(features)
    scale = square.sqrt()
    return mean, torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale))


def _loss_and_gradients(
    rows: _Rows, weight: Tensor, bias: Tensor, l2: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Penalised mean cross-entropy and its gradients, in passes of bounded memory."""
    count = len(rows)
    value = 0.5 * l2 * weight.square().sum()
    weight_gradient, bias_gradient = l2 * weight, torch.zeros_like(bias)
    for features, wanted in rows:
        log_probabilities = torch.addmm(bias, features, weight.T).log_softmax(-1)
        residual = log_probabilities.exp()
        if wanted.ndim == 1:
            value = value - log_probabilities.gather(1, wanted[:, None]).sum() / count
            residual.scatter_add_(1, wanted[:, None], residual.new_full((len(features), 1), -1.0))
        else:
            soft = wanted.to(features)
            value = value - (soft * log_probabilities).sum() / count
            residual -= soft
        weight_gradient = weight_gradient + residual.T @ features / count
        bias_gradient = bias_gradient + residual.sum(0) / count
    return value, weight_gradient, bias_gradient
