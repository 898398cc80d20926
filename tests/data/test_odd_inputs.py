"""Unusual but readable data sets and images: used as they are, or counted in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import load_fails
from PIL import Image

from gendd.config import DataConfig
from gendd.data import describe, empty_classes, load_data
from gendd.data.decoding import decode, frame
from gendd.data.readers import image_files
from gendd.errors import UserError

Capture = pytest.CaptureFixture[str]


def pictures(folder: Path, count: int = 4, suffix: str = ".png", side: int = 8, value: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((side, side), value, np.uint8)).save(folder / f"{index}{suffix}")


def class_folders(root: Path, names: list[str]) -> DataConfig:
    for part in ("train", "test"):
        for value, name in enumerate(names):
            pictures(root / part / name, value=40 * value)
    return DataConfig("folder", str(root), validation=0)


def test_a_file_of_the_folders_names_tells_their_order(tmp_path: Path) -> None:
    config = class_folders(tmp_path / "set", ["1", "2", "10"])
    names = tmp_path / "names.txt"
    names.write_text("1\n2\n10\n", encoding="utf-8")
    config.classes = str(names)
    data = load_data(config)
    assert data.class_names == ["1", "2", "10"] and data.test.labels is not None
    for value, label in zip((0, 40, 80), (0, 1, 2), strict=True):  # folders 1, 2 and 10
        rows = (data.test.labels == label).nonzero().flatten().tolist()
        assert bool((data.test.images(rows) == value).all())
    names.write_text("one\ntwo\nten\n", encoding="utf-8")  # custom names, by number
    assert load_data(config).class_names == ["one", "two", "ten"]


def test_classes_without_an_image_are_named(tmp_path: Path) -> None:
    pictures(tmp_path / "all", 6)
    for part in ("train", "test"):
        lines = [f"all/{index}.png {index % 3 + 1}" for index in range(6)]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines), encoding="utf-8")
    paths = {"path": str(tmp_path / "train.txt"), "test_path": str(tmp_path / "test.txt")}
    data = load_data(DataConfig("list", validation=0, **paths))
    assert empty_classes(data) == (
        "no training image of class 0; labels are counted from 0, and data.classes names them"
    )
    assert empty_classes(load_data(DataConfig())) is None and "10 classes" in describe(
        load_data(DataConfig())
    )


def test_files_that_are_no_images_are_counted(tmp_path: Path, capsys: Capture) -> None:
    config = class_folders(tmp_path, ["a", "b"])
    load_data(config)
    assert capsys.readouterr().err == ""
    (tmp_path / "train" / "a" / "notes.TXT").touch()
    (tmp_path / "test" / "b" / "Makefile").touch()
    load_data(config)
    said = capsys.readouterr().err
    assert said == f"left out 2 of the files in '{tmp_path}' that have no image suffix (.txt, none)\n"


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".jp2", ".JPG"])
def test_rarer_suffixes_are_images(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture{suffix}"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "JPEG2000" if suffix == ".jp2" else "JPEG")
    assert image_files(tmp_path) == [str(file)]
    assert decode(file.read_bytes(), "here", 3)[0].min() > 200


def test_links_are_followed_once_and_hidden_folders_left_out(tmp_path: Path) -> None:
    pictures(tmp_path / "set" / "a")
    pictures(tmp_path / "elsewhere", 2)
    pictures(tmp_path / "set" / "a" / ".ipynb_checkpoints")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    assert len(image_files(tmp_path / "set" / "a")) == 6


@pytest.mark.skipif(os.name == "nt", reason="names of files are text on Windows")
def test_a_folder_whose_name_is_no_utf8_is_a_class(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        config = class_folders(tmp_path, ["a", name])
    except OSError:
        pytest.skip("this file system takes names of UTF-8 alone")
    data = load_data(config)
    assert data.class_names == ["a", "caf\\xe9"] and len(data.test) == 8


def test_names_of_parquet_files_agree(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    for part, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"])):
        table = pa.table({"image": [{"bytes": content.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]})
        feature = '{"info": {"features": {"label": {"names": ["%s", "%s"], "_type": "ClassLabel"}}}}'
        table = table.replace_schema_metadata({"huggingface": feature % tuple(names)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    with pytest.raises(UserError, match=r"Expected the same class names .* got 'cat' .* second has 'dog'"):
        load_data(DataConfig("parquet", str(tmp_path)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_upright_in_every_format(form: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), (0, 0, 0))
    image.paste((255, 0, 0), (0, 0, 4, 4))  # the upper left corner as stored by the rotated camera
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    content = io.BytesIO()
    image.save(content, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    pixels = decode(content.getvalue(), "here", 3)
    assert pixels.shape == (3, 16, 8)
    assert pixels[0, :3, 5:].min() > 150 and pixels[0, :3, :3].max() < 100


def tiff(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "TIFF")
    return content.getvalue()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.linspace(0, 255, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.arange(64, dtype=np.int32) * 4, np.arange(64) * 4.0),
        (np.arange(64, dtype=np.uint16) * 1040, np.arange(64) * 1040 / 257),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_other_types_keep_their_range(
    values: np.ndarray, expected: np.ndarray, channels: int
) -> None:
    pixels = decode(tiff(values.reshape(8, 8)), "here", channels)
    assert pixels.shape == (channels, 8, 8) and pixels.dtype == torch.uint8
    found = pixels[0].flatten().numpy().astype(float)
    assert np.abs(found - expected).max() <= 0.51


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 1000.0], [0.0, float("nan")]])
def test_numbers_of_an_unknown_range_are_no_picture(values: list[float]) -> None:
    content = tiff(np.array(values * 32, np.float32).reshape(8, 8))
    with pytest.raises(UserError, match="can't be decoded"):
        decode(content, "here", 1)


def test_a_very_long_image_costs_no_more_than_its_middle() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 6, 400), dtype=torch.uint8)
    assert torch.equal(frame(image, 8), frame(image[..., 176:224], 8))
    wide = torch.zeros(1, 2, 60_000, dtype=torch.uint8)
    assert frame(wide, 224).shape == (1, 224, 224)


def rows(folder: Path, image: list[object], label: list[int]) -> DataConfig:
    for part in ("train", "test"):
        pq.write_table(pa.table({"image": image, "label": label}), folder / f"{part}.parquet")
    return DataConfig("parquet", str(folder))


@pytest.mark.parametrize("image", [1, 0.5, "a.png", [1, 2], {"path": "a.png"}, {"bytes": "text"}])
def test_a_column_of_something_else_holds_no_images(image: object, tmp_path: Path) -> None:
    config = rows(tmp_path, [image] * 20, [0, 1] * 10)
    load_fails(config, "Expected encoded images (bytes) in column image of", "write JPEG or PNG")


@pytest.mark.parametrize("label", [1_000_000, 10**12, 2**62])
def test_a_label_that_is_no_class_number_makes_no_classes(label: int, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    config = rows(tmp_path, [content.getvalue()] * 20, [0, label] * 10)
    load_fails(config, f"Expected labels below 1,000,000, got {label:,}; number the classes from 0.")


@pytest.mark.parametrize("name", ["folder", "list", "parquet", "hf", "webdataset", "cifar10"])
def test_a_path_that_is_no_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.parquet")
    for path in (
        "",
        str(tmp_path / "fifo.parquet"),
        "/dev/zero",
        str(tmp_path / ("x" * 300)),
    ):
        load_fails(DataConfig(name, path), "xpected")
    with pytest.raises(UserError, match=r"data\.path: expected text of characters that a file's name can"):
        DataConfig(name, f"{tmp_path}/a\0b")
