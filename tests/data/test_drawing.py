"""Numbers of validation and scored images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import load_fails

from gendd.config import DataConfig
from gendd.data import load_data
from gendd.data.drawing import spread
from gendd.data.encoded import Files
from gendd.data.images import ImageSet


def test_validation_follows_the_training_images() -> None:
    whole = load_data(DataConfig())
    assert whole.val is not None
    held, rest = len(whole.val), len(whole.train)
    for wanted in (100, 640, rest):
        data = load_data(DataConfig(train_images=wanted))
        assert data.val is not None and data.val.labels is not None
        assert (len(data.train), len(data.val)) == (wanted, round(held * wanted / rest))
        # by class, and of those that are held out
        assert int(torch.bincount(data.val.labels, minlength=10).min()) >= 1
        pixels = {image.numpy().tobytes() for image in whole.val.images(range(held))}
        assert {image.numpy().tobytes() for image in data.val.images(range(len(data.val)))} <= pixels


def test_which_images_are_trained_on_does_not_depend_on_it() -> None:
    few = DataConfig(train_images=100)
    prints = [
        load_data(dataclasses.replace(few, validation_images=number)).train.fingerprint
        for number in (None, "all", 20)
    ]
    assert len(set(prints)) == 1


def test_a_number_of_validation_images_or_all() -> None:
    for given, found in ((20, 20), ("all", 144)):
        data = load_data(DataConfig(train_images=100, validation_images=given))  # type: ignore[arg-type]
        assert data.val is not None and len(data.val) == found
        unlabelled = load_data(DataConfig(validation_images=given, labels=False))  # type: ignore[arg-type]
        assert unlabelled.val is not None and len(unlabelled.val) == found
    load_fails(DataConfig(validation_images=145), "data.validation_images: expected at most 144", "got 145")
    load_fails(DataConfig(validation=0, validation_images=1), "at most 0", "raise data.validation")


def test_test_images_are_spread_evenly(capsys: pytest.CaptureFixture[str]) -> None:
    whole, fewer = load_data(DataConfig()), load_data(DataConfig(), 40)
    rows = torch.linspace(0, 358, 40).round().long()
    assert torch.equal(fewer.test.images(range(40)), whole.test.images(rows))
    assert fewer.test.labels is not None and whole.test.labels is not None
    assert torch.equal(fewer.test.labels, whole.test.labels[rows])
    assert fewer.test.fingerprint == whole.test.fingerprint
    assert capsys.readouterr().err == "scored on 40 of 359 images, evenly spread (evaluation.images)\n"
    assert len(load_data(DataConfig(), 1000).test) == 359 and capsys.readouterr().err == ""


def test_encoded_images_are_spread_without_being_read(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    chosen = spread(ImageSet(Files([str(file) for file in files]), torch.arange(5), 3, 8), 3)
    assert not isinstance(chosen.source, torch.Tensor) and len(chosen) == 3
    assert [chosen.source.read(row) for row in range(3)] == [b"\0", b"\2", b"\4"]
    assert chosen.source.where(1) == repr(str(files[2])) and chosen.labels is not None
    assert chosen.labels.tolist() == [0, 2, 4]
