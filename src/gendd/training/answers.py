"""A teacher's outputs for images, stored on disk per view: one row per image, with its own checksum.

Each part of the outputs of a view is one file in NumPy's format with named fields, allocated at its full
length. Any number of processes write their rows in place: a row that is missing, truncated, damaged or of
other pixels is recognised by its checksum or mark. Shapes: B images.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gendd.data import Rows
from gendd.errors import UserError
from gendd.files import locked

Storage = Literal["fp16", "int8", "fp32"]
# why rows can't be used
Fault = Literal["absent", "damaged", "of other pixels"]

_STORED = {"fp16": "<f2", "int8": "i1", "fp32": "<f4"}
_LAST = torch.channels_last


def row_type(tensors: Sequence[Tensor], storage: Storage) -> np.dtype[Any]:
    """Row type for tensors (B, …): one field each, named by its number, original dtype and memory format."""
    fields: list[Any] = [("mark", "<u4")]
    for number, tensor in enumerate(tensors):
        if storage == "int8":
            fields.append((f"{number} scale", "<f4"))
        name = f"{number} {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=_LAST):
            name += " last"
        fields.append((name, _STORED[storage], tuple(tensor.shape[1:])))
    # last, so that a truncated write has no checksum
    return np.dtype([*fields, ("sum", "<u4")])


def encode(tensors: Sequence[Tensor], marks: NDArray[np.uint32], storage: Storage) -> NDArray[Any]:
    """Encode tensors (B, …) as rows (B,), without checksums.

    Raises:
        UserError: a value is beyond the range of fp16.
    """
    rows = np.zeros(len(marks), row_type(tensors, storage))
    rows["mark"] = marks
    for number, tensor in enumerate(tensors):
        values = tensor.detach().float().cpu().numpy()
        field = _field(rows.dtype, number)
        if storage == "int8":
            flat = np.abs(values.reshape(len(values), -1))
            scale = flat.max(1, initial=0) / 127
            rows[f"{number} scale"] = scale
            divisor = np.where(scale > 0, scale, 1).reshape(-1, *[1] * (values.ndim - 1))
            values = np.rint(np.nan_to_num(values / divisor))
        elif storage == "fp16" and bool((np.abs(values) > np.finfo(np.float16).max).any()):
            raise UserError(
                "training.cache_dtype: expected fp32 or int8 for a teacher whose answers are beyond the "
                f"range of fp16 ({float(np.abs(values).max()):.3g}), got 'fp16'; set it."
            )
        rows[field] = values
    return rows


def decode(rows: NDArray[Any], device: torch.device) -> list[Tensor]:
    """Decode rows to tensors of their original dtypes."""
    found = []
    for number in range(sum(not name.endswith(("mark", "scale", "sum")) for name in rows.dtype.names or ())):
        field = _field(rows.dtype, number)
        tensor = torch.from_numpy(np.ascontiguousarray(rows[field])).to(device)
        if (scale := f"{number} scale") in (rows.dtype.names or ()):
            factor = torch.from_numpy(np.ascontiguousarray(rows[scale])).to(device)
            tensor = tensor.float() * factor.view(-1, *[1] * (tensor.ndim - 1))
        _, given, *last = field.split()
        tensor = tensor.to(getattr(torch, given))
        found.append(tensor.contiguous(memory_format=_LAST) if last else tensor)
    return found


def _field(kind: np.dtype[Any], number: int) -> str:
    start = f"{number} "
    return next(name for name in kind.names or () if name.startswith(start) and not name.endswith("scale"))


def _bytes_of(rows: NDArray[Any]) -> memoryview:
    """The rows as a writable byte buffer."""
    return rows.view(np.uint8).data


def _header(kind: np.dtype[Any], count: int) -> bytes:
    """Header of a file of ``count`` rows."""
    content = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(kind)
    header = {"descr": descr, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()


class _File:
    """Open file of one part of one view.

    Raises:
        ValueError: the header is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.stream = path.open("r+b", buffering=0)
        except PermissionError:
            self.stream = path.open("rb", buffering=0)
        try:
            np.lib.format.read_magic(self.stream)
            (self.count,), _, self.kind = np.lib.format.read_array_header_1_0(self.stream)
            self.start = self.stream.tell()
            self.stream.seek(0)
            self.header = self.stream.read(self.start)
            # checksums cover the header too, which defines the rows
            self.seed = zlib.crc32(self.header)
            size = self.start + self.count * self.kind.itemsize
            if (self.kind.names or ("",))[-1] != "sum" or os.fstat(self.stream.fileno()).st_size != size:
                raise ValueError("not as long as its header says")
        except Exception as error:
            raise ValueError(str(error)) from error

    def __del__(self) -> None:
        with suppress(AttributeError):  # opening failed
            self.stream.close()

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """Read the rows at ascending places; zeros beyond the end of the file."""
        rows = np.zeros(len(places), self.kind)
        into = _bytes_of(rows)
        for place, begin, end in self._runs(places):
            self.stream.seek(place)
            while begin < end and (count := self.stream.readinto(into[begin:end])):
                begin += count
        return rows

    def write(self, places: NDArray[np.int64], rows: NDArray[Any]) -> None:
        """Write rows at ascending places, with their checksums."""
        rows["sum"] = self.sums(places, rows)
        content = _bytes_of(rows)
        for place, begin, end in self._runs(places):
            self.stream.seek(place)
            while begin < end:
                begin += self.stream.write(content[begin:end]) or 0

    def _runs(self, places: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """For each run of adjacent rows: its byte offset in the file, and its byte range among all rows."""
        size = self.kind.itemsize
        begin = 0
        for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            yield self.start + int(run[0]) * size, begin * size, (begin + len(run)) * size
            begin += len(run)

    def sums(self, places: NDArray[np.int64], rows: NDArray[Any]) -> NDArray[np.uint32]:
        """Checksums of rows at their places, uint32 (B,), never 0."""
        content = rows.view(np.uint8).reshape(len(rows), -1)[:, :-4]
        found = [
            zlib.crc32(row, self.seed ^ place) or 1
            for row, place in zip(content, places.tolist(), strict=True)
        ]
        return np.array(found, dtype=np.uint32)


class Answers:
    """Stored outputs of one teacher for one sequence of views.

    Args:
        folder: Folder of the files.
        count: Number of images of a view.
        storage: Storage type of the numbers.
    """

    def __init__(self, folder: Path, count: int, storage: Storage) -> None:
        self.folder, self.count, self.storage = folder, count, storage
        self._view: int | None = None
        self._open: dict[Path, _File] = {}

    def path(self, arithmetic: str, view: int, part: str) -> Path:
        """File of a part of a view that was computed in the dtype ``arithmetic``."""
        return self.folder / f"{arithmetic}-{self.storage}" / f"{view}-{part}.npy"

    def read(
        self, arithmetic: str, view: int, part: str, rows: Rows, *, any_pixels: bool = False
    ) -> NDArray[Any] | Fault:
        """Read the rows of a batch, or return why they can't be used.

        Args:
            arithmetic: Name of the dtype that they were computed in.
            view: Number of the view.
            part: Name of the part of the outputs.
            rows: Places and marks of the rows.
            any_pixels: Whether to skip comparing the marks.
        """
        path = self.path(arithmetic, view, part)
        try:
            file = self._file(view, path)
        except FileNotFoundError:
            return "absent"
        except ValueError:
            return "damaged"
        if file.count != self.count:
            return "damaged"
        found = file.read(rows.places)
        if not found["sum"].all():
            return "absent"
        if not np.array_equal(found["sum"], file.sums(rows.places, found)):
            return "damaged"
        if not any_pixels and not np.array_equal(found["mark"], rows.marks):
            return "of other pixels"
        return found

    def write(self, arithmetic: str, view: int, part: str, rows: Rows, encoded: NDArray[Any]) -> None:
        """Store the rows of a batch.

        Raises:
            OSError: they can't be written; existing rows are unchanged.
        """
        path = self.path(arithmetic, view, part)
        self._ready(view, path, encoded.dtype)
        self._file(view, path).write(rows.places, encoded)

    def held(self, arithmetic: str, view: int, part: str) -> int:
        """Bytes that a part of a view occupies on disk."""
        try:
            found = os.stat(self.path(arithmetic, view, part))
        except FileNotFoundError:
            return 0
        # files are allocated for rows that are not written yet
        return min(found.st_size, getattr(found, "st_blocks", found.st_size) * 512)

    def _file(self, view: int, path: Path) -> _File:
        if view != self._view:
            self._open.clear()
            self._view = view
        if path not in self._open:
            self._open[path] = _File(path)
        return self._open[path]

    def _ready(self, view: int, path: Path, kind: np.dtype[Any]) -> None:
        """Create the file unless one with such rows exists; a damaged or different file is replaced."""
        if self._fits(view, path, kind):
            return
        with locked(path.with_suffix(".lock")):
            self._open.pop(path, None)
            if self._fits(view, path, kind):
                return
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as stream:
                stream.write(_header(kind, self.count))
                stream.truncate(stream.tell() + self.count * kind.itemsize)
                stream.flush()
                os.fsync(stream.fileno())
            self._open.pop(path, None)
            temporary.replace(path)

    def _fits(self, view: int, path: Path, kind: np.dtype[Any]) -> bool:
        try:
            file = self._file(view, path)
        except (FileNotFoundError, ValueError):
            return False
        return file.header == _header(kind, self.count)
