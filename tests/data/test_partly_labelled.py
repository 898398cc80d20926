"""Partly labelled images; unknown labels are -1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_fails
from PIL import Image

from gendd.config import DataConfig
from gendd.data import Data, Mixing, load_data, train_loader
from gendd.data.readers.demo import read_demo

KNOWN, UNKNOWN, TESTED = 4, 30, 3


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)


def folder(root: Path, name: str = "unlabelled") -> Path:
    """Two classes of four training and three test images, and thirty images beside them."""
    for label, animal in enumerate(("cat", "dog")):
        for number in range(KNOWN):
            picture(root / "train" / animal / f"{number}.png", 10 * label + number)
        for number in range(TESTED):
            picture(root / "test" / animal / f"{number}.png", 100 + number)
    for number in range(UNKNOWN):
        picture(root / name / f"{number:02}.png", 200 + number)
    return root


def loaded(root: Path, **settings: object) -> Data:
    return load_data(DataConfig(name="folder", path=str(root), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
def test_images_of_a_folder_beside_the_classes_have_no_label(tmp_path: Path, name: str) -> None:
    data = loaded(folder(tmp_path, name), validation=0)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0] * KNOWN + [1] * KNOWN + [-1] * UNKNOWN
    values = data.train.images(range(len(data.train)))[:, 0, 0, 0].tolist()
    assert values == [*range(KNOWN), *range(10, 10 + KNOWN), *range(200, 200 + UNKNOWN)]
    assert (data.known_labels, data.partly_labelled) == (2 * KNOWN, True)
    assert data.class_counts is not None and data.class_counts.tolist() == [KNOWN, KNOWN]
    unseen = loaded(folder(tmp_path, name), validation=0, labels=False)
    assert len(unseen.train) == len(data.train)


def test_a_list_tells_an_unknown_label_by_minus_one(tmp_path: Path) -> None:
    folder(tmp_path)
    lines = ["train/cat/0.png 0", "train/dog/0.png 1", "unlabelled/00.png -1", "unlabelled/01.png -1"]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text("test/cat/0.png 0\ntest/dog/0.png 1\n")
    config = DataConfig(
        "list", path=str(tmp_path / "train.txt"), test_path=str(tmp_path / "test.txt"), validation=0
    )
    data = load_data(config)
    assert data.train.labels is not None and data.train.labels.tolist() == [0, 1, -1, -1]
    (tmp_path / "test.txt").write_text("test/cat/0.png 0\ntest/dog/0.png -1\n")
    load_fails(config, "labels from 0", "got -1")
    (tmp_path / "train.txt").write_text("train/cat/0.png 0\ntrain/dog/0.png -2\n")
    load_fails(config, "labels from 0", "got -2")


def test_validation_images_are_of_the_kind_there_are_more_of(tmp_path: Path) -> None:
    few = loaded(folder(tmp_path), validation=0.1)
    assert few.val is not None and few.val.labels is None and not few.judged
    assert len(few.val) == round(0.1 * (2 * KNOWN + UNKNOWN))
    assert few.known_labels == 2 * KNOWN
    for number in range(5, UNKNOWN):
        (tmp_path / "unlabelled" / f"{number:02}.png").unlink()
    many = loaded(tmp_path, validation=0.2)
    assert many.val is not None and many.val.labels is not None
    assert many.val.labels.bincount().tolist() == [1, 2] or many.val.labels.bincount().tolist() == [2, 1]
    assert int((many.train.labels == -1).sum()) == 5  # type: ignore[arg-type, union-attr]


def test_the_labelled_images_alone_make_as_many_steps(tmp_path: Path) -> None:
    data = loaded(folder(tmp_path), validation=0)
    alone = data.labelled_alone()
    labels = alone.train.labels
    assert labels is not None and len(labels) == len(data.train)
    times = torch.bincount(alone.train.images(range(len(labels)))[:, 0, 0, 0].long())
    assert set(times.tolist()) == {0, len(labels) // (2 * KNOWN), len(labels) // (2 * KNOWN) + 1}
    assert (labels >= 0).all() and torch.bincount(labels).tolist() == [19, 19]
    # augmentation differs each time an image is repeated
    batches = [*train_loader(alone, DataConfig(batch_size=19, augment="crop"), seed=0, epoch=0)]
    assert [len(batch.images) for batch in batches] == [19, 19]
    assert alone.labelled_alone() is alone


def test_mixed_rows_sum_to_what_is_known() -> None:
    images = torch.rand(4, 1, 4, 4)
    labels = torch.tensor([0, -1, 2, -1])
    _, smooth = Mixing(3, label_smoothing=0.3)(images, labels, torch.Generator().manual_seed(0))
    assert smooth is not None
    torch.testing.assert_close(smooth[0], torch.tensor([0.8, 0.1, 0.1]))
    assert smooth[1].tolist() == [0, 0, 0]
    _, mixed = Mixing(3, mixup=1.0)(images, labels, torch.Generator().manual_seed(0))
    assert mixed is not None
    # each image is mixed with its counterpart: known with unknown labels and vice versa
    torch.testing.assert_close(mixed.sum(1) + mixed.sum(1).flip(0), torch.ones(4))
    assert 0 < mixed[0].sum() < 1


def test_the_demo_is_balanced_and_few_of_it_are_labelled() -> None:
    found = read_demo(DataConfig("demo"))
    assert found.train.labels is not None and found.test is not None and found.test.labels is not None
    assert torch.bincount(found.train.labels + 1).tolist() == [5800] + [20] * 10
    assert torch.bincount(found.test.labels).tolist() == [200] * 10
    images = found.train.take(torch.arange(found.train.count))
    assert isinstance(images, torch.Tensor) and images.shape == (6000, 1, 28, 28)
    # tiles are cut correctly: all images differ, and those of a class are similar
    assert len(images.flatten(1).unique(dim=0)) > 5990
    first, last = images[0, 0].float(), images[-1, 0].float()
    assert first[:, :2].mean() < 128 and last.std() > 10
