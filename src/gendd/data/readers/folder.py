"""Folders of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.readers.common import (
    Found,
    Part,
    Reader,
    existing_path,
    file_part,
    image_files,
    left_out,
    required_path,
)
from gendd.errors import UserError
from gendd.messages import say


def read_folder(config: DataConfig) -> Found:
    """``train/CLASS/*.jpg`` below ``data.path``; test images likewise, in test/, val/ or ``test_path``.

    A directory without train/, test/ and val/ holds the training images itself. Images without class
    folders are unlabelled, and so are training images where training may not see the labels and their
    folders are not the test set's classes. Unlabelled training images need no test images.
    """
    root = required_path(config, "a directory of images, or one with train/ and test/ or val/")
    train_dir = root / "train" if (root / "train").is_dir() else root
    beside = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if train_dir == root and beside:
        raise UserError(
            f"data.path: expected train/ beside {beside[0].name}/ in '{root}', found none; add it."
        )
    test_dir: Path | None = beside[0] if beside else None
    if config.test_path is not None:
        test_dir = existing_path(config.test_path, "data.test_path", "a directory of test images")
        if test_dir.resolve().is_relative_to(train_dir.resolve()):
            raise UserError(
                f"data.test_path: expected a directory outside of the training images in '{train_dir}', got "
                f"'{test_dir}'; move it."
            )
    if (line := left_out(root)) is not None:
        say(line)
    train_names = _class_folders(train_dir)
    if test_dir is None:
        if train_names and config.labels:
            raise UserError(
                f"data.path: expected test/ or val/ in '{root}', found neither; "
                "add one or set data.test_path, or set data.labels to false."
            )
        return Found(_unlabelled(train_dir), None, [])
    test, test_names = folder_part(test_dir)
    if test_names:
        if not train_names or (train_names != test_names and not config.labels):
            return Found(_unlabelled(train_dir), test, _shown(test_names))
        _check_equal(train_dir, train_names, test_dir, test_names)
    elif not train_names or not config.labels:
        return Found(_unlabelled(train_dir), test, [])
    return Found(file_part(*_labelled_files(train_dir, train_names)), test, _shown(train_names))


def _shown(names: list[str]) -> list[str]:
    """Names of folders as text; of one that is no UTF-8 the odd bytes escaped."""
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]


def folder_part(directory: Path) -> tuple[Part, list[str]]:
    """The images below a directory and their classes; no class folders, no labels."""
    names = _class_folders(directory)
    return (file_part(*_labelled_files(directory, names)) if names else _unlabelled(directory)), names


def _unlabelled(directory: Path) -> Part:
    files = image_files(directory)
    if not files:
        raise UserError(f"Expected images in '{directory}', found none; add some.")
    return file_part(files, None)


def _check_equal(train_dir: Path, train: Sequence[str], test_dir: Path, test: Sequence[str]) -> None:
    """Raise :class:`UserError` that names what only one of the two directories has."""
    problems = [
        f"only in {folder.name}/: " + ", ".join(sorted(only)[:5]) + (", …" if len(only) > 5 else "")
        for folder, only in ((train_dir, set(train) - set(test)), (test_dir, set(test) - set(train)))
        if only
    ]
    if problems:
        raise UserError(
            f"Expected the same class folders in '{train_dir}' and '{test_dir}', got "
            f"{'; '.join(problems)}; make them equal, or set data.labels to false."
        )


def _class_folders(directory: Path) -> list[str]:
    try:
        return sorted(
            entry.name for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise UserError(
            f"Expected a readable directory, got '{directory}' ({error.strerror}); correct the path."
        ) from error


def _labelled_files(directory: Path, names: Sequence[str]) -> tuple[list[str], Tensor]:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        inside = image_files(directory / name)
        if not inside:
            raise UserError(
                f"Expected images in '{directory / name}', found none; add some or remove the folder."
            )
        files += inside
        labels += [label] * len(inside)
    return files, torch.tensor(labels)


READER = Reader(read_folder, ("folder",), any_size=True)
