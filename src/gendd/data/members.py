"""Images of tar shards, held in memory or read in place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gendd.data.encoded import Encoded, Held
from gendd.data.survey import Contents, can_seek
from gendd.data.tars import (
    Sample,
    image_of,
    read_samples,
)
from gendd.data.workers import cores
from gendd.errors import UserError
from gendd.messages import followed


@dataclass(frozen=True)
class Members:
    """Images in local tars, read in place.

    Args:
        files: The tars.
        places: int64 (N, 3): index of the tar, byte offset and size of each image.
    """

    files: Sequence[str]
    places: Tensor

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        number, offset, size = self.places[index].tolist()
        try:
            with open(self.files[number], "rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except OSError as error:
            raise UserError(
                f"Expected a readable tar file, got {self.files[number]!r} ({error.strerror}); restore it."
            ) from error

    def where(self, index: int) -> str:
        number, offset, _ = self.places[index].tolist()
        return f"the image at byte {offset} of {self.files[number]!r}"


def images_at(contents: Sequence[Contents], rows: Tensor) -> Encoded:
    """Return the encoded images at ``rows`` (ascending); those of streamed tars are read at once."""
    counts = torch.tensor([len(each) for each in contents])
    ends = counts.cumsum(0)
    shard = torch.searchsorted(ends, rows, right=True)
    if all(can_seek(each.url) for each in contents):
        offsets = torch.from_numpy(np.concatenate([each.offsets for each in contents]))
        sizes = torch.from_numpy(np.concatenate([each.sizes for each in contents]))
        places = torch.stack([shard, offsets[rows], sizes[rows]], 1)
        return Members([each.url for each in contents], places)
    wanted = (rows - (ends - counts)[shard]).tolist()
    by_shard: dict[int, list[int]] = {}
    for number, row in zip(shard.tolist(), wanted, strict=True):
        by_shard.setdefault(number, []).append(row)

    def read(number: int) -> list[Sample]:
        return _picked(contents[number], by_shard[number])

    samples: list[Sample] = []

    with ThreadPoolExecutor(cores()) as pool:
        parts = pool.map(read, by_shard)
        for part in followed(parts, len(by_shard), "Reading images of the shards", unit="shards", bar=True):
            samples.extend(part)
    return hold([sample.image for sample in samples], [sample.place for sample in samples])


def _picked(contents: Contents, rows: Sequence[int]) -> list[Sample]:
    """Read the samples at ``rows`` (ascending) of a streamed tar."""
    wanted, problems = set(rows), list[str]()
    images = (each for each in read_samples(contents.url, problems=problems) if image_of(each) is not None)
    picked = [
        Sample(contents.url, each["__key__"], image_of(each))
        for row, each in enumerate(itertools.islice(images, rows[-1] + 1))
        if row in wanted
    ]
    if len(picked) < len(rows):
        why = problems[0] if problems else "it has changed"
        raise UserError(
            f"Expected {len(rows)} images of {contents.url!r}, got {len(picked)} ({why}); try again."
        )
    return picked


def hold(images: Sequence[bytes], places: Sequence[str]) -> Held:
    """Hold encoded images in memory, with their names for error messages."""
    data = bytearray().join(images)
    ends = torch.tensor([len(image) for image in images]).cumsum(0)
    return Held(torch.frombuffer(data, dtype=torch.uint8), ends, _Names(places))


@dataclass(frozen=True)
class _Names:
    places: Sequence[str]

    def where(self, index: int) -> str:
        return self.places[index]
