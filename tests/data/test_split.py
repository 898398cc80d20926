from __future__ import annotations

import pytest
import torch

from gendd.data.split import long_tail, random_split, stratified_split


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


@pytest.mark.parametrize(
    "classes, each, factor, total",
    # sizes of CIFAR-10-LT and CIFAR-100-LT as in Cui et al. 2019 and later papers
    [(10, 5000, 100, 12406), (10, 5000, 10, 20431), (100, 500, 100, 10847), (100, 500, 10, 19573)],
)
def test_long_tail_has_the_published_counts(classes: int, each: int, factor: int, total: int) -> None:
    labels = torch.arange(classes * each) % classes
    kept = long_tail(labels, classes, factor, _generator())
    counts = torch.bincount(labels[kept])
    assert len(kept) == total and torch.equal(kept, kept.unique())
    assert (int(counts[0]), int(counts[-1])) == (each, each // factor)
    assert torch.equal(counts, counts.sort(descending=True).values)


def test_long_tail_of_few_and_of_missing_ones() -> None:
    labels = torch.tensor([0] * 2 + [1] * 8 + [3] * 8)
    kept = long_tail(labels, 4, 8, _generator())
    # 8, 4, 2 and 1 for four classes, but the first has only two items and the third none
    assert torch.bincount(labels[kept], minlength=4).tolist() == [2, 4, 0, 1]
    kept = long_tail(labels, 4, 1000, _generator())
    assert torch.bincount(labels[kept], minlength=4).tolist() == [2, 1, 0, 1]
    assert torch.equal(long_tail(labels, 4, 1, _generator()), torch.arange(18))
    assert torch.equal(long_tail(torch.zeros(3, dtype=torch.int64), 1, 50, _generator()), torch.arange(3))


def test_longer_tails_are_parts_of_shorter_ones() -> None:
    labels = torch.arange(400) % 4
    kept = [long_tail(labels, 4, factor, _generator()) for factor in (2, 20)]
    assert torch.isin(kept[1], kept[0]).all() and not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[1], long_tail(labels, 4, 20, _generator()))
    assert not torch.equal(kept[1], long_tail(labels, 4, 20, _generator(1)))
