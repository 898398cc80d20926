"""Image sets: uint8 pixels in memory, or encoded images (on disk or in memory) decoded when read.

Shapes: N images of the set, n selected images, C channels, S side, h height and w width before resizing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from operator import itemgetter

import torch
from torch import Tensor

from gendd.data.corrupt import Skipped, Tally
from gendd.data.decoding import Cut, decode, frame, least_to_frame
from gendd.data.encoded import Chosen, Encoded, Held
from gendd.data.workers import cores
from gendd.errors import UserError
from gendd.messages import followed

# images up to this side are augmented like CIFAR's
SMALL = 64
_CHUNK = 256


@dataclass(frozen=True)
class ImageSet:
    """N images of one size, with their labels.

    Args:
        source: uint8 (N, C, S, S) in memory, or encoded images that are decoded when read.
        labels: int64 (N,), -1 for unknown labels, or None.
        channels: C, 1 or 3.
        size: S.
        framing: For encoded images larger than S: the fraction of the shorter side that is kept when
            they are resized and cropped to the centre, in (0, 1].
        max_corrupt: Share of the images that may be corrupt and are skipped, in [0, 1); with 0 the first
            one raises an error.
        skipped: Receives the skipped images.
        fingerprint: Fingerprint of the original images (see :func:`gendd.data.fingerprint.fingerprint`).
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
        # never modified, so copies share the images
        return self

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are held in one tensor."""
        return isinstance(self.source, Tensor)

    def rows(self, rows: Tensor) -> ImageSet:
        """Select the images at ``rows`` (int64) with their labels; the fingerprint remains that of all."""
        source = self.source
        return replace(
            self,
            source=source[rows] if isinstance(source, Tensor) else Chosen(source, rows.tolist()),
            labels=None if self.labels is None else self.labels[rows],
        )

    def on(self, device: torch.device) -> ImageSet:
        """Move the images in memory and their labels to a device; indices must then be there too."""
        if not isinstance(self.source, Tensor):
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, source=self.source.to(device), labels=labels)

    @property
    def device(self) -> torch.device:
        """Where the images in memory are; the CPU for encoded ones."""
        return self.source.device if isinstance(self.source, Tensor) else torch.device("cpu")

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Return the images at ``indices``, not augmented.

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
            out[row] = frame(self.original(index, self._least), self.size, self.framing)
        return out

    def readable(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Like :meth:`images`, without corrupt ones: uint8 (n, C, S, S), and their indices int64 (n,)."""
        pixels, used = [], []
        for index in torch.as_tensor(indices).tolist():
            with contextlib.suppress(UserError):
                pixels.append(self.images([index]))
                used.append(index)
        none = torch.empty((0, self.channels, self.size, self.size), dtype=torch.uint8)
        return torch.cat([none, *pixels]), torch.tensor(used, dtype=torch.int64)

    @property
    def _least(self) -> int:
        return least_to_frame(self.size, self.framing)

    def original(self, index: int, least: int | None = None, cut: Cut | None = None) -> Tensor:
        """Return one image before resizing: uint8 (C, h, w); ``least`` and ``cut`` as in :func:`decode`."""
        if not isinstance(self.source, Tensor):
            return decode(self.source.read(index), self.source.where(index), self.channels, least, cut)
        image = self.source[index]
        if cut is None:
            return image
        top, left, height, width = cut(*image.shape[-2:])
        return image[:, top : top + height, left : left + width]

    def tally(self, total: int) -> Tally | None:
        """Return a counter of corrupt images for a pass over ``total`` images; None if there can't be any."""
        if isinstance(self.source, Tensor):
            return None
        return Tally(self.source, self.skipped, total, self.max_corrupt)

    def loaded(self, title: str, full: bool = False) -> ImageSet:
        """Decode the set into memory, with a progress bar if that takes a while.

        Args:
            title: Title of the progress bar.
            full: Replace a corrupt image (and its label) by the next one of the set, so that the length is
                kept; otherwise corrupt images are left out.

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
                    pixels[index] = frame(self.original(index, self._least), self.size, self.framing)
                except UserError as error:
                    corrupt.append((index, error))
            return stop - start, corrupt

        # For small images most time is spent in Python, where threads only hinder each other.
        with ThreadPoolExecutor(cores() if self.size > SMALL else 1) as pool:
            done = pool.map(load, range(0, len(self), _CHUNK))
            for _, corrupt in followed(done, len(self), title, unit="images", bar=True, size=itemgetter(0)):
                tally.add(corrupt)
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
        """Read the encoded images into memory; shows progress like :meth:`loaded`."""
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
                # empty bytes can't be decoded either, so the image is skipped
                return b""

        def read(start: int) -> list[bytes]:
            return [content(index) for index in range(start, min(start + _CHUNK, len(source)))]

        with ThreadPoolExecutor(cores()) as pool:
            chunks = pool.map(read, range(0, len(source), _CHUNK))
            for chunk in followed(chunks, len(source), title, unit="images", bar=True, size=len):
                for image in chunk:
                    data.extend(image)
                    ends.append(len(data))
        return replace(
            self, source=Held(torch.frombuffer(data, dtype=torch.uint8), torch.tensor(ends), source)
        )


def _following(corrupt: set[int], count: int) -> Tensor:
    """Map each of ``count`` rows to itself, or a corrupt one to the next that is not: int64 (count,)."""
    sound = torch.tensor([index for index in range(count) if index not in corrupt])
    return sound[torch.searchsorted(sound, torch.arange(count)) % len(sound)]
