"""What a reader finds, and the paths it is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gendd.config import DataConfig
from gendd.data.images import Encoded, Files
from gendd.errors import UserError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Part:
    """The training or the test images of a set.

    Args:
        count: Number of images.
        labels: int64 (count,), or None.
        take: Gives the images at some indices (int64): uint8 (n, C, S, S), or encoded.
    """

    count: int
    labels: Tensor | None
    take: Callable[[Tensor], Tensor | Encoded]


@dataclass(frozen=True)
class Found:
    """A set as it was found.

    Args:
        train: Training images, labelled or not.
        test: Test images, labelled.
        class_names: One name a class.
    """

    train: Part
    test: Part
    class_names: list[str]


def pixel_part(pixels: Tensor, labels: Tensor) -> Part:
    """Decoded images uint8 (n, C, S, S) and their labels (n,)."""
    return Part(len(pixels), labels, lambda indices: pixels.index_select(0, indices))


def given_path(config: DataConfig, what: str) -> str:
    """``data.path``; raises :class:`UserError` that names ``what`` was expected where there is none."""
    if config.path is None:
        raise UserError(f"data.path: expected {what} for data.name {config.name!r}, got none; set data.path.")
    return config.path


def required_path(config: DataConfig, what: str) -> Path:
    """``data.path``, which exists; raises :class:`UserError` likewise."""
    return existing_path(given_path(config, what), "data.path", what)


def existing_path(value: str, key: str, what: str) -> Path:
    """The path that ``key`` names, which exists; raises :class:`UserError` likewise."""
    path = Path(value).expanduser()
    if not path.exists():
        raise UserError(f"{key}: expected {what}, got {value!r}, which does not exist; correct the path.")
    return path


def image_files(directory: Path) -> list[str]:
    """Every image file below a directory, sorted; hidden ones are left out."""
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(directory, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")
    )


def file_part(files: list[str], labels: Tensor | None) -> Part:
    """Image files and their labels (n,)."""
    return Part(len(files), labels, lambda indices: Files([files[index] for index in indices.tolist()]))
