"""Teachers of other classes than the data's, or of none."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Finished
from runs import distil, teacher_of

import gendd
from gendd.cli import main
from gendd.deploy.predict import predict
from gendd.errors import UserError
from gendd.run import evaluate_run


@pytest.fixture(scope="module")
def other_teacher(digits_run: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trained teacher with a classifier of 15 classes of nothing in the data."""
    from gendd.models import create_backbone, save_weights

    cache = Path(os.environ["GENDD_CACHE"])
    trained = gendd.load(teacher_of(cache)).backbone.net.state_dict()
    torch.manual_seed(0)
    backbone = create_backbone("cifar/resnet8x0.5", 15, 1)
    mixed = torch.randn(15, 10)
    classifier = {key: mixed @ trained[key] for key in ("fc.weight", "fc.bias")}
    backbone.net.load_state_dict({**trained, **classifier})
    file = tmp_path_factory.mktemp("teacher") / "other.safetensors"
    save_weights(backbone, file)
    return str(file)


FEATURES = {"knn", "linear_probe", "parameters", "multiply_adds", "latency_ms", "latency_quartiles_ms"}


@pytest.mark.report
def test_a_teacher_of_features_alone_and_no_labels(
    other_teacher: str,
    digit_files: Callable[[int], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    options = [f"--teacher.weights={other_teacher}", "--teacher.classifier=false", "--data.labels=false"]
    metrics = distil(folder, *options, "--baselines=[]")
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[:4]] == [
        "method",
        "teacher",
        "GenDD · feature",
        "GenDD · generated",
    ]
    own = metrics["student"]
    assert (own["readouts"], own["readout"]) == ({}, None)
    assert own["validation"]["metric"] == "val/diffusion" and 0 < own["validation"]["loss"] < 5
    assert set(own["embedding"]["feature"]) == FEATURES
    assert set(own["embedding"]["generated"]) == FEATURES | {"cosine"}
    assert set(metrics["teacher"]["embedding"]) == {"knn", "linear_probe"}
    assert metrics["teacher"]["top1"] is None and metrics["teacher"]["embedding"]["knn"] > 50
    student = gendd.load(folder)
    assert student.readouts == () and student.backbone.num_classes == 10
    assert student.embed(torch.rand(2, 1, 8, 8)).shape == (2, 32)
    # evaluating again gives the same, but for one of 359 images that the rounding of a probe's fit may move
    again = evaluate_run(folder)
    for name in ("feature", "generated"):
        there = {key: own["embedding"][name][key] for key in again[name]}
        assert again[name].pop("linear_probe") == pytest.approx(there.pop("linear_probe"), abs=0.29)
        assert again[name] == there
    assert main(["evaluate", str(folder)]) == 0
    assert re.search(
        r"generated  knn [\d.]+ %   linear_probe [\d.]+ %   cosine -?0\.\d{3}\n", capsys.readouterr().out
    )
    with pytest.raises(UserError, match="expected one that classifies, got one that gives features only"):
        predict(folder, digit_files(1))
    assert "Diffusion loss of the validation images" in (folder / "report.html").read_text()


def test_a_teacher_of_features_alone_and_labels(other_teacher: str, tmp_path: Path) -> None:
    options = [f"--teacher.weights={other_teacher}", "--teacher.classifier=false", "--gendd.centres=means"]
    metrics = distil(tmp_path, *options, "--baselines=[]")
    readouts = metrics["student"]["readouts"]
    assert set(readouts) == {"linear", "mean", "sample"}
    assert all(figures["top1"] is not None and figures["agreement"] is None for figures in readouts.values())
    assert metrics["student"]["validation"]["metric"] == "val/mean"
    assert gendd.load(tmp_path).num_classes("mean") == 10
    card = (tmp_path / "student" / "README.md").read_text()
    assert "the nearest class mean on the expected teacher feature" in card
    assert {name: scores["top1"] for name, scores in evaluate_run(tmp_path).items()} == {
        name: figures["top1"] for name, figures in readouts.items()
    }


def test_a_teacher_of_other_classes_without_labels(
    other_teacher: str,
    digit_files: Callable[[int], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"--teacher.weights={other_teacher}", "--data.labels=false", "--gendd.refit=teacher"]
    metrics = distil(tmp_path, *options, "--baselines=[kl]", "--training.epochs=2")
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[:3] == ["method", "agree", "%"]
    assert "linear readout on held-out images: before " in err
    readouts = metrics["student"]["readouts"]
    for figures in [*readouts.values(), metrics["baselines"]["kl"]]:
        assert (figures["top1"], figures["top5"]) == (None, None) and figures["agreement"] is not None
    assert set(metrics["student"]["refit"]) == {
        "target",
        "judged_by",
        "l2",
        "trained",
        "refitted",
        "tried",
        "kept",
        "images",
        "held_images",
    }
    assert metrics["student"]["validation"]["metric"] == "val/agreement"
    student = gendd.load(tmp_path)
    assert student.backbone.num_classes == student.num_classes("mean") == 15
    (said,) = predict(tmp_path, digit_files(1))
    assert all(name.isdigit() for name in said.classes)
    again = evaluate_run(tmp_path)
    assert {name: scores["agreement"] for name, scores in again.items()} == {
        name: figures["agreement"] for name, figures in readouts.items()
    }
    card = (tmp_path / "student" / "README.md").read_text()
    assert "| agreement with the teacher |" in card and "top-1" not in card


def test_names_of_the_teacher_s_classes_are_kept(
    digits_run: Finished, other_teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"thing {index}" for index in range(15)]
    monkeypatch.setattr("gendd.run.experiment.teacher_class_names", lambda config, classes: names)
    distil(
        tmp_path,
        f"--teacher.weights={other_teacher}",
        "--data.labels=false",
        "--baselines=[]",
        "--training.epochs=1",
    )
    student = gendd.load(tmp_path)
    assert student.class_names() == names and student.info["class_names"] == [str(n) for n in range(10)]


def test_kd_without_a_share_of_labels_is_a_baseline_without_them(
    digits_run: Finished, tmp_path: Path
) -> None:
    metrics = distil(
        tmp_path, "--data.labels=false", "--baselines=[kd]", "--kd.weight=1", "--training.epochs=1"
    )
    assert set(metrics["baselines"]) == {"kd"}


@pytest.mark.parametrize(
    ("names", "code", "said"),
    [
        ("abcdefghij", 0, ""),
        ("0123456789", 0, ""),
        (
            "abcdefghik",
            0,
            "warning: the teacher's class names are not the data's: class 9 is 'k' to the teacher",
        ),
        (
            "abcdefghji",
            2,
            "class 8 is 'j' to the teacher, 'i' in the data; give its names, one per line, in a file",
        ),
        (
            "bacdefghij",
            2,
            "class 0 is 'b' to the teacher, 'a' in the data; give its names, one per line, in a file",
        ),
    ],
)
def test_names_of_a_teacher_s_classes(
    names: str,
    code: int,
    said: str,
    digits_run: Finished,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(teacher_of(cache) / "student", teacher)
    content = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    content["info"]["class_names"] = list(names)
    (teacher / "config.json").write_text(json.dumps(content), encoding="utf-8")
    own = tmp_path / "names.txt"
    own.write_text("\n".join("abcdefghij"), encoding="utf-8")
    options = [
        f"--teacher.weights={teacher}",
        f"--data.classes={own}",
        "--training.epochs=1",
        "--baselines=[]",
    ]
    distil(tmp_path / "run", *options, code=code)
    err = capsys.readouterr().err
    assert (said in err) if said else ("class names" not in err)
    assert (tmp_path / "run").exists() == (code == 0)
