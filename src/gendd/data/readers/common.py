"""Results of readers, and helpers for the paths they are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.encoded import Encoded, Files
from gendd.errors import UserError
from gendd.files import read_bytes, user_path

# possible folder names of each split; file names start with the first of them
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".webp", ".gif", ".avif",
    ".ppm", ".pgm", ".tif", ".tiff",
}  # fmt: skip


# the label of a training image whose class is unknown
NO_LABEL = -1
# a larger label is a mistake, as no network could have that many classes
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Part:
    """The training or the test images of a set.

    Args:
        count: Number of images.
        labels: int64 (count,), -1 for unknown labels, or None.
        take: Returns the images at given indices (int64): uint8 (n, C, S, S), or encoded.
    """

    count: int
    labels: Tensor | None
    take: Callable[[Tensor], Tensor | Encoded]


@dataclass(frozen=True)
class Found:
    """A data set as found on disk.

    Args:
        train: Training images, labelled or not.
        test: Test images, labelled or not; None if there are none: some of the labelled training images are
            then held out instead, and unlabelled ones need none.
        class_names: One name per class; empty if the classes are unknown.
        val: The set's own validation images; None if some of the training images are held out instead.
    """

    train: Part
    test: Part | None
    class_names: list[str]
    val: Part | None = None


@dataclass(frozen=True)
class Reader:
    """A kind of data set, with its names in ``data.name``.

    Args:
        read: Finds the images that a configuration names.
        names: Names of the sets it reads.
        photographs: Whether ``data.augment: auto`` uses random resized crops for images of more than 64
            pixels.
        any_size: Whether images may differ in size; ``data.image_size`` is then 224 by default, unless all
            are squares of one side of at most 64.
        mirrored: Whether mirroring an image preserves its class.
        located: Whether ``data.path`` gives their location.
    """

    read: Callable[[DataConfig], Found]
    names: tuple[str, ...] = ()
    photographs: bool = True
    any_size: bool = False
    mirrored: bool = True
    located: bool = True


def pixel_part(pixels: Tensor, labels: Tensor) -> Part:
    """Make a part from decoded images uint8 (n, C, S, S) and their labels (n,)."""
    return Part(len(pixels), labels, lambda indices: pixels.index_select(0, indices))


def renumbered(part: Part, names: list[str], wanted: list[str]) -> Part:
    """Renumber the classes of a part from the order ``names`` to the order ``wanted``."""
    if part.labels is None:
        return part
    # the last entry is for unknown labels
    places = torch.tensor([*(wanted.index(name) for name in names), -1])
    return replace(part, labels=places[part.labels])


def subset(part: Part, rows: Tensor) -> Part:
    """Return the images at ``rows`` (int64)."""
    labels = None if part.labels is None else part.labels[rows]
    return Part(len(rows), labels, lambda indices: part.take(rows[indices]))


def unlabelled(part: Part) -> Part:
    """Return the same images without labels."""
    return replace(part, labels=None)


def given_path(config: DataConfig, what: str) -> str:
    """Return ``data.path``; raise :class:`UserError` that ``what`` was expected if it is missing."""
    if config.path is None:
        raise UserError(f"data.path: expected {what} for data.name {config.name!r}, got none; set data.path.")
    return config.path


def required_path(config: DataConfig, what: str) -> Path:
    """Return ``data.path``, which must exist; raise :class:`UserError` likewise."""
    return existing_path(given_path(config, what), "data.path", what)


def existing_path(value: str, key: str, what: str) -> Path:
    """Return the path given by ``key``, which must exist; raise :class:`UserError` likewise."""
    path = user_path(value)
    if not value or not os.path.exists(path):
        raise UserError(f"{key}: expected {what}, got {value!r}, which does not exist; correct the path.")
    return path


def image_files(directory: Path) -> list[str]:
    """Return all image files below a directory, sorted, except hidden files and folders."""
    return sorted(file for file in visible_files(directory) if is_image(file))


def is_image(file: str) -> bool:
    """Return whether a file has an image suffix."""
    return os.path.splitext(file)[1].lower() in SUFFIXES


def visible_files(directory: Path) -> Iterator[str]:
    """Yield all files below a directory that are not hidden, following links, each folder once."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(directory, followlinks=True):
        status = os.stat(parent)
        place = status.st_dev, status.st_ino
        if place in seen:  # a cyclic link
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def left_out(directory: Path) -> str | None:
    """Return a line that counts the files below a directory that are not images; None without any."""
    others = [file for file in visible_files(directory) if not is_image(file)]
    if not others:
        return None
    kinds = sorted({os.path.splitext(file)[1].lower() or "none" for file in others})
    shown = ", ".join(kinds[:5]) + (", …" if len(kinds) > 5 else "")
    return f"left out {len(others):,} of the files in '{directory}' that have no image suffix ({shown})"


def file_part(files: list[str], labels: Tensor | None) -> Part:
    """Make a part from image files and their labels (n,)."""
    return Part(len(files), labels, lambda indices: Files([files[index] for index in indices.tolist()]))


def by_split(files: list[str], root: Path) -> tuple[list[str], list[str], list[str]]:
    """Split the files below ``root`` into training, validation and test, by prefixes of file or folder names.

    If nothing is called train, all are training files.
    """
    train, val, test = (
        [file for file in files if any(part.startswith(split) for part in Path(file).relative_to(root).parts)]
        for split in SPLITS
    )
    return (train, val, test) if train else (files, [], [])


def read_text(path: Path, key: str) -> str:
    """Read the text file given by ``key``; raise :class:`UserError` if it is not text."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{key}: expected a text file, got '{path}' ({reason}); correct the path.") from error


def read_names(value: str) -> list[str]:
    """Read the class names in the file ``data.classes``; raise :class:`UserError` if there are none."""
    path = existing_path(value, "data.classes", "a file of class names, one per line")
    lines = [line.strip() for line in read_text(path, "data.classes").rstrip().splitlines()]
    if not lines or "" in lines:
        came = f"an empty line {lines.index('') + 1}" if lines else "an empty file"
        raise UserError(f"data.classes: expected one class name per line in '{path}', got {came}; name it.")
    return lines


def given_names(value: str, *labels: Tensor | None) -> list[str]:
    """Like :func:`read_names`; also raise :class:`UserError` if a label has no name."""
    names = read_names(value)
    largest = largest_label(*labels)
    if largest >= len(names):
        raise UserError(
            f"data.classes: expected at least {largest + 1} names, as the labels go up to {largest}, got "
            f"{len(names)} in {value!r}; add the missing ones."
        )
    return names


def class_numbers(*labels: Tensor | None) -> list[str]:
    """Name the classes up to the largest label by their numbers; an empty list without labels.

    Raises:
        UserError: the largest label is not a class number.
    """
    largest = largest_label(*labels)
    if largest >= MOST_CLASSES:
        raise UserError(
            f"Expected labels below {MOST_CLASSES:,}, got {largest:,}; number the classes from 0."
        )
    return [str(label) for label in range(largest + 1)]


def largest_label(*labels: Tensor | None) -> int:
    """Return the largest of all labels; -1 without any."""
    return max((int(each.max()) for each in labels if each is not None), default=-1)
