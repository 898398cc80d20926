"""Lists of image files: one line per image, with its path and label."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gendd.config import DataConfig
from gendd.data.readers.common import (
    MOST_CLASSES,
    NO_LABEL,
    SUFFIXES,
    Found,
    Part,
    Reader,
    class_numbers,
    existing_path,
    file_part,
    given_path,
    largest_label,
    read_names,
    read_text,
    unlabelled,
)
from gendd.errors import UserError


def read_list(config: DataConfig) -> Found:
    """Read lists as in ImageNet-LT, Places-LT and iNaturalist: ``data.path`` and ``data.test_path``.

    A line is ``path label``; the label follows the last space, so paths may contain spaces. A list of paths
    alone is unlabelled, and so is an image with label -1. Paths are relative to ``data.root``, else to the
    folder of the list. The number of classes follows from the largest label of both lists, unless
    ``data.classes`` names them.
    """
    classes = None if config.classes is None else len(read_names(config.classes))
    path = given_path(config, "a list of the training images")
    train = _read(path, "data.path", config.root, classes, least=NO_LABEL)
    if config.test_path is None:
        if train.labels is not None and config.labels:
            return Found(train, None, class_numbers(train.labels))
        return Found(unlabelled(train), None, [])
    known = "the names in data.classes"
    if classes is None and config.labels and train.labels is not None:
        # otherwise a typo in the list would create new classes
        classes = largest_label(train.labels) + 1
        known = "the largest label in data.path is one less; data.classes names classes that are only tested"
    test = _read(config.test_path, "data.test_path", config.root, classes, known)
    return Found(train, test, class_numbers(train.labels, test.labels))


def _read(
    value: str,
    key: str,
    root: str | None,
    classes: int | None,
    known: str = "the names in data.classes",
    least: int = 0,
) -> Part:
    """Read the images and labels (at least ``least``) of one list; every path is checked."""
    file = existing_path(value, key, "a list of image files")
    if root is None:
        base = file.parent
    else:
        base = existing_path(root, "data.root", "the folder that listed paths are relative to")
    paths: list[str] = []
    labels: list[int] = []
    first: dict[bool, int] = {}
    for number, line in enumerate(read_text(file, key).splitlines(), 1):
        if not line.strip():
            continue
        place = f"line {number} of '{file}'"
        path, label = _fields(line.strip(), place)
        first.setdefault(label is not None, number)
        if len(first) > 1:
            raise UserError(
                f"Expected a label in every line of '{file}' or in none, got line {first[True]} with one and "
                f"line {first[False]} without; complete them."
            )
        if label is not None:
            _check_label(label, least, classes, known, place)
            labels.append(label)
        full = os.path.join(base, path)
        if not os.path.isfile(full):
            raise UserError(
                f"Expected an image file at '{full}' ({place}), found none; correct the list, or set "
                "data.root to the folder its paths are relative to."
            )
        paths.append(full)
    if not paths:
        raise UserError(f"{key}: expected one line per image in '{file}', found none; give another list.")
    return file_part(paths, torch.tensor(labels) if max(labels, default=-1) >= 0 else None)


def _fields(line: str, place: str) -> tuple[str, int | None]:
    """Return path and label of a line; the label is None for a path alone."""
    fields = line.rsplit(None, 1)
    if len(fields) == 1:
        return line, None
    try:
        return fields[0], int(fields[1])
    except ValueError:
        if Path(line).suffix.lower() in SUFFIXES:
            return line, None
    raise UserError(
        f"Expected an integer label at the end of {place}, got {fields[1]!r}; number the classes from 0."
    )


def _check_label(label: int, least: int, classes: int | None, known: str, place: str) -> None:
    if label < least:
        raise UserError(f"Expected labels from 0, got {label} in {place}; number the classes from 0.")
    if label >= (classes or MOST_CLASSES):
        why = "" if classes is None else f" ({known})"
        raise UserError(
            f"Expected labels below {classes or MOST_CLASSES}{why}, got {label} in {place}; correct it."
        )


READER = Reader(read_list, ("list",), any_size=True)
