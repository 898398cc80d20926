"""Validation of a run before training starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from runs import distil

from gendd.config import DataConfig, EvaluationConfig, RunConfig
from gendd.errors import UserError
from gendd.run.settings import binding_of


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--student.name=cifar/resnet9"],
            "Unknown model 'cifar/resnet9': expected cifar/NAME, timm/NAME, torchvision/NAME, hf/ID or "
            "FILE.py:FACTORY. Did you mean 'cifar/resnet",
        ),
        (["--teacher.name=cifar/resnet21"], "Teacher: Unknown model 'cifar/resnet21': expected "),
        (
            ["--data.labels=false", "--baselines=[kl,supervised]"],
            "baselines: expected methods without labels (gendd, kl) where data.labels is false, got "
            "'supervised'. Give --baselines '[kl]' or '[]'.",
        ),
        (
            ["--data.labels=false", "--training.stage1_epochs=1"],
            "training.stage1_epochs: expected 0 without labels, got 1.",
        ),
        (
            ["--data.labels=false", "--training.monitor=top1"],
            "training.monitor: expected agreement or diffusion for this teacher, student and labels, "
            "got 'top1'.",
        ),
        (
            ["--teacher.classifier=false"],
            "teacher.classifier: expected true for a teacher that is trained on the labels first, got False.",
        ),
        (
            ["--teacher.classifier=false", "--data.labels=false"],
            "teacher.classifier: expected true for a teacher that is trained on the labels first, got False.",
        ),
        (
            ["--teacher.classes=7", "--data.labels=false"],
            "teacher.classes: expected null for a teacher that is trained on the labels first, got 7.",
        ),
        (
            ["--data.labels=false", "--method=kd"],
            "data.labels: expected true for method 'kd', which learns from labels, got False.",
        ),
        (
            ["--method=gendd_no_labels", "--gendd_no_labels.refit=labels"],
            "gendd_no_labels.refit: expected teacher or mean or auto or none for this teacher and these "
            "labels, got 'labels'.",
        ),
        (
            ["--method=linear_probe"],
            "student.weights: expected a trained student for method 'linear_probe', got none; "
            "give its run or its file.",
        ),
        (
            ["--data.labels=false", "--baselines=[linear_probe]"],
            "baselines: expected methods without labels (gendd, kl) where data.labels is false, got "
            "'linear_probe'.",
        ),
        (
            ["--data.labels=false", "--method=supervised"],
            "data.labels: expected true for method 'supervised', which learns from labels, got False.",
        ),
    ],
)
def test_a_setting_that_cannot_work_costs_no_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("gendd.run.training.fit", lambda *args, **given: pytest.fail("trained"))
    folder = tmp_path / "run"
    words = options if any("baselines" in option for option in options) else [*options, "--baselines=[]"]
    distil(folder, *words, code=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("gendd: ") and message in last
    assert not folder.exists()


@pytest.mark.parametrize(
    "classes, options, last",
    [
        (
            1000,
            ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true", "--gendd.contraction=0.3"],
            "Contraction: expected a teacher with the data's 10 classes, got one with 1000. Set "
            "gendd.centres means, gendd.contraction 0, or data.labels false.",
        ),
        *[
            (1000, ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true", way], "training starts")
            for way in ("--gendd.centres=means", "--seed=1", "--data.labels=false")
        ],
        (
            1000,
            ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true", "--method=kl"],
            "KL distillation: expected a teacher with the student's 10 classes, got one with 1000. Use a "
            "teacher trained on these classes, or data.labels false.",
        ),
        (
            1000,
            [
                "--teacher.name=timm/test_resnet",
                "--teacher.pretrained=true",
                "--method=kl",
                "--data.labels=false",
            ],
            "training starts",
        ),
        (10, ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true"], "training starts"),
        # a student's classifier is replaced
        (1000, ["--student.name=timm/test_resnet", "--student.pretrained=true"], "training starts"),
    ],
)
def test_a_pretrained_teacher_keeps_its_classes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    classes: int,
    options: list[str],
    last: str,
) -> None:
    import timm

    create = timm.create_model

    def created(name: str, pretrained: bool = False, **given: Any) -> Any:
        net = create(name, **given)  # nothing is downloaded
        net.pretrained_cfg["num_classes"] = classes
        return net

    def started(*args: Any, **given: Any) -> Any:
        raise UserError("training starts")

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr("gendd.run.training.fit", started)
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    distil(tmp_path / "run", "--baselines=[]", *options, code=2)
    assert capsys.readouterr().err.splitlines()[-1] == f"gendd: {last}"


def test_what_was_measured_before_a_setting_keeps_its_name() -> None:
    plain, few = RunConfig(), RunConfig(data=DataConfig(train_images=100))
    for config in (plain, few):
        every = dataclasses.replace(config, data=dataclasses.replace(config.data, validation_images="all"))
        assert not {"data.validation_images", "evaluation.images"} & set(binding_of(every))
    assert "data.validation_images" not in binding_of(plain)
    assert binding_of(few)["data.validation_images"] is None
    assert binding_of(RunConfig(evaluation=EvaluationConfig(5)))["evaluation.images"] == 5
