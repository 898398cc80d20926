"""What a reader finds, and the paths it is given."""

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

# what the folder of a part of a set may be called; a file's name begins with the first of them
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".webp", ".gif", ".avif",
    ".ppm", ".pgm", ".tif", ".tiff",
}  # fmt: skip


# stands for the label of a training image that is not known
NO_LABEL = -1
# a label beyond is a slip, and a network of as many classes would not fit anywhere
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Part:
    """The training or the test images of a set.

    Args:
        count: Number of images.
        labels: int64 (count,), -1 where it is unknown, or None.
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
        test: Test images, labelled or not; None where there are none, which only unlabelled training
            images allow.
        class_names: One name a class; none where nothing tells the classes.
        val: Validation images of the set's own; None where some of the training images are held out.
    """

    train: Part
    test: Part | None
    class_names: list[str]
    val: Part | None = None


@dataclass(frozen=True)
class Reader:
    """A kind of set, by the names that ``data.name`` takes.

    Args:
        read: Finds the images that a configuration names.
        names: Of the sets it reads.
        photographs: Whether images of more than 64 pixels are cropped at random places and scales in training
            where ``data.augment`` is auto.
        any_size: Whether images may differ in size; ``data.image_size`` is then 224 by default, unless all
            are squares of one side of at most 64.
        mirrored: Whether a mirrored image is still of its class.
        located: Whether ``data.path`` says where they are.
    """

    read: Callable[[DataConfig], Found]
    names: tuple[str, ...] = ()
    photographs: bool = True
    any_size: bool = False
    mirrored: bool = True
    located: bool = True


def pixel_part(pixels: Tensor, labels: Tensor) -> Part:
    """Decoded images uint8 (n, C, S, S) and their labels (n,)."""
    return Part(len(pixels), labels, lambda indices: pixels.index_select(0, indices))


def renumbered(part: Part, names: list[str], wanted: list[str]) -> Part:
    """The same images, whose classes are called ``names``, with the classes in the order ``wanted``."""
    if part.labels is None:
        return part
    # the last is that of an unknown label
    places = torch.tensor([*(wanted.index(name) for name in names), -1])
    return replace(part, labels=places[part.labels])


def unlabelled(part: Part) -> Part:
    """The same images without labels."""
    return replace(part, labels=None)


def untested(config: DataConfig, what: str) -> UserError:
    """The error of labelled training images alone; ``what`` names the test images that are expected."""
    return UserError(
        f"data.test_path: expected {what}, as the training images in {config.path!r} are labelled, got none; "
        "set data.test_path, or data.labels to false."
    )


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
    path = user_path(value)
    if not value or not os.path.exists(path):
        raise UserError(f"{key}: expected {what}, got {value!r}, which does not exist; correct the path.")
    return path


def image_files(directory: Path) -> list[str]:
    """Every image file below a directory, sorted; hidden files and folders are left out."""
    return sorted(file for file in visible_files(directory) if is_image(file))


def is_image(file: str) -> bool:
    """Whether a file's name ends as that of an image does."""
    return os.path.splitext(file)[1].lower() in SUFFIXES


def visible_files(directory: Path) -> Iterator[str]:
    """Every file below a directory that is not hidden, links followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(directory, followlinks=True):
        status = os.stat(parent)
        place = status.st_dev, status.st_ino
        if place in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in names if not name.startswith("."))


def left_out(directory: Path) -> str | None:
    """A line that counts the files below a directory that are taken for no images; None without any."""
    others = [file for file in visible_files(directory) if not is_image(file)]
    if not others:
        return None
    kinds = sorted({os.path.splitext(file)[1].lower() or "none" for file in others})
    shown = ", ".join(kinds[:5]) + (", …" if len(kinds) > 5 else "")
    return f"left out {len(others):,} of the files in '{directory}', by their suffixes no images ({shown})"


def file_part(files: list[str], labels: Tensor | None) -> Part:
    """Image files and their labels (n,)."""
    return Part(len(files), labels, lambda indices: Files([files[index] for index in indices.tolist()]))


def by_split(files: list[str], root: Path) -> tuple[list[str], list[str], list[str]]:
    """The training, validation and test files below ``root``, by what their names or folders begin with.

    Where nothing is called train, all are training files.
    """
    train, val, test = (
        [file for file in files if any(part.startswith(split) for part in Path(file).relative_to(root).parts)]
        for split in SPLITS
    )
    return (train, val, test) if train else (files, [], [])


def read_text(path: Path, key: str) -> str:
    """The text of a file that ``key`` names; raises :class:`UserError` where it is none."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{key}: expected a text file, got '{path}' ({reason}); correct the path.") from error


def read_names(value: str) -> list[str]:
    """The class names in the file ``data.classes``; raises :class:`UserError` where there are none."""
    path = existing_path(value, "data.classes", "a file of class names, one a line")
    lines = [line.strip() for line in read_text(path, "data.classes").rstrip().splitlines()]
    if not lines or "" in lines:
        came = f"an empty line {lines.index('') + 1}" if lines else "an empty file"
        raise UserError(f"data.classes: expected one class name a line in '{path}', got {came}; name it.")
    return lines


def given_names(value: str, *labels: Tensor | None) -> list[str]:
    """:func:`read_names`; raises :class:`UserError` likewise where a label has none."""
    names = read_names(value)
    largest = largest_label(*labels)
    if largest >= len(names):
        raise UserError(
            f"data.classes: expected at least {largest + 1} names, as the labels go up to {largest}, got "
            f"{len(names)} in {value!r}; add the missing ones."
        )
    return names


def class_numbers(*labels: Tensor | None) -> list[str]:
    """Numbers as names for the classes up to the largest label; none without labels.

    Raises:
        UserError: the largest is no class number.
    """
    largest = largest_label(*labels)
    if largest >= MOST_CLASSES:
        raise UserError(
            f"Expected labels below {MOST_CLASSES:,}, got {largest:,}; number the classes from 0."
        )
    return [str(label) for label in range(largest + 1)]


def largest_label(*labels: Tensor | None) -> int:
    """The largest of all labels; -1 without any."""
    return max((int(each.max()) for each in labels if each is not None), default=-1)
