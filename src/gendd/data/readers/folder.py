"""Folders of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.readers.common import (
    SPLITS,
    Found,
    Part,
    Reader,
    existing_path,
    file_part,
    image_files,
    is_image,
    left_out,
    required_path,
    unlabelled,
)
from gendd.errors import UserError
from gendd.messages import say

_UNLABELLED = ("unlabelled", "unlabeled")


def read_folder(config: DataConfig) -> Found:
    """Read ``train/CLASS/*.jpg`` below ``data.path``; test images likewise, in test/, val/ or ``test_path``.

    Images in unlabelled/ beside train/, or beside the class folders, are training images without labels. If
    there are other test images, val/ is used for validation. The folders may also be called training/,
    testing/, valid/ or validation/. A directory without any of them holds the training images itself. Images
    without class folders are unlabelled, and so are training images if training may not see labels and their
    folders are not the test set's classes.
    """
    root = required_path(config, "a directory of images, or one with train/ and test/ or val/")
    parts = _split_folders(root)
    train_dir, val_dir = parts.pop("train", root), parts.pop("val", None)
    test_dir = parts.pop("test", None)
    if train_dir == root and (beside := test_dir or val_dir) is not None:
        raise UserError(f"data.path: expected train/ beside {beside.name}/ in '{root}', found none; add it.")
    if config.test_path is not None:
        test_dir = existing_path(config.test_path, "data.test_path", "a directory of test images")
        if test_dir.resolve().is_relative_to(train_dir.resolve()):
            raise UserError(
                f"data.test_path: expected a directory outside of the training images in '{train_dir}', got "
                f"'{test_dir}'; move it."
            )
    if test_dir is None:
        test_dir, val_dir = val_dir, None
    train_names = _class_folders(train_dir)
    more: list[str] = []
    if "unlabelled" in parts and (train_dir != root or len(train_names) > 1):
        more = _images(parts["unlabelled"])
        if train_dir == root:
            train_names.remove(parts["unlabelled"].name)
    if train_dir != root:
        _check_beside(root, train_dir, bool(train_names) or test_dir is not None or not config.labels)
    if (line := left_out(root)) is not None:
        say(line)
    for directory in filter(None, (train_dir if train_names and config.labels else None, test_dir, val_dir)):
        _say_loose(directory)
    if test_dir is None:
        if not (train_names and config.labels):
            return Found(_training(train_dir, [], more), None, [])
        if train_dir == root and (better := _one_folder_off(root)) is not None:
            raise UserError(
                "data.path: expected a directory of class folders, or one with train/ and test/ or val/, "
                f"got '{root}'; give '{better}', set data.test_path, or set data.labels to false."
            )
        return Found(_training(train_dir, train_names, more), None, _shown(train_names))
    test, names = folder_part(test_dir)
    labelled = bool(train_names)
    if names:
        if not config.labels:
            labelled = train_names == names
        elif labelled:
            _check_equal(train_dir, train_names, test_dir, names)
    elif config.labels:
        names = train_names
    else:
        labelled = False
    val = None
    if val_dir is not None:
        val, val_names = folder_part(val_dir)
        if labelled and config.labels:
            _check_equal(train_dir, train_names, val_dir, val_names)
        elif val_names != names:
            val = unlabelled(val)
    train = _training(train_dir, train_names if labelled else [], more)
    return Found(train, test, _shown(names), val)


def _say_loose(directory: Path) -> None:
    """Report images beside class folders, which have no class."""
    loose = [each.name for each in directory.iterdir() if is_image(each.name) and each.name[0] != "."]
    if loose and _class_folders(directory):
        example = _shown([min(loose)])[0]
        say(f"left out {len(loose):,} images in '{directory}' that are in no class folder, such as {example}")


def _one_folder_off(root: Path) -> Path | None:
    """Return the directory with train/ and test/ or val/ right above or below ``root``, if there is one."""
    above = root.resolve().parent
    near = [above] if root.resolve() in _split_folders(above).values() else []
    for each in near + [root / name for name in _class_folders(root)]:
        parts = _split_folders(each)
        if "train" in parts and parts.keys() & {"test", "val"}:
            return each
    return None


def _split_folders(root: Path) -> dict[str, Path]:
    """Find the folders of training, validation, test and unlabelled images, as far as they exist."""
    present = {name.lower(): root / name for name in reversed(_class_folders(root))} if root.is_dir() else {}
    kinds = {**SPLITS, "unlabelled": _UNLABELLED}
    found = {split: [present[name] for name in names if name in present] for split, names in kinds.items()}
    return {split: folders[0] for split, folders in found.items() if folders}


def _check_beside(root: Path, train_dir: Path, clear: bool) -> None:
    """Report image folders beside train/ that are ignored.

    Raises:
        UserError: train/ may be a class like the others, unless ``clear``.
    """
    known = {name for names in (*SPLITS.values(), _UNLABELLED) for name in names}
    others = [name for name in _class_folders(root) if name.lower() not in known and image_files(root / name)]
    if not others:
        return
    shown = ", ".join(f"{name}/" for name in _shown(others)[:5]) + (", …" if len(others) > 5 else "")
    if not clear:
        raise UserError(
            f"data.path: expected class folders in '{train_dir}', got images, and more in {shown} beside it; "
            f"if {train_dir.name}/ is a class itself, move all classes into a folder {train_dir.name}/."
        )
    say(f"read {train_dir.name}/ of '{root}'; left out {shown} beside it")


def _shown(names: list[str]) -> list[str]:
    """Format folder names, with bytes that are not UTF-8 escaped."""
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]


def folder_part(directory: Path) -> tuple[Part, list[str]]:
    """Find the images below a directory and their classes; without class folders there are no labels."""
    names = _class_folders(directory)
    return (file_part(*_labelled_files(directory, names)) if names else _unlabelled(directory)), names


def _training(directory: Path, names: Sequence[str], more: list[str]) -> Part:
    """Find the training images, by class if ``names`` are given, and those with unknown labels."""
    if not names:
        # unlabelled/ may be inside
        return file_part(list(dict.fromkeys(_images(directory) + more)), None)
    files, labels = _labelled_files(directory, names)
    return file_part(files + more, torch.cat([labels, torch.full((len(more),), -1)]))


def _images(directory: Path) -> list[str]:
    files = image_files(directory)
    if not files:
        raise UserError(f"Expected images in '{directory}', found none; add some.")
    return files


def _unlabelled(directory: Path) -> Part:
    return file_part(_images(directory), None)


def _check_equal(train_dir: Path, train: Sequence[str], test_dir: Path, test: Sequence[str]) -> None:
    """Raise :class:`UserError` that lists the classes that only one of the directories has."""
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
