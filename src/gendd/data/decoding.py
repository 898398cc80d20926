"""From the bytes of an image to pixels of the wanted size.

Shapes: C channels, S side, h height and w width before resizing.
"""

from __future__ import annotations

import io
import math
import platform
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from gendd.errors import UserError

_GRAY_MODES = {"1", "L", "LA", "I", "F"}
# EXIF's tag, and the least of its values that exchange height and width
_ORIENTATION, _LYING = 0x0112, 5
# times the shorter side: how much of a longer one is resized
_LONG = 8
# those that Pillow decodes by itself: for EPS and the like it starts other programs
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
# what Pillow's decoders raise at damaged files
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# images resized at once
_CHUNK = 256

# of an image of a height and a width: top, left, height and width of the part of it that is wanted
Cut = Callable[[int, int], tuple[int, int, int, int]]


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened, of those that this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(
    data: bytes, where: str, channels: int, least: int | None = None, cut: Cut | None = None
) -> Tensor:
    """Decode one image to gray (1 channel) or RGB (3).

    Args:
        data: The encoded image.
        where: What errors call it.
        channels: C.
        least: A JPEG may come at a half, a quarter or an eighth of its size, which is decoded in a third of
            the time, where its shorter side keeps so many pixels; None: at its size.
        cut: Gives the part of the upright image that is wanted; None: all of it.

    Returns:
        uint8 (C, h, w), of the part.

    Raises:
        UserError: not an image; ``where`` names it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if least is not None:
                image.draft(None, (least, least))
            array = _values(image, channels, cut)
    except _PILLOW_ERRORS as error:
        raise _not_an_image(where) from error
    pixels = torch.from_numpy(array)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _values(image: Image.Image, channels: int, cut: Cut | None) -> NDArray[np.uint8]:
    """uint8 (h, w) for one channel, (h, w, 3) for three, upright; of a part."""
    ImageOps.exif_transpose(image, in_place=True)
    part = None if cut is None else cut(image.height, image.width)
    if image.mode == ("L" if channels == 1 else "RGB"):
        # nothing is converted, nor is more than the part copied
        return np.array(image if part is None else image.crop(_box(*part)))
    values = _converted(image, channels)
    if part is None:
        return values
    top, left, height, width = part
    return values[top : top + height, left : left + width]


def _box(top: int, left: int, height: int, width: int) -> tuple[int, int, int, int]:
    """As Pillow has it: left, top, right, bottom."""
    return left, top, left + width, top + height


def _converted(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        values = np.asarray(image).astype(np.float32)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError("numbers of an unknown range")
        # floats of at most 1 are shares, whatever else is a gray value
        scale = 255 if image.mode == "F" and values.max() <= 1 else 1
        whole = (values * scale).round().astype(np.uint8)
        return whole if channels == 1 else np.repeat(whole[:, :, None], 3, 2)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit gray to its lowest 256 values.
        gray = (np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8)
        return gray if channels == 1 else np.repeat(gray[:, :, None], 3, 2)
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns when such a palette is converted in one step.
        return np.array(image.convert("RGBA").convert("L" if channels == 1 else "RGB"))
    return np.array(image.convert("L" if channels == 1 else "RGB"))


def _not_an_image(where: str) -> UserError:
    return UserError(f"Expected an image, got {where}, which can't be decoded; replace or remove it.")


def header(data: bytes, where: str) -> tuple[int, int, bool]:
    """Height, width and whether it is gray, of an encoded image; raises as :func:`decode`."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            gray = image.mode.split(";")[0] in _GRAY_MODES
            if image.getexif().get(_ORIENTATION, 1) >= _LYING:
                return image.width, image.height, gray
            return image.height, image.width, gray
    except _PILLOW_ERRORS as error:
        raise _not_an_image(where) from error


def least_to_frame(size: int, framing: float = 1.0) -> int:
    """Pixels of the shorter side that :func:`frame` makes as good an image of: twice what is left of it."""
    return math.ceil(2 * size / framing)


def frame(image: Tensor, size: int, framing: float = 1.0) -> Tensor:
    """Resize the shorter side and crop the centre: (C, h, w) → (C, size, size), dtype kept.

    ``framing`` is the part of the shorter side that is kept. It applies only where the image is
    large enough for it; smaller ones are resized whole.
    """
    height, width = image.shape[-2:]
    if height == width == size:
        return image
    wanted = round(size / framing)
    short = wanted if min(height, width) >= wanted else size
    side = min(height, width)
    if max(height, width) > _LONG * side:
        # only the middle is kept: the rest of a very long image would be resized for nothing
        height, width = min(height, _LONG * side), min(width, _LONG * side)
        image = _centre(image, height, width)
    scaled = [short, int(short * width / height)] if height <= width else [int(short * height / width), short]
    return _centre(_resized(image, scaled), size, size)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    """The middle of an image at least as large, as torchvision's center_crop has it."""
    top, left = (
        round((all_ - part) / 2) for all_, part in zip(image.shape[-2:], (height, width), strict=True)
    )
    return image[..., top : top + height, left : left + width]


def _resized(image: Tensor, size: list[int]) -> Tensor:
    """A uint8 image (C, h, w), or several, of another size, bilinear with antialiasing.

    As torchvision's resize does it, bit by bit: importing that takes as long as PyTorch itself.
    """
    if [*image.shape[-2:]] == size:
        return image
    batch = image if image.dim() == 4 else image[None]
    whole = image.dtype == torch.uint8 and not _resizes_bytes()
    out = F.interpolate(
        batch.float() if whole else batch, size, mode="bilinear", align_corners=False, antialias=True
    )
    out = out.round_().to(torch.uint8) if whole else out
    return out.reshape(*image.shape[:-2], *size)


@cache
def _resizes_bytes() -> bool:
    """Whether PyTorch resizes uint8 faster than float32 here."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast or platform.machine() in ("aarch64", "arm64")


def resize_pixels(pixels: Tensor, size: int) -> Tensor:
    """Resize square uint8 images in memory: (N, C, S, S) → (N, C, size, size)."""
    if pixels.shape[-1] == size:
        return pixels
    return torch.cat([_resized(part, [size, size]) for part in torch.split(pixels, _CHUNK)])
