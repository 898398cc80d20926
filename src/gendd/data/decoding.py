"""Decode images and resize them.

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
# EXIF's orientation tag, and its smallest value that swaps height and width
_ORIENTATION, _LYING = 0x0112, 5
# at most this multiple of the shorter side is resized of the longer one
_LONG = 8
# formats that Pillow decodes itself; for EPS and the like it starts other programs
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000", "AVIF")
# exceptions of Pillow's decoders for damaged files
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
# images resized at a time
_CHUNK = 256

# from height and width of an image to top, left, height and width of the crop
Cut = Callable[[int, int], tuple[int, int, int, int]]


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats to open, as far as this Pillow supports them."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(
    data: bytes, where: str, channels: int, least: int | None = None, cut: Cut | None = None
) -> Tensor:
    """Decode one image to gray (1 channel) or RGB (3).

    Args:
        data: The encoded image.
        where: Name of the image in error messages.
        channels: C.
        least: Allow decoding a JPEG at a half, a quarter or an eighth of its size, which takes a third of the
            time, as long as its shorter side keeps this many pixels; None: full size.
        cut: Returns the crop of the upright image; None: all of it.

    Returns:
        uint8 (C, h, w), the crop.

    Raises:
        UserError: not an image; the message contains ``where``.
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
    """Return uint8 (h, w) for one channel, (h, w, 3) for three, upright and cropped."""
    ImageOps.exif_transpose(image, in_place=True)
    part = None if cut is None else cut(image.height, image.width)
    if image.mode == ("L" if channels == 1 else "RGB"):
        # no conversion, and only the crop is copied
        return np.array(image if part is None else image.crop(_box(*part)))
    values = _converted(image, channels)
    if part is None:
        return values
    top, left, height, width = part
    return values[top : top + height, left : left + width]


def _box(top: int, left: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Convert to Pillow's order: left, top, right, bottom."""
    return left, top, left + width, top + height


def _converted(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        values = np.asarray(image).astype(np.float32)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
            raise ValueError("numbers of an unknown range")
        # floats of at most 1 are fractions, all others gray values
        scale = 255 if image.mode == "F" and values.max() <= 1 else 1
        whole = (values * scale).round().astype(np.uint8)
        return whole if channels == 1 else np.repeat(whole[:, :, None], 3, 2)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit gray to 255.
        gray = (np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8)
        return gray if channels == 1 else np.repeat(gray[:, :, None], 3, 2)
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns if such a palette is converted in one step.
        return np.array(image.convert("RGBA").convert("L" if channels == 1 else "RGB"))
    return np.array(image.convert("L" if channels == 1 else "RGB"))


def _not_an_image(where: str) -> UserError:
    return UserError(f"Expected an image, got {where}, which can't be decoded; replace or remove it.")


def header(data: bytes, where: str) -> tuple[int, int, bool]:
    """Return height, width and whether an encoded image is gray; raises as :func:`decode`."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            gray = image.mode.split(";")[0] in _GRAY_MODES
            if image.getexif().get(_ORIENTATION, 1) >= _LYING:
                return image.width, image.height, gray
            return image.height, image.width, gray
    except _PILLOW_ERRORS as error:
        raise _not_an_image(where) from error


def least_to_frame(size: int, framing: float = 1.0) -> int:
    """Return the shorter side, in pixels, that is enough for :func:`frame`: twice the side it resizes to."""
    return math.ceil(2 * size / framing)


def frame(image: Tensor, size: int, framing: float = 1.0) -> Tensor:
    """Resize the shorter side and crop the centre: (C, h, w) → (C, size, size), dtype kept.

    ``framing`` is the fraction of the shorter side that is kept. It applies only to images that are large
    enough; smaller ones are resized whole.
    """
    height, width = image.shape[-2:]
    if height == width == size:
        return image
    wanted = round(size / framing)
    short = wanted if min(height, width) >= wanted else size
    side = min(height, width)
    if max(height, width) > _LONG * side:
        # only the middle is kept, so the rest of a very long image need not be resized
        height, width = min(height, _LONG * side), min(width, _LONG * side)
        image = _centre(image, height, width)
    scaled = [short, int(short * width / height)] if height <= width else [int(short * height / width), short]
    return _centre(_resized(image, scaled), size, size)


def _centre(image: Tensor, height: int, width: int) -> Tensor:
    """Crop the centre of an image that is at least as large, like torchvision's center_crop."""
    top, left = (
        round((all_ - part) / 2) for all_, part in zip(image.shape[-2:], (height, width), strict=True)
    )
    return image[..., top : top + height, left : left + width]


def _resized(image: Tensor, size: list[int]) -> Tensor:
    """Resize a uint8 image (C, h, w), or several, bilinear with antialiasing.

    Bit-identical to torchvision's resize, whose import takes as long as PyTorch's.
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
    """Return whether PyTorch resizes uint8 faster than float32 on this machine."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return fast or platform.machine() in ("aarch64", "arm64")


def resize_pixels(pixels: Tensor, size: int) -> Tensor:
    """Resize square uint8 images in memory: (N, C, S, S) → (N, C, size, size)."""
    if pixels.shape[-1] == size:
        return pixels
    return torch.cat([_resized(part, [size, size]) for part in torch.split(pixels, _CHUNK)])
