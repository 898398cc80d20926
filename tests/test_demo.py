"""``gendd distill`` without arguments: a small version of it, through the command line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

import gendd
from gendd.cli import main
from gendd.cli.options import parse_run
from gendd.config import RunConfig
from gendd.data import load_data
from gendd.models import create_backbone, load_weights
from gendd.recipes import recorded
from gendd.report import print_table

SMALL = [
    "--data.train_images=500",
    "--training.epochs=1",
    "--evaluation.images=150",
    "--training.progress=false",
]


def parsed(*words: str) -> RunConfig:
    config, flags = parse_run("distill", list(words))
    assert config is not None and flags.recipe == [config.data.name]
    return config


def test_without_images_or_a_teacher_it_is_the_demo() -> None:
    for words in ([], ["--training.epochs=1"], ["--student", "cifar/resnet8"], ["--data.labels=false"]):
        config = parsed(*words)
        assert (config.data.name, config.out) == ("demo", "runs/demo")
    for words in (["--data", "digits"], ["--teacher", "cifar/resnet20"]):
        config = parsed(*words)
        assert (config.data.name, config.out, config.teacher.weights) == ("digits", "runs/digits", None)


def test_the_teacher_that_comes_with_it_knows_the_test_images() -> None:
    data = load_data(gendd.DataConfig("demo", validation=0))
    teacher = create_backbone("cifar/resnet14", 10, 1)
    load_weights(teacher, "gendd:data/demo/teacher.safetensors")
    images = data.test.images(range(200)).float() / 255
    with torch.no_grad():
        right = teacher.eval()(images)[1].argmax(-1) == data.test.labels[:200]  # type: ignore[index]
    # 90 %, minus three standard errors
    assert right.float().mean() > 0.84


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main(["distill", "--recipe", "demo", *SMALL, "--out", str(folder)]) == 0
    return folder


def test_its_rows_differ_by_the_labels_they_see(small: Path) -> None:
    metrics = gendd.Run.open(small).metrics
    run = metrics["run"]
    assert (run["train_images"], run["labels_used"]) == (500, True)
    assert 0 < run["labelled_images"] < 40
    assert [*metrics["baselines"]] == ["supervised", "kl"]
    rows = [metrics["student"], *metrics["baselines"].values()]
    steps = {
        int(torch.load(path, weights_only=False)["global_step"])
        for path in small.rglob("checkpoints/last.ckpt")
    }
    assert len(rows) == 3 and steps == {500 // 64}
    assert {*metrics["gains"]} == {"teacher", "supervised", "kl"}
    page = (small / "report.html").read_text(encoding="utf-8")
    for words in ("of them labelled", "Use the student", "Hardest classes", "Reliability"):
        assert words in page


def test_the_table_has_what_was_recorded_beside(small: Path) -> None:
    figures = recorded("demo")
    assert {*figures} == {"teacher", "supervised", "kl", "gendd_no_labels", "gendd"}
    assert len({len(values) for values in figures.values()}) == 1
    out = io.StringIO()
    print_table(gendd.Run.open(small).metrics, Console(file=out, width=80), figures)
    lines = out.getvalue().splitlines()
    assert "recorded" in lines[0] and len(lines) == 9 and max(map(len, lines)) <= 80
    assert sum("±" in line for line in lines[:-1]) == 4
    assert "±" in next(line for line in lines if line.startswith("GenDD · linear"))
    assert "±" not in next(line for line in lines if line.startswith("GenDD · mean"))
    (beside,) = [line for line in lines if line.startswith("GenDD, no labels")]
    assert beside.split()[3] == "–"
    assert recorded("digits") == {}
