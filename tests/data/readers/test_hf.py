"""Folders written by Hugging Face's datasets."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from gendd.config import DataConfig
from gendd.data import load_data, train_loader
from gendd.data.readers.hf import read_hf
from gendd.errors import UserError


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def _split(
    reds: list[int],
    labels: list[int] | None,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
) -> datasets.Dataset:
    kinds: dict[str, Any] = {"number": datasets.Value("int64"), columns[0]: datasets.Image()}
    values: dict[str, Any] = {
        "number": reds,
        columns[0]: [{"bytes": _png(red), "path": None} for red in reds],
    }
    if labels is not None:
        kinds[columns[1]] = datasets.ClassLabel(names=names) if names else datasets.Value("int32")
        values[columns[1]] = labels
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))


def _save(path: Path, **splits: datasets.Dataset) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def _says(config: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_data(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("in_memory", [True, False])
def test_splits_with_names(tmp_path: Path, in_memory: bool) -> None:
    train = _split(list(range(10)), [red % 2 for red in range(10)], ["even", "odd"])
    path = _save(tmp_path / "set", train=train, test=_split([100, 101], [0, 1], ["even", "odd"]))
    config = DataConfig("hf", path, validation=0.2, in_memory=in_memory, batch_size=4, workers=2)
    data = load_data(config)
    assert data.class_names == ["even", "odd"] and data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 2)
    assert data.train.in_memory == in_memory and (data.image_size, data.augment) == (8, "crop-flip")
    assert data.test.images(range(2))[:, 0, 0, 0].tolist() == [100, 101]
    for batch in train_loader(replace(data, augment="none"), config, seed=0, epoch=0):
        assert batch.labels is not None
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long() % 2, batch.labels)


def test_the_rows_that_were_selected(tmp_path: Path) -> None:
    train = _split(list(range(10)), list(range(10))).select([7, 3, 5])
    path = _save(tmp_path / "set", train=train, validation=_split([1], [1]))
    data = load_data(DataConfig("hf", path, validation=0))
    assert data.train.images(range(3))[:, 0, 0, 0].tolist() == [7, 3, 5]
    assert data.train.labels is not None and data.train.labels.tolist() == [7, 3, 5]
    assert data.num_classes == 8 and len(data.test) == 1


def test_one_split_a_folder_and_other_columns(tmp_path: Path) -> None:
    for name, reds in (("a", [1, 2, 3, 4]), ("b", [5, 6])):
        labels = [red % 3 for red in reds]
        _split(reds, labels, ["x", "y", "z"], ("picture", "kind")).save_to_disk(str(tmp_path / name))
    data = load_data(DataConfig("hf", str(tmp_path / "a"), str(tmp_path / "b"), validation=0))
    assert data.class_names == ["x", "y", "z"]
    assert data.test.images(range(2))[:, 0, 0, 0].tolist() == [5, 6]
    path = _save(tmp_path / "dict", test=_split([9], [1], ["x", "y", "z"]))
    data = load_data(DataConfig("hf", str(tmp_path / "a"), path, validation=0))
    assert data.test.images([0])[0, 0, 0, 0] == 9


def test_images_in_files_of_their_own(tmp_path: Path) -> None:
    for red in range(4):
        (tmp_path / f"{red}.png").write_bytes(_png(red))
    files = [str(tmp_path / f"{red}.png") for red in range(4)]
    kinds = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": None, "path": file} for file in files]}
    path = _save(tmp_path / "set", train=datasets.Dataset.from_dict(rows, features=kinds))
    data = load_data(DataConfig("hf", path, validation=0.25, in_memory=False))
    assert not data.labelled and data.tested_on == "validation"
    pixels = torch.cat([part.images(range(len(part))) for part in (data.train, data.test)])
    assert sorted(pixels[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]


def test_mistakes(tmp_path: Path) -> None:
    config = DataConfig("hf", str(tmp_path), validation=0)
    assert _says(config).startswith(
        f"data.path: expected a folder written by save_to_disk of Hugging Face's datasets, got '{tmp_path}' ("
    )
    path = _save(tmp_path / "u", train=_split([1, 2, 3, 4, 5, 6], [0, 1] * 3))
    split = load_data(replace(config, path=path, validation=0.34))
    assert split.labelled and split.test.labels is not None and split.test.labels.tolist() == [0, 1]
    unseen = load_data(replace(config, path=path, labels=False, validation=0.5))
    assert not unseen.labelled and unseen.tested_on == "validation"
    path = _save(tmp_path / "b", train=_split([1], [0], ["x", "y"]), test=_split([1], [0], ["y", "x"]))
    assert _says(replace(config, path=path)) == (
        f"Expected the same class names in '{path}' (train) and '{path}' (test), got x, y and y, x; "
        "save them with the same features."
    )
    path = _save(tmp_path / "c", train=_split([1], [0]), test=_split([1], [-1]))
    assert _says(replace(config, path=path)) == (
        f"Expected labels from 0 in column label of '{path}' (test), got -1; "
        "give a split that has its labels."
    )
    plain = datasets.Dataset.from_dict({"number": [1], "label": [0]})
    path = _save(tmp_path / "d", train=plain, test=plain)
    assert _says(replace(config, path=path)) == (
        f"Expected one column of type Image in '{path}' (train), got none of number, label; "
        "cast the column, or name it image."
    )
    path = _save(tmp_path / "e", fit=_split([1], [0]))
    assert _says(replace(config, path=path)) == (
        f"data.path: expected a split 'train' in '{path}', got fit; rename one, or give the folder of one "
        "split."
    )


def test_a_row_without_an_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"image": [{"bytes": _png(1), "path": None}, None, {"bytes": None, "path": "/nowhere.png"}]}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    # save_to_disk would refuse to write this, as the file is missing
    monkeypatch.setattr(datasets, "load_from_disk", lambda path: datasets.DatasetDict(train=split))
    source = read_hf(DataConfig("hf", str(tmp_path))).train.take(torch.arange(3))
    assert not isinstance(source, torch.Tensor)
    assert (source.read(0), source.read(1)) == (_png(1), b"")
    assert source.where(1) == f"row 1 of '{tmp_path}' (train)"
    with pytest.raises(UserError) as caught:
        source.read(2)
    assert str(caught.value) == (
        "Expected a readable image file, got '/nowhere.png' (No such file or directory), named in row 2 of "
        f"'{tmp_path}' (train); restore it."
    )


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert _says(DataConfig("hf", str(tmp_path))) == (
        "data.name 'hf' needs the package datasets: pip install 'gendd[hf]'"
    )
