"""Single-image augmentations against their original libraries, with the same draws."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from gendd.config import DataConfig
from gendd.data.appearance import Appearance
from gendd.data.draws import drawing_from

POLICY = "rand-m7-n2-mstd0.5"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(channels: int = 3, side: int = 24) -> Tensor:
    # smooth, so that blending changes every pixel
    ramp = torch.linspace(20, 220, side)
    rows = torch.stack(
        [ramp[:, None].expand(side, side), ramp.expand(side, side), ramp.flip(0).expand(side, side)]
    )
    return rows[:channels].round().to(torch.uint8).contiguous()


def test_randaugment_is_timms_under_equal_draws() -> None:
    pixels = image()
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    policy = rand_augment_transform(POLICY, {"translate_const": 10, "img_mean": (128, 128, 128)})
    changed = 0
    for seed in range(30):
        with drawing_from(generator(seed)):
            wanted = torch.from_numpy(np.array(policy(picture))).permute(2, 0, 1)
        out = Appearance(randaugment=POLICY)(pixels, generator(seed))
        assert torch.equal(out, wanted)
        changed += not torch.equal(out, pixels)
    assert changed > 10


@pytest.mark.parametrize(
    "policy", [POLICY, "rand-m9-mstd101-inc1-n3-p1.0", "rand-tweights", "rand-t3a-mmax20"]
)
def test_every_operation_takes_gray_images(policy: str) -> None:
    pixels = image(1)
    for seed in range(60):
        out = Appearance(randaugment=policy)(pixels, generator(seed))
        assert out.shape == pixels.shape and out.dtype == torch.uint8
    assert torch.equal(pixels, image(1))


def test_color_jitter_blends_by_factors_in_its_range() -> None:
    pixels = image()
    flat = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = []
    for seed in range(200):
        # contrast and saturation don't change a uniform gray, so only brightness remains
        out = Appearance(color_jitter=0.4)(flat, generator(seed))
        assert out.unique().numel() == 1
        values.append(int(out[0, 0, 0]))
    assert 58 <= min(values) < 63 and 137 < max(values) <= 140  # each blend rounds down
    assert float(np.mean(values)) == pytest.approx(100, abs=5)
    with drawing_from(generator(5)):
        order = torch.randperm(4).tolist()
        factors = [float(torch.empty(1).uniform_(0.6, 1.4)) for _ in range(3)]
    wanted = pixels
    blends = (VF.adjust_brightness, VF.adjust_contrast, VF.adjust_saturation)
    for index in order:
        if index < 3:
            wanted = blends[index](wanted, factors[index])
    assert torch.equal(Appearance(color_jitter=0.4)(pixels, generator(5)), wanted)


def test_erasing_replaces_one_rectangle_by_noise() -> None:
    pixels = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    noise, areas = [], []
    for seed in range(200):
        out = Appearance(erase_prob=1.0)(pixels, generator(seed))
        changed = (out != 7).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # the noise practically never equals 7 in all three channels
        assert box.float().mean() > 0.95
        areas.append(box.numel() / changed.numel())
        noise.append(out[:, changed].flatten())
    assert (
        min(areas) > 0.015 and max(areas) < 0.35 and float(np.mean(areas)) == pytest.approx(0.177, abs=0.02)
    )
    values = torch.cat(noise).float() / 255
    # clipping at two deviations takes a little off both tails
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(values.std()) == pytest.approx(0.24, abs=0.01)
    assert (values == 0).float().mean() == pytest.approx(0.0228 + 0.001, abs=0.004)


def test_the_share_of_erased_images() -> None:
    pixels = image()
    erased = [
        not torch.equal(Appearance(erase_prob=0.25)(pixels, generator(seed)), pixels) for seed in range(400)
    ]
    assert float(np.mean(erased)) == pytest.approx(0.25, abs=0.06)


def test_what_is_not_erased_stays_exactly() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    out = Appearance(erase_prob=1e-12)(pixels, generator())
    assert torch.equal(out, pixels)


@pytest.mark.parametrize(
    "appearance",
    [Appearance(randaugment="rand-p1.0"), Appearance(color_jitter=0.4), Appearance(erase_prob=1.0)],
)
def test_draws_are_the_generators(appearance: Appearance) -> None:
    assert appearance
    pixels = image()
    python, legacy, state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    first = appearance(pixels, generator(1))
    assert torch.equal(first, appearance(pixels, generator(1)))
    assert any(not torch.equal(first, appearance(pixels, generator(seed))) for seed in (2, 3))
    assert torch.equal(pixels, image())
    assert random.getstate() == python and torch.equal(torch.random.get_rng_state(), state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), legacy, strict=True))  # type: ignore[arg-type]


def test_switched_off_nothing_is_touched_or_drawn() -> None:
    off, source, pixels = Appearance(), generator(), image()
    before = source.get_state()
    assert not off and off(pixels, source) is pixels and torch.equal(source.get_state(), before)


def test_the_configuration_reaches_it() -> None:
    config = DataConfig(randaugment=POLICY, color_jitter=0.4, erase_prob=0.25)
    assert Appearance.from_config(config) == Appearance(POLICY, 0.4, 0.25)
    assert Appearance.from_config(replace(config, randaugment=None)).randaugment is None
    assert Appearance.from_config(DataConfig()) == Appearance()
