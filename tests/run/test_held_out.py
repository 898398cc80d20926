"""A run on class folders without test images, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gendd.cli import main


@pytest.mark.report
def test_a_network_trained_on_class_folders_is_scored_on_images_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    images, run = tmp_path / "photos", tmp_path / "run"
    for number in range(200):
        folder = images / str(digits.target[number])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(folder / f"{number}.png")
    words = ["--training.epochs=1", "--training.precision=fp32", "--training.loggers=[csv]"]
    assert main(["train", str(images), "cifar/resnet8x0.25", "--out", str(run), *words]) == 0
    said = capsys.readouterr().err
    assert "no test images of its own: 20 of the 200 labelled images are held out of training" in said
    about = json.loads((run / "metrics.json").read_text())["run"]
    assert about["tested_on"] == "held-out" and about["test_images"] == 20
    assert "images held out of the training set" in (run / "student" / "README.md").read_text()
    assert "<dt>Test images</dt><dd>20 (held out)</dd>" in (run / "report.html").read_text()

    assert main(["evaluate", str(run)]) == 0
    assert "no longer those of the training" not in capsys.readouterr().err
    Image.new("L", (8, 8)).save(images / "3" / "new.png")
    assert main(["evaluate", str(run)]) == 0
    assert "no longer those of the training" in capsys.readouterr().err

    assert main(["evaluate", "--network", str(run), "--data", str(images)]) == 0
    assert "no test images of its own: all 201 labelled images are used" in capsys.readouterr().err
