"""Augmentation of whole batches, on any device, from an explicit generator.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclass(frozen=True)
class Draws:
    """Augmentation parameters of n images; drawn for a whole epoch at once, independent of its batches.

    Args:
        flips: (n,) bool: mirror left to right.
        offsets: (n, 2) top and left of same-size crops from images padded by ``padding``; None: none.
        boxes: (n, 4) top, left, height and width of resized crops; None: none.
        padding: Pixels on each side.
    """

    flips: Tensor
    offsets: Tensor | None = None
    boxes: Tensor | None = None
    padding: int = 0

    def of(self, rows: Tensor) -> Draws:
        """Select the parameters of some of the images."""
        offsets, boxes = (None if each is None else each[rows] for each in (self.offsets, self.boxes))
        return Draws(self.flips[rows], offsets, boxes, self.padding)

    def to(self, device: torch.device) -> Draws:
        """Move the parameters to a device."""
        offsets, boxes = (None if each is None else each.to(device) for each in (self.offsets, self.boxes))
        return Draws(self.flips.to(device), offsets, boxes, self.padding)

    def __call__(self, images: Tensor) -> Tensor:
        """Augment (n, C, H, W); shape, dtype and device are kept."""
        if self.offsets is not None:
            return padded_crop(images, self.padding, self.offsets, self.flips)
        if self.boxes is not None:
            return resized_crop(images, self.boxes, self.flips)
        return images


def draw(
    kind: str,
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    crop_scale: tuple[float, float] = (0.08, 1.0),
) -> Draws:
    """Draw independent augmentation parameters for ``count`` images of one size (H, W).

    Args:
        kind: See :func:`augment`.
        count: Number of images.
        size: H, W.
        generator: Source of the draws, which are made on its device.
        crop_scale: See :func:`augment`.

    Raises:
        ValueError: an unknown ``kind``.
    """
    if kind in ("crop", "crop-flip"):
        padding = max(1, max(size) // 8)
        offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator, device=generator.device)
        return Draws(draw_flips(count, generator, kind == "crop-flip"), offsets, padding=padding)
    if kind == "resized-crop":
        boxes = draw_boxes(count, *size, crop_scale, generator)
        return Draws(draw_flips(count, generator), boxes=boxes)
    if kind == "none":
        return Draws(draw_flips(count, generator, enabled=False))
    raise ValueError(f"augment: expected none, crop, crop-flip or resized-crop, got {kind!r}.")


def augment(
    images: Tensor,
    kind: str,
    generator: torch.Generator,
    crop_scale: tuple[float, float] = (0.08, 1.0),
) -> Tensor:
    """Augment each image of a batch independently.

    Args:
        images: (B, C, H, W), uint8 or floating point; any device.
        kind: ``none``; ``crop``: crop to the same size after zero padding by an eighth of the side
            (at least one pixel); ``crop-flip``: that and a horizontal flip with probability 1/2;
            ``resized-crop``: random area and ratio, resized back, and the same flip.
        generator: Source of the draws. They are made on its own device, so a CPU generator gives
            the same result wherever the images are.
        crop_scale: Range of the area of a resized crop, as a fraction of the image.

    Returns:
        (B, C, H, W), dtype and device of ``images``.

    Raises:
        ValueError: an unknown ``kind``.
    """
    height, width = images.shape[-2:]
    return draw(kind, len(images), (height, width), generator, crop_scale)(images)


def draw_flips(count: int, generator: torch.Generator, enabled: bool = True) -> Tensor:
    """Draw (count,) bool: which images to flip, each with probability 1/2; none unless ``enabled``."""
    if not enabled:
        return torch.zeros(count, dtype=torch.bool, device=generator.device)
    return torch.rand(count, generator=generator, device=generator.device) < 0.5


def padded_crop(images: Tensor, padding: int, offsets: Tensor, flips: Tensor) -> Tensor:
    """Zero pad, crop back to the original size, then mirror.

    Args:
        images: (B, C, H, W).
        padding: Pixels added on each side.
        offsets: (B, 2) integers in [0, 2 · padding]: top and left of each crop in the padded image.
        flips: (B,) bool: mirror left to right.
    """
    count, channels, height, width = images.shape
    device = images.device
    offsets, flips = offsets.to(device), flips.to(device)
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = offsets[:, 0, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    columns = offsets[:, 1, None] + torch.where(flips[:, None], width - 1 - columns, columns)
    # A single gather over flat pixels does both crop and mirror.
    pixels = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
    flat = pixels.view(count, 1, height * width).expand(count, channels, height * width)
    return padded.view(count, channels, -1).gather(2, flat).view(count, channels, height, width)


def draw_boxes(
    count: int, height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Crop boxes distributed as in torchvision's RandomResizedCrop (ratio 3/4 to 4/3, ten attempts).

    Args:
        count: Number of boxes.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        scale: Range of the box's area as a fraction of the image's.
        generator: Source of the draws.

    Returns:
        (count, 4) int64: top, left, height, width.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    low, high = scale
    area = height * width * (low + (high - low) * uniform(count, _ATTEMPTS))
    log_low, log_high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = (log_low + (log_high - log_low) * uniform(count, _ATTEMPTS)).exp()
    heights = (area / ratio).sqrt().round().long()
    widths = (area * ratio).sqrt().round().long()
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = fits.int().argmax(1, keepdim=True)
    full_height, full_width = _largest_box(height, width)
    found = fits.any(1)
    tall = torch.where(found, heights.gather(1, first)[:, 0], full_height)
    wide = torch.where(found, widths.gather(1, first)[:, 0], full_width)
    place = uniform(2, count)
    # If no attempt fitted, take the largest box from the centre.
    top = torch.where(found, (place[0] * (height - tall + 1)).long(), (height - full_height) // 2)
    left = torch.where(found, (place[1] * (width - wide + 1)).long(), (width - full_width) // 2)
    return torch.stack([top, left, tall, wide], 1)


def draw_box(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """One box of :func:`draw_boxes` with the same draws, in a tenth of the time: top, left, height, width."""
    areas, ratios = (torch.rand(_ATTEMPTS, generator=generator).tolist() for _ in range(2))
    down, right = torch.rand(2, generator=generator).tolist()
    low, high = scale
    log_low, log_high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for share, skew in zip(areas, ratios, strict=True):
        area = height * width * (low + (high - low) * share)
        ratio = math.exp(log_low + (log_high - log_low) * skew)
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 1 <= tall <= height and 1 <= wide <= width:
            return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
    tall, wide = _largest_box(height, width)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _largest_box(height: int, width: int) -> tuple[int, int]:
    low, high = _RATIO
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width


def resized_crop(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Crop each image to its box, resize the crop bilinearly to the image's size, then mirror.

    A crop is never larger than its image, so nothing is scaled down and no antialiasing is needed.

    Args:
        images: (B, C, H, W).
        boxes: (B, 4) integers inside the image: top, left, height, width.
        flips: (B,) bool: mirror left to right.
    """
    height, width = images.shape[-2:]
    device = images.device
    top, left, tall, wide = boxes.to(device, torch.float32).unbind(1)
    columns = _sample_points(left, wide, width)
    columns = torch.where(flips.to(device)[:, None], columns.flip(1), columns)
    rows = _sample_points(top, tall, height)
    shape = (len(images), height, width)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], 3)
    pixels = images if images.is_floating_point() else images.float()
    out = F.grid_sample(
        pixels, grid.to(pixels.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )
    return out if images.is_floating_point() else out.round_().to(images.dtype)


def _sample_points(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return the positions of the ``size`` output pixels on one axis: (B, size) in grid_sample's [-1, 1]."""
    steps = (torch.arange(size, device=start.device) + 0.5) / size
    inside = steps * length[:, None] - 0.5
    # Clamped to the crop's own edge pixels, so that no pixels outside the crop are used.
    inside = torch.minimum(inside.clamp(min=0), length[:, None] - 1)
    return (2 * (start[:, None] + inside) + 1) / size - 1
