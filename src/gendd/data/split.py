"""Splits of a data set by index, from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor


def random_split(count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold out ``round(fraction · count)`` of ``count`` items.

    Returns:
        Kept and held out indices, each int64 and ascending.
    """
    held = round(fraction * count)
    order = torch.randperm(count, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold out ``fraction`` of every class.

    The total held out is ``round(fraction · N)``, shared among the classes by largest remainder; every
    class keeps at least one item, which in tiny sets lowers the total.

    Args:
        labels: (N,) non-negative integers.
        fraction: In [0, 1).
        generator: Source of the draws.

    Returns:
        Kept and held out indices, each int64 and ascending.
    """
    counts = torch.bincount(labels)
    exact = counts.double() * fraction
    quota = exact.floor().long()
    missing = round(fraction * len(labels)) - int(quota.sum())
    quota[(exact - quota).argsort(descending=True, stable=True)[:missing]] += 1
    return _split_by_quota(labels, torch.minimum(quota, (counts - 1).clamp(min=0)), generator)


def class_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold out ``fraction`` of every class, rounded, but at least one item of a class of two or more.

    Args:
        labels: (N,) non-negative integers.
        fraction: In (0, 1); every class keeps at least one item.
        generator: Source of the draws.

    Returns:
        Kept and held out indices, each int64 and ascending.
    """
    counts = torch.bincount(labels)
    quota = (counts.double() * fraction).round().long().clamp(min=1)
    return _split_by_quota(labels, torch.minimum(quota, (counts - 1).clamp(min=0)), generator)


def thinned(labels: Tensor | None, count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Choose ``wanted`` of ``count`` items; with labels, the same share of every class and at least one.

    Returns:
        Indices, int64 and ascending.
    """
    if wanted >= count:
        return torch.arange(count)
    if labels is None:
        return random_split(count, 1 - wanted / count, generator)[0]
    return stratified_split(labels, 1 - wanted / count, generator)[0]


def long_tail(labels: Tensor, classes: int, factor: float, generator: torch.Generator) -> Tensor:
    """Subsample the classes to the exponential profile of Cui et al. 2019 (arXiv 1901.05555).

    Class c of K keeps ⌊n · factor^(-c/(K-1))⌋ items, with n the size of the largest class; at least one, and
    no more than it has. The same permutation is used for every factor, so a larger factor keeps a subset.

    Args:
        labels: (N,) integers in [0, K).
        classes: K; the first class keeps the most.
        factor: Ratio of the largest to the smallest class, at least 1.
        generator: Source of the draws.

    Returns:
        Kept indices, int64 and ascending.
    """
    counts = torch.bincount(labels, minlength=classes)
    # in the published code's order of operations, which matters where a product is an integer
    shares = (1 / factor) ** (torch.arange(classes, dtype=torch.float64) / max(classes - 1, 1))
    quota = (int(counts.max()) * shares).floor().long().clamp(min=1)
    return _split_by_quota(labels, quota, generator)[1]


def _split_by_quota(labels: Tensor, quota: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw up to ``quota`` (K,) items of every class; return the indices of the others and of the drawn."""
    order = torch.randperm(len(labels), generator=generator)
    drawn = _rank_in_class(labels[order], len(quota)) < quota[labels[order]]
    return order[~drawn].sort().values, order[drawn].sort().values


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """Return how many items of the same class precede each item: int64 (N,)."""
    counts = torch.bincount(labels, minlength=classes)
    # position in the class-sorted order minus the position where the class starts
    by_class = labels.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return rank
