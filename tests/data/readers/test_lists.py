from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gendd.config import DataConfig
from gendd.data import load_data
from gendd.errors import UserError


def _config(tmp_path: Path, train: str, test: str | None, **settings: object) -> DataConfig:
    """Lists in lists/ of six images in images/: one has a space in its name, one is in a folder."""
    images = tmp_path / "images"
    for number in range(6):
        file = images / (
            "two words 4.png" if number == 4 else "deep/5.png" if number == 5 else f"{number}.png"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    lists = tmp_path / "lists"
    lists.mkdir(exist_ok=True)
    (lists / "train.txt").write_text(train)
    config = DataConfig("list", str(lists / "train.txt"), root=str(images), image_size=8, validation=0)
    if test is not None:
        (lists / "test.txt").write_text(test)
        config = replace(config, test_path=str(lists / "test.txt"))
    return replace(config, **settings)  # type: ignore[arg-type]


def _says(config: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_data(config)
    return str(caught.value)


def test_paths_and_labels(tmp_path: Path) -> None:
    config = _config(tmp_path, "0.png 2\n\n two words 4.png\t0 \ndeep/5.png 11\n", "1.png 0\n2.png 9\n")
    data = load_data(config)
    assert data.class_names == [str(label) for label in range(12)]
    assert data.train.images(range(3))[:, 0, 0, 0].tolist() == [0, 4, 5]
    assert data.test.images(range(2))[:, 0, 0, 0].tolist() == [1, 2]
    assert data.train.labels is not None and data.train.labels.tolist() == [2, 0, 11]
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 9]
    assert (data.augment, data.channels) == ("crop-flip", 3)
    assert load_data(replace(config, image_size=None)).image_size == 8


def test_paths_are_relative_to_the_list_or_absolute(tmp_path: Path) -> None:
    absolute = tmp_path / "images" / "2.png"
    config = _config(tmp_path, f"../images/3.png 0\n{absolute} 1\n", "../images/1.png 1\n", root=None)
    data = load_data(config)
    assert data.train.images(range(2))[:, 0, 0, 0].tolist() == [3, 2]


def test_paths_alone_are_unlabelled(tmp_path: Path) -> None:
    config = _config(tmp_path, "0.png\n1.png\ntwo words 4.png\ndeep/5.png", None, validation=0.5)
    data = load_data(config)
    assert not data.labelled and data.tested_on == "validation" and data.class_names == []
    data = load_data(_config(tmp_path, "0.png\n1.png\n", "2.png 1\n3.png 0\n"))
    assert not data.labelled and data.num_classes == 2
    data = load_data(_config(tmp_path, "0.png 0\n1.png 2\n", "2.png\n"))
    assert data.labelled and data.test.labels is None and data.num_classes == 3


def test_labelled_paths_without_a_list_of_test_images_are_split(tmp_path: Path) -> None:
    data = load_data(_config(tmp_path, "0.png 0\n1.png 1\n" * 3, None, validation=0.34))
    assert data.test.labels is not None and sorted(data.test.labels.tolist()) == [0, 1]


def test_labels_that_may_not_be_seen_need_no_test_images(tmp_path: Path) -> None:
    data = load_data(_config(tmp_path, "0.png 0\n1.png 7\n", None, validation=0.5, labels=False))
    assert not data.labelled and data.tested_on == "validation" and data.class_names == []


def test_a_class_that_is_only_tested_has_to_be_named(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    config = _config(tmp_path, "0.png 0\n1.png 1\n", "2.png 1\n3.png 2\n")
    assert _says(config) == (
        "Expected labels below 2 (the largest label in data.path is one less; data.classes names classes "
        f"that are only tested), got 2 in line 2 of '{tmp_path / 'lists' / 'test.txt'}'; correct it."
    )
    assert load_data(replace(config, classes=str(names))).num_classes == 3
    # the training labels don't matter then
    assert load_data(replace(config, labels=False, validation=0.5)).num_classes == 3


def test_names_of_the_classes(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\n")
    config = _config(tmp_path, "0.png 0\n1.png 1\n", "2.png 1\n", classes=str(names))
    assert load_data(config).class_names == ["red", "green", "blue"]
    names.write_text("red\n")
    assert _says(config) == (
        "Expected labels below 1 (the names in data.classes), got 1 in line 2 of "
        f"'{tmp_path / 'lists' / 'train.txt'}'; correct it."
    )


def test_a_long_tail_of_a_list(tmp_path: Path) -> None:
    lines = "0.png 0\n" * 16 + "1.png 1\n" * 16 + "2.png 2\n" * 16
    data = load_data(_config(tmp_path, lines, "3.png 0\n", imbalance=4.0))
    assert data.class_counts is not None and data.class_counts.tolist() == [16, 8, 4]
    assert data.train.labels is not None
    assert torch.equal(data.train.images(range(28))[:, 0, 0, 0].long(), data.train.labels)


@pytest.mark.parametrize(
    "train, message",
    [
        (
            "0.png 0\n9.png 1\n",
            "Expected an image file at '{images}/9.png' (line 2 of '{train}'), found none; correct the list, "
            "or set data.root to the folder its paths are relative to.",
        ),
        (
            "0.png 0\n1.png one\n",
            "Expected an integer label at the end of line 2 of '{train}', got 'one'; "
            "number the classes from 0.",
        ),
        (
            "0.png 1.5\n",
            "Expected an integer label at the end of line 1 of '{train}', got '1.5'; "
            "number the classes from 0.",
        ),
        (
            "0.png 0\n\n1.png -2\n",
            "Expected labels from 0, got -2 in line 3 of '{train}'; number the classes from 0.",
        ),
        (
            "0.png 1000000\n",
            "Expected labels below 1000000, got 1000000 in line 1 of '{train}'; correct it.",
        ),
        ("\n \n", "data.path: expected one line per image in '{train}', found none; give another list."),
        (
            "0.png 0\n1.png 0\n2.png\n",
            "Expected a label in every line of '{train}' or in none, got line 1 with one and line 3 without; "
            "complete them.",
        ),
        (
            "0.png\n1.png 0\n",
            "Expected a label in every line of '{train}' or in none, got line 2 with one and line 1 without; "
            "complete them.",
        ),
    ],
)
def test_mistakes_in_a_list(tmp_path: Path, train: str, message: str) -> None:
    config = _config(tmp_path, train, "0.png 0\n")
    assert _says(config) == message.format(images=tmp_path / "images", train=tmp_path / "lists" / "train.txt")


def test_mistakes_around_a_list(tmp_path: Path) -> None:
    config = _config(tmp_path, "0.png 0\n", None)
    assert _says(DataConfig("list")) == (
        "data.path: expected a list of the training images for data.name 'list', got none; set data.path."
    )
    assert _says(replace(config, root=str(tmp_path / "none"))) == (
        "data.root: expected the folder that listed paths are relative to, got "
        f"{str(tmp_path / 'none')!r}, which does not exist; correct the path."
    )
    assert _says(replace(config, test_path=str(tmp_path))) == (
        f"data.test_path: expected a text file, got '{tmp_path}' (Is a directory); correct the path."
    )
