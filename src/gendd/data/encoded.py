"""Encoded images (JPEG, PNG, …), on disk or held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gendd.data.corrupt import Named
from gendd.data.decoding import header
from gendd.data.workers import cores
from gendd.errors import UserError
from gendd.files import read_bytes
from gendd.messages import followed

# images whose headers are read at a time
_CHUNK = 256


class Encoded(Named, Protocol):
    """Encoded images (JPEG, PNG, …) read one at a time."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the encoded image. Raises :class:`UserError` if it can't be read."""
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
    """Encoded images held in memory without decoding.

    Args:
        data: The concatenated encoded images: uint8 (bytes,). A single tensor, so that loader processes
            share it.
        ends: int64 (N,): end of each image.
        names: Their source, for error messages.
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
    """A selection of encoded images, by row."""

    source: Encoded
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        return self.source.read(self.places[index])

    def where(self, index: int) -> str:
        return self.source.where(self.places[index])


def probe(encoded: Encoded, count: int = 16) -> tuple[set[tuple[int, int]], bool]:
    """Read the headers of up to ``count`` images, evenly spread; unreadable ones are skipped.

    Returns:
        The (height, width) found, and whether all are gray.

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

    parts = [spread[start : start + _CHUNK] for start in range(0, len(spread), _CHUNK)]
    with ThreadPoolExecutor(cores() if len(parts) > 1 else 1) as pool:
        for chunk in followed(
            pool.map(headers, parts), len(spread), "Reading image headers", unit="images", bar=True, size=len
        ):
            for found in chunk:
                if isinstance(found, UserError):
                    first = first or found
                else:
                    sizes.add(found[:2])
                    gray &= found[2]
    if not sizes and first is not None:
        raise first
    return sizes, gray


def _header(encoded: Encoded, index: int) -> tuple[int, int, bool] | UserError:
    try:
        return header(encoded.read(index), encoded.where(index))
    except UserError as error:
        return error
