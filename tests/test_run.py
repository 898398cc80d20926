from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, Finished

import gendd
from gendd.cli import main
from gendd.config import dump, load_config
from gendd.errors import UserError
from gendd.evaluation import readout_costs
from gendd.exhibits import curves, examples
from gendd.methods import KD, GenDD, Pretraining, Supervised
from gendd.run import Run, _check_folder, _trained_teacher, evaluate_run, predict
from gendd.training import resolve_precision

TIMES = {"latency_ms", "train_seconds"}


def untimed(value: Any) -> Any:
    """Metrics without what differs from one repetition to the next, and without the folder's name."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES | {"name"}}
    return value


def distil(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    assert main(["distill", "--out", str(folder), *TINY, *options]) == code
    return Run.open(folder).metrics if code == 0 else {}


def teacher_of(cache: Path) -> Path:
    """The one folder of a teacher trained by ``digits_run``."""
    (folder,) = [
        path.parent
        for path in cache.glob("teachers/*/config.yaml")
        if load_config(path).data.train_images == 200 and load_config(path).data.image_size is None
    ]
    return folder


# --- the run contract -------------------------------------------------------------------------------


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
    costs = {"top1", "top5", "parameters", "multiply_adds", "latency_ms"}
    assert set(metrics["teacher"]) == costs | {"name"}
    student = metrics["student"]
    assert set(student) == {
        "name",
        "parameters",
        "readouts",
        "readout",
        "train_seconds",
        "validation",
    }
    assert set(student["readouts"]) == {"linear", "mean", "sample"}
    sampler = {"sampler", "steps", "guidance", "num_samples", "temperature", "eta"}
    for name, figures in student["readouts"].items():
        assert set(figures) == costs | {"agreement"} | (sampler if name == "sample" else set())
    assert list(metrics["baselines"]) == ["supervised", "kl", "kd"]
    for figures in metrics["baselines"].values():
        assert set(figures) == costs | {"name", "agreement", "train_seconds", "validation"}
    assert metrics["run"]["train_images"] == 200
    assert metrics["run"]["val_images"] == 144
    assert metrics["run"]["test_images"] == 359
    assert metrics["run"]["labels_used"] is True
    assert metrics["run"]["threads"] == torch.get_num_threads()
    assert metrics["run"]["latency_memory_format"] == "channels_last"


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
    assert metrics["student"]["parameters"] == sum(p.numel() for p in backbone.parameters())
    readouts = metrics["student"]["readouts"]
    assert readouts["linear"]["parameters"] == metrics["student"]["parameters"]
    linear, mean, sample = (readouts[name]["multiply_adds"] for name in ("linear", "mean", "sample"))
    images = torch.zeros(1, 1, 8, 8)
    generated = readout_costs(gendd.load(digits_run.folder), "generated", images)["multiply_adds"]
    assert linear < mean < generated + 32 * 10  # folded, a pass is cheaper
    head = generated - (linear - 16 * 10)  # without the student's classifier
    # 4 steps for each of 2 samples, which share what they have in common
    assert head < sample - (linear - 16 * 10) <= 8 * head + 32 * 10
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


def test_run_open_wants_a_finished_run(digits_run: Finished, tmp_path: Path) -> None:
    assert Run.open(str(digits_run.folder)).report.read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match=re.escape(f"No run at {str(tmp_path)!r}: expected a folder with")):
        Run.open(tmp_path)
    shutil.copy(digits_run.folder / "config.yaml", tmp_path)
    with pytest.raises(
        UserError, match=r"has not finished: expected metrics\.json\. Continue it with --resu"
    ):
        Run.open(tmp_path)


# --- the teacher ------------------------------------------------------------------------------------


def test_the_teacher_is_trained_once(
    digits_run: Finished, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_report: None
) -> None:
    assert "teacher cifar/resnet8x0.5: training" in digits_run.err
    assert f"(cached afterwards in {cache}" in digits_run.err
    before = (teacher_of(cache) / "student" / "model.safetensors").stat().st_mtime_ns
    metrics = distil(tmp_path / "again", "--baselines=[]")
    err = capsys.readouterr().err
    assert "teacher cifar/resnet8x0.5: cached" in err
    assert "supervised" not in err
    assert (teacher_of(cache) / "student" / "model.safetensors").stat().st_mtime_ns == before
    first = Run.open(digits_run.folder).metrics
    assert metrics["teacher"]["top1"] == first["teacher"]["top1"]
    # the baselines beside it change nothing: the same seed gives the same student
    assert untimed(metrics["student"]) == untimed(first["student"])


def test_an_interrupted_teacher_goes_on_by_resume(
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_report: None,
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    forward, steps = Supervised.forward, 0

    def stopped(self: Supervised, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 15:  # of 6 an epoch
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(Supervised, "forward", stopped)
    distil(tmp_path / "run", "--baselines=[]", code=130)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "gendd: interrupted; what was written is kept. Go on with the same command and --resume."
    )
    (teacher,) = (tmp_path / "cache" / "teachers").iterdir()
    assert not (teacher / "metrics.json").exists()
    metrics = distil(tmp_path / "run", "--baselines=[]", "--resume")
    first = Run.open(digits_run.folder).metrics
    assert steps == 15 + 6 * 2  # two epochs were not repeated
    assert untimed(metrics["teacher"]) == untimed(first["teacher"])
    assert untimed(metrics["student"]) == untimed(first["student"])


@pytest.fixture
def teacher_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Tells under which name the teacher of a configuration is cached; none is trained."""
    from gendd.data import Data, load_data

    monkeypatch.setattr("gendd.run.execute", lambda config, **flags: None)

    def name(
        changed: Callable[[Data], Data] = lambda data: data,
        teacher: dict[str, Any] | None = None,
        **data: Any,
    ) -> str:
        config = gendd.RunConfig(
            data=gendd.DataConfig(train_images=100, **data),
            teacher_training=gendd.TrainingConfig(**(teacher or {})),
        )
        found = changed(load_data(config.data))
        return _trained_teacher(config, found, torch.device("cpu")).name

    return name


def test_the_same_teacher_is_found_however_it_is_asked_for(
    teacher_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = teacher_folder(path=str(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    assert teacher_folder(path="images") == first
    assert teacher_folder(path="other/../images", workers=3, in_memory=False) == first
    assert teacher_folder(path="images", labels=False) == first
    free = {"loggers": [], "progress": True, "device": "cpu", "checkpoint_every": 7}
    assert teacher_folder(teacher=free, path="images") == first
    assert teacher_folder(path="elsewhere") != first
    monkeypatch.chdir(tmp_path.parent)
    assert teacher_folder(path="images") != first


def test_another_teacher_has_another_name(teacher_folder: Callable[..., str]) -> None:
    from gendd.data import Data

    def relabelled(data: Data) -> Data:
        assert data.train.labels is not None
        return replace(data, train=replace(data.train, labels=data.train.labels.flip(0)))

    def renamed(data: Data) -> Data:
        return replace(data, class_names=[*data.class_names[:-1], "ten"])

    def fewer(data: Data) -> Data:
        return replace(data, val=None)

    names = [teacher_folder(change) for change in (lambda data: data, relabelled, renamed, fewer)]
    names += [teacher_folder(teacher={"lr": 0.5}), teacher_folder(batch_size=7), teacher_folder(split_seed=1)]
    assert len(set(names)) == len(names)
    # what "auto" stands for here
    precisions = {name: teacher_folder(teacher={"precision": name}) for name in ("fp32", "bf16")}
    assert len(set(precisions.values())) == 2
    assert names[0] == precisions[resolve_precision("auto", torch.device("cpu"))]


# --- interruption -----------------------------------------------------------------------------------


def test_what_no_result_depends_on_may_change_between_a_run_and_its_continuation(
    digits_run: Finished,
) -> None:
    config = Run.open(digits_run.folder).config
    for section in ("training", "teacher_training"):
        own = getattr(config, section)
        changed = replace(own, device="cuda", loggers=[], progress=True, checkpoint_every=9)
        _check_folder(digits_run.folder, replace(config, **{section: changed}), False, True)
        bound = replace(config, **{section: replace(own, clip_grad_norm=9.0)})
        with pytest.raises(UserError, match=rf"but {section}\.clip_grad_norm was None and is "):
            _check_folder(digits_run.folder, bound, False, True)
    data = replace(config.data, workers=1, in_memory=False)
    _check_folder(digits_run.folder, replace(config, data=data), False, True)


def test_resume_after_ctrl_c_ends_as_if_nothing_had_happened(
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_report: None,
) -> None:
    forward, steps = GenDD.forward, 0

    def stopped(self: GenDD, *args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 9:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(GenDD, "forward", stopped)
    folder = tmp_path / "run"
    distil(folder, "--baselines=[]", code=130)
    assert "Traceback" not in capsys.readouterr().err
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert not (folder / "metrics.json").exists()

    assert main(["distill", "--resume", "--out", str(folder), *TINY, "--seed=1", "--baselines=[]"]) == 2
    assert "but seed was 0 and is 1. Give the same, or another --out." in capsys.readouterr().err
    # nothing but the folder: the rest is in its config
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert steps == 9 + 6 * 2
    metrics = Run.open(folder).metrics
    first = Run.open(digits_run.folder).metrics
    assert untimed(metrics["student"]) == untimed(first["student"])
    # a finished run resumed trains nothing
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert steps == 9 + 6 * 2
    assert untimed(Run.open(folder).metrics) == untimed(metrics)


def test_a_killed_run_resumes_to_the_same_metrics(
    digits_run: Finished, cache: Path, tmp_path: Path, no_report: None
) -> None:
    longer = ["--training.epochs=8", "--baselines=[]"]
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    command = [sys.executable, "-m", "gendd", "distill", "--out", str(folder), *TINY, *longer]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ.copy())
    try:
        deadline = time.monotonic() + 60
        while not last.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    assert last.exists(), err
    assert process.returncode == -signal.SIGKILL, err
    assert not (folder / "checkpoints" / "finished.json").exists()
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert untimed(Run.open(folder).metrics) == untimed(distil(tmp_path / "whole", *longer))


def test_the_curves_of_an_interrupted_run_join(tmp_path: Path) -> None:
    for version, text in {
        0: "epoch,step,train/loss,val/mean\n0,5,3.0,\n0,5,,0.5\n1,11,2.0,\n1,17,9.0,\n",
        1: "epoch,step,train/loss,val/mean\n1,11,1.5,\n1,11,,0.75\n",
        # the tenth comes after the second
        10: "epoch,step,train/loss,val/mean\n2,17,1.0,\n",
    }.items():
        (tmp_path / "logs" / f"version_{version}").mkdir(parents=True)
        (tmp_path / "logs" / f"version_{version}" / "metrics.csv").write_text(text)
    assert curves(tmp_path) == [
        {"epoch": 0, "step": 5, "train/loss": 3.0, "val/mean": 0.5, "val/top1": 50.0},
        {"epoch": 1, "step": 11, "train/loss": 1.5, "val/mean": 0.75, "val/top1": 75.0},
        {"epoch": 2, "step": 17, "train/loss": 1.0},
    ]


def test_val_top1_of_a_curve_is_of_the_readout_in_use(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    file.write_text("step,val/linear,val/mean\n5,0.25,0.5\n")
    assert [row["val/top1"] for row in curves(tmp_path)] == [50.0]
    assert [row["val/top1"] for row in curves(tmp_path, "linear")] == [25.0]
    # agreement is no accuracy
    file.write_text("step,val/agreement\n5,0.75\n")
    assert curves(tmp_path) == [{"step": 5.0, "val/agreement": 75.0}]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forward, steps = GenDD.forward, 0

    def broken(self: GenDD, *args: Any, **options: Any) -> Any:
        nonlocal steps
        out = forward(self, *args, **options)
        if steps == 8:
            out.parts["probe"] = out.parts["probe"] * float("nan")
            out.loss = out.loss * float("nan")
        steps += 1
        return out

    monkeypatch.setattr(GenDD, "forward", broken)
    distil(tmp_path, "--baselines=[]", code=2)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "gendd: The loss is not finite at step 8 (part 'probe'): expected a number, got NaN or infinity. "
        "Lower training.lr or set training.clip_grad_norm; the last good checkpoint is kept."
    )
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 6
    assert all(torch.isfinite(value.float()).all() for value in saved["state_dict"].values())
    assert not (tmp_path / "metrics.json").exists()


def test_a_learning_rate_beyond_reason_is_told(
    digits_run: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distil(tmp_path, "--baselines=[]", "--training.lr=1e30", code=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"gendd: The loss is not finite at step \d+ \(part '(diffusion|probe)'\): ", last)


# --- labels and methods -----------------------------------------------------------------------------


def test_without_labels_none_reaches_training(
    digits_run: Finished, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    seen: list[Any] = []
    for method in (GenDD, KD):
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
    assert {name for name, _ in seen} == {"GenDD", "KD", "prepare"}
    assert all(labels is None for _, labels in seen)
    assert metrics["run"]["labels_used"] is False
    # labels still measure it
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


def test_the_readout_in_use_chooses_the_checkpoint(
    digits_run: Finished, tmp_path: Path, no_report: None
) -> None:
    metrics = distil(tmp_path, "--baselines=[]", "--readout.name=linear", "--training.epochs=1")
    assert metrics["student"]["validation"]["metric"] == "val/linear"


def test_the_readout_is_picked_on_validation(
    digits_run: Finished, tmp_path: Path, no_report: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--baselines=[]", "--readout.name=auto", "--training.epochs=1", "--readout.steps=2"]
    found = distil(tmp_path, *options)["student"]
    percent = found["readout_pick"]["percent"]
    assert list(percent) == ["linear", "mean", "sample"]
    near = [name for name, value in percent.items() if value >= round(max(percent.values()) - 0.1, 2)]
    assert found["readout"] == near[0] == gendd.load(tmp_path).readout
    assert f"readout {near[0]}, the cheapest near the best; right on validation" in capsys.readouterr().err
    # the readouts of one pass say on the validation images what they said in training
    best = found["validation"]
    assert best["metric"] == "val/mean" and best["percent"] == percent["mean"]


@pytest.mark.parametrize("method", ["kd", "kl"])
def test_a_baseline_is_the_same_as_the_method_itself(
    digits_run: Finished, tmp_path: Path, method: str, no_report: None
) -> None:
    metrics = distil(tmp_path, f"--method={method}", "--baselines=[]", "--readout.name=mean")
    baseline = Run.open(digits_run.folder).metrics["baselines"][method]
    student = metrics["student"]
    assert student["readout"] == "linear"  # it has no other, whatever is asked for
    assert set(student["readouts"]) == {"linear"}
    assert untimed(student["readouts"]["linear"]) == {
        key: value for key, value in untimed(baseline).items() if key != "validation"
    }
    assert student["validation"] == baseline["validation"]
    assert gendd.load(tmp_path).readouts == ("linear",)


def test_stage_one_trains_the_backbone_first(
    digits_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
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
    # the first builds the method to check it
    assert calls == ["gendd", *["stage1"] * 12, "gendd"]
    saved = torch.load(tmp_path / "stage1" / "checkpoints" / "best.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(weights["net.conv1.weight"], saved["method.backbone.net.conv1.weight"])


def test_stage_two_trains_in_training_mode(
    digits_run: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    modes: list[bool] = []
    forward = GenDD.forward

    def watched(self: GenDD, *args: Any, **options: Any) -> Any:
        modes.append(self.backbone.training)
        return forward(self, *args, **options)

    monkeypatch.setattr(GenDD, "forward", watched)
    distil(tmp_path, "--baselines=[]", "--training.stage1_epochs=1", "--training.epochs=1")
    assert modes and all(modes)


# --- a linear probe ---------------------------------------------------------------------------------

PROBE = ["--recipe=linear_probe", "--training.epochs=2", "--training.lr=1"]


def test_a_linear_probe_of_a_finished_run(digits_run: Finished, tmp_path: Path, no_report: None) -> None:
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


# --- teachers of other kinds -------------------------------------------------------------------------


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


FEATURES = {"knn", "linear_probe", "parameters", "multiply_adds", "latency_ms"}


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
    # computed anew it is the same
    again = evaluate_run(folder)
    for name in ("feature", "generated"):
        assert all(own["embedding"][name][key] == value for key, value in again[name].items())
    assert main(["evaluate", str(folder)]) == 0
    assert re.search(
        r"generated  knn [\d.]+ %   linear_probe [\d.]+ %   cosine -?0\.\d{3}\n", capsys.readouterr().out
    )
    with pytest.raises(UserError, match="expected one that classifies, got one of features alone"):
        predict(folder, digit_files(1))
    assert "Diffusion loss of the validation images" in (folder / "report.html").read_text()


def test_a_teacher_of_features_alone_and_labels(other_teacher: str, tmp_path: Path, no_report: None) -> None:
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
    assert "linear readout: before " in err
    readouts = metrics["student"]["readouts"]
    for figures in [*readouts.values(), metrics["baselines"]["kl"]]:
        assert (figures["top1"], figures["top5"]) == (None, None) and figures["agreement"] is not None
    assert set(metrics["student"]["refit"]) == {
        "target",
        "judged_by",
        "l2",
        "trained",
        "refitted",
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
    digits_run: Finished, other_teacher: str, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"thing {index}" for index in range(15)]
    monkeypatch.setattr("gendd.run.teacher_class_names", lambda config, classes: names)
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
    digits_run: Finished, tmp_path: Path, no_report: None
) -> None:
    metrics = distil(
        tmp_path, "--data.labels=false", "--baselines=[kd]", "--kd.weight=1", "--training.epochs=1"
    )
    assert set(metrics["baselines"]) == {"kd"}


# --- the Python entry -------------------------------------------------------------------------------


def settings_of(finished: Finished) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((finished.folder / "config.yaml").read_text())
    return values


def test_distill_from_python_takes_names_dicts_and_configs(
    digits_run: Finished, tmp_path: Path, no_report: None
) -> None:
    given = settings_of(digits_run)
    config = load_config(digits_run.folder / "config.yaml")
    run = gendd.distill(
        teacher="cifar/resnet8x0.5",
        student=gendd.ModelConfig("cifar/resnet8x0.25"),
        data=config.data,
        out=tmp_path / "run",
        training=given["training"],
        teacher_training=config.teacher_training,
        gendd={"head_width": 32, "repeats": 2, "token_width": 32},
        readout=gendd.ReadoutConfig(num_samples=2, steps=4),
    )
    assert isinstance(run, gendd.Run)
    assert run.folder == tmp_path / "run"
    first = Run.open(digits_run.folder).metrics
    assert untimed(run.metrics["student"]) == untimed(first["student"])
    assert run.metrics["baselines"] == {}


def test_distill_from_python_replaces_parts_of_a_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[gendd.RunConfig] = []
    monkeypatch.setattr("gendd.run.execute", lambda config, **flags: made.append(config))
    config = gendd.RunConfig(seed=3, training=gendd.TrainingConfig(epochs=7, lr=0.5))
    gendd.distill(config, training={"epochs": 2}, student="cifar/resnet20", data="cifar10", out=tmp_path)
    assert (made[0].seed, made[0].training.epochs, made[0].training.lr) == (3, 2, 0.5)
    assert (made[0].student.name, made[0].data.name, made[0].out) == (
        "cifar/resnet20",
        "cifar10",
        str(tmp_path),
    )
    assert config.training.epochs == 7


@pytest.mark.parametrize(
    "given, message",
    [
        ({"trainig": {}}, "Unknown config key 'trainig'. Did you mean 'training'?"),
        ({"training": {"epoch": 1}}, "Unknown config key 'training.epoch'. Did you mean 'training.epochs'?"),
        ({"training": {"epochs": 0}}, "training.epochs: expected a positive integer, got 0."),
        ({"method": "gend"}, "method: expected one of gendd, kl, kd, supervised, linear_probe, got gend."),
        ({"seed": "x"}, "seed: expected integer, got x."),
    ],
)
def test_distill_from_python_names_what_is_wrong(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        gendd.distill(**given)
    assert str(caught.value) == message


# --- before anything is trained ---------------------------------------------------------------------


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
        (
            ["--data.validation=0", "--readout.name=auto"],
            "data.validation: expected a fraction above 0, as readout.name is auto, got 0; hold some images "
            "out, or name the readout.",
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
    monkeypatch.setattr("gendd.run.fit", lambda *args, **given: pytest.fail("trained"))
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
            ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true"],
            "Contraction: expected a teacher with the data's 10 classes, got one with 1000. Set "
            "gendd.centres means, gendd.contraction 0, or data.labels false.",
        ),
        *[
            (1000, ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true", way], "training starts")
            for way in ("--gendd.centres=means", "--gendd.contraction=0", "--data.labels=false")
        ],
        (
            1000,
            ["--teacher.name=timm/test_resnet", "--teacher.pretrained=true", "--method=kl"],
            "Logit distillation: expected a teacher with the student's 10 classes, got one with 1000. Use a "
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
        # a student's classifier is made anew
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
    monkeypatch.setattr("gendd.run.fit", started)
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    distil(tmp_path / "run", "--baselines=[]", *options, code=2)
    assert capsys.readouterr().err.splitlines()[-1] == f"gendd: {last}"


# --- sampling ---------------------------------------------------------------------------------------


def test_what_is_sampled_for_a_person_does_not_depend_on_the_global_generator(
    digits_run: Finished, digit_files: Callable[[int], list[str]], tmp_path: Path
) -> None:
    from gendd.data import load_data

    student = gendd.load(digits_run.folder)
    student.readout = "sample"
    student.save(tmp_path / "sampling")
    files = digit_files(2)
    first = predict(tmp_path / "sampling", files, top=10)
    torch.manual_seed(torch.initial_seed() + 1)
    assert predict(tmp_path / "sampling", files, top=10) == first
    assert predict(tmp_path / "sampling", files[1:], top=10) == first[1:]

    data = load_data(Run.open(digits_run.folder).config.data)

    def confidences(seed: int) -> list[float]:
        torch.manual_seed(torch.initial_seed() + 1)
        return [shown.confidence for shown in examples(student, data, torch.device("cpu"), seed)]

    assert confidences(3) == confidences(3)
    assert confidences(3) != confidences(4)
