"""Augmentations of single images that keep their size: RandAugment, colour jitter, random erasing.

Shapes: C channels, S side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.draws import drawing_from

_GRAY = 128
_LARGEST_SHIFT = 0.45
# mean and standard deviation of the noise in an erased rectangle, for images in [0, 1]
_NOISE_MEAN, _NOISE_STD = 0.5, 0.25


@dataclass(frozen=True)
class Appearance:
    """Augmentations of an image, applied in this order. Truthy if any is enabled.

    Args:
        randaugment: RandAugment policy in timm's notation; None: off.
        color_jitter: Largest relative change of brightness, contrast and saturation; 0 is off.
        erase_prob: Probability that a rectangle is replaced by noise.
    """

    randaugment: str | None = None
    color_jitter: float = 0.0
    erase_prob: float = 0.0

    @classmethod
    def from_config(cls, config: DataConfig) -> Appearance:
        """Create from the configuration."""
        return cls(config.randaugment, config.color_jitter, config.erase_prob)

    def __bool__(self) -> bool:
        return self.randaugment is not None or self.color_jitter > 0 or self.erase_prob > 0

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Augment an image with draws from ``generator``: uint8 (C, S, S), C 1 or 3."""
        if not self:
            return image
        with drawing_from(generator):
            if self.randaugment is not None:
                policy = _randaugment(self.randaugment, image.shape[0], max(image.shape[-2:]))
                image = _from_pil(policy(_to_pil(image)))
            if self.color_jitter > 0:
                image = _color_jitter(self.color_jitter)(image)
            if self.erase_prob > 0:
                image = _erased(image, self.erase_prob)
        return image


@lru_cache(maxsize=8)
def _randaugment(policy: str, channels: int, side: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    gray = _GRAY if channels == 1 else (_GRAY,) * channels
    return rand_augment_transform(policy, {"translate_const": int(_LARGEST_SHIFT * side), "img_mean": gray})


@lru_cache(maxsize=8)
def _color_jitter(strength: float) -> Any:
    # slow to import
    from torchvision.transforms.v2 import ColorJitter

    return ColorJitter(strength, strength, strength)


@lru_cache(maxsize=8)
def _erasing(probability: float) -> Any:
    from timm.data.random_erasing import RandomErasing

    return RandomErasing(probability, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]


def _erased(image: Tensor, probability: float) -> Tensor:
    # torchvision's noise is N(0, 1), meant for normalised images
    values = _erasing(probability)((image.float() / 255 - _NOISE_MEAN) / _NOISE_STD)
    pixels: Tensor = (values * _NOISE_STD + _NOISE_MEAN).clamp_(0, 1)
    return (pixels * 255).round_().to(torch.uint8)


def _to_pil(image: Tensor) -> Image.Image:
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def _from_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
