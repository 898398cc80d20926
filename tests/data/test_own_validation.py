"""Data sets with their own validation images, with different folder names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import load_fails
from PIL import Image

from gendd.config import DataConfig
from gendd.data import Data, load_data

Capture = pytest.CaptureFixture[str]
# training, validation and test images of each class, one gray value per part
COUNTS = {"train": 5, "val": 3, "test": 2}
VALUES = {"train": 40, "val": 80, "test": 120}


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def rows(part: str) -> list[dict[str, Any]]:
    """The images of two classes as the rows of a table hold them."""
    values = [VALUES[part] + number for number in (0, 1) for _ in range(COUNTS[part])]
    return [{"bytes": png(value), "path": None} for value in values]


def write_folder(root: Path, names: dict[str, str], classes: str = "ab", flat: str = "") -> str:
    for part, count in COUNTS.items():
        for number, name in enumerate(classes):
            folder = root / names.get(part, part) / ("" if part == flat else name)
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                (folder / f"{name}{index}.png").write_bytes(png(VALUES[part] + number))
    return str(root)


def write_parquet(root: Path, names: dict[str, str], labels: bool = True) -> str:
    root.mkdir()
    for part, count in COUNTS.items():
        images = rows(part)
        columns: dict[str, list[Any]] = {"image": images}
        if labels or part != "val":
            columns["label"] = [0] * count + [1] * count
        pq.write_table(pa.table(columns), root / f"{names.get(part, part)}-0.parquet")
    return str(root)


def write_hf(root: Path, names: dict[str, str]) -> str:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    splits = {}
    for part, count in COUNTS.items():
        images = rows(part)
        columns = {"image": images, "label": [0] * count + [1] * count}
        splits[names.get(part, part)] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return str(root)


def write_tars(root: Path, names: dict[str, str]) -> str:
    root.mkdir()
    for part, count in COUNTS.items():
        with tarfile.open(root / f"{names.get(part, part)}-0.tar", "w") as tar:
            for number in (0, 1):
                for index in range(count):
                    for suffix, content in (("png", png(VALUES[part] + number)), ("cls", b"%d" % number)):
                        member = tarfile.TarInfo(f"{number}{index}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return str(root)


WRITERS = {"folder": write_folder, "parquet": write_parquet, "hf": write_hf, "webdataset": write_tars}


def parts(data: Data) -> list[tuple[int, list[int]]]:
    """Number and gray values of the validation and the test images."""
    return [
        (len(part), sorted({int(value) for value in part.images(range(len(part)))[:, 0, 0, 0]}))
        for part in (data.val, data.test)
        if part is not None
    ]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("kind", WRITERS)
def test_validation_images_beside_test_images_are_used(
    kind: str, name: str, tmp_path: Path, capsys: Capture
) -> None:
    path = WRITERS[kind](tmp_path / "set", {"val": name})
    data = load_data(DataConfig(kind, path, image_size=8, validation=0.4))
    assert len(data.train) == 10
    assert parts(data) == [(6, [80, 81]), (4, [120, 121])]
    assert data.val is not None and data.val.labels is not None
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    said = "6 validation images of the set's own (data.validation 0: none)"
    assert said in capsys.readouterr().err
    none = load_data(DataConfig(kind, path, image_size=8, validation=0))
    assert (len(none.train), parts(none)) == (10, [(4, [120, 121])])
    half = load_data(DataConfig(kind, path, image_size=8, train_images=5))
    assert (len(half.train), parts(half)) == (5, [(3, [80, 81]), (4, [120, 121])])


@pytest.mark.parametrize("kind", WRITERS)
def test_without_test_images_they_are_the_test_images(kind: str, tmp_path: Path) -> None:
    other = Path(WRITERS[kind](tmp_path / "other", {}))
    path = Path(WRITERS[kind](tmp_path / "set", {"test": "extra"}))
    if kind == "hf":
        del_split = datasets.load_from_disk(str(path))
        del del_split["extra"]
        path = tmp_path / "less"
        del_split.save_to_disk(str(path))
    data = load_data(DataConfig(kind, str(path), image_size=8, validation=0.2))
    assert [count for count, _ in parts(data)] == [2, 6] and len(data.train) == 8
    # with separate test images they are used for validation
    suffix = {"folder": "test", "parquet": "test-0.parquet", "hf": "", "webdataset": "test-0.tar"}[kind]
    data = load_data(DataConfig(kind, str(path), test_path=str(other / suffix), image_size=8))
    assert parts(data) == [(6, [80, 81]), (4, [120, 121])]


@pytest.mark.parametrize(
    "names",
    [
        {"train": "training", "test": "testing"},
        {"train": "Train", "val": "Valid", "test": "Test"},
        {"train": "TRAIN", "val": "Validation", "test": "testing"},
    ],
)
@pytest.mark.parametrize("labels", [True, False])
def test_other_names_of_the_folders(names: dict[str, str], labels: bool, tmp_path: Path) -> None:
    data = load_data(DataConfig("folder", write_folder(tmp_path, names), labels=labels))
    assert parts(data) == [(6, [80, 81]), (4, [120, 121])]
    assert data.class_names == ["a", "b"] and len(data.train) == 10


def test_unlabelled_validation_images(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", {}, flat="val")
    load_fails(DataConfig("folder", path), "same class folders", "only in train/: a, b")
    data = load_data(DataConfig("folder", path, labels=False))
    assert data.val is not None and data.val.labels is None and data.labelled
    path = write_parquet(tmp_path / "rows", {}, labels=False)
    load_fails(DataConfig("parquet", path), "Expected labels with the validation images", "data.labels")


def test_folders_beside_train_are_named_or_refused(tmp_path: Path, capsys: Capture) -> None:
    path = write_folder(tmp_path / "set", {})
    (tmp_path / "set" / "more").mkdir()
    load_data(DataConfig("folder", path))
    assert "left out" not in capsys.readouterr().err
    (tmp_path / "set" / "more" / "0.png").write_bytes(png(1))
    load_data(DataConfig("folder", path))
    assert f"read train/ of '{path}'; left out more/ beside it" in capsys.readouterr().err
    # vehicles: train is one of them
    for name in ("bus", "car", "train"):
        folder = tmp_path / "vehicles" / name
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(2))
    vehicles = DataConfig("folder", str(tmp_path / "vehicles"))
    load_fails(vehicles, "expected class folders in", "bus/, car/ beside it", "a class itself")


@pytest.mark.parametrize("names", [["0", "1", "2", "10"], ["01", "02", "3", "11"], ["7", "70", "100", "101"]])
def test_numbers_as_folder_names_are_in_their_order_beside_shards(names: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "0.png").write_bytes(png(10 * number))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for index in range(20):
            for suffix, content in (("png", png(10 * (index % 4))), ("cls", b"%d" % (index % 4))):
                member = tarfile.TarInfo(f"{index:02}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    config = DataConfig("webdataset", str(tmp_path / "0.tar"), test_path=str(tmp_path / "test"), image_size=8)
    data = load_data(config)
    assert data.class_names == names and data.test.labels is not None
    for index, label in enumerate(data.test.labels.tolist()):
        assert int(data.test.images([index])[0, 0, 0, 0]) == 10 * label
