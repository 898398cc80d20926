"""Parquet files in Hugging Face's layout."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.encoded import Held
from gendd.data.readers.common import (
    NO_LABEL,
    Found,
    Part,
    Reader,
    by_split,
    class_numbers,
    given_path,
    unlabelled,
)
from gendd.errors import UserError
from gendd.files import user_path


@dataclass(frozen=True)
class _Rows:
    """Selected rows of parquet files: file and row of each, int64 (n, 2)."""

    files: Sequence[str]
    origin: Tensor

    def where(self, index: int) -> str:
        file, row = self.origin[index].tolist()
        return f"row {row} of {self.files[file]!r}"


@dataclass(frozen=True)
class _Table:
    """Parquet files of one split: their columns, row counts and labels; images are not read yet."""

    files: list[str]
    counts: list[int]
    image: str
    labels: Tensor | None
    names: list[str] | None

    @property
    def part(self) -> Part:
        return Part(sum(self.counts), self.labels, self.take)

    def take(self, indices: Tensor) -> Held:
        """Read the encoded images of rows ``indices`` (ascending), one row group at a time."""
        pa, _ = _arrow()
        chunks: list[Tensor] = []
        lengths: list[Tensor] = []
        origin: list[Tensor] = []
        first = 0
        for number, file in enumerate(self.files):
            table = _open(file)
            begin = first
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                inside = indices[(indices >= begin) & (indices < begin + count)]
                if len(inside) > 0:
                    try:
                        column = table.read_row_group(group, columns=[self.image])[self.image]
                    except (pa.ArrowException, OSError) as error:
                        raise _unreadable(file, error) from error
                    chosen = column.take(pa.array((inside - begin).numpy()))
                    content, sizes = _join(chosen)
                    chunks.append(content)
                    lengths.append(sizes)
                    origin.append(torch.stack([torch.full_like(inside, number), inside - first], 1))
                begin += count
            first = begin
        rows = _Rows(self.files, torch.cat(origin))
        if not any(map(len, chunks)):
            raise UserError(
                f"Expected image bytes in column {self.image} of {self.files[0]!r}, got none in any row; "
                "embed the images."
            )
        return Held(torch.cat(chunks), torch.cat(lengths).cumsum(0), rows)


def _join(column: Any) -> tuple[Tensor, Tensor]:
    """Concatenate the images of an Arrow column (uint8); also return the length of each (int64)."""
    images: list[bytes] = []
    for value in column.to_pylist():
        # a row without an image becomes an image that can't be decoded
        images.append((value.get("bytes") if isinstance(value, dict) else value) or b"")
    joined = bytearray().join(images)
    content = torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0, dtype=torch.uint8)
    return content, torch.tensor([len(image) for image in images])


def read_parquet(config: DataConfig) -> Found:
    """Read Hugging Face's layout: columns image (or img) with the encoded bytes, and label.

    ``data.path`` and ``data.test_path`` are each a file, a glob or a directory of parquet files. In a
    directory, file or folder names (train*, test*, val*) determine the split; val* are the test images if
    there are no others, else the validation images.
    """
    path = given_path(config, "a parquet file, a glob or a directory")
    train_files = _parquet_files(path, "data.path")
    val_files, test_files = list[str](), list[str]()
    root = user_path(path)
    if os.path.isdir(root):
        train_files, val_files, test_files = by_split(train_files, root)
    if config.test_path is not None:
        test_files = _parquet_files(config.test_path, "data.test_path")
    elif not test_files:
        test_files, val_files = val_files, []
    train = _table(train_files, NO_LABEL)
    if not test_files and (train.labels is None or not config.labels):
        return Found(unlabelled(train.part), None, [])
    test = _table(test_files) if test_files else None
    val = _table(val_files) if val_files else None
    for part in (test, val):
        if part is not None and train.names and part.names and train.names != part.names:
            one, other = next(pair for pair in zip_longest(train.names, part.names) if pair[0] != pair[1])
            raise UserError(
                f"Expected the same class names in {train.files[0]!r} and {part.files[0]!r}, got {one!r} in "
                f"the schema of the first where the second has {other!r}; make them equal."
            )
    numbers = class_numbers(train.labels, *(None if each is None else each.labels for each in (test, val)))
    names = (None if test is None else test.names) or train.names or numbers
    if len(numbers) > len(names):
        raise UserError(
            f"Expected labels below {len(names)} (the class names of the schema) in the files of data.path "
            f"and data.test_path, got {len(numbers) - 1}; correct the labels or the schema."
        )
    test_part, val_part = (None if each is None else each.part for each in (test, val))
    return Found(train.part, test_part, names, val_part)


def parquet_part(value: str, key: str) -> tuple[Part, list[str]]:
    """Read the images of a file, a glob or a directory of files, and their class names, if any.

    Args:
        value: The path.
        key: Its config key, for errors.
    """
    table = _table(_parquet_files(value, key))
    names = table.names or []
    numbers = class_numbers(table.labels)
    if names and len(numbers) > len(names):
        raise UserError(
            f"{key}: expected labels below {len(names)} (the class names of the schema) in {value!r}, got "
            f"{len(numbers) - 1}; correct the labels or the schema."
        )
    return table.part, names


def _parquet_files(value: str, key: str) -> list[str]:
    path = user_path(value)
    if os.path.isdir(path):
        files = sorted(str(file) for file in path.rglob("*.parquet") if file.is_file())
    elif os.path.isfile(path):
        files = [str(path)]
    else:
        files = sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))
    if not files:
        raise UserError(
            f"{key}: expected a parquet file, a glob or a directory of them, got {value!r}, which matches "
            "none; correct the path."
        )
    return files


def _unreadable(file: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"Expected a readable parquet file, got {file!r} ({reason}); download it again.")


def _arrow() -> tuple[Any, Any]:
    """Import the modules pyarrow and pyarrow.parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("parquet sets need pyarrow: pip install 'gendd[parquet]'") from error
    return pa, pq


def _open(file: str) -> Any:
    pa, pq = _arrow()
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _column(present: Sequence[str], choices: Sequence[str]) -> str | None:
    return next((name for name in choices if name in present), None)


def _table(files: list[str], least: int = 0) -> _Table:
    """Read row counts, labels (at least ``least``) and class names of one split's files, but no images."""
    pa, _ = _arrow()
    counts: list[int] = []
    labels: list[Tensor] = []
    image: str | None = None
    label: str | None = None
    names: list[str] | None = None
    for number, file in enumerate(files):
        table = _open(file)
        schema = table.schema_arrow
        if number == 0:
            image = _column(schema.names, ("image", "img"))
            label = _column(schema.names, ("label", "labels", "fine_label"))
            names = _class_names(schema.metadata, label)
        if image is None or any(name is not None and name not in schema.names for name in (image, label)):
            wanted = " and ".join(name for name in (image or "image (or img)", label) if name)
            raise UserError(
                f"Expected the column(s) {wanted} in {file!r}, got {', '.join(schema.names)}; rename them."
            )
        if not _is_encoded(schema.field(image).type):
            raise UserError(
                f"Expected encoded images (bytes) in column {image} of {file!r}, got "
                f"{schema.field(image).type}; write JPEG or PNG files into it."
            )
        counts.append(table.metadata.num_rows)
        if label is not None:
            try:
                column = table.read(columns=[label])[label]
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(file, error) from error
            if not pa.types.is_integer(column.type) or column.null_count:
                raise UserError(
                    f"Expected an integer in every row of column {label} of {file!r}, got {column.type} with "
                    f"{column.null_count} empty rows; number the classes from 0."
                )
            labels.append(torch.tensor(column.to_numpy()).long())
    if sum(counts) == 0:
        raise UserError(f"Expected images in {files[0]!r}, found no rows; give another file.")
    joined = torch.cat(labels) if labels else None
    if joined is not None and joined.min() < least:
        raise UserError(
            f"Expected labels from 0 in column {label} of {files[0]!r}, got {int(joined.min())}; "
            "give a split that has its labels."
        )
    return _Table(files, counts, str(image), joined, names)


def _is_encoded(kind: Any) -> bool:
    """Return whether a column holds encoded images: bytes, alone or with a path."""
    pa, _ = _arrow()
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_encoded(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind))


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> list[str] | None:
    """Return the class names in the schema metadata written by Hugging Face's datasets, if any."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


READER = Reader(read_parquet, ("parquet",))
