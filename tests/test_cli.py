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

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Finished
from PIL import Image
from started import Started, run_gendd

import gendd
from gendd.cli import main, parse_run
from gendd.config import RunConfig, dump, load_config
from gendd.config.registry import names
from gendd.models import create_backbone, save_weights
from gendd.models.cifar import NAMES
from gendd.recipes import recipes
from gendd.run import Run

Capture = pytest.CaptureFixture[str]

# the options of TINY that 'gendd train' accepts
TINY_ALONE = [word for word in TINY if word.startswith(("--student.", "--data.", "--training."))]


def refused(capsys: Capture, *words: str) -> str:
    """Run a command that must fail, and return its one-line error."""
    capsys.readouterr()
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[-1].startswith("gendd: ")
    # lines about the images and teacher found may precede it
    said = r"(digits|folder): [\d,]+ train|teacher .*: (cached|feature = )"
    assert all(re.match(said, line) for line in lines[:-1])
    assert "Traceback" not in captured.err
    return lines[-1].removeprefix("gendd: ")


def parsed(*words: str) -> RunConfig:
    config, _ = parse_run("distill", list(words))
    assert config is not None
    return config


# --- help and lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(words: list[str], capsys: Capture) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: gendd COMMAND")
    for command in (
        "distill",
        "train",
        "evaluate",
        "predict",
        "recipes",
        "models",
        "import-released",
        "verify",
    ):
        assert re.search(rf"^  {command} +\S", out, re.M)


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gendd {gendd.__version__}\n"


def test_help_of_a_run_tells_flags_and_settings(capsys: Capture) -> None:
    assert main(["distill", "--help-all"]) == 0
    out = capsys.readouterr().out
    options = ["--recipe NAME", "--resume", "--overwrite", "--precision {auto,fp32,bf16,fp16}"]
    for option in [*options, "--training.epochs", "--gendd.contraction", "--method"]:
        assert option in out
    # a section that repeats another is listed once
    assert re.findall(r"--teacher_training\S*", out) == ["--teacher_training.KEY"]
    assert parsed("--teacher_training.epochs=3").teacher_training.epochs == 3
    assert main(["train", "--help-all"]) == 0
    out = capsys.readouterr().out
    assert "a recipe's student" in out and "--training.epochs" in out
    refused_there = ["--student.dtype", "--student.compile", "--student.classes"]
    for option in (
        "--method",
        "--baselines",
        "--teacher",
        "--gendd.",
        "--kd.",
        "--readout",
        " CONFIG ",
        *refused_there,
    ):
        assert option not in out


@pytest.mark.parametrize(
    "command", ["evaluate", "probe", "predict", "recipes", "models", "import-released", "verify"]
)
def test_help_of_the_other_commands(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: gendd {command} ")


def test_recipes_are_listed_with_what_they_say_of_themselves(capsys: Capture) -> None:
    assert main(["recipes"]) == 0
    groups = [group.splitlines() for group in capsys.readouterr().out.split("\n\n")]
    heads = [{line.split()[0].rpartition("/")[0].split("/")[0] for line in group} for group in groups]
    assert heads == [{""}, {"cc3m"}, {"cifar100"}, {"imagenet"}, {"imagenet-lt"}, {"practical"}]
    lines = [line for group in groups for line in group]
    assert len(lines) == len([name for name in recipes() if "/_" not in name])
    (digits,) = [line for line in lines if line.split()[0] == "digits"]
    assert digits.split(maxsplit=1)[1].startswith("Handwritten digits, embedded:")


def test_models_by_part_of_a_name_and_by_glob(capsys: Capture) -> None:
    assert main(["models", "cifar/"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"cifar/{name}" for name in NAMES]
    assert main(["models", "cifar/resnet8"]) == 0
    assert capsys.readouterr().out.splitlines() == ["cifar/resnet8", "cifar/resnet8x4"]
    assert main(["models", "cifar/*x4"]) == 0
    assert capsys.readouterr().out.splitlines() == ["cifar/resnet8x4", "cifar/resnet32x4"]
    assert main(["models", "cifar/resnet8x*"]) == 0
    assert capsys.readouterr().out.split() == [
        f"cifar/resnet8x{width}" for width in ("4", "0.25", "0.5", "2")
    ]
    for name in ("cifar/resnet8x0.5", "cifar/resnet20x3", "cifar/wrn_16_3", "timm/resnet50.a1_in1k"):
        assert main(["models", name]) == 0
        captured = capsys.readouterr()
        assert captured.out.split() == [name]
        assert captured.err == "next: gendd distill --teacher NAME --student NAME …\n"
    assert main(["models", "torchvision/resnet50.IMAGENET1K_V?"]) == 0
    assert capsys.readouterr().out.split() == [f"torchvision/resnet50.IMAGENET1K_V{n}" for n in (1, 2)]
    assert refused(capsys, "models", "cifar/nothing") == (
        "No network matches 'cifar/nothing': expected part of a name such as 'resnet'."
    )


def test_verify_agrees_with_the_shipped_numbers_and_not_with_others(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["verify"]) == 0
    *groups, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"largest relative deviation \d\.\de-\d\d: agrees", last)
    assert len(groups) > 3 and not any("beyond" in line for line in groups)
    monkeypatch.setattr("gendd.released.verify.verify", lambda reference: {"schedule": 0.0, "head": 2e-4})
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "schedule             0.0e+00",
        "head                 2.0e-04  beyond 1e-4",
        "largest relative deviation 2.0e-04: does not agree",
    ]
    monkeypatch.undo()
    (tmp_path / "no.npz").write_text("no")
    message = refused(capsys, "verify", "--reference", str(tmp_path / "no.npz"))
    assert message.startswith(f"Reference {str(tmp_path / 'no.npz')!r}: expected a readable .npz file; ")


# --- settings ---------------------------------------------------------------------------------------


def test_without_arguments_it_is_the_recipe_demo() -> None:
    assert dump(parsed()) == dump(parsed("--recipe", "demo"))
    assert parsed().out == "runs/demo"
    assert dump(parsed("--data", "digits")) == dump(parsed("--recipe", "digits"))


def test_other_images_do_not_start_from_the_recipe_digits(tmp_path: Path) -> None:
    for words in (["--data.name=cifar10"], ["--data.name", "folder", "--data.path=x"]):
        config = parsed(*words, "--training.lr=0.5")
        plain = RunConfig(out=config.out, data=config.data)
        plain.training.lr = 0.5
        assert dump(config) == dump(plain)
        assert config.out == f"runs/distill-{config.data.name}"
    assert dump(parsed("--data.name=demo")) == dump(parsed())
    # requested explicitly, it is used
    assert parsed("--recipe=digits", "--data.name=cifar10").teacher.name == "cifar/resnet14"


def test_without_labels_a_recipe_s_baselines_that_need_them_are_left_out(
    tmp_path: Path, capsys: Capture
) -> None:
    assert parsed("--data.labels=false").baselines == ["kl"]
    assert capsys.readouterr().err == "gendd: left out the recipe's baselines that need labels: supervised\n"
    assert parsed().baselines == ["supervised", "kl"]
    # the user's own value is not changed, so the run reports what is wrong with it
    assert parsed("--data.labels=false", "--baselines=[kd]").baselines == ["kd"]
    file = tmp_path / "given.yaml"
    file.write_text("baselines: [supervised]\n")
    words = ["--recipe=digits", "--config", str(file), "--data.labels=false"]
    assert parsed(*words).baselines == ["supervised"]
    file.write_text("data: {labels: false}\n")
    assert capsys.readouterr().err == ""
    assert parsed("--recipe=digits", "--config", str(file)).baselines == ["kl"]


def test_names_have_short_forms(digits_run: Finished, tmp_path: Path, capsys: Capture) -> None:
    config = parsed("--teacher", "cifar/resnet32", "--student=timm/resnet18", "--readout", "linear")
    assert (config.teacher.name, config.teacher.weights) == ("cifar/resnet32", None)
    assert (config.student.name, config.readout.name) == ("timm/resnet18", "linear")
    assert parsed("--data", "cifar10").data.name == "cifar10"
    folder = str(digits_run.folder)
    config = parsed("--teacher", folder, "--student", folder)
    assert config.teacher.name == config.student.name == "cifar/resnet8x0.25"
    assert config.teacher.weights == config.student.weights == folder
    assert parsed("--teacher", str(tmp_path)).teacher.name == str(tmp_path)
    file = tmp_path / "given.yaml"
    file.write_text(f"teacher: {{name: {folder}}}\n")
    for words in (["--config", str(file)], ["--teacher.name", folder]):
        config = parsed(*words)
        assert (config.teacher.name, config.teacher.weights) == ("cifar/resnet8x0.25", folder)
    # an option replaces it, weights included
    config = parsed("--config", str(file), "--teacher", "cifar/resnet32")
    assert (config.teacher.name, config.teacher.weights) == ("cifar/resnet32", None)
    assert refused(capsys, "distill", "--config", str(file), "--teacher.weights", "other.pt") == (
        f"teacher.weights: expected none beside the folder of a run, teacher.name {folder!r}, got "
        "'other.pt'; leave one of them out."
    )
    assert parsed("--teacher.name", "a" * 300).teacher.name == "a" * 300
    assert refused(capsys, "train", "--teacher", "cifar/resnet8").startswith(
        "gendd train: expected no --teacher, as it trains the student on labels alone"
    )


def test_precision_has_a_short_form(capsys: Capture) -> None:
    assert parsed("--precision", "bf16").training.precision == "bf16"
    assert parsed("--precision=fp32").training.precision == "fp32"
    assert parsed("--precision=fp32").teacher_training.precision == "auto"
    assert refused(capsys, "distill", "--precision", "int8") == (
        "training.precision: expected one of auto, fp32, bf16, fp16, got int8. See: gendd distill --help."
    )


def test_recipes_are_laid_over_one_another() -> None:
    config = parsed("--recipe", "digits", "--recipe", "published")
    assert config.teacher.name == "cifar/resnet14"  # only in the first
    assert config.gendd.learned_variance is True  # only in the second
    assert config.gendd.head_width == 1024  # in both: the second wins


def test_print_config_round_trips(tmp_path: Path, capsys: Capture) -> None:
    words = ["distill", "--training.epochs=3", "--data.crop_scale=[0.5,1.0]", "--training.loggers=[csv]"]
    words += ["--training.ema=0.5", "--out=x/y", "--print_config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    (tmp_path / "saved.yaml").write_text(printed)
    assert main(["distill", "--config", str(tmp_path / "saved.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert load_config(tmp_path / "saved.yaml").training.epochs == 3
    assert yaml.safe_load(printed)["out"] == "x/y"


def test_later_settings_win(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("training: {epochs: 5, lr: 0.25}\nseed: 4\nbaselines: []\n")
    second.write_text("training: {epochs: 6}\n")
    files = ["--recipe", "digits", "--config", str(first), "--config", str(second)]
    config = parsed(*files, "--training.weight_decay=0.125", "--seed", "9")
    assert config.training.epochs == 6  # from the second file
    assert config.training.lr == 0.25  # from the first file, kept alongside the second's
    assert config.training.weight_decay == 0.125
    assert config.seed == 9  # from the option, not the first file
    assert config.baselines == []  # not the recipe's
    assert config.teacher.name == "cifar/resnet14"  # from the recipe
    assert config.gendd.timesteps == 1000  # the default
    assert config.out == "runs/second"
    # a file alone starts from the defaults, not from the recipe
    assert parsed("--config", str(first)).teacher.name == "cifar/resnet20"


def test_train_is_supervised_without_baselines(capsys: Capture) -> None:
    assert main(["train", "--print_config", "--student.name=cifar/resnet20"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["method"], values["baselines"]) == ("supervised", [])
    assert values["student"]["name"] == "cifar/resnet20"
    assert values["out"] == "runs/train-digits"


def test_train_takes_the_student_of_a_recipe_and_nothing_of_its_method(
    capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "kd.yaml").write_text("method: kd\nbaselines: [kl]\n")
    for words in (["--recipe", "digits"], ["--recipe", "digits", "--config", str(tmp_path / "kd.yaml")]):
        config, _ = parse_run("train", words)
        assert config is not None
        assert (config.method, config.baselines) == ("supervised", [])
        assert config.student.name == "cifar/resnet8x0.5"
    for word in ("--method=kd", "--baselines=[kl]", "--baselines+=kl", "--teacher.name=x", "--kd.weight=1"):
        name = re.split(r"\+?=", word)[0]
        assert refused(capsys, "train", word) == (
            f"gendd train: expected no {name}, as it trains the student on labels alone; "
            "leave it out, or use gendd distill."
        )


# --- runs -------------------------------------------------------------------------------------------


def test_distill_prints_the_table_and_where_things_are(digits_run: Finished) -> None:
    assert digits_run.code == 0
    lines = digits_run.out.splitlines()
    readouts = Run.open(digits_run.folder).metrics["student"]["readouts"]
    starts = ["method", "teacher", "student alone", "KL distillation", "KD"]
    starts += ["GenDD · linear", "GenDD · mean", "GenDD · sample", "report", "student"]
    if Run.open(digits_run.folder).metrics["run"]["best"]["method"] != "gendd":
        assert lines.pop().startswith("best on validation images: ")
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    for line, name in zip(lines[5:8], ("linear", "mean", "sample"), strict=True):
        assert f"{readouts[name]['top1']:.2f}" in line
    assert lines[-2] == f"report  {digits_run.folder / 'report.html'}"
    assert lines[-1] == f"student {digits_run.folder / 'student'}"
    said = digits_run.err.splitlines()
    assert said[0].startswith("digits: 200 train, 144 validation, 359 test images of 1x8x8, 10 classes")
    assert sum(line.startswith("gendd: epoch ") for line in said) == 3


def test_train_makes_weights_that_distill_takes_as_a_teacher(
    digits_run: Finished, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["train", "--out", str(tmp_path / "teacher"), *TINY_ALONE]) == 0
    out = capsys.readouterr().out
    assert "trained on labels" in out and "student alone" not in out
    metrics = Run.open(tmp_path / "teacher").metrics
    assert metrics["teacher"] is None
    assert "Trained on labels alone." in (tmp_path / "teacher" / "student" / "README.md").read_text()
    rest = [word for word in TINY if not word.startswith("--teacher.")]
    words = [*rest, "--teacher", str(tmp_path / "teacher"), "--baselines=[]"]
    assert main(["distill", "--out", str(tmp_path / "run"), *words]) == 0
    top1 = Run.open(tmp_path / "run").metrics["teacher"]["top1"]
    assert top1 == metrics["student"]["readouts"]["linear"]["top1"]
    assert "training (cached" not in capsys.readouterr().err


def test_a_student_may_begin_from_weights_of_other_classes(
    digits_run: Finished, tmp_path: Path, capsys: Capture
) -> None:
    weights = tmp_path / "w.safetensors"
    save_weights(create_backbone("cifar/resnet8x0.25", 7, 1), weights)
    one = ["--training.epochs=1", f"--student.weights={weights}"]
    for command, options in (("train", TINY_ALONE), ("distill", [*TINY, "--baselines=[kl]"])):
        assert main([command, "--out", str(tmp_path / command), *options, *one]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "its classifier is" in line]
        assert said == [
            f"student cifar/resnet8x0.25: {weights} of 7 classes, not 10: its classifier is newly initialised"
        ]
        assert gendd.load(tmp_path / command).num_classes() == 10
    # a teacher has the classes of its file
    words = ["distill", "--out", str(tmp_path / "run"), *TINY, "--teacher.name=cifar/resnet8x0.25"]
    assert refused(capsys, *words, f"--teacher.weights={weights}", "--teacher.classes=10").startswith(
        f"Teacher: {weights}: its cifar/resnet8x0.25 has 7 classes, not the expected 10"
    )


def test_evaluate_agrees_with_the_run(digits_run: Finished, capsys: Capture) -> None:
    readouts = Run.open(digits_run.folder).metrics["student"]["readouts"]
    assert main(["evaluate", str(digits_run.folder), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert list(scores) == ["linear", "mean", "sample"]
    for name, score in scores.items():
        assert (score["top1"], score["top5"]) == (readouts[name]["top1"], readouts[name]["top5"])
    assert main(["evaluate", str(digits_run.folder), "--readout", "linear"]) == 0
    figures = readouts["linear"]
    assert capsys.readouterr().out == (
        f"linear  top1 {figures['top1']:.2f} %   top5 {figures['top5']:.2f} %\n"
    )


def test_evaluate_wants_a_readout_the_student_has(digits_run: Finished, capsys: Capture) -> None:
    message = refused(capsys, "evaluate", str(digits_run.folder), "--readout", "meen")
    assert message == "Readout: this student has linear, mean, sample, got 'meen'. Did you mean 'mean'?"


def test_predict_tells_classes_by_probability(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture
) -> None:
    files = digit_files(3)
    assert main(["predict", str(digits_run.folder), *files, "--top", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in found] == files
    student = gendd.load(digits_run.folder)
    for entry in found:
        with Image.open(entry["path"]) as image:
            pixels = torch.from_numpy(np.array(image)).float()[None, None] / 255
        with torch.no_grad():
            expected = student(pixels)[0].softmax(-1)
        assert sorted(entry["classes"]) == [str(digit) for digit in range(10)]
        assert entry["probabilities"] == sorted(entry["probabilities"], reverse=True)
        assert sum(entry["probabilities"]) == pytest.approx(1, abs=5e-4)
        own = [float(expected[int(name)]) for name in entry["classes"]]
        assert entry["probabilities"] == pytest.approx(own, abs=6e-5)
    assert main(["predict", str(digits_run.folder), files[0], "--top", "2"]) == 0
    best = found[0]
    shown = [f"{best['classes'][i]} {100 * best['probabilities'][i]:.1f} %" for i in range(2)]
    assert capsys.readouterr().out == f"{files[0]}: {', '.join(shown)}\n"


def test_resume_names_the_setting_that_changed(digits_run: Finished, capsys: Capture) -> None:
    folder = str(digits_run.folder)
    words = ["distill", "--resume", "--out", folder, *TINY, "--baselines=[supervised,kl,kd]"]
    assert refused(capsys, *words, "--training.weight_decay=0.01") == (
        f"--resume: expected the configuration of the run in {folder!r}, but training.weight_decay was 0.05 "
        "and is 0.01. Give the same, or another --out."
    )


def test_resume_wants_a_run(tmp_path: Path, capsys: Capture) -> None:
    for more in ([], ["--seed=1"]):
        assert refused(capsys, "distill", "--resume", "--out", str(tmp_path), *more) == (
            f"--resume: expected a run in {str(tmp_path)!r}, found none. Leave --resume out to start it."
        )


def test_resume_and_overwrite_exclude_each_other(
    digits_run: Finished, tmp_path: Path, capsys: Capture
) -> None:
    folder = str(digits_run.folder)
    words = ["distill", "--resume", "--overwrite", "--out", folder, *TINY]
    assert refused(capsys, *words) == (
        f"Output folder {folder!r}: expected --resume or --overwrite, got both; leave one out."
    )


def test_a_moved_run_is_resumed_where_it_is(digits_run: Finished, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((digits_run.folder / "config.yaml").read_text())
    config = parsed("--resume", "--out", str(tmp_path))
    assert config == replace(load_config(digits_run.folder / "config.yaml"), out=str(tmp_path))


def old_run(folder: Path) -> Path:
    """A folder with everything that runs write."""
    for name in ("student", "checkpoints", "logs/version_0", "baselines/kl/checkpoints", "stage1"):
        (folder / name).mkdir(parents=True)
        (folder / name / "old").write_text("old")
    for name in ("metrics.json", "report.html", "metrics.json.tmp"):
        (folder / name).write_text("old")
    (folder / "config.yaml").write_text(dump(RunConfig()))
    return folder


def test_overwrite_replaces_a_run(digits_run: Finished, tmp_path: Path) -> None:
    folder = old_run(tmp_path / "run")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "kept").write_text("mine")
    (folder / "wandb").symlink_to(shared)
    words = ["--training.epochs=1", "--baselines=[]"]
    assert main(["distill", "--overwrite", "--out", str(folder), *TINY, *words]) == 0
    assert not list(folder.rglob("old"))
    assert {entry.name for entry in folder.iterdir()} == {
        *("config.yaml", "metrics.json", "student", "checkpoints", "logs")
    }
    assert (shared / "kept").read_text() == "mine"
    assert load_config(folder / "config.yaml").training.epochs == 1


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_deletes_nothing_but_runs(capsys: Capture, tmp_path: Path) -> None:
    folder = old_run(tmp_path / "run")
    words = ["distill", "--overwrite", "--out", str(folder), *TINY]
    end = "Nothing was deleted; give another --out."
    for name in ("thesis.txt", "notes.md", "a.py", "b.py"):
        (folder / name).write_text("mine")
    before = contents(folder)
    assert refused(capsys, *words) == (
        f"--overwrite: expected a run alone in {str(folder)!r}, "
        f"found a.py, b.py, notes.md, … beside it. {end}"
    )
    for name in ("notes.md", "a.py", "b.py"):
        (folder / name).unlink()
        del before[str(folder / name)]
    assert refused(capsys, *words).endswith(f", found thesis.txt beside it. {end}")
    (folder / "thesis.txt").unlink()
    del before[str(folder / "thesis.txt")]
    assert contents(folder) == before

    (folder / "config.yaml").write_text("model: mine\n")
    before = contents(folder)
    assert refused(capsys, *words) == (
        f"--overwrite: expected a run in {str(folder)!r}, but its config.yaml is not a run's "
        f"(Unknown config key 'model'. Did you mean 'method'?) {end}"
    )
    assert contents(folder) == before


def test_overwrite_does_not_delete_what_the_new_run_reads(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = old_run(tmp_path / "run")
    before = contents(folder)
    monkeypatch.chdir(tmp_path)
    for option, path in (
        ("teacher.weights", "run"),
        ("teacher.weights", "run/student"),
        ("student.weights", str(folder / "checkpoints" / "best.ckpt")),
        ("data.path", "elsewhere/../run/logs"),
        ("data.test_path", str(folder)),
    ):
        words = ["distill", "--overwrite", "--out", str(folder), *TINY, f"--{option}={path}"]
        assert refused(capsys, *words) == (
            f"--overwrite: expected {option} outside of the folder to replace, got {path!r} in "
            f"{str(folder)!r}. Nothing was deleted; give another --out."
        )
    assert contents(folder) == before


def test_ctrl_c_ends_with_130_and_a_hint(digits_run: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["distill", "--out", str(folder), *TINY, "--training.epochs=500", "--baselines=[]"]
    process = Started(tmp_path / "said", run_gendd, *words)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            assert process.is_alive()
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
    finally:
        code, err = process.ended()
    assert code == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "gendd: interrupted; what was written is kept. Go on with the same command and --resume."
    )


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["distil"], "Unknown command 'distil'. Did you mean 'distill'? See: gendd --help."),
        (
            ["distill", "--recipe", "digit"],
            "Unknown recipe 'digit'. Did you mean 'digits'? See: gendd recipes.",
        ),
        (
            ["distill", "--training.epoch=3"],
            "Unknown option '--training.epoch'. Did you mean '--training.epochs'?",
        ),
        (["distill", "--lr", "1"], "Unknown option '--lr'. Did you mean '--training.lr'?"),
        (["distill", "--batch-size=1"], "Unknown option '--batch-size'. Did you mean '--data.batch_size'?"),
        (
            ["distill", "--seed=1", "--training.epochs"],
            "training.epochs: expected a value after --training.epochs, got none; add it.",
        ),
        (
            ["distill", "--data.path", "--seed", "3"],
            "data.path: expected a value after --data.path, got none; add it.",
        ),
        (
            ["distill", "--data.path", "images"],
            "data.path: expected none for data.name 'digits', whose images come with a package, got "
            "'images'; for a folder of images give --data folder too.",
        ),
        (["distill", "--overwrit"], "Unknown option '--overwrit'. Did you mean '--overwrite'?"),
        (
            ["distill", "--method=gend"],
            f"method: expected one of {', '.join(names())}, or path/to/file.py:CLASS, got 'gend'. "
            "Did you mean 'gendd'?",
        ),
        (
            ["distill", "--training.epochs=many"],
            "training.epochs: expected integer or null, got many. See: gendd distill --help.",
        ),
        (
            ["distill", "--data.labels=maybe"],
            "data.labels: expected true or false, got maybe. See: gendd distill --help.",
        ),
        (["distill", "--training.epochs=0"], "training.epochs: expected a positive integer or null, got 0."),
        (
            ["distill", "--data.name=digit"],
            "data.name: expected one of cifar10, cifar100, demo, digits, fashion-mnist, folder, hf, list, "
            "parquet, webdataset, or path/to/file.py:NAME, got 'digit'. Did you mean 'digits'?",
        ),
        (["evaluate"], "the following arguments are required: RUN. See: gendd evaluate --help."),
        (["recipes", "--all"], "unrecognized arguments: --all. See: gendd recipes --help."),
        (["predict", "run", "a.png", "--top", "0"], "--top: expected a positive integer, got 0."),
        (
            ["predict", "./nowhere", "a.png"],
            "No student at './nowhere': expected a run folder, "
            "or one with config.json and model.safetensors.",
        ),
        (
            ["evaluate", "nowhere"],
            "No run at 'nowhere': expected a folder with config.yaml, written by gendd.",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *words) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("trainig: {epochs: 3}", "Unknown config key 'trainig'. Did you mean 'training'?"),
        ("training: {epoch: 3}", "Unknown config key 'training.epoch'. Did you mean 'training.epochs'?"),
        ("training: 3", "training: expected a section (key: value lines), got 3."),
        ("training: {epochs: many}", "training.epochs: expected integer or null, got many."),
        ("data: {crop_scale: [0.5]}", "data.crop_scale: expected [number, number], got [0.5]."),
        ("- a\n- b", "Config FILE: expected key: value lines, got a list; see "),
        ("a: [", "Config FILE: expected a readable YAML file; "),
    ],
)
def test_a_mistake_in_a_config_file(text: str, message: str, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text)
    said = refused(capsys, "distill", "--config", str(file))
    assert said.startswith(message.replace("FILE", repr(str(file))))


def test_config_files_that_cannot_be_read(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00a")
    for path in (tmp_path, tmp_path / "none.yaml", tmp_path / "binary.yaml"):
        said = refused(capsys, "distill", "--config", str(path))
        assert said.startswith(f"Config {str(path)!r}: expected a readable YAML file; ")


def test_an_output_folder_in_use_is_left_alone(digits_run: Finished, capsys: Capture, tmp_path: Path) -> None:
    file, foreign = tmp_path / "file", tmp_path / "foreign"
    file.write_text("mine")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for path in (digits_run.folder, file, foreign):
        assert refused(capsys, "distill", "--out", str(path), *TINY) == (
            f"Output folder {str(path)!r} exists: give another --out, --resume to continue its run, "
            "or --overwrite to replace it."
        )
    for path in (file, foreign):
        assert refused(capsys, "distill", "--overwrite", "--out", str(path), *TINY) == (
            f"--overwrite: expected a run in {str(path)!r}, found other files. Nothing was deleted; "
            "give another --out."
        )
    assert file.read_text() == "mine"
    assert (foreign / "thesis.txt").read_text() == "mine"
    assert (digits_run.folder / "metrics.json").is_file()


def folder_of_images(root: Path, files: Callable[[int], list[str]], classes: int = 2) -> Path:
    """A folder set: ``classes`` classes of 8 training and 2 test images, of digits."""
    sources = files(10 * classes)
    for index, source in enumerate(sources):
        part = "train" if index // classes < 8 else "test"
        place = root / part / f"class{index % classes}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.png").write_bytes(Path(source).read_bytes())
    return root


def test_images_that_are_none(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    text = str(tmp_path / "text.png")
    assert refused(capsys, "predict", str(digits_run.folder), text) == (
        f"Expected an image, got {text}, which can't be decoded; replace or remove it."
    )
    none = str(tmp_path / "none.png")
    assert refused(capsys, "predict", str(digits_run.folder), none) == (
        f"Image {none!r}: expected a readable file; No such file or directory."
    )
    data = folder_of_images(tmp_path / "data", digit_files)
    bad = data / "train" / "class1" / "zz.png"
    bad.write_text("no image")
    words = ["--data.name=folder", f"--data.path={data}", "--data.image_size=8", "--data.train_images=null"]
    out = tmp_path / "run"
    said = refused(capsys, "distill", "--out", str(out), *TINY, *words)
    assert said == (
        f"Expected an image, got {str(bad)!r}, which can't be decoded; replace or remove it, or raise "
        "data.max_corrupt."
    )
    assert not out.exists()


def test_an_empty_data_folder(capsys: Capture, tmp_path: Path) -> None:
    def said(path: Path) -> str:
        words = ["--data.name=folder", f"--data.path={path}", "--out", str(tmp_path / "run")]
        return refused(capsys, "distill", *words)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert said(empty) == f"Expected images in '{empty}', found none; add some."
    (empty / "train" / "cat").mkdir(parents=True)
    (empty / "test" / "cat").mkdir(parents=True)
    assert said(empty) == (
        f"Expected images in '{empty / 'test' / 'cat'}', found none; add some or remove the folder."
    )
    assert said(tmp_path / "none").endswith(
        f"got {str(tmp_path / 'none')!r}, which does not exist; correct the path."
    )


def test_teachers_that_do_not_fit(
    digits_run: Finished,
    cache: Path,
    digit_files: Callable[[int], list[str]],
    capsys: Capture,
    tmp_path: Path,
) -> None:
    weights = str(tmp_path / "w.safetensors")
    shutil.copy(digits_run.folder / "baselines" / "kl" / "student" / "model.safetensors", weights)
    out = tmp_path / "run"
    said = refused(capsys, "distill", "--out", str(out), *TINY, f"--teacher.weights={weights}")
    assert said.startswith(f"Teacher: {weights}: expected the weights of cifar/resnet8x0.5, got ")
    assert "conv1.weight is 4x1x3x3 for 8x1x3x3" in said

    said = refused(
        capsys,
        "distill",
        "--out",
        str(out),
        *TINY,
        "--teacher.name=cifar/resnet14",
        f"--teacher.weights={weights}",
    )
    assert "keys missing (" in said and "layer1.1.conv1.weight" in said

    data = folder_of_images(tmp_path / "data", digit_files)
    words = ["--data.name=folder", f"--data.path={data}", "--data.image_size=8", "--data.train_images=null"]
    words += ["--teacher.name=cifar/resnet8x0.25", f"--teacher.weights={weights}", "--gendd.contraction=0.3"]
    said = refused(capsys, "distill", "--out", str(out), *TINY, *words)
    assert said == (
        "Contraction: expected a teacher with the data's 2 classes, got one with 10. Set gendd.centres "
        "means, gendd.contraction 0, or data.labels false."
    )
    assert not out.exists()


def test_images_without_labels(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    data = folder_of_images(tmp_path / "data", digit_files)
    for index, file in enumerate(sorted((data / "train").rglob("*.png"))):
        file.rename(data / "train" / f"{index}.png")
    for folder in list((data / "train").iterdir()):
        if folder.is_dir():
            folder.rmdir()
    words = ["distill", "--out", str(tmp_path / "run"), *TINY, "--data.name=folder", f"--data.path={data}"]
    words += ["--data.image_size=8", "--data.train_images=null", "--baselines=[]"]
    for method in ("supervised", "kd"):
        assert refused(capsys, *words, f"--method={method}") == (
            f"Method {method!r} learns from labels, and 'folder' has none: use method gendd or kl, "
            "or give labelled images, in a folder as train/CLASS/ or CLASS/."
        )
    assert refused(capsys, *words) == (
        "teacher.weights: expected a trained teacher for images without labels; give its file."
    )
    assert not (tmp_path / "run").exists()
    # a teacher that needs no training is accepted, and the missing labels are reported
    words += ["--teacher.name=cifar/resnet8x0.25", f"--teacher.weights={digits_run.folder}"]
    words += ["--data.validation=0", "--data.batch_size=4", "--data.workers=0", "--training.epochs=1"]
    assert main([*words, "--teacher.classifier=false"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "data.labels is true" in line]
    assert "the training images of 'folder' have no labels" in line
    metrics = Run.open(tmp_path / "run").metrics
    assert metrics["run"]["labels_used"] is False
    generated = metrics["student"]["embedding"]["generated"]
    assert (generated["knn"], generated["linear_probe"]) == (None, None) and -1 <= generated["cosine"] <= 1


def test_nothing_but_images(
    digits_run: Finished,
    digit_files: Callable[[int], list[str]],
    capsys: Capture,
    tmp_path: Path,
) -> None:
    data = tmp_path / "data" / "deeper"
    data.mkdir(parents=True)
    for file in digit_files(60):
        Path(file).rename(data / Path(file).name)
    bad = [data / "digit7.png", data / "digit31.png", data / "digit52.png"]
    for file in bad:
        file.write_bytes(b"nothing")
    words = [
        "--data.name=folder",
        f"--data.path={tmp_path / 'data'}",
        "--data.image_size=8",
        "--data.workers=0",
    ]
    words += [
        "--data.train_images=null",
        "--data.batch_size=8",
        "--data.validation=0.25",
        "--data.labels=false",
    ]
    words += ["--data.in_memory=false", "--training.epochs=1", "--baselines=[]"]
    words += ["--teacher.name=cifar/resnet8x0.25", f"--teacher.weights={digits_run.folder}"]
    out = tmp_path / "run"
    refused_by = refused(capsys, "distill", "--out", str(out), *TINY, *words, "--data.max_corrupt=0")
    assert re.fullmatch(r"Expected an image, got '.*digit\d+.png', which can't be decoded; .*", refused_by)
    words += ["--data.max_corrupt=0.2", "--overwrite"]
    assert main(["distill", "--out", str(out), *TINY, *words]) == 0
    said = capsys.readouterr().err
    assert "the classes of the teacher" not in said and "10 classes (training images unlabelled)" in said
    assert "skipped a training image that can't be decoded: '" in said
    metrics = Run.open(out).metrics
    assert metrics["run"]["tested_on"] == "validation" and metrics["teacher"]["top1"] is None
    skipped = metrics["run"]["skipped"]
    assert sum(skipped.values()) == 3 and metrics["run"]["test_images"] == 15 - skipped["validation"]
    lines = (out / "logs" / "skipped.txt").read_text().splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == sorted(repr(str(file)) for file in bad)
    for figures in metrics["student"]["readouts"].values():
        assert figures["top1"] is None and 0 <= figures["agreement"] <= 100 and "groups" not in figures
    card = (out / "student" / "README.md").read_text()
    assert (
        f"On {metrics['run']['test_images']} validation images, by which the checkpoint was chosen too"
        in card
    )
    assert gendd.load(out).info["class_names"] == [str(digit) for digit in range(10)]
    assert main(["evaluate", str(out), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert {name: score["agreement"] for name, score in scores.items()} == {
        name: figures["agreement"] for name, figures in metrics["student"]["readouts"].items()
    }
    weights = tmp_path / "w.safetensors"
    shutil.copy(digits_run.folder / "baselines" / "kl" / "student" / "model.safetensors", weights)
    words += [f"--teacher.weights={weights}", "--method=kl"]
    assert main(["distill", "--out", str(out), *TINY, *words]) == 0
    assert gendd.load(out).info["class_names"] == [str(digit) for digit in range(10)]


def test_unlabelled_test_images_need_a_teacher(
    digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    data = folder_of_images(tmp_path / "data", digit_files)
    loose = tmp_path / "loose"
    loose.mkdir()
    for file in (data / "test" / "class0").iterdir():
        file.rename(loose / file.name)
    shutil.rmtree(data / "test")
    words = ["--data.name=folder", f"--data.path={data}", f"--data.test_path={loose}", "--data.image_size=8"]
    out = str(tmp_path / "run")
    assert refused(capsys, "train", "--out", out, *TINY_ALONE, *words, "--data.train_images=null") == (
        "data.test_path: expected labelled test images for method 'supervised', which has no teacher to "
        "agree with, got unlabelled ones; set data.test_path."
    )


def test_a_folder_of_mixed_colours_is_evaluated_as_it_was_trained(
    digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    data = folder_of_images(tmp_path / "data", digit_files)
    colour = sorted((data / "train").rglob("*.png"))[0]
    with Image.open(colour) as image:
        image.convert("RGB").save(colour)
    words = ["--data.name=folder", f"--data.path={data}", "--data.image_size=8", "--data.train_images=null"]
    words += ["--data.validation=0", "--data.batch_size=4", "--data.workers=0", "--training.epochs=1"]
    out = tmp_path / "run"
    assert main(["train", "--out", str(out), *TINY_ALONE, *words]) == 0
    assert gendd.load(out).backbone.in_channels == 3
    capsys.readouterr()
    assert main(["evaluate", str(out), "--json"]) == 0
    scores: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert scores["linear"]["top1"] == Run.open(out).metrics["student"]["readouts"]["linear"]["top1"]
    assert scores["linear"]["top5"] is None  # of two classes


def test_predict_goes_on_after_a_bad_file(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    first, second, third = digit_files(3)
    inside = [str(folder / name) for name in ("a.png", "b.png", "c.png")]
    Path(inside[0]).write_bytes(Path(second).read_bytes())
    Path(inside[1]).write_bytes(Path(second).read_bytes()[:60])
    Path(inside[2]).write_bytes(Path(third).read_bytes())
    (folder / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    none = str(tmp_path / "none.png")
    words = ["predict", str(digits_run.folder), first, str(folder), none, str(tmp_path / "empty")]
    errors = [
        f"Expected an image, got {inside[1]}, which can't be decoded; replace or remove it.",
        f"Image {none!r}: expected a readable file; No such file or directory.",
        f"Expected images in {str(tmp_path / 'empty')!r}, found none; give another directory.",
    ]
    assert main(words) == 2
    said = capsys.readouterr()
    assert [line.split(": ")[0] for line in said.out.splitlines()] == [first, inside[0], inside[2]]
    assert said.err.splitlines() == [f"gendd: {error}" for error in errors]
    assert main([*words, "--json"]) == 2
    said = capsys.readouterr()
    entries = json.loads(said.out)
    assert [entry["path"] for entry in entries] == [first, *inside, none, str(tmp_path / "empty")]
    assert [entry.get("error") for entry in entries] == [None, None, errors[0], None, *errors[1:]]
    assert set(entries[2]) == {"path", "error"}
    assert set(entries[0]) == {"path", "classes", "probabilities"}
    assert said.err.splitlines() == [f"gendd: {error}" for error in errors]


def test_a_long_tail_is_told_by_shots(capsys: Capture, tmp_path: Path) -> None:
    settings = [word for word in TINY if "train_images" not in word and "epochs" not in word]
    settings += ["--teacher_training.epochs=1", "--training.epochs=1", "--data.imbalance=10"]
    out = str(tmp_path / "run")
    assert main(["distill", "--out", out, *settings, "--method=kl", "--data.shot_thresholds=[20, 60]"]) == 0
    said = capsys.readouterr()
    assert "long-tailed (128 to 13 training images per class)" in said.err
    assert re.search(r"top-1 % by shots +many \(3\) +medium \(5\) +few \(2\)", said.out)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["run"]["shot_thresholds"] == [20, 60]
    student = metrics["student"]["readouts"]["linear"]
    assert (
        sum(group["images"] for group in student["groups"].values()) == metrics["run"]["test_images"] == 359
    )
    right = sum(group["images"] * group["top1"] / 100 for group in student["groups"].values())
    assert right / 359 * 100 == pytest.approx(student["top1"], abs=0.02)
    assert set(metrics["teacher"]["groups"]) == {"many", "medium", "few"}
    assert (
        "Top-1 of the default readout by training images" in (tmp_path / "run/student/README.md").read_text()
    )
    assert main(["evaluate", out]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{'':8}" + "   ".join(
        f"{name} ({group['classes']} classes) {group['top1']:.2f} %"
        for name, group in student["groups"].items()
    )
    assert main(["evaluate", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["linear"]["groups"] == student["groups"]


def test_predict_takes_a_readout(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture
) -> None:
    found = {}
    for readout in ("linear", "mean"):
        words = ["predict", str(digits_run.folder), *digit_files(1), "--json", "--readout", readout]
        assert main(words) == 0
        found[readout] = json.loads(capsys.readouterr().out)
    assert found["linear"] != found["mean"]
    assert main(["predict", str(digits_run.folder), "x.png", "--readout", "meen"]) == 2
    assert "Did you mean 'mean'?" in capsys.readouterr().err


def test_predict_tells_the_uncertainty(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture
) -> None:
    files = digit_files(2)
    words = ["predict", str(digits_run.folder), *files, "--top", "1"]
    assert main([*words, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*words, "--uncertainty", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    student = gendd.load(digits_run.folder)
    for before, entry in zip(plain, found, strict=True):
        unsure = entry.pop("uncertainty")
        assert entry == before
        with Image.open(entry["path"]) as image:
            pixels = torch.from_numpy(np.array(image)).float()[None, None] / 255
        told = student.predict(pixels, 5, torch.Generator().manual_seed(0))
        assert list(unsure) == ["samples", "total", "aleatoric", "mutual_information", "spread"]
        assert unsure.pop("samples") == 5
        for name, value in unsure.items():
            assert value == pytest.approx(float(getattr(told, name)), abs=6e-5), name
        entry["uncertainty"] = unsure
    assert found[0]["uncertainty"] != found[1]["uncertainty"]
    assert main([*words, "--uncertainty", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, entry in zip(lines, found, strict=True):
        head, figures = line.split("   ")
        assert head == f"{entry['path']}: {entry['classes'][0]} {100 * entry['probabilities'][0]:.1f} %"
        assert figures == ", ".join(
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in entry["uncertainty"].items()
        )


def test_predict_refuses_an_uncertainty_that_is_not_to_be_had(
    digits_run: Finished, digit_files: Callable[[int], list[str]], capsys: Capture, tmp_path: Path
) -> None:
    (file,) = digit_files(1)
    for count in ("1", "-2"):
        assert refused(capsys, "predict", str(digits_run.folder), file, "--uncertainty", count) == (
            f"Uncertainty: expected 2 to 10,000 generated features per image, got {count}; "
            "ask for 8 or more, or for 0 to do without."
        )
    gendd.Student(gendd.load(digits_run.folder).backbone).save(tmp_path / "alone")
    # reported first, whatever is wrong with the files
    assert refused(capsys, "predict", str(tmp_path / "alone"), "none.png", "--uncertainty", "8") == (
        "Uncertainty: expected a student with a generator, got one without; distil one with method gendd."
    )
    message = refused(capsys, "predict", "run", file, "--uncertainty", "many")
    assert message == "argument --uncertainty: invalid int value: 'many'. See: gendd predict --help."


@pytest.mark.parametrize(
    "words",
    [
        ["distill", "--help"],
        ["train", "--print_config"],
        ["distill", "--epoch=3"],
        ["predict", "/nowhere", "image.png"],
        ["export", "/nowhere", "--to", "onnx"],
    ],
)
def test_what_needs_no_network_is_told_without_loading_one(words: list[str]) -> None:
    code = f"import sys; from gendd.cli import main; main({words}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_predictions_load_nothing_slow(digits_run: Finished, tmp_path: Path) -> None:
    Image.new("L", (20, 30), 90).save(tmp_path / "image.png")
    words = ["predict", str(digits_run.folder), str(tmp_path / "image.png")]
    slow = {"torchvision", "torchmetrics", "lightning", "timm", "torch._dynamo", "matplotlib"}
    code = f"import sys; from gendd.cli import main; main({words}); print(sorted({slow} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
