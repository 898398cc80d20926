"""Mixing against timm with the same draws, and against results computed by hand."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from gendd.config import DataConfig
from gendd.data import Mixing
from gendd.data.draws import drawing_from

CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 6, side: int = 16) -> tuple[Tensor, Tensor]:
    images = torch.rand((count, 3, side, side), generator=generator(7))
    return images, torch.arange(count) % CLASSES


def mixed(mixing: Mixing, images: Tensor, labels: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    out, soft = mixing(images, labels, generator(seed))
    assert soft is not None
    return out, soft


def weight_of(out: Tensor, images: Tensor) -> float:
    """Of mixup's images, by least squares."""
    other = images.flip(0)
    return float(((out - other) * (images - other)).sum() / (images - other).square().sum())


# --- the global generators ---


def test_the_global_generators_follow_one_draw_and_are_as_before() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = draw()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    source = generator(4)
    with drawing_from(source):
        first = draw()
    with drawing_from(source):
        assert draw() != first
    assert draw() == expected
    state = random.getstate()
    with pytest.raises(ZeroDivisionError), drawing_from(source):
        raise ZeroDivisionError
    assert random.getstate() == state
    with drawing_from(generator(4)):
        assert draw() == first


# --- timm ---


@pytest.mark.parametrize("mixup, cutmix", [(0.2, 0.0), (0.0, 1.0), (0.1, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("prob, smoothing", [(1.0, 0.0), (0.6, 0.1)])
def test_mixing_is_timms_under_equal_draws(
    mixup: float, cutmix: float, prob: float, smoothing: float
) -> None:
    mixing = Mixing(CLASSES, mixup, cutmix, prob, 0.4, smoothing)
    reference = Mixup(
        mixup, cutmix, prob=prob, switch_prob=0.4, label_smoothing=smoothing, num_classes=CLASSES
    )
    images, labels = batch()
    kinds = set()
    for seed in range(30):
        with drawing_from(generator(seed)):
            wanted, targets = reference(images.clone(), labels)
        out, soft = mixed(mixing, images, labels, seed)
        assert torch.equal(out, wanted)
        torch.testing.assert_close(soft, targets, rtol=0, atol=2e-7)
        changed = (out != images).any(1)
        kinds.add("none" if not changed.any() else "mixup" if changed.all() else "cutmix")
    wanted_kinds = {"mixup"} if mixup else set()
    assert kinds - {"none"} == wanted_kinds | ({"cutmix"} if cutmix else set())
    assert ("none" in kinds) >= (prob < 1)


# --- by hand ---


def test_mixups_labels_weigh_as_its_images_do() -> None:
    images, labels = batch()
    for seed in range(10):
        out, soft = mixed(Mixing(CLASSES, mixup=1.0), images, labels, seed)
        weight = weight_of(out, images)
        hard = torch.eye(CLASSES)[labels]
        torch.testing.assert_close(out, weight * images + (1 - weight) * images.flip(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(soft, weight * hard + (1 - weight) * hard.flip(0), rtol=0, atol=1e-5)


def test_cutmixs_labels_weigh_by_area() -> None:
    # image i is filled with i, so that pasted pixels can be counted
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 10, 14).contiguous()
    for seed in range(20):
        out, soft = mixed(Mixing(4, cutmix=1.0), images, torch.arange(4), seed)
        for index in range(4):
            own = (out[index] == index).float().mean()
            pasted = (out[index] == 3 - index).float().mean()
            assert own + pasted == pytest.approx(1)
            assert float(soft[index, index]) == pytest.approx(float(own), abs=1e-6)
            assert float(soft[index, 3 - index]) == pytest.approx(float(pasted), abs=1e-6)
        # the same box in all of them
        assert all(torch.equal(out[0] == 3, out[index] == 3 - index) for index in range(4))


def test_smoothing_by_hand() -> None:
    images, labels = batch(3)
    mixing = Mixing(CLASSES, label_smoothing=0.1)
    out, soft = mixed(mixing, images, labels)
    assert out is images
    torch.testing.assert_close(soft, 0.9 * torch.eye(CLASSES)[:3] + 0.02)
    assert soft.dtype == torch.float32
    given = torch.tensor([[0.5, 0.5, 0, 0, 0]]).double()
    _, soft = mixed(mixing, images[:1], given)
    torch.testing.assert_close(soft, torch.tensor([[0.47, 0.47, 0.02, 0.02, 0.02]]))


def test_soft_labels_mix_as_their_hard_ones() -> None:
    images, labels = batch()
    mixing = Mixing(CLASSES, 0.3, 1.0, label_smoothing=0.2)
    for seed in range(5):
        out, soft = mixed(mixing, images, labels, seed)
        same, softer = mixed(mixing, images, torch.eye(CLASSES)[labels], seed)
        assert torch.equal(out, same) and torch.equal(soft, softer)


def test_the_middle_of_an_odd_batch_meets_itself() -> None:
    images, labels = batch(5)
    for mixing in (Mixing(CLASSES, mixup=1.0), Mixing(CLASSES, cutmix=1.0)):
        out, soft = mixed(mixing, images, labels)
        torch.testing.assert_close(out[2], images[2])
        torch.testing.assert_close(soft[2], torch.eye(CLASSES)[2])
        assert not torch.equal(out[0], images[0])
    assert mixed(Mixing(CLASSES, mixup=1.0), images[:1], labels[:1])[1].argmax() == 0


# --- properties ---


def test_without_labels_the_images_are_the_same() -> None:
    images, labels = batch()
    for mixing in (Mixing(CLASSES, mixup=1.0, label_smoothing=0.1), Mixing(CLASSES, cutmix=1.0)):
        out, none = mixing(images, None, generator(3))
        assert none is None and not torch.equal(out, images)
        assert torch.equal(out, mixed(mixing, images, labels, 3)[0])


def test_switched_off_nothing_is_touched_or_drawn() -> None:
    images, labels = batch()
    source = generator(1)
    before = source.get_state()
    out, same = Mixing(CLASSES)(images, labels, source)
    assert out is images and same is labels and torch.equal(source.get_state(), before)


@pytest.mark.parametrize("given", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_draws_are_the_generators_and_the_input_is_kept(given: dict[str, Any]) -> None:
    images, labels = batch()
    kept = copy.deepcopy((images, labels))
    mixing = Mixing(CLASSES, **given)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.random.get_rng_state()  # type: ignore[index, union-attr]
    first = mixed(mixing, images, labels, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, mixed(mixing, images, labels, 1), strict=True))
    assert not torch.equal(first[0], mixed(mixing, images, labels, 2)[0])
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_the_memory_format_stays() -> None:
    images = batch()[0].contiguous(memory_format=torch.channels_last)
    for mixing in (Mixing(CLASSES, mixup=1.0), Mixing(CLASSES, cutmix=1.0)):
        out, _ = mixing(images, None, generator())
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_share_of_cutmix_and_of_unmixed_batches() -> None:
    images = batch(2, 8)[0]
    mixing = Mixing(CLASSES, 1.0, 1.0, prob=0.5, switch_prob=0.8)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(1000):
        changed = (mixing(images, None, generator(seed))[0] != images).all(1)
        kinds["mixup" if changed.all() else "cutmix" if changed.any() else "none"] += 1
    # a few boxes are of no pixel, or of all
    assert kinds["none"] == pytest.approx(500, abs=60)
    assert kinds["mixup"] == pytest.approx(100, abs=40) and kinds["cutmix"] == pytest.approx(400, abs=60)


def test_the_configuration_reaches_it() -> None:
    config = DataConfig(mixup=0.1, cutmix=1.0, mixup_prob=0.9, mixup_switch_prob=0.3, label_smoothing=0.2)
    assert Mixing.from_config(config, 7) == Mixing(7, 0.1, 1.0, 0.9, 0.3, 0.2)
    assert Mixing.from_config(DataConfig(), 7) == Mixing(7)
