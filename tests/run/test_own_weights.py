"""A student that starts from a weights file with other classes, or without a classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY
from safetensors.torch import save_file

import gendd
from gendd.cli import main
from gendd.errors import UserError
from gendd.models import load_weights, save_weights
from gendd.models.weights import read_checkpoint

NAME = "timm/test_resnet"
# gray images, a network for colour
IMAGES = [
    *(word for word in TINY if word.startswith(("--data.", "--training."))),
    "--training.epochs=1",
    "--student.channels=3",
]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a network of a thousand classes."""
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(gendd.create_backbone(NAME, 1000), file)
    return file


def headless(weights: Path) -> Path:
    """The same file without the classifier, as ``num_classes=0`` gives it."""
    file = weights.with_name("headless.safetensors")
    state, _ = read_checkpoint(weights)
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, file)
    return file


def test_the_file_that_a_failed_download_recommends_is_trained_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("gendd.models.downloads.reachable", lambda host: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    words = ["train", *IMAGES, "--student", NAME, "--student.pretrained=true"]
    words += ["--out", str(tmp_path / "run")]
    assert main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "give them as a file (--teacher.weights or --student.weights FILE, " in last
    assert main([*words, f"--student.weights={weights}"]) == 0
    assert f"student {NAME}: {weights} of 1,000 classes, not 10: its classifier is newly initialised" in (
        capsys.readouterr().err.splitlines()
    )
    assert gendd.load(tmp_path / "run").num_classes() == 10


def test_weights_without_a_classifier_are_taken_too(weights: Path, tmp_path: Path, capsys: Capture) -> None:
    file = headless(weights)
    words = ["train", *IMAGES, "--student", NAME, f"--student.weights={file}", "--dry-run"]
    assert main([*words, f"--out={tmp_path / 'run'}"]) == 0
    assert f"student {NAME}: {file} without a classifier: its classifier is newly initialised" in (
        capsys.readouterr().err.splitlines()
    )
    network = gendd.create_backbone(NAME, 5, weights=file)
    assert (network.num_classes, network.pretrained_classes) == (5, 0)
    trained = gendd.create_backbone(NAME, 1000, weights=weights).net.state_dict()
    for key, value in network.net.state_dict().items():
        assert key.startswith("fc.") or bool((value == trained[key]).all())


def test_of_what_is_asked_as_it_is_they_are_refused(weights: Path) -> None:
    network = gendd.create_backbone(NAME, 5)
    with pytest.raises(UserError, match=r"got 2 keys missing \(fc\.weight, fc\.bias\)"):
        load_weights(network, headless(weights))


def test_weights_of_another_number_of_channels_name_the_setting(weights: Path) -> None:
    network = gendd.create_backbone(NAME, 1000, 1)
    with pytest.raises(UserError) as caught:
        load_weights(network, weights)
    assert str(caught.value).endswith(
        "Its network takes 3 channels: set --student.channels 3 (or --teacher's)."
    )
    load_weights(gendd.create_backbone(NAME, 1000, 1, channels=3), weights)
