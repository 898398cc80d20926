"""Warnings of a finished run, and the files of its baselines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from runs import distil

import gendd
from gendd.config import GenDDConfig, ReadoutConfig, RunConfig, load_config
from gendd.errors import UserError
from gendd.report import ReportData, write_report
from gendd.run import Run, evaluate_run
from gendd.run.advice import FEW_STEPS, advice, best_on_validation
from gendd.student.folders import RunFolder


def figures(top1: float, baselines: dict[str, float] | None = None) -> dict[str, Any]:
    validation = {"metric": "val/linear", "percent": top1}
    return {
        "run": {"method": "gendd"},
        "student": {
            "readout": "mean",
            "readouts": {"mean": {"top1": top1}},
            "validation": {**validation, "metric": "val/mean"},
        },
        "baselines": {
            name: {"top1": value, "validation": {**validation, "percent": value}}
            for name, value in (baselines or {}).items()
        },
    }


def test_a_long_training_that_waited_for_its_images_is_told_what_to_do() -> None:
    def told(trained: float, loading: float) -> str:
        found = figures(80.0)
        found["student"] |= {"train_seconds": trained, "loading_seconds": loading}
        return "\n".join(advice(RunConfig(), found, even(), 5000))

    assert told(100.0, 19.0) == told(29.0, 20.0) == told(0.0, 0.0) == ""
    assert told(100.0, 37.0).startswith("37% of the training time was spent waiting for images; give the ")


def even(classes: int = 4) -> torch.Tensor:
    return torch.full((classes, classes), 10)


def warned(
    top1: float = 80.0, confusion: torch.Tensor | None = None, steps: int = 5000, **baselines: float
) -> str:
    config = RunConfig(training=dataclasses.replace(RunConfig().training, epochs=10, lr=0.006))
    counts = even() if confusion is None else confusion
    return "\n".join(advice(config, figures(top1, baselines), counts, steps))


def test_a_good_run_warns_of_nothing() -> None:
    assert warned(kd=79.9) == ""


def test_a_cheaper_readout_that_is_better_is_told() -> None:
    found = figures(10.0)
    found["student"]["readouts"]["linear"] = {"top1": 38.0}
    config = RunConfig(readout=ReadoutConfig("mean"))
    (line,) = advice(config, found, None, 5000)
    # auto has chosen on the validation images
    assert advice(RunConfig(), found, None, 5000) == []
    assert "readout linear" in line and "38.00 against 10.00" in line and "--readout.name auto" in line
    found["student"]["readouts"]["linear"] = {"top1": 10.5}
    assert advice(config, found, None, 5000) == []


def test_few_steps_name_the_epochs_that_make_more() -> None:
    text = warned(steps=FEW_STEPS - 1)
    assert text.startswith(
        f"the student was trained for only {FEW_STEPS - 1} steps; try --training.epochs 20"
    )
    assert warned(steps=FEW_STEPS) == ""
    alone = advice(RunConfig(method="supervised"), figures(80.0), None, 10)
    assert alone[0].startswith("the network was trained for only 10 steps;")


def test_one_class_that_takes_nearly_all_is_told_unless_the_images_are_like_that() -> None:
    collapsed = torch.zeros(4, 4, dtype=torch.int64)
    collapsed[:, 2] = 10
    assert "one class takes 100 % of the predictions" in warned(confusion=collapsed)
    assert "--training.lr 0.002" in warned(confusion=collapsed)
    skewed = torch.zeros(4, 4, dtype=torch.int64)
    skewed[2, 2] = 100
    assert warned(confusion=skewed) == ""


def test_a_better_baseline_is_told_with_where_it_is() -> None:
    text = warned(80.0, kd=81.5, kl=80.5)
    assert text.startswith("KD, a baseline of this run, is better on the test images (81.50 against 80.00 %)")
    assert "baselines/kd" in text


def test_a_student_below_the_one_trained_on_labels_alone_is_told_first() -> None:
    first, second = warned(80.0, supervised=80.5, kd=81.0).splitlines()
    assert first.startswith(
        "the student is below the same network trained on labels alone (80.00 against 80.50 % on the test"
    )
    assert "baselines/supervised" in first and second.startswith("KD, a baseline of this run, is better")
    assert "use that network, in baselines/supervised, or try more epochs" in first
    assert warned(80.0, supervised=79.9) == ""


def test_with_a_weak_teacher_the_labels_are_told_to_train_the_student() -> None:
    found = figures(80.0, {"supervised": 82.0})
    for teacher, told in ((81.9, True), (82.0, False), (None, False)):
        found["teacher"] = {"top1": teacher}
        (line,) = advice(RunConfig(), found, None, 5000)
        assert ("the teacher has only 81.90 %; try --gendd.label_weight 1 --gendd.refit auto" in line) == told
    found["teacher"] = {"top1": 70.0}
    for config in (RunConfig(gendd=GenDDConfig(label_weight=1)), RunConfig(method="kd")):
        (line,) = advice(config, found, None, 5000)
        assert "label_weight" not in line


def test_readouts_that_disagree_are_told() -> None:
    found = figures(80.0)
    for linear, told in ((74.0, True), (76.0, False)):
        found["student"]["readouts"]["linear"] = {"top1": linear}
        lines = advice(RunConfig(), found, None, 5000)
        assert [line.startswith("readout linear is far behind readout mean") for line in lines] == [
            True
        ] * told
        assert all("80.00 % on the test images" in line and "gendd probe" in line for line in lines)
    found["run"]["tested_on"] = "validation"
    found["student"]["readouts"]["linear"] = {"top1": 70.0}
    assert "80.00 % on the validation images" in advice(RunConfig(), found, None, 5000)[0]


def test_the_best_on_validation_is_found_where_figures_can_be_compared() -> None:
    assert best_on_validation(figures(80.0, {"kd": 81.0})) == ("kd", 81.0)
    assert best_on_validation(figures(80.0, {"kd": 80.0})) == ("gendd", 80.0)
    mixed = figures(80.0, {"kl": 90.0})
    mixed["baselines"]["kl"]["validation"]["metric"] = "val/agreement"
    assert best_on_validation(mixed) is None
    mixed["baselines"]["kl"]["validation"] = None
    assert best_on_validation(mixed) is None


def test_the_report_has_the_warnings_in_a_box(tmp_path: Path) -> None:
    metrics = figures(80.0) | {"teacher": None}
    metrics["student"]["name"] = "small"
    metrics["run"]["warnings"] = ["few <steps>"]
    text = write_report(ReportData("run", metrics), tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<section class="warnings"><h2>Warnings</h2><ul><li>few &lt;steps&gt;</li></ul>' in text


def test_a_baseline_is_a_finished_run_of_its_own(digits_run: Finished) -> None:
    folder = digits_run.folder / "baselines" / "kl"
    run = Run.open(folder)
    whole = Run.open(digits_run.folder).metrics
    own = load_config(digits_run.folder / "config.yaml")
    changed = {"method": "kl", "baselines": [], "settings": {}, "out": run.config.out}
    assert run.config == dataclasses.replace(own, **changed)
    assert run.metrics["student"]["readouts"]["linear"]["top1"] == whole["baselines"]["kl"]["top1"]
    assert evaluate_run(folder)["linear"]["top1"] == whole["baselines"]["kl"]["top1"]
    assert gendd.load(folder).readouts == ("linear",)
    assert "KL distillation" in (folder / "student" / "README.md").read_text(encoding="utf-8")


def test_a_run_says_what_it_warns_of_and_points_at_the_best(digits_run: Finished) -> None:
    metrics = Run.open(digits_run.folder).metrics
    assert "only 18 steps" in metrics["run"]["warnings"][0]
    assert "warning: the student was trained for only 18 steps;" in digits_run.err
    best = metrics["run"]["best"]
    if best["method"] != "gendd":
        assert f"best on validation images: {best['method']}" in digits_run.out
    assert (digits_run.folder / best["folder"] / "student" / "model.safetensors").is_file()


def test_epochs_and_batch_follow_from_the_number_of_images(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise UserError("far enough")

    # the configuration is written before anything is trained
    monkeypatch.setattr("gendd.run.experiment.prepared_teacher", stopped)
    options = ["--data.train_images=60", "--training.epochs=null", "--data.batch_size=null", "--baselines=[]"]
    distil(tmp_path / "run", *options, code=2)
    said = capsys.readouterr().err
    assert "300 epochs of 3 steps, batch size 16 (training.epochs, data.batch_size)" in said
    config = RunFolder(tmp_path / "run").config
    assert (config.training.epochs, config.data.batch_size) == (300, 16)
