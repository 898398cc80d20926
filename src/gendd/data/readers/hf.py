"""Data sets saved to disk by Hugging Face's datasets (Arrow files)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.readers.common import (
    NO_LABEL,
    SPLITS,
    Found,
    Part,
    Reader,
    class_numbers,
    existing_path,
    required_path,
    unlabelled,
)
from gendd.errors import UserError
from gendd.files import read_bytes

# a split, and its name in error messages
_Split = tuple[Any, str]
_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class _Rows:
    """Selected rows of a split: encoded images, read from the memory-mapped files.

    Args:
        split: A ``datasets.Dataset`` whose image column is not decoded.
        column: The image column.
        indices: The rows, int64 (n,).
        name: Name of the split in error messages.
    """

    split: Any
    column: str
    indices: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> bytes:
        value = self.split[int(self.indices[index])][self.column] or {}
        content, path = value.get("bytes"), value.get("path")
        try:
            return content or (read_bytes(path) if path else b"")
        except OSError as error:
            raise UserError(
                f"Expected a readable image file, got {path!r} ({error.strerror}), named in "
                f"{self.where(index)}; restore it."
            ) from error

    def where(self, index: int) -> str:
        return f"row {int(self.indices[index])} of {self.name}"


def read_hf(config: DataConfig) -> Found:
    """Read a ``save_to_disk`` folder: a DatasetDict with train and test or validation, or one split.

    If there is also a test split, the validation split is used for validation.

    ``data.test_path`` may name another such folder, or that of one split. The images are in the column of
    type Image, the labels in the column of type ClassLabel (or the integer column named label).
    """
    what = "a folder written by save_to_disk of Hugging Face's datasets"
    train_split, val_split, test_split = _splits(required_path(config, what), "data.path")
    if config.test_path is not None:
        other = existing_path(config.test_path, "data.test_path", what)
        alone, *held = _splits(other, "data.test_path")
        test_split = held[1] or held[0] or alone
    elif test_split is None:
        test_split, val_split = val_split, None
    train, train_names = _part(*train_split, least=NO_LABEL)
    if test_split is None:
        if train.labels is not None and config.labels:
            return Found(train, None, train_names or class_numbers(train.labels))
        return Found(unlabelled(train), None, [])
    test, test_names = _part(*test_split)
    _check_equal(train_split, train_names, test_split, test_names)
    val = None
    if val_split is not None:
        val, val_names = _part(*val_split)
        _check_equal(train_split, train_names, val_split, val_names)
    numbers = class_numbers(train.labels, test.labels, None if val is None else val.labels)
    return Found(train, test, train_names or test_names or numbers, val)


def _check_equal(split: _Split, names: list[str], other: _Split, others: list[str]) -> None:
    """Raise :class:`UserError` if both splits name their classes, but differently."""
    if names and others and names != others:
        raise UserError(
            f"Expected the same class names in {split[1]} and {other[1]}, got {_shown(names)} and "
            f"{_shown(others)}; save them with the same features."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _splits(path: Path, key: str) -> tuple[_Split, _Split | None, _Split | None]:
    """Open the splits of a folder: training (or its only one), validation and test."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.name 'hf' needs the package datasets: pip install 'gendd[hf]'") from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # Arrow, JSON and the library each raise their own
        reason = " ".join(str(error).split())
        raise UserError(
            f"{key}: expected a folder written by save_to_disk of Hugging Face's datasets, got '{path}' "
            f"({reason}); save it again."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return (loaded, f"'{path}'"), None, None
    held = [next((name for name in SPLITS[part] if name in loaded), None) for part in ("val", "test")]
    train = "train" if "train" in loaded else None
    if train is None and key == "data.test_path":
        train = held[1] or held[0]
    if train is None:
        raise UserError(
            f"{key}: expected a split 'train' in '{path}', got {', '.join(sorted(loaded)) or 'none'}; "
            "rename one, or give the folder of one split."
        )
    val, test = (None if name is None else (loaded[name], f"'{path}' ({name})") for name in held)
    return (loaded[train], f"'{path}' ({train})"), val, test


def _part(split: Any, name: str, least: int = 0) -> tuple[Part, list[str]]:
    """Return images, labels (at least ``least``) and class names of one split; no image is read."""
    import datasets

    features = split.features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    image = next((key for key in _IMAGES if key in images), images[0] if len(images) == 1 else None)
    if image is None:
        raise UserError(
            f"Expected one column of type Image in {name}, got {', '.join(images) or 'none'} of "
            f"{', '.join(features)}; cast the column, or name it image."
        )
    if len(split) == 0:
        raise UserError(f"Expected images in {name}, found no rows; give another split.")
    label, names = _label_column(features)
    labels = None
    if label is not None:
        values = split.with_format("numpy", columns=[label])[label][:]
        labels = torch.as_tensor(values).long()
        low, high = int(labels.min()), int(labels.max())
        if low < least or (names and high >= len(names)):
            upto = f" to {len(names) - 1}" if names else ""
            raise UserError(
                f"Expected labels from 0{upto} in column {label} of {name}, got "
                f"{low if low < least else high}; give a split that has its labels."
            )
    encoded = split.cast_column(image, datasets.Image(decode=False)).select_columns([image])
    return Part(len(split), labels, lambda rows: _Rows(encoded, image, rows, name)), names


def _label_column(features: Any) -> tuple[str | None, list[str]]:
    """Return the label column and its class names, as far as there are any."""
    import datasets

    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    for key in [*(key for key in _LABELS if key in classes), *classes]:
        return key, list(features[key].names)
    for key in _LABELS:
        if key in features and str(getattr(features[key], "dtype", "")).startswith(("int", "uint")):
            return key, []
    return None, []


READER = Reader(read_hf, ("hf",))
