"""Augmentation of training images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gendd.data.appearance import Appearance
from gendd.data.augment import augment, draw_box, draw_flips
from gendd.data.decoding import frame, least_to_frame
from gendd.data.draws import keyed_generator
from gendd.data.images import ImageSet


@dataclass(frozen=True)
class Variation:
    """Augmentation of training images, and the key that determines every draw."""

    kind: str
    crop_scale: tuple[float, float]
    seed: int
    epoch: int
    interpolation: str = "bilinear"
    appearance: Appearance = field(default_factory=Appearance)
    framing: float | None = None

    @property
    def batchwise(self) -> bool:
        """Whether nothing has to be done image by image."""
        return not self.appearance and (self.kind != "resized-crop" or self.interpolation == "bilinear")

    def generator(self, *more: int | str) -> torch.Generator:
        return keyed_generator(self.seed, self.epoch, *more)

    def streamed(self, images: ImageSet, index: int, place: int) -> Tensor:
        """Decode one image and augment it with the draws of its ``place`` in the epoch: uint8 (C, S, S)."""
        size, generator = images.size, self.generator("image", place)
        if self.kind == "resized-crop":
            image = self._resized_crop(images, index, generator)
        else:
            framing = images.framing if self.framing is None else self.framing
            image = frame(images.original(index, least_to_frame(size, framing)), size, framing)
            image = augment(image[None], self.kind, generator)[0]
        return self.appearance(image, generator)

    def _resized_crop(self, images: ImageSet, index: int, generator: torch.Generator) -> Tensor:
        # slow to import
        from torchvision.transforms.v2 import functional as VF

        def drawn(height: int, width: int) -> tuple[int, int, int, int]:
            return draw_box(height, width, self.crop_scale, generator)

        # so that even the smallest crop has as many pixels as its resized version
        least = math.ceil(images.size / math.sqrt(self.crop_scale[0]))
        mode = VF.InterpolationMode(self.interpolation)
        crop: Tensor = VF.resize(
            images.original(index, least, drawn), [images.size] * 2, interpolation=mode, antialias=True
        )
        return crop.flip(-1) if bool(draw_flips(1, generator)) else crop
