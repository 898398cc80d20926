"""A whole run: its files, and what its methods learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished
from runs import distil, untimed

import gendd
from gendd.config import RunConfig, dump
from gendd.deploy.costs import readout_costs
from gendd.methods import KL, GenDD, Pretraining
from gendd.run import Run, evaluate_run
from gendd.run.exhibits import curves
from gendd.training import overruns


def test_a_run_leaves_the_files_of_the_contract(digits_run: Finished) -> None:
    found = {str(p.relative_to(digits_run.folder)) for p in digits_run.folder.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.json",
        "report.html",
        "student/model.safetensors",
        "student/config.json",
        "student/README.md",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "checkpoints/finished.json",
        "logs/version_0/metrics.csv",
        "baselines/kl/checkpoints/best.ckpt",
    } <= found
    assert not [name for name in found if name.endswith(".tmp")]


def test_metrics_have_the_contract_s_keys(digits_run: Finished) -> None:
    metrics = json.loads((digits_run.folder / "metrics.json").read_text())
    costs = {"top1", "top5", "parameters", "multiply_adds", "latency_ms", "latency_quartiles_ms"}
    assert set(metrics["teacher"]) == costs | {"name"}
    student = metrics["student"]
    assert set(student) == {
        "name",
        "parameters",
        "readouts",
        "readout",
        "train_seconds",
        "loading_seconds",
        "validation",
    }
    assert set(student["readouts"]) == {"linear", "mean", "sample"}
    assert set(metrics["gains"]) == {"teacher", "supervised", "kl", "kd"}
    sampler = {"sampler", "steps", "guidance", "num_samples", "temperature", "eta"}
    for name, figures in student["readouts"].items():
        assert set(figures) == costs | {"agreement"} | (sampler if name == "sample" else set())
    assert list(metrics["baselines"]) == ["supervised", "kl", "kd"]
    for figures in metrics["baselines"].values():
        assert set(figures) == costs | {"name", "agreement", "train_seconds", "loading_seconds", "validation"}
    assert metrics["run"]["train_images"] == 200
    assert metrics["run"]["val_images"] == 144
    assert metrics["run"]["test_images"] == 359
    assert metrics["run"]["labels_used"] is True
    assert metrics["run"]["threads"] == torch.get_num_threads()
    # its strided 1x1 convolutions of 4 channels are not trained in channels-last everywhere
    layout = metrics["run"]["latency_memory_format"]
    backbone = gendd.create_backbone("cifar/resnet8x0.25", 10, 1)
    assert (layout == "contiguous_format") == overruns(backbone, torch.device("cpu"))


def test_validation_says_what_it_is(digits_run: Finished) -> None:
    metrics = Run.open(digits_run.folder).metrics
    found = {"gendd": metrics["student"], **metrics["baselines"]}
    for name, figures in found.items():
        place = digits_run.folder if name == "gendd" else digits_run.folder / "baselines" / name
        best = json.loads((place / "checkpoints" / "finished.json").read_text())["best"]
        metric = "val/mean" if name == "gendd" else "val/linear"
        assert figures["validation"] == {"metric": metric, "percent": round(100 * best, 2)}


def test_costs_are_those_of_the_networks(digits_run: Finished) -> None:
    metrics = Run.open(digits_run.folder).metrics
    backbone = gendd.create_backbone("cifar/resnet8x0.25", 10, 1)
    student = gendd.load(digits_run.folder).backbone
    assert metrics["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    plain = metrics["baselines"]["kl"]
    assert plain["parameters"] == sum(p.numel() for p in backbone.parameters())
    # the projector, and a classifier of the teacher's width, are counted
    added = sum(p.numel() for p in student.net.projector.parameters()) + (32 - 16) * 10
    assert metrics["student"]["parameters"] == plain["parameters"] + added
    readouts = metrics["student"]["readouts"]
    assert readouts["linear"]["parameters"] == metrics["student"]["parameters"]
    linear, mean, sample = (readouts[name]["multiply_adds"] for name in ("linear", "mean", "sample"))
    images = torch.zeros(1, 1, 8, 8)
    generated = readout_costs(gendd.load(digits_run.folder), "generated", images)["multiply_adds"]
    assert linear < mean < generated + 32 * 10  # folded, a pass is cheaper
    head = generated - (linear - 32 * 10)  # without the student's classifier
    # 4 steps for each of 2 samples, which share what they have in common
    assert head < sample - (linear - 32 * 10) <= 8 * head + 32 * 10
    assert readouts["sample"]["steps"] == 4 and readouts["sample"]["num_samples"] == 2


def test_the_saved_config_is_the_run_s_and_resolved(digits_run: Finished) -> None:
    config = Run.open(digits_run.folder).config
    assert config.student.name == "cifar/resnet8x0.25"
    assert config.out == str(digits_run.folder)
    assert config.gendd.token_width == 32
    text = (digits_run.folder / "config.yaml").read_text()
    assert dump(config) == text
    assert "timesteps: 1000" in text  # a default, written out


def test_no_checkpoint_holds_the_teacher(digits_run: Finished) -> None:
    saved = torch.load(digits_run.folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["state_dict"]
    assert not [key for key in saved["state_dict"] if "teacher" in key]


def test_the_student_is_on_disk_as_it_was_measured(digits_run: Finished) -> None:
    run = Run.open(digits_run.folder)
    readouts = run.metrics["student"]["readouts"]
    again = evaluate_run(digits_run.folder)
    for name, scores in again.items():
        assert scores["top1"] == readouts[name]["top1"]
        assert scores["top5"] == readouts[name]["top5"]
        assert scores["agreement"] is None
    assert evaluate_run(digits_run.folder, "sample")["sample"] == again["sample"]


def test_logits_of_the_loaded_student_give_the_run_s_top1(digits_run: Finished) -> None:
    from gendd.data import load_data

    run = Run.open(digits_run.folder)
    test = load_data(run.config.data).test
    images = test.images(range(len(test))).float() / 255
    for student in (gendd.load(digits_run.folder), run.student(), gendd.load(digits_run.folder / "student")):
        assert not student.training
        with torch.no_grad():
            right = (student(images).argmax(-1) == test.labels).double().mean()
        assert round(100 * float(right), 2) == run.metrics["student"]["readouts"]["mean"]["top1"]


def test_without_labels_none_reaches_training(
    digits_run: Finished, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    for method in (GenDD, KL):
        forward = method.forward

        def watched(
            self: Any, images: Any, labels: Any = None, *, generator: Any = None, forward: Any = forward
        ) -> Any:
            seen.append((type(self).__name__, labels))
            return forward(self, images, labels, generator=generator)

        monkeypatch.setattr(method, "forward", watched)
    prepare = GenDD.prepare

    def prepared(self: GenDD, batches: Any) -> None:
        kept = list(batches)
        seen.extend(("prepare", batch.labels) for batch in kept)
        prepare(self, kept)

    monkeypatch.setattr(GenDD, "prepare", prepared)
    metrics = distil(tmp_path, "--data.labels=false", "--baselines=[kl]")
    assert {name for name, _ in seen} == {"GenDD", "KL", "prepare"}
    assert all(labels is None for _, labels in seen)
    assert metrics["run"]["labels_used"] is False
    # labels are still used for scoring
    assert metrics["student"]["readouts"]["mean"]["top1"] > 0
    assert json.loads((tmp_path / "checkpoints" / "finished.json").read_text())["monitor"] == "val/agreement"
    assert metrics["student"]["validation"]["metric"] == "val/agreement"
    assert metrics["baselines"]["kl"]["validation"]["metric"] == "val/agreement"
    assert "without labels" in (tmp_path / "student" / "README.md").read_text()


def test_with_labels_the_readout_is_monitored(digits_run: Finished) -> None:
    def monitor(folder: Path) -> str:
        return str(json.loads((folder / "checkpoints" / "finished.json").read_text())["monitor"])

    assert monitor(digits_run.folder) == "val/mean"
    assert monitor(digits_run.folder / "baselines" / "kd") == "val/linear"


def test_the_readout_in_use_chooses_the_checkpoint(digits_run: Finished, tmp_path: Path) -> None:
    metrics = distil(tmp_path, "--baselines=[]", "--readout.name=linear", "--training.epochs=1")
    assert metrics["student"]["validation"]["metric"] == "val/linear"


def test_the_readout_is_picked_on_validation(
    digits_run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert RunConfig().readout.name == "auto"
    options = ["--baselines=[kd]", "--readout.name=auto", "--training.epochs=2"]
    metrics = distil(tmp_path, *options)
    found = metrics["student"]
    percent = found["readout_pick"]["percent"]
    assert list(percent) == ["linear", "mean"]
    near = [name for name, value in percent.items() if value >= round(max(percent.values()) - 0.1, 2)]
    assert found["readout"] == near[0] == gendd.load(tmp_path).readout
    assert (
        f"readout {near[0]}, the cheapest one close to the best; top-1 on validation"
        in capsys.readouterr().err
    )
    # the one-pass readouts reproduce their validation results of the training
    best = found["validation"]
    assert best["metric"] == "val/best" and best["percent"] == max(percent.values())
    assert metrics["baselines"]["kd"]["validation"]["metric"] == "val/linear"
    told = [row["val/top1"] for row in curves(tmp_path, "auto") if "val/top1" in row]
    assert len(told) == 2 and max(told) == pytest.approx(best["percent"], abs=0.01)


def test_without_validation_images_the_mean_is_the_readout(digits_run: Finished, tmp_path: Path) -> None:
    options = ["--baselines=[]", "--readout.name=auto", "--training.epochs=1", "--data.validation=0"]
    # another number of images requires another teacher
    options.append("--data.train_images=100")
    assert distil(tmp_path, *options)["student"]["readout"] == "mean"


def test_without_labels_the_better_readout_s_agreement_chooses(digits_run: Finished, tmp_path: Path) -> None:
    options = ["--baselines=[]", "--readout.name=auto", "--training.epochs=1", "--data.labels=false"]
    found = distil(tmp_path, *options)["student"]
    assert found["validation"]["metric"] == "val/agreement"
    assert found["validation"]["percent"] == max(found["readout_pick"]["percent"].values())


@pytest.mark.parametrize("method", ["kd", "kl"])
def test_a_baseline_is_the_same_as_the_method_itself(
    digits_run: Finished, tmp_path: Path, method: str
) -> None:
    metrics = distil(tmp_path, f"--method={method}", "--baselines=[]", "--readout.name=mean")
    baseline = Run.open(digits_run.folder).metrics["baselines"][method]
    student = metrics["student"]
    assert student["readout"] == "linear"  # it has no other, whatever is requested
    assert set(student["readouts"]) == {"linear"}
    assert untimed(student["readouts"]["linear"]) == {
        key: value for key, value in untimed(baseline).items() if key != "validation"
    }
    assert student["validation"] == baseline["validation"]
    assert gendd.load(tmp_path).readouts == ("linear",)


def test_stage_one_trains_the_backbone_first(
    digits_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: dict[str, torch.Tensor] = {}
    calls: list[str] = []
    forward, start = Pretraining.forward, GenDD.__init__

    def pretraining(self: Pretraining, *args: Any, **options: Any) -> Any:
        calls.append("stage1")
        return forward(self, *args, **options)

    def started(self: GenDD, backbone: Any, *args: Any, **options: Any) -> None:
        calls.append("gendd")
        weights.update({key: value.clone() for key, value in backbone.state_dict().items()})
        start(self, backbone, *args, **options)

    monkeypatch.setattr(Pretraining, "forward", pretraining)
    monkeypatch.setattr(GenDD, "__init__", started)
    distil(tmp_path, "--baselines=[]", "--training.stage1_epochs=2", "--training.epochs=1")
    # the first is from building the method for validation
    assert calls == ["gendd", *["stage1"] * 12, "gendd"]
    saved = torch.load(tmp_path / "stage1" / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(weights["net.conv1.weight"], saved["method.backbone.net.conv1.weight"])


def test_stage_two_trains_in_training_mode(
    digits_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    forward = GenDD.forward

    def watched(self: GenDD, *args: Any, **options: Any) -> Any:
        modes.append(self.backbone.training)
        return forward(self, *args, **options)

    monkeypatch.setattr(GenDD, "forward", watched)
    distil(tmp_path, "--baselines=[]", "--training.stage1_epochs=1", "--training.epochs=1")
    assert modes and all(modes)


@pytest.mark.parametrize("target", ["teacher", "auto"])
@pytest.mark.parametrize("method", ["gendd", "gendd_no_labels"])
def test_the_linear_readout_is_fitted_by_the_method_s_own_settings(
    method: str, target: str, digits_run: Finished, tmp_path: Path
) -> None:
    quick = ["--baselines=[]", "--training.epochs=1", f"--method={method}"]
    assert "refit" not in distil(tmp_path / "along", *quick)["student"]
    refit = distil(tmp_path / "afterwards", *quick, f"--{method}.refit={target}")["student"]["refit"]
    judge = "labels" if method == "gendd" else "teacher"
    tried = {"labels", "teacher"} if (method, target) == ("gendd", "auto") else {"teacher"}
    assert (set(refit["tried"]), refit["judged_by"]) == (tried, judge)
    assert refit["refitted"] == refit["tried"][refit["target"]] == max(refit["tried"].values())


PROBE = ["--recipe=linear_probe", "--training.epochs=2", "--training.lr=1"]


def test_a_linear_probe_of_a_finished_run(digits_run: Finished, tmp_path: Path) -> None:
    options = [*PROBE, f"--student.weights={digits_run.folder}"]
    metrics = distil(tmp_path / "probe", *options)
    assert metrics["teacher"] is None and metrics["run"]["method"] == "linear_probe"
    assert set(metrics["student"]["readouts"]) == {"linear"} and metrics["student"]["readout"] == "linear"
    before, after = (gendd.load(folder).backbone for folder in (digits_run.folder, tmp_path / "probe"))
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(before.features(images), after.features(images))
    assert not torch.equal(before.classifier.weight, after.classifier.weight)
    card = (tmp_path / "probe" / "student" / "README.md").read_text()
    assert "A linear classifier trained on labels, on the frozen features" in card
    assert untimed(distil(tmp_path / "again", *options)["student"]) == untimed(metrics["student"])
