from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data import load_data
from gendd.evaluation.long_tail import Shots, in_words, shots_of

# 101 images are many, 100 and 20 a medium number, 19 and 0 few
COUNTS = torch.tensor([101, 100, 20, 19, 0])


def _confusion() -> Tensor:
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    for true, right, wrong in ((0, 3, 1), (1, 10, 0), (2, 0, 2), (3, 1, 1), (4, 0, 4)):
        confusion[true, true] = right
        confusion[true, 5] = wrong
    return confusion


def test_groups_by_training_images() -> None:
    masks = Shots(COUNTS).masks()
    assert {name: mask.nonzero()[:, 0].tolist() for name, mask in masks.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3, 4],
    }
    assert Shots(COUNTS, few=1, many=19).masks()["few"].tolist() == [False] * 4 + [True]


def test_accuracy_is_over_images_not_over_classes() -> None:
    groups = Shots(COUNTS).accuracy(_confusion())
    assert groups == {
        "many": {"top1": 75.0, "classes": 1, "images": 4},
        # 10 of 12 images, where the mean over the two classes would be 50
        "medium": {"top1": 83.33, "classes": 2, "images": 12},
        "few": {"top1": 16.67, "classes": 2, "images": 6},
    }
    assert in_words(groups) == "many (1 class) 75.00 %   medium (2 classes) 83.33 %   few (2 classes) 16.67 %"


def test_a_group_without_images_has_no_accuracy() -> None:
    groups = Shots(torch.tensor([500, 50])).accuracy(torch.tensor([[1, 1], [0, 0]]))
    assert groups["medium"] == {"top1": None, "classes": 1, "images": 0}
    assert groups["few"] == {"top1": None, "classes": 0, "images": 0}
    assert in_words(groups) == "many (1 class) 50.00 %"


@pytest.mark.parametrize("share", [1, 3])
def test_shares_of_the_test_set_add_up(share: int) -> None:
    shots, confusion = Shots(COUNTS), _confusion()
    assert shots.accuracy(confusion * share)["few"]["images"] == 6 * share
    assert shots.accuracy(confusion * share)["few"]["top1"] == shots.accuracy(confusion)["few"]["top1"]


def test_when_groups_are_told() -> None:
    config = DataConfig()
    data = load_data(config)
    assert shots_of(data, config) is None
    asked = replace(config, shot_thresholds=(5, 130))
    found = shots_of(data, asked)
    assert found is not None and (found.few, found.many) == (5, 130)
    tail = replace(config, imbalance=10.0)
    found = shots_of(load_data(tail), tail)
    assert found is not None and (found.few, found.many) == (20, 100)
    assert int(found.counts.sum()) == len(load_data(tail).train)
    unlabelled = replace(data, test=replace(data.test, labels=None))
    assert shots_of(unlabelled, asked) is None
    unlabelled = replace(data, train=replace(data.train, labels=None))
    assert shots_of(unlabelled, asked) is None
