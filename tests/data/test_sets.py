"""Every reader on files written here, and the split."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import load_fails
from PIL import Image
from sklearn.datasets import load_digits

from gendd.config import DataConfig
from gendd.data import Data, ImageSet, Shards, describe, load_data, train_loader
from gendd.data.encoded import Held
from gendd.data.readers.parquet import read_parquet
from gendd.data.split import random_split
from gendd.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _picture(colour: tuple[int, int, int] | int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(stream, kind)
    return stream.getvalue()


# --- digits and the split ---------------------------------------------------------------------------


def test_digits() -> None:
    data = load_data(DataConfig())
    assert (data.channels, data.image_size, data.num_classes, data.augment) == (1, 8, 10, "crop")
    assert data.val is not None and data.labelled
    # A fifth of 1797 for the test, a tenth of the rest for validation.
    assert (len(data.train), len(data.val), len(data.test)) == (1294, 144, 359)
    assert data.class_names == [str(digit) for digit in range(10)]
    every = torch.cat([part.images(range(len(part))) for part in (data.train, data.val, data.test)])
    published = torch.from_numpy(np.rint(load_digits().images * 255 / 16)).to(torch.uint8)
    assert sorted(map(bytes, every.numpy().reshape(1797, -1))) == sorted(
        map(bytes, published.numpy().reshape(1797, -1))
    )
    assert data.test.labels is not None
    counts = torch.bincount(data.test.labels)
    assert counts.min() >= 34 and counts.max() <= 37


def test_labels_stay_with_their_images() -> None:
    data = load_data(DataConfig(train_images=300))
    published = {
        bytes(np.rint(image * 255 / 16).astype(np.uint8)): label
        for image, label in zip(load_digits().images, load_digits().target, strict=True)
    }
    for part in (data.train, data.val, data.test):
        assert part is not None and part.labels is not None
        for image, label in zip(part.images(range(len(part))), part.labels.tolist(), strict=True):
            assert published[bytes(image.numpy())] == label


def test_split_seed_moves_validation_but_never_the_test_set() -> None:
    first, again, other = (load_data(DataConfig(split_seed=seed)) for seed in (0, 0, 1))
    assert first.val is not None and again.val is not None and other.val is not None
    assert torch.equal(first.val.images(range(144)), again.val.images(range(144)))
    assert not torch.equal(first.val.images(range(144)), other.val.images(range(144)))
    assert torch.equal(first.test.images(range(359)), other.test.images(range(359)))


def test_train_images_leave_all_validation_images_as_they_are() -> None:
    full, few = load_data(DataConfig()), load_data(DataConfig(train_images=100, validation_images="all"))
    assert full.val is not None and few.val is not None and len(few.train) == 100
    assert torch.equal(full.val.images(range(144)), few.val.images(range(144)))


def test_labels_that_may_not_be_seen_do_not_split() -> None:
    rest, held = random_split(1438, 0.1, torch.Generator().manual_seed(0))
    every = load_data(DataConfig(validation=0)).train
    data = load_data(DataConfig(labels=False))
    assert data.val is not None and data.labelled
    assert torch.equal(data.train.images(range(len(data.train))), every.images(rest))
    assert torch.equal(data.val.images(range(len(data.val))), every.images(held))


def test_imbalance_leaves_validation_and_test_as_they_are() -> None:
    full, tail = load_data(DataConfig()), load_data(DataConfig(imbalance=10))
    assert full.val is not None and tail.val is not None
    assert torch.equal(full.val.images(range(144)), tail.val.images(range(144)))
    assert torch.equal(full.test.images(range(359)), tail.test.images(range(359)))
    assert full.class_counts is not None and tail.class_counts is not None
    most = int(full.class_counts.max())
    wanted = [min(int(full.class_counts[c]), int(most * 0.1 ** (c / 9))) for c in range(10)]
    assert tail.class_counts.tolist() == wanted
    few = load_data(DataConfig(imbalance=10, train_images=100))
    assert few.class_counts is not None and int(few.class_counts.sum()) == 100
    # drawn from the tail
    assert int(few.class_counts[0]) > int(few.class_counts[9])
    assert "long-tailed (128 to 13 training images per class)" in describe(tail)
    total = sum(wanted)
    load_fails(
        DataConfig(imbalance=10, train_images=1200),
        f"data.train_images: expected at most {total} (what is left of 1438 after validation and "
        "data.imbalance), got 1200; lower it, or lower data.validation.",
    )


def test_imbalance_needs_labels(tmp_path: Path) -> None:
    _loose(tmp_path / "all", 4)
    load_fails(
        DataConfig("folder", str(tmp_path / "all"), validation=0.25, imbalance=10.0),
        "data.imbalance: expected null for unlabelled training images, got 10.0; "
        "leave it out, or give labelled images.",
    )


def test_no_validation() -> None:
    data = load_data(DataConfig(validation=0))
    assert data.val is None and len(data.train) == 1438


def test_image_size_resizes_sets_in_memory() -> None:
    small, large = load_data(DataConfig()), load_data(DataConfig(image_size=16))
    assert large.image_size == 16 and large.train.images([0]).shape == (1, 1, 16, 16)
    difference = large.train.images(range(100)).float().mean() - small.train.images(range(100)).float().mean()
    assert abs(difference) < 1


def test_describe() -> None:
    assert describe(load_data(DataConfig())) == (
        "digits: 1,294 train, 144 validation, 359 test images of 1x8x8, 10 classes, augment crop, in memory"
    )


def test_mistakes() -> None:
    load_fails(DataConfig(name="cifar1"), "data.name", "'cifar1'", "Did you mean 'cifar10'?")
    load_fails(DataConfig(train_images=1295), "data.train_images", "at most 1294", "1295")
    load_fails(DataConfig(validation=0.0001), "data.validation", "0.0001")
    load_fails(DataConfig(name="cifar10"), "data.path", "cifar-10-batches-py/", "got none")
    load_fails(
        DataConfig(name="folder", path="/nowhere/at/all"), "data.path", "'/nowhere/at/all'", "does not exist"
    )


# --- Fashion-MNIST ----------------------------------------------------------------------------------


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write_fashion(directory: Path, compress: bool) -> np.ndarray:
    directory.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for prefix, count in (("train", 20), ("t10k", 10)):
        for name, content in (("images-idx3", images[:count]), ("labels-idx1", labels[:count])):
            file = directory / f"{prefix}-{name}-ubyte"
            if compress:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(_idx(content)))
            else:
                file.write_bytes(_idx(content))
    return images


@pytest.mark.parametrize("below, compress", [("", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist(tmp_path: Path, below: str, compress: bool) -> None:
    images = _write_fashion(tmp_path / below, compress)
    data = load_data(DataConfig(name="fashion-mnist", path=str(tmp_path), validation=0))
    assert (data.channels, data.image_size, data.augment) == (1, 28, "crop-flip")
    assert data.class_names[0] == "T-shirt/top" and data.class_names[9] == "Ankle boot"
    assert data.train.images(range(20)).tolist() == images[:, None].tolist()
    assert data.train.labels is not None and data.train.labels.tolist() == [*range(10)] * 2
    assert len(data.test) == 10


def test_fashion_mnist_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(name="fashion-mnist", path=str(tmp_path))
    load_fails(config, "train-images-idx3-ubyte[.gz]", str(tmp_path))
    _write_fashion(tmp_path, compress=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    load_fails(config, "t10k-images-idx3-ubyte.gz", "download it again")
    file.write_bytes(gzip.compress(gzip.decompress(whole)[:-5]))
    load_fails(config, "Expected 7840 values", "got 7835")
    file.write_bytes(gzip.compress(b"something else"))
    load_fails(config, "IDX file", "t10k-images-idx3-ubyte.gz")
    monkeypatch.setattr("gendd.data.readers.fashion_mnist._DEBIAN_FASHION_MNIST", tmp_path / "none")
    load_fails(DataConfig(name="fashion-mnist"), "dataset-fashion-mnist", "data.path")


# --- CIFAR ------------------------------------------------------------------------------------------


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    # The same files without their checksums, which small ones can't have.
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    base = tmp_path / "cifar-10-batches-py"
    config = DataConfig(name="cifar10", path=str(tmp_path), validation=0)
    load_fails(config, "cifar-10-batches-py", "cifar-10-python.tar.gz", "data.path")
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    labels = [number % 3 for number in range(12)]
    for name in ("data_batch_1", "test_batch"):
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile", "bird"]}))
    for path in (tmp_path, base):
        data = load_data(DataConfig(name="cifar10", path=str(path), validation=0))
        assert data.class_names == ["airplane", "automobile", "bird"]
        assert data.train.images(range(12)).tolist() == pixels.reshape(12, 3, 32, 32).tolist()
        assert data.train.labels is not None and data.train.labels.tolist() == labels
        assert data.augment == "crop-flip"


# --- folder -----------------------------------------------------------------------------------------


def _write_folder(root: Path, test: str = "test") -> None:
    for split, count in (("train", 4), (test, 2)):
        for number, name in enumerate(("ant", "bee")):
            directory = root / split / name
            directory.mkdir(parents=True)
            for image in range(count):
                colour = (50 * number + image, 0, 0)
                (directory / f"{image}.png").write_bytes(_picture(colour, (10, 12)))
    (root / "train" / "ant" / "notes.txt").write_text("not an image")


@pytest.mark.parametrize("in_memory", [True, False, None])
def test_folder(tmp_path: Path, in_memory: bool | None) -> None:
    _write_folder(tmp_path, "val")
    data = load_data(
        DataConfig(
            "folder",
            str(tmp_path),
            validation=0.25,
            image_size=8,
            in_memory=in_memory,
            augment="resized-crop",
        )
    )
    assert data.class_names == ["ant", "bee"] and data.channels == 3 and data.augment == "resized-crop"
    assert data.val is not None and data.val.labels is not None and data.val.labels.tolist() == [0, 1]
    # Crops are taken from the larger originals, wherever the set is stored.
    assert not data.train.in_memory and data.train.original(0).shape == (3, 12, 10)
    assert data.val.in_memory == data.test.in_memory == (in_memory is not False)
    assert isinstance(data.train.source, Held) == (in_memory is True)
    assert describe(data).endswith("encoded in memory" if in_memory else "streamed")
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 0, 1, 1]
    assert data.test.images(range(4))[:, 0, 3, 3].tolist() == [0, 1, 50, 51]


def test_where_images_are_held_never_changes_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for file in ("train/a/1", "train/a/2", "train/b/1", "train/b/2", "test/a/1", "test/b/1"):
        path = tmp_path / f"{file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)

    def batches(in_memory: bool | None) -> list[torch.Tensor]:
        config = DataConfig(
            "folder",
            str(tmp_path),
            validation=0,
            image_size=8,
            in_memory=in_memory,
            workers=0,
            augment="resized-crop",
        )
        return [batch.images for batch in train_loader(load_data(config), config, seed=0, epoch=0)]

    streamed = torch.cat(batches(False))
    assert torch.equal(streamed, torch.cat(batches(True)))
    assert torch.equal(streamed, torch.cat(batches(None)))


def test_folder_of_the_final_size_is_decoded_ahead(tmp_path: Path) -> None:
    # Forty images, of which sixteen are inspected first; the odd one (the second) is not among them.
    files = [tmp_path / "train" / f"{number:02}.png" for number in range(40)]
    (tmp_path / "train").mkdir()
    for file in files:
        file.write_bytes(_picture((1, 2, 3)))
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "1.png").write_bytes(_picture((1, 2, 3)))
    config = DataConfig(
        "folder", str(tmp_path), validation=0, image_size=8, labels=False, augment="resized-crop"
    )
    data = load_data(config)
    assert data.augment == "resized-crop" and data.train.in_memory
    files[1].write_bytes(_picture((1, 2, 3), (9, 8)))
    assert not load_data(config).train.in_memory
    assert load_data(replace(config, augment="crop-flip")).train.in_memory


def test_folder_is_224_unless_told(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    data = load_data(DataConfig(name="folder", path=str(tmp_path), in_memory=False))
    assert (data.image_size, data.augment) == (224, "resized-crop")


@pytest.mark.parametrize(
    ("side", "told", "size", "augment"),
    [(32, None, 32, "crop-flip"), (65, None, 224, "resized-crop"), (65, 32, 32, "resized-crop")],
)
def test_small_squares_of_a_folder_stay_as_they_are(
    side: int, told: int | None, size: int, augment: str, tmp_path: Path
) -> None:
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(2):
            (tmp_path / place / f"{number}.png").write_bytes(_picture((1, 2, 3), (side, side)))
    config = DataConfig("folder", str(tmp_path), validation=0.5, image_size=told)
    data = load_data(config)
    assert (data.image_size, data.augment) == (size, augment)


def test_one_class_is_nothing_to_learn_from(tmp_path: Path) -> None:
    for place in ("train/only", "test/only"):
        _loose(tmp_path / place, 4)
    config = DataConfig("folder", str(tmp_path), validation=0.25)
    load_fails(config, str(tmp_path), "at least 2 classes", "got 1 (only)", "data.labels to false")
    assert load_data(replace(config, labels=False)).labelled


def test_folder_of_gray_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(_picture(77))
    data = load_data(DataConfig(name="folder", path=str(tmp_path), validation=0, image_size=8))
    assert data.channels == 1 and data.train.images([0]).unique().tolist() == [77]


def test_folder_without_training_labels(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    for number, file in enumerate(sorted((tmp_path / "train").rglob("*.png"))):
        file.rename(tmp_path / "train" / f"{number}.png")
    for directory in ("ant", "bee"):
        for rest in (tmp_path / "train" / directory).iterdir():
            rest.unlink()
        (tmp_path / "train" / directory).rmdir()
    data = load_data(
        DataConfig(name="folder", path=str(tmp_path), validation=0.25, image_size=8, labels=False)
    )
    assert not data.labelled and len(data.train) == 6 and data.num_classes == 2
    assert data.val is not None and data.val.labels is None and len(data.val) == 2
    assert data.test.labels is not None
    assert "training images unlabelled" in describe(data)


def test_a_path_one_folder_off_is_told(tmp_path: Path) -> None:
    images = tmp_path / "mine" / "images"
    for part in ("train", "test"):
        (images / part / "ant").mkdir(parents=True)
    for path in (images / "train", images / "test", images.parent):
        config = DataConfig(name="folder", path=str(path), image_size=8)
        load_fails(config, f"got '{path}'; give '{images}', set data.test_path, or set data.labels to false.")


def _class_folders(root: Path, count: int) -> None:
    """Write ``count`` images of each of two classes; an image's value is unique to it."""
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number:02}.png").write_bytes(_picture(100 * label + number))


def _values(part: ImageSet | Shards | None) -> list[int]:
    assert isinstance(part, ImageSet)
    return part.images(range(len(part)))[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("below", ["", "train"])
def test_labelled_images_without_test_images_are_split(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _class_folders(tmp_path / below, 20)
    config = DataConfig("folder", str(tmp_path), image_size=8, validation=0.2, test=0.2)
    data = load_data(config)
    said = "no test images of its own: 8 of the 40 labelled images are held out of training (data.test 0.2)"
    assert said in capsys.readouterr().err.splitlines()
    assert data.tested_on == "held-out" and data.class_names == ["ant", "bee"]
    # a fifth of the rest, 6.4 images, for validation
    assert describe(data).startswith(
        "folder: 26 train, 6 validation, 8 held-out test images of 1x8x8, 2 classes, "
    )
    parts = (data.train, data.val, data.test)
    assert sorted(value for part in parts for value in _values(part)) == [*range(20), *range(100, 120)]
    for part in parts:
        assert part is not None and part.labels is not None
        assert part.labels.tolist() == [int(value >= 100) for value in _values(part)]
    assert data.test.labels is not None and data.test.labels.bincount().tolist() == [4, 4]

    def tested(**changes: float) -> list[int]:
        return _values(load_data(replace(config, **changes)).test)

    assert tested() == tested(train_images=10) == tested(validation=0) == _values(data.test)
    assert tested() != tested(split_seed=1)
    load_fails(replace(config, test=0), "data.test: expected a fraction above 0, as there are no test images")
    assert not load_data(replace(config, labels=False)).labelled
    # nothing is held out where nothing is trained
    whole = load_data(config, trained=False)
    assert whole.tested_on == "test" and len(whole.test) == 40


def test_every_class_of_two_images_is_tested(tmp_path: Path) -> None:
    for count, name in enumerate(("one", "two", "three", "many")):
        (tmp_path / name).mkdir()
        for number in range(20 if name == "many" else count + 1):
            (tmp_path / name / f"{number}.png").write_bytes(_picture(number))
    config = DataConfig("folder", str(tmp_path), image_size=8, validation=0)
    data = load_data(config)
    assert data.class_names == ["many", "one", "three", "two"] and data.test.labels is not None
    assert data.test.labels.bincount().tolist() == [2, 0, 1, 1]
    for name in ("many", "three", "two"):
        for file in list((tmp_path / name).iterdir())[1:]:
            file.unlink()
    load_fails(
        config, "Expected at least two images of a class, to hold one out for testing, got one of each"
    )


@pytest.mark.parametrize("below", ["", "train"])
def test_only_labelled_images_are_held_out_for_testing(below: str, tmp_path: Path) -> None:
    _class_folders(tmp_path / below, 10)
    (tmp_path / "unlabelled").mkdir()
    for number in range(50):
        (tmp_path / "unlabelled" / f"{number}.png").write_bytes(_picture(200 + number))
    config = DataConfig("folder", str(tmp_path), image_size=8)
    data = load_data(config)
    assert data.class_names == ["ant", "bee"]
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 1]
    assert data.partly_labelled and len(data.train) == 70 - 2 - 7
    unseen = load_data(replace(config, labels=False))
    assert unseen.tested_on == "validation" and len(unseen.train) == 70 - 7


def test_names_in_a_file_are_matched_with_the_class_folders(tmp_path: Path) -> None:
    _class_folders(tmp_path / "images", 5)
    names = tmp_path / "names.txt"
    config = DataConfig("folder", str(tmp_path / "images"), image_size=8, classes=str(names), validation=0)
    names.write_text("wasp\nbee\nant\n")
    data = load_data(config)
    assert data.class_names == ["wasp", "bee", "ant"] and data.train.labels is not None
    assert data.train.labels.bincount(minlength=3).tolist() == [0, 4, 4]
    names.write_text("Ameise\nBiene\n")
    assert load_data(config).class_names == ["Ameise", "Biene"]
    names.write_text("wasp\nant\nfly\n")
    load_fails(
        config, "expected the names of all classes, as", "has some of them, got none for bee; add them."
    )


def test_images_beside_class_folders_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_folder(tmp_path)
    config = DataConfig(name="folder", path=str(tmp_path), image_size=8, validation=0)
    load_data(config)
    assert "no class folder" not in capsys.readouterr().err
    count = len(load_data(config).train)
    for name in ("b.png", "a.png", ".hidden.png", "notes.txt"):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name, format="PNG")
    assert len(load_data(config).train) == count
    said = f"left out 2 images in '{tmp_path / 'train'}' that are in no class folder, such as a.png"
    assert said in capsys.readouterr().err.splitlines()


def test_folder_mistakes(tmp_path: Path) -> None:
    config = DataConfig(name="folder", path=str(tmp_path), image_size=8)
    load_fails(config, f"Expected images in '{tmp_path}', found none; add some.")
    (tmp_path / "train").mkdir()
    load_fails(config, f"Expected images in '{tmp_path / 'train'}', found none; add some.")
    (tmp_path / "train" / "ant").mkdir()
    load_fails(
        config,
        f"Expected images in '{tmp_path / 'train' / 'ant'}', found none; add some or remove the folder.",
    )
    (tmp_path / "train" / "ant").rmdir()
    (tmp_path / "train").rmdir()
    (tmp_path / "val").mkdir()
    load_fails(config, f"data.path: expected train/ beside val/ in '{tmp_path}', found none; add it.")
    (tmp_path / "val").rmdir()
    _write_folder(tmp_path)
    load_fails(
        replace(config, test_path=str(tmp_path / "train" / "ant")),
        f"data.test_path: expected a directory outside of the training images in '{tmp_path / 'train'}', "
        f"got '{tmp_path / 'train' / 'ant'}'; move it.",
    )
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    load_fails(
        config,
        f"Expected the same class folders in '{tmp_path / 'train'}' and '{tmp_path / 'test'}', got "
        "only in train/: wasp; only in test/: bee; make them equal, or set data.labels to false.",
    )
    # Where training may not see labels, folders need not be classes.
    assert not load_data(DataConfig(name="folder", path=str(tmp_path), image_size=8, labels=False)).labelled
    (tmp_path / "train" / "wasp").rename(tmp_path / "train" / "bee")
    (tmp_path / "test" / "cow").mkdir()
    (tmp_path / "train" / "cow").mkdir()
    load_fails(
        config,
        f"Expected images in '{tmp_path / 'test' / 'cow'}', found none; add some or remove the folder.",
    )


def _loose(directory: Path, count: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (directory / f"{number}.png").write_bytes(_picture((number, 0, 0)))


@pytest.mark.parametrize("below", ["", "train"])
def test_folder_of_loose_images_and_nothing_else(tmp_path: Path, below: str) -> None:
    _loose(tmp_path / below, 4)
    _loose(tmp_path / below / "more", 4)
    config = DataConfig("folder", str(tmp_path), validation=0.25, image_size=8, labels=False)
    data = load_data(config)
    assert not data.labelled and data.val is not None and data.val is data.test
    assert (len(data.train), len(data.val)) == (6, 2) and data.test.labels is None
    assert data.tested_on == "validation" and data.class_names == [] and data.class_counts is None
    assert describe(data) == (
        "folder: 6 train, 2 validation images of 3x8x8, the classes of the teacher (training images "
        "unlabelled), augment crop-flip, in memory"
    )
    load_fails(
        replace(config, validation=0),
        "data.validation: expected a fraction above 0, as there are no test images, got 0; hold some out to "
        "evaluate on, or set data.test_path.",
    )
    names = tmp_path.parent / f"names{below}.txt"
    names.write_text("ant\nbee\n")
    assert load_data(replace(config, classes=str(names))).class_names == ["ant", "bee"]


def test_folder_of_loose_images_beside_a_test_set(tmp_path: Path) -> None:
    _loose(tmp_path / "all", 4)
    _write_folder(tmp_path / "other")
    config = DataConfig("folder", str(tmp_path / "all"), str(tmp_path / "other" / "test"), image_size=8)
    data = load_data(replace(config, validation=0.25))
    assert not data.labelled and data.class_names == ["ant", "bee"] and data.tested_on == "test"
    assert data.test.labels is not None
    # with an unlabelled test set the training images determine the classes
    config = replace(config, path=str(tmp_path / "other" / "train"), test_path=str(tmp_path / "all"))
    data = load_data(replace(config, validation=0.25))
    assert data.labelled and data.test.labels is None and len(data.test) == 4
    assert data.class_names == ["ant", "bee"] and "(test images unlabelled)" in describe(data)
    both = load_data(replace(config, labels=False, validation=0.25))
    assert not both.labelled and both.class_names == []
    assert "(training and test images unlabelled)" in describe(both)


def test_a_set_of_gray_and_colour_images_is_in_colour(tmp_path: Path) -> None:
    # forty images, of which sixteen are inspected first; the coloured one (the second) is not among them
    (tmp_path / "a").mkdir()
    for number in range(40):
        (tmp_path / "a" / f"{number:02}.png").write_bytes(_picture(number))
    config = DataConfig("folder", str(tmp_path / "a"), validation=0.1, image_size=8, labels=False)
    assert load_data(config).channels == 1
    (tmp_path / "a" / "01.png").write_bytes(_picture((1, 2, 3)))
    data = load_data(replace(config, validation=0.1, split_seed=1))
    pixels = torch.cat([part.images(range(len(part))) for part in (data.train, data.test)])
    assert data.channels == 3 and len(pixels) == 40
    shown = sorted(tuple(image[:, 0, 0].tolist()) for image in pixels)
    assert shown == sorted([(0,) * 3, (1, 2, 3), *((number,) * 3 for number in range(2, 40))])


def test_names_of_classes(tmp_path: Path) -> None:
    _write_folder(tmp_path / "set")
    names = tmp_path / "names.txt"
    config = DataConfig("folder", str(tmp_path / "set"), classes=str(names), image_size=8)
    load_fails(config, f"data.classes: expected a file of class names, one per line, got '{names}'")
    names.write_text("Formica rufa\n")
    load_fails(
        config,
        "data.classes: expected at least 2 names, as the labels go up to 1, got 1 in "
        f"'{names}'; add the missing ones.",
    )
    names.write_text("\ufeffFormica rufa\n\nApis\n")
    load_fails(
        config,
        f"data.classes: expected one class name per line in '{names}', got an empty line 2; name it.",
    )
    names.write_text("\ufeffFormica rufa\nApis mellifera\n")
    assert load_data(config).class_names == ["Formica rufa", "Apis mellifera"]
    names.write_bytes(b"\xff\xfe")
    load_fails(
        config, f"data.classes: expected a text file, got '{names}' (it is not UTF-8); correct the path."
    )


def test_corrupt_image_is_named(tmp_path: Path) -> None:
    _write_folder(tmp_path)
    broken = tmp_path / "test" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    load_fails(DataConfig(name="folder", path=str(tmp_path), image_size=8), str(broken))


# --- parquet ----------------------------------------------------------------------------------------


def _write_parquet(
    file: Path,
    images: list[bytes],
    labels: list[int] | None,
    columns: tuple[str, str] = ("image", "label"),
    names: list[str] | None = None,
) -> None:
    values = pa.array([{"bytes": image, "path": None} for image in images])
    table = {columns[0]: values}
    if labels is not None:
        table[columns[1]] = pa.array(labels, pa.int64())
    written = pa.table(table)
    if names is not None:
        features = {"info": {"features": {columns[1]: {"_type": "ClassLabel", "names": names}}}}
        written = written.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(written, file, row_group_size=3)


def _shades(count: int, first: int = 0) -> list[bytes]:
    return [_picture((first + number, 0, 9), kind="PNG") for number in range(count)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_parquet_over_files_and_row_groups(tmp_path: Path, in_memory: bool) -> None:
    _write_parquet(tmp_path / "train-0.parquet", _shades(8), [number % 2 for number in range(8)])
    _write_parquet(tmp_path / "train-1.parquet", _shades(5, 8), [number % 2 for number in range(8, 13)])
    _write_parquet(tmp_path / "test-0.parquet", _shades(4, 100), [0, 1, 0, 1])
    for path, test_path in (
        (str(tmp_path), None),
        (f"{tmp_path}/train-*.parquet", f"{tmp_path}/test-0.parquet"),
    ):
        config = DataConfig("parquet", path, test_path, validation=0.25, in_memory=in_memory)
        data = load_data(replace(config, train_images=7, validation_images="all"))
        assert data.val is not None and (len(data.train), len(data.val), len(data.test)) == (7, 3, 4)
        assert (data.channels, data.image_size, data.class_names) == (3, 8, ["0", "1"])
        assert data.augment == "crop-flip" and data.train.in_memory == in_memory
        assert data.test.images(range(4))[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
        shades = []
        for part in (data.train, data.val):
            assert part.labels is not None
            reds = part.images(range(len(part)))[:, 0, 0, 0].tolist()
            assert [red % 2 for red in reds] == part.labels.tolist()
            shades += reds
        assert len(set(shades)) == 10 and max(shades) < 13


def test_parquet_class_names_and_other_columns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write_parquet(tmp_path / name, _shades(6), [0, 1, 2] * 2, ("img", "fine_label"), ["x", "y", "z"])
    data = load_data(DataConfig("parquet", str(tmp_path / "a"), str(tmp_path / "b"), validation=0))
    assert data.class_names == ["x", "y", "z"] and data.labelled


def test_parquet_of_large_images_is_cropped_by_area(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _write_parquet(tmp_path / name, [_picture(5, (80, 80))] * 2, [0, 1])
    data = load_data(DataConfig("parquet", str(tmp_path / "a"), str(tmp_path / "b"), validation=0))
    assert (data.augment, data.image_size, data.channels) == ("resized-crop", 80, 1)


def test_parquet_mistakes(tmp_path: Path) -> None:
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    config = DataConfig("parquet", str(train), str(test), validation=0)
    load_fails(config, "data.path", "a.parquet", "matches none")
    train.write_text("not parquet")
    _write_parquet(test, _shades(4), [0, 1, 0, 1])
    load_fails(config, "readable parquet", "a.parquet")
    _write_parquet(train, [], [])
    load_fails(config, "a.parquet", "no rows")
    _write_parquet(train, _shades(4), [0, 1, 0, -2])
    load_fails(config, "labels from 0", "got -2")
    _write_parquet(train, _shades(4), [0, 1, 0, 5], names=["x", "y"])
    load_fails(config, "labels below 2", "got 5")
    _write_parquet(train, _shades(4), [0, 1, 0, 1], ("picture", "label"))
    load_fails(config, "image (or img)", "picture")
    _write_parquet(train, [*_shades(3), b""], [0, 1, 0, 1])
    load_fails(config, "row 3", "a.parquet", "can't be decoded")
    _write_parquet(train, [b""] * 4, [0, 1, 0, 1])
    load_fails(
        config,
        f"Expected image bytes in column image of {str(train)!r}, got none in any row; embed the images.",
    )
    _write_parquet(train, [*_shades(2), b"nonsense", *_shades(1)], [0, 1, 0, 1])
    load_fails(config, "row 2", "a.parquet", "decoded")
    _write_parquet(train, [_picture(1, (8, 8)), _picture(1, (8, 9))], [0, 1])
    load_fails(config, "data.image_size", "8x8, 9x8")
    _write_parquet(train, _shades(4), [0, 1, 0, 1])
    _write_parquet(train, _shades(6), [0, 1] * 3)
    alone = load_data(DataConfig("parquet", str(train), validation=0.34))
    assert alone.test.labels is not None and sorted(alone.test.labels.tolist()) == [0, 1]
    assert not load_data(DataConfig("parquet", str(train), labels=False, validation=0.5)).labelled
    _write_parquet(test, _shades(4), None)
    assert load_data(config).test.labels is None


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        _write_parquet(tmp_path / name, _shades(4), [0, 1, 0, 1])
    config = DataConfig("parquet", str(tmp_path / "a"), str(tmp_path / "b"), validation=0)
    found = read_parquet(config)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    load_fails(config, "pip install 'gendd[parquet]'")
    with pytest.raises(UserError, match="need pyarrow"):
        found.train.take(torch.arange(4))


def test_parquet_as_the_hub_lays_it_out(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        file = tmp_path / "data" / f"train-0000{number}-of-00002.parquet"
        _write_parquet(file, _shades(4, 4 * number), [0, 1, 0, 1], names=["x", "y"])
    _write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", _shades(2, 50), [0, 1])
    data = load_data(DataConfig("parquet", str(tmp_path), validation=0))
    assert (len(data.train), data.class_names) == (8, ["x", "y"])
    assert data.test.images(range(2))[:, 0, 0, 0].tolist() == [50, 51]
    _write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", _shades(3, 70), [0, 1, 1])
    data = load_data(DataConfig("parquet", str(tmp_path), validation=0))
    assert data.test.images(range(3))[:, 0, 0, 0].tolist() == [70, 71, 72]


def test_parquet_without_any_labels(tmp_path: Path) -> None:
    _write_parquet(tmp_path / "a", _shades(6), None)
    data = load_data(DataConfig("parquet", str(tmp_path / "a"), validation=0.5))
    assert data.tested_on == "validation" and data.class_names == [] and len(data.test) == 3


def test_parquet_without_training_labels(tmp_path: Path) -> None:
    _write_parquet(tmp_path / "a", _shades(6), None)
    _write_parquet(tmp_path / "b", _shades(6), [0, 1, 2] * 2)
    data = load_data(
        DataConfig("parquet", str(tmp_path / "a"), str(tmp_path / "b"), labels=False, validation=0.5)
    )
    assert not data.labelled and data.num_classes == 3 and len(data.train) == 3


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is not beside the checkout")
def test_cifar10_as_jpeg() -> None:
    train, test = (str(SHARED / f"cifar10-jpeg-{split}.parquet") for split in ("train", "test"))
    data = load_data(DataConfig("parquet", train, test, train_images=4500, in_memory=False))
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (4500, 500, 10000)
    assert (data.channels, data.image_size, data.num_classes) == (3, 32, 10)
    assert data.val.labels is not None and torch.bincount(data.val.labels).tolist() == [50] * 10
    first = pq.read_table(test).slice(0, 1).to_pylist()[0]
    picture = np.array(Image.open(io.BytesIO(first["image"]["bytes"])).convert("RGB"))
    assert data.test.images([0])[0].permute(1, 2, 0).tolist() == picture.tolist()
    assert data.test.labels is not None and data.test.labels[0] == first["label"]


@pytest.mark.parametrize(
    ("counts", "long_tailed"),
    [((11, 3), False), ((16, 4), False), ((20, 1), True), ((300, 120), False), ((4500, 45), True)],
)
def test_a_long_tail_is_more_than_chance(counts: tuple[int, int], long_tailed: bool) -> None:
    labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
    images = ImageSet(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), labels, 1, 4)
    assert Data("x", images, None, images, ["a", "b"], 1, 4, "none").long_tailed is long_tailed
