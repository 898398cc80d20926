"""Image sets: uint8 pixels in memory, or encoded images (on disk or held) decoded when they are read.

Shapes: N images of the set, n of them, C channels, S side, h height and w width before resizing.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import struct
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from gendd.data.corrupt import Named, Skipped, Tally
from gendd.errors import UserError
from gendd.files import read_bytes
from gendd.messages import following

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
SMALL = 64
_CHUNK = 256
_QUIET_SECONDS = 2.0


class Encoded(Named, Protocol):
    """Encoded images (JPEG, PNG, …) that are read one at a time."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image. Raises :class:`UserError` where it can't be read."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files."""

    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        try:
            return read_bytes(self.paths[index])
        except OSError as error:
            raise UserError(
                f"Expected a readable image file, got {self.paths[index]!r} ({error.strerror}); "
                "restore or remove it."
            ) from error

    def where(self, index: int) -> str:
        return repr(self.paths[index])


@dataclass(frozen=True)
class Held:
    """Encoded images held in memory as they are (not decoded).

    Args:
        data: The encoded images, one after the other: uint8 (bytes,). One tensor, so that loader
            processes share it.
        ends: int64 (N,): where each image ends.
        names: Where they came from.
    """

    data: Tensor
    ends: Tensor
    names: Named

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index > 0 else 0
        return self.data[start : int(self.ends[index])].numpy().tobytes()

    def where(self, index: int) -> str:
        return self.names.where(index)


@dataclass(frozen=True)
class Chosen:
    """Some of encoded images, by their rows."""

    source: Encoded
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        return self.source.read(self.places[index])

    def where(self, index: int) -> str:
        return self.source.where(self.places[index])


@dataclass(frozen=True)
class ImageSet:
    """N images of one size, with their labels.

    Args:
        source: uint8 (N, C, S, S) in memory, or encoded images that are decoded when read.
        labels: int64 (N,), -1 where it is unknown, or None.
        channels: C, 1 or 3.
        size: S.
        framing: For encoded images larger than S: the part of the shorter side that is kept when
            they are resized and cropped to the centre, in (0, 1].
        max_corrupt: Share of the images that may be corrupt and are skipped, in [0, 1); with 0 the first
            one is an error.
        skipped: Told of each of those.
        fingerprint: Of the images as they were found (see :func:`gendd.data.fingerprint.fingerprint`).
    """

    source: Tensor | Encoded
    labels: Tensor | None
    channels: int
    size: int
    framing: float = 1.0
    max_corrupt: float = 0.0
    skipped: Skipped = field(default_factory=Skipped, compare=False)
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.source)

    def __deepcopy__(self, memo: dict[int, object]) -> ImageSet:
        # never written to: a copy of what holds it shares the images
        return self

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are held as one tensor."""
        return isinstance(self.source, Tensor)

    def rows(self, rows: Tensor) -> ImageSet:
        """The images at ``rows`` (int64) with their labels; the fingerprint stays that of all."""
        source = self.source
        return replace(
            self,
            source=source[rows] if isinstance(source, Tensor) else Chosen(source, rows.tolist()),
            labels=None if self.labels is None else self.labels[rows],
        )

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The images at ``indices``, not augmented.

        Returns:
            uint8 (n, C, S, S).

        Raises:
            UserError: an image that can't be read or decoded.
        """
        wanted = torch.as_tensor(indices, dtype=torch.int64)
        if isinstance(self.source, Tensor):
            return self.source.index_select(0, wanted)
        out = torch.empty((len(wanted), self.channels, self.size, self.size), dtype=torch.uint8)
        for row, index in enumerate(wanted.tolist()):
            out[row] = frame(self.original(index), self.size, self.framing)
        return out

    def readable(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`images`, without the corrupt ones: uint8 (n, C, S, S), and their indices int64 (n,)."""
        pixels, used = [], []
        for index in torch.as_tensor(indices).tolist():
            with contextlib.suppress(UserError):
                pixels.append(self.images([index]))
                used.append(index)
        none = torch.empty((0, self.channels, self.size, self.size), dtype=torch.uint8)
        return torch.cat([none, *pixels]), torch.tensor(used, dtype=torch.int64)

    def original(self, index: int) -> Tensor:
        """One image before it is resized: uint8 (C, h, w)."""
        if isinstance(self.source, Tensor):
            return self.source[index]
        return decode(self.source.read(index), self.source.where(index), self.channels)

    def tally(self, total: int) -> Tally | None:
        """A counter of corrupt images for a pass over ``total`` of these; None where none can be met."""
        if isinstance(self.source, Tensor):
            return None
        return Tally(self.source, self.skipped, total, self.max_corrupt)

    def loaded(self, title: str, full: bool = False) -> ImageSet:
        """The same set, decoded into memory; shows a progress bar named ``title`` when that lasts.

        Args:
            title: Of the progress bar.
            full: Put the next image of the set (and its label) in the place of a corrupt one, so that the
                length stays; else corrupt ones are left out.

        Raises:
            UserError: more corrupt images than ``max_corrupt`` allows.
        """
        tally = self.tally(len(self))
        if tally is None:
            return self
        pixels = torch.empty((len(self), self.channels, self.size, self.size), dtype=torch.uint8)

        def load(start: int) -> tuple[int, list[tuple[int, UserError]]]:
            stop = min(start + _CHUNK, len(self))
            corrupt = []
            for index in range(start, stop):
                try:
                    pixels[index] = frame(self.original(index), self.size, self.framing)
                except UserError as error:
                    corrupt.append((index, error))
            return stop - start, corrupt

        def counted(chunks: Iterable[tuple[int, list[tuple[int, UserError]]]]) -> Iterator[int]:
            for count, corrupt in chunks:
                tally.add(corrupt)
                yield count

        # Small images spend their time in Python, where threads only get in each other's way.
        with ThreadPoolExecutor(cores() if self.size > SMALL else 1) as pool:
            done = pool.map(load, range(0, len(self), _CHUNK))
            for _ in watched(counted(done), len(self), title):
                pass
        labels = self.labels
        if tally.indices and full:
            rows = _following(tally.indices, len(self))
            places = torch.tensor(sorted(tally.indices))
            pixels[places] = pixels[rows[places]]
            labels = None if labels is None else labels[rows]
        elif tally.indices:
            kept = torch.tensor([index for index in range(len(self)) if index not in tally.indices])
            pixels = pixels[kept]
            labels = None if labels is None else labels[kept]
        return replace(self, source=pixels, labels=labels)

    def held(self, title: str) -> ImageSet:
        """The same set with its encoded images read into memory; shows progress like :meth:`loaded`."""
        source = self.source
        if isinstance(source, Tensor | Held):
            return self
        data = bytearray()
        ends: list[int] = []

        def content(index: int) -> bytes:
            try:
                return source.read(index)
            except UserError:
                if self.max_corrupt == 0:
                    raise
                # decodes to the same: an image that is skipped
                return b""

        def read(start: int) -> list[bytes]:
            return [content(index) for index in range(start, min(start + _CHUNK, len(source)))]

        def join(chunks: Iterable[list[bytes]]) -> Iterator[int]:
            for chunk in chunks:
                for content in chunk:
                    data.extend(content)
                    ends.append(len(data))
                yield len(chunk)

        with ThreadPoolExecutor(cores()) as pool:
            chunks = pool.map(read, range(0, len(source), _CHUNK))
            for _ in watched(join(chunks), len(source), title):
                pass
        return replace(
            self, source=Held(torch.frombuffer(data, dtype=torch.uint8), torch.tensor(ends), source)
        )


def _following(corrupt: set[int], count: int) -> Tensor:
    """For each of ``count`` rows itself, or for a corrupt one the next that is not: int64 (count,)."""
    sound = torch.tensor([index for index in range(count) if index not in corrupt])
    return sound[torch.searchsorted(sound, torch.arange(count)) % len(sound)]


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def watched(steps: Iterable[int], total: int, title: str) -> Iterator[int]:
    """Pass ``steps`` (amounts of work done) on; show progress when it takes a while."""
    if not sys.stderr.isatty():
        with following(title, total, "done") as told:
            for step in steps:
                told.add(step)
                yield step
        return
    from rich.console import Console
    from rich.progress import Progress

    began, done = time.monotonic(), 0
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, visible=False)
        for step in steps:
            done += step
            bar.update(task, completed=done, visible=time.monotonic() - began > _QUIET_SECONDS)
            yield step


@cache
def _formats() -> tuple[str, ...]:
    """The formats that are opened, of those that this Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def decode(data: bytes, where: str, channels: int) -> Tensor:
    """Decode one image to gray (1 channel) or RGB (3).

    Returns:
        uint8 (C, h, w).

    Raises:
        UserError: not an image; ``where`` names it.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            array = _values(image, channels)
    except _PILLOW_ERRORS as error:
        raise _not_an_image(where) from error
    pixels = torch.from_numpy(array)
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def _values(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """uint8 (h, w) for one channel, (h, w, 3) for three, upright."""
    ImageOps.exif_transpose(image, in_place=True)
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


def probe(encoded: Encoded, count: int = 16) -> tuple[set[tuple[int, int]], bool]:
    """Read the headers of up to ``count`` images, evenly spread; those that can't be read are passed over.

    Returns:
        The (height, width) met, and whether every one is gray.

    Raises:
        UserError: none of the images can be read.
    """
    count = min(count, len(encoded))
    spread = [step * (len(encoded) - 1) // max(count - 1, 1) for step in range(count)]
    sizes: set[tuple[int, int]] = set()
    gray = True
    first: UserError | None = None

    def headers(indices: list[int]) -> list[tuple[int, int, bool] | UserError]:
        return [_header(encoded, index) for index in indices]

    def counted(chunks: Iterable[list[tuple[int, int, bool] | UserError]]) -> Iterator[int]:
        nonlocal gray, first
        for chunk in chunks:
            for header in chunk:
                if isinstance(header, UserError):
                    first = first or header
                else:
                    sizes.add(header[:2])
                    gray &= header[2]
            yield len(chunk)

    parts = [spread[start : start + _CHUNK] for start in range(0, len(spread), _CHUNK)]
    with ThreadPoolExecutor(cores() if len(parts) > 1 else 1) as pool:
        for _ in watched(counted(pool.map(headers, parts)), len(spread), "Looking at the images"):
            pass
    if not sizes and first is not None:
        raise first
    return sizes, gray


def _header(encoded: Encoded, index: int) -> tuple[int, int, bool] | UserError:
    """Height, width and whether it is gray, of one image."""
    try:
        data = encoded.read(index)
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            gray = image.mode.split(";")[0] in _GRAY_MODES
            if image.getexif().get(_ORIENTATION, 1) >= _LYING:
                return image.width, image.height, gray
            return image.height, image.width, gray
    except UserError as error:
        return error
    except _PILLOW_ERRORS:
        return _not_an_image(encoded.where(index))
