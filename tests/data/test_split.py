from __future__ import annotations

import torch

from gendd.data.split import random_split, stratified_split


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stratified_counts_by_largest_remainder() -> None:
    # 10% of 50, 25 and 5 is 5, 2.5 and 0.5: eight in all, the tie goes to the earlier class.
    labels = torch.tensor([0] * 50 + [1] * 25 + [2] * 5)
    kept, held = stratified_split(labels, 0.1, _generator())
    assert torch.bincount(labels[held], minlength=3).tolist() == [5, 3, 0]
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(80))


def test_stratified_split_leaves_every_class_something() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    kept, held = stratified_split(labels, 0.9, _generator())
    assert set(labels[kept].tolist()) == {0, 1, 2}
    assert torch.bincount(labels[held], minlength=3).tolist() == [1, 0, 1]


def test_stratified_split_is_random_within_a_class() -> None:
    labels = torch.arange(400) % 4
    first = stratified_split(labels, 0.25, _generator(1))[1]
    assert torch.equal(first, stratified_split(labels, 0.25, _generator(1))[1])
    second = stratified_split(labels, 0.25, _generator(2))[1]
    assert not torch.equal(first, second)
    assert abs(first.float().mean() - 199.5) < 30


def test_random_split() -> None:
    kept, held = random_split(10, 0.3, _generator())
    assert len(held) == 3 and torch.cat([kept, held]).sort().values.tolist() == list(range(10))
    assert not torch.equal(held, random_split(10, 0.3, _generator(1))[1])
