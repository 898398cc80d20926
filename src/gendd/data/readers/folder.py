"""Folders of image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.readers.common import Found, existing_path, file_part, image_files, required_path
from gendd.errors import UserError


def read_folder(config: DataConfig) -> Found:
    """``train/CLASS/*.jpg`` below ``data.path``; test images likewise, in test/, val/ or ``test_path``.

    Training images without class folders, and any at all where training may not see the labels and
    the folders are not the test set's classes, are unlabelled.
    """
    what = "a directory with train/ and test/ or val/"
    root = required_path(config, what)
    train_dir = root / "train"
    if not train_dir.is_dir():
        raise UserError(f"data.path: expected {what}, got '{root}' without train/; add it.")
    if config.test_path is not None:
        test_dir = existing_path(config.test_path, "data.test_path", "a directory of class folders")
    else:
        found = [root / name for name in ("test", "val") if (root / name).is_dir()]
        if not found:
            raise UserError(
                f"data.path: expected test/ or val/ in '{root}', found neither; "
                "add one or set data.test_path."
            )
        test_dir = found[0]
    names = _class_folders(test_dir)
    if not names:
        raise UserError(
            f"Expected one folder a class in '{test_dir}', found none; evaluation needs labelled test images."
        )
    test = file_part(*_labelled_files(test_dir, names))
    train_names = _class_folders(train_dir)
    if not train_names or (train_names != names and not config.labels):
        files = image_files(train_dir)
        if not files:
            raise UserError(f"Expected images in '{train_dir}', found none; add some.")
        return Found(file_part(files, None), test, names)
    if train_names != names:
        problems = [
            f"only in {folder.name}/: " + ", ".join(sorted(only)[:5]) + (", …" if len(only) > 5 else "")
            for folder, only in (
                (train_dir, set(train_names) - set(names)),
                (test_dir, set(names) - set(train_names)),
            )
            if only
        ]
        raise UserError(
            f"Expected the same class folders in '{train_dir}' and '{test_dir}', got "
            f"{'; '.join(problems)}; make them equal, or set data.labels to false."
        )
    return Found(file_part(*_labelled_files(train_dir, names)), test, names)


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
