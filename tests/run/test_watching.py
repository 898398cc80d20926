"""Follow a run while it trains."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Finished
from rich.console import Console

from gendd.cli import main
from gendd.config import dump, load_config
from gendd.errors import UserError
from gendd.run.watching import is_running, look, watch_run

LOG = "epoch,images/s,step,train/loss,val/mean\n0,100,4,2.5,\n0,100,6,,0.5\n1,50,9,1.25,\n"


def shown(folder: Path) -> tuple[bool, list[str]]:
    out = io.StringIO()
    finished = watch_run(folder, 0.01, Console(file=out, width=100))
    return finished, [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_a_finished_run_is_shown_once(digits_run: Finished) -> None:
    finished, lines = shown(digits_run.folder)
    assert finished and lines[0] == "method epoch step loss validation left"
    assert [line.split(" 3/3 ")[0] for line in lines[1:]] == [
        "student alone",
        "KL distillation",
        "KD",
        "GenDD",
    ]
    assert all(line.endswith("% done") and "18/18" in line for line in lines[1:])
    assert main(["watch", str(digits_run.folder)]) == 0


def test_a_training_on_labels_is_no_student_alone(digits_run: Finished, tmp_path: Path) -> None:
    config = load_config(digits_run.folder / "config.yaml")
    for baselines, told in (([], ["trained on labels"]), (["kd"], ["KD", "student alone"])):
        own = dataclasses.replace(config, method="supervised", baselines=baselines)
        (tmp_path / "config.yaml").write_text(dump(own), encoding="utf-8")
        assert [each.method for each in look(tmp_path)] == told


def test_what_is_going_on_is_told_with_the_time_left(digits_run: Finished, tmp_path: Path) -> None:
    shutil.copy(digits_run.folder / "config.yaml", tmp_path)
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    shutil.copy(digits_run.folder / "logs" / "images.json", tmp_path / "logs")
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text(LOG)
    progress = {each.method: each for each in look(tmp_path)}
    own = progress["GenDD"]
    assert (own.step, own.steps, own.epoch, own.epochs, own.loss) == (10, 18, 2, 3, 1.25)
    assert own.validation == "top-1 50.00 %"
    # eight steps of 32 images, fifty a second
    assert own.left == 8 * 32 / 50
    assert progress["KD"].step == 0
    finished, lines = shown(tmp_path)
    assert not finished and lines[-1] == "GenDD 2/3 10/18 1.2500 top-1 50.00 % 5.1 s"
    assert lines[1] == "student alone – – – – –"
    assert main(["watch", str(tmp_path)]) == 1


def test_it_ends_with_the_process_that_writes_there(digits_run: Finished, tmp_path: Path) -> None:
    shutil.copy(digits_run.folder / "config.yaml", tmp_path)
    assert not is_running(tmp_path)
    (tmp_path / ".lock").write_text(f"{os.getpid()}\n")
    assert is_running(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        (tmp_path / ".lock").write_text(f"{process.pid}\n")
        assert is_running(tmp_path)
        process.communicate(b"\n")
    assert not is_running(tmp_path)
    assert not shown(tmp_path)[0]


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gendd watch: expected a run in"):
        watch_run(tmp_path)
