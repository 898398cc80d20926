"""Scores without training: of a network by name and weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, Finished
from torch.nn import functional as F

import gendd
from gendd.cli import main
from gendd.config import DataConfig
from gendd.data import load_data
from gendd.models import save_weights
from gendd.run import Run

NAME = "cifar/resnet8x0.25"


@pytest.fixture(scope="module")
def weights(digits_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The student that was trained on labels alone, as a plain file."""
    file = tmp_path_factory.mktemp("plain") / "w.safetensors"
    save_weights(gendd.load(digits_run.folder / "baselines" / "supervised").backbone, file)
    return str(file)


def test_a_network_is_scored_without_a_run(
    digits_run: Finished, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--network", NAME, f"--weights={weights}", "--data", "digits"]
    assert main([*words, "--json"]) == 0
    ((name, scores),) = json.loads(capsys.readouterr().out).items()
    trained = Run.open(digits_run.folder).metrics["baselines"]["supervised"]
    assert name == NAME and (scores["top1"], scores["top5"]) == (trained["top1"], trained["top5"])
    test = load_data(DataConfig()).test
    assert test.labels is not None
    network = gendd.create_backbone(NAME, 10, 1, weights=weights).eval()
    with torch.no_grad():
        logits = network(test.images(range(len(test))).float() / 255)[1]
    assert scores["nll"] == pytest.approx(float(F.cross_entropy(logits, test.labels)), abs=1e-4)
    assert 0 < scores["ece"] < 1
    assert main(words) == 0
    assert capsys.readouterr().out == (
        f"{NAME}  top1 {scores['top1']:.2f} %   top5 {scores['top5']:.2f} %   nll {scores['nll']:.3f}   "
        f"ece {scores['ece']:.3f}\n"
    )


def test_what_cannot_be_scored_is_refused(
    weights: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_weights(gendd.create_backbone(NAME, 7, 1), tmp_path / "seven.safetensors")
    for words, message in (
        (["--network", NAME], f"--network: expected {NAME} with weights, got none; give --weights FILE, "),
        (
            ["--network", NAME, f"--weights={tmp_path / 'seven.safetensors'}"],
            f"--network: expected {NAME} of the data's 10 classes, got one of 7; give weights trained on ",
        ),
        (["--network", NAME, "--data.pth=x"], "Unknown option '--data.pth'. Did you mean '--data.path'?"),
        (["--network", NAME, "--readout=mean"], "--readout: expected none with --network, got 'mean'; "),
        (["--network=cifar/resnet9"], "Unknown model 'cifar/resnet9': expected cifar/NAME, "),
        (["--network", NAME, "--data.image_size=x"], "data.image_size: expected integer or null, got x. "),
        (["run", "--weights", weights], "--weights, --data: expected with --network NAME alone, "),
    ):
        assert main(["evaluate", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"gendd: {message}") and said.count("\n") == 1


def test_weights_of_other_classes_leave_the_classifier_new(
    weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = gendd.create_backbone(NAME, 4, 1, weights=weights)
    assert network.num_classes == 4
    assert (
        capsys.readouterr().err
        == f"{NAME}: {weights} of 10 classes, not 4: its classifier is newly initialised\n"
    )
    trained = gendd.create_backbone(NAME, 10, 1, weights=weights).net.state_dict()
    assert all(
        torch.equal(value, trained[key])
        for key, value in network.net.state_dict().items()
        if not key.startswith("fc.")
    )


def test_evaluation_images_bound_what_is_scored(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [word for word in TINY if word.startswith(("--student.", "--data.", "--training."))]
    words = [*alone, "--training.epochs=1", "--out", str(tmp_path)]
    assert main(["train", *words, "--evaluation.images=50"]) == 0
    assert "scored on 50 of 359 images, evenly spread (evaluation.images)" in capsys.readouterr().err
    metrics = Run.open(tmp_path).metrics
    assert (metrics["run"]["test_images"], metrics["run"]["evaluation_images"]) == (50, 50)
    top1 = metrics["student"]["readouts"]["linear"]["top1"]
    assert top1 == pytest.approx(2 * round(top1 / 2))  # of 50 images
    assert main(["evaluate", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["linear"]["top1"] == top1
    # all images, with the existing training
    assert main(["train", *words, "--resume", "--evaluation.images=null"]) == 0
    assert "--resume: evaluation.images 50 → None from here on" in capsys.readouterr().err
    assert Run.open(tmp_path).metrics["run"]["test_images"] == 359
    words = ["evaluate", "--network", NAME, f"--weights={weights}", "--evaluation.images=50", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)[NAME]["top1"] % 2 == 0
