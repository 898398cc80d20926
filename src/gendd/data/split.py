"""Splits of a set by index, from an explicit generator."""

from __future__ import annotations

import torch
from torch import Tensor


def random_split(count: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold ``round(fraction · count)`` of ``count`` items out.

    Returns:
        Kept and held out indices, each int64 and ascending.
    """
    held = round(fraction * count)
    order = torch.randperm(count, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hold ``fraction`` of every class out.

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
    quota = torch.minimum(quota, (counts - 1).clamp(min=0))
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels[order]
    # Rank of each shuffled item within its class: its place in the class-sorted order, less the
    # place where its class begins.
    by_class = shuffled.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(by_class)
    rank[by_class] = torch.arange(len(labels)) - starts[shuffled[by_class]]
    held = rank < quota[shuffled]
    return order[~held].sort().values, order[held].sort().values
