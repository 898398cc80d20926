"""Crops and flips against results computed by hand or by torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from gendd.data import augment
from gendd.data.augment import draw_box, draw_boxes, padded_crop, resized_crop


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int, channels: int = 3, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, channels, side, side), generator=_generator(9)).to(torch.uint8)


def test_padded_crop_of_known_offsets() -> None:
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2).repeat(4, 1, 1, 1)
    offsets = torch.tensor([[1, 1], [0, 0], [2, 1], [0, 1]])
    flips = torch.tensor([False, False, False, True])
    out = padded_crop(image, 1, offsets, flips)
    assert out[:, 0].tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 1]], [[3, 4], [0, 0]], [[0, 0], [2, 1]]]
    assert out.dtype == torch.uint8


def test_padded_crop_is_torchvisions_pad_crop_and_flip() -> None:
    images = _images(20)
    offsets = torch.randint(0, 5, (20, 2), generator=_generator(1))
    flips = torch.arange(20) % 2 == 0
    out = padded_crop(images, 2, offsets, flips)
    for image, (top, left), flip, got in zip(images, offsets.tolist(), flips, out, strict=True):
        expected = VF.crop(VF.pad(image, [2]), top, left, 16, 16)
        assert torch.equal(got, VF.horizontal_flip(expected) if flip else expected)


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_resized_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    images = torch.rand((40, 3, *shape), generator=_generator(2))
    boxes = draw_boxes(40, *shape, (0.08, 1.0), _generator(3))
    flips = torch.arange(40) % 3 == 0
    out = resized_crop(images, boxes, flips)
    for image, box, flip, got in zip(images, boxes.tolist(), flips, out, strict=True):
        expected = VF.resized_crop(image, *box, list(shape), antialias=True)
        torch.testing.assert_close(
            got, VF.horizontal_flip(expected) if flip else expected, atol=1e-5, rtol=1e-5
        )


def test_resized_crop_of_uint8_is_within_rounding_of_torchvisions() -> None:
    images = _images(10)
    boxes = draw_boxes(10, 16, 16, (0.2, 0.6), _generator(3))
    out = resized_crop(images, boxes, torch.zeros(10, dtype=torch.bool))
    assert out.dtype == torch.uint8
    for image, box, got in zip(images, boxes.tolist(), out, strict=True):
        expected = VF.resized_crop(image, *box, [16, 16], antialias=True)
        assert (got.int() - expected.int()).abs().max() <= 1


def test_boxes_keep_to_image_area_and_ratio() -> None:
    boxes = draw_boxes(4000, 100, 100, (0.25, 0.5), _generator()).double()
    top, left, tall, wide = boxes.unbind(1)
    assert (top >= 0).all() and (top + tall <= 100).all()
    assert (left >= 0).all() and (left + wide <= 100).all()
    area, ratio = tall * wide / 1e4, wide / tall
    assert 0.24 < area.min() < 0.27 and 0.48 < area.max() < 0.51
    assert abs(area.mean() - 0.375) < 0.01
    assert 0.73 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.37
    assert abs(ratio.log().mean()) < 0.02
    assert abs((top / (100 - tall).clamp(min=1)).mean() - 0.5) < 0.05


def test_box_of_a_strip_falls_back_to_its_centre() -> None:
    # No box of ratio 3/4 to 4/3 has half the area of a 10 x 100 strip.
    boxes = draw_boxes(5, 10, 100, (0.5, 1.0), _generator())
    assert boxes.tolist() == [[0, 43, 10, 13]] * 5
    assert draw_boxes(1, 100, 10, (0.5, 1.0), _generator()).tolist() == [[43, 0, 13, 10]]


def test_none_leaves_images_alone() -> None:
    images = _images(3)
    assert torch.equal(augment(images, "none", _generator()), images)


@pytest.mark.parametrize("side, padding", [(4, 1), (8, 1), (28, 3), (32, 4)])
def test_crop_pads_by_an_eighth_and_reaches_every_offset(side: int, padding: int) -> None:
    # A single lit pixel in the middle reveals the offset.
    images = torch.zeros((2000, 1, side, side), dtype=torch.uint8)
    images[:, :, side // 2, side // 2] = 1
    seen = augment(images, "crop", _generator()).sum((0, 1)).nonzero()
    low, high = seen.min(0).values.tolist(), seen.max(0).values.tolist()
    assert low == [side // 2 - padding] * 2 and high == [min(side // 2 + padding, side - 1)] * 2


@pytest.mark.parametrize("kind, expected", [("crop", 0.0), ("crop-flip", 0.5), ("resized-crop", 0.5)])
def test_share_of_flips(kind: str, expected: float) -> None:
    # Brightness increases to the right, so the sign of its slope reveals a flip.
    images = (torch.arange(16) * 10 + 50).to(torch.uint8).expand(2000, 1, 16, 16)
    out = augment(images, kind, _generator()).float()[:, 0, 4:12]
    flipped = out[..., 5] > out[..., 9]
    assert torch.equal(flipped.all(1), flipped.any(1))
    assert abs(flipped.all(1).float().mean().item() - expected) < 0.05


@pytest.mark.parametrize("kind", ["crop", "crop-flip", "resized-crop"])
def test_draws_are_the_generators(kind: str) -> None:
    images = _images(8)
    before = torch.random.get_rng_state()
    first = augment(images, kind, _generator(4))
    assert torch.equal(first, augment(images, kind, _generator(4)))
    assert not torch.equal(first, augment(images, kind, _generator(5)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.shape == images.shape and first.dtype == images.dtype


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="got 'cutout'"):
        augment(_images(1), "cutout", _generator())


@pytest.mark.parametrize("shape", [(375, 500), (32, 32), (10, 100), (100, 10), (1, 1)])
def test_one_box_is_that_of_many(shape: tuple[int, int]) -> None:
    for seed in range(50):
        one, many = _generator(seed), _generator(seed)
        box = draw_box(*shape, (0.08, 1.0), one)
        assert draw_boxes(1, *shape, (0.08, 1.0), many).tolist() == [[*box]]
        # and leaves the generator in the same state
        assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=many))
