"""Comparisons that run, fail, are killed and are resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from small_comparison import run_without_pages, small, steady
from started import Started

import gendd.compare.running
from gendd.cli import main
from gendd.compare import compare
from gendd.compare.budget import Measured
from gendd.compare.reading import read_plan
from gendd.compare.results import read_rows
from gendd.compare.timing import scaled, steps_per_epoch
from gendd.errors import UserError
from gendd.methods import GenDD


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons without drawing, which takes longer than they do."""
    monkeypatch.setattr("gendd.compare.comparison.write_page", lambda plan, rows, summary, path: None)


@pytest.mark.usefixtures("no_pages")
def test_rates_are_chosen_by_validation_and_a_failing_method_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "import gendd\n"
        "class Broken(gendd.Method):\n"
        "    def forward(self, images, labels=None, *, generator=None):\n"
        "        raise RuntimeError('not\\nyet')\n"
        "    name = 'broken'\n",
        encoding="utf-8",
    )
    file = small(
        methods={
            "kd": {"method": "kd"},
            "own": {"method": "own.py:Broken"},
            "kl": {"method": "kl", "rates": 0.01},
        },
        rates=[0.000001, 0.02],
        seeds=[0, 1],
        budget={"steps": 4},
    )
    file["base"]["data"]["shot_thresholds"] = [9, 10]
    Path("mine.yaml").write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")
    assert main(["compare", "mine.yaml", "--dry-run", "--trust-code"]) == 0
    assert not Path("runs").exists()
    assert "kd · rate 1e-06 · seed 0 · 2 epochs: to run" in capsys.readouterr().err
    assert main(["compare", "mine.yaml", "--trust-code"]) == 1
    told = capsys.readouterr()
    folder = Path("runs/compare/mine")
    assert f"report  {folder / 'report.html'}" in told.out and "| KD |" in told.out
    assert "[7/7 cells, " in told.err
    rows = read_rows(folder / "results.csv")
    best = max(rows[:2], key=lambda row: row["validation"])
    assert [(row["method"], row["seed"], row["rate"]) for row in rows] == [
        ("kd", 0, 0.000001),
        ("kd", 0, 0.02),
        ("kd", 1, best["rate"]),
        ("own", 0, 0.000001),
        ("own", 0, 0.02),
        ("kl", 0, 0.01),
        ("kl", 1, 0.01),
    ]
    assert [row["chosen"] for row in rows[:2]] == [row is best for row in rows[:2]]
    assert [row["chosen"] for row in rows[2:]] == [True, False, False, True, True]
    assert [row["error"] for row in rows[3:5]] == ["RuntimeError: not"] * 2
    (log,) = (folder / "logs").glob("own-lr0.02-*.txt")
    assert 'own.py", line 4, in forward' in log.read_text() and log.read_text().endswith("not\nyet\n")
    assert {row["epochs"] for row in rows if not row["error"]} == {2}
    assert {row["steps"] for row in rows if not row["error"]} == {6}
    assert best["test"] == best["test_linear"] and best["readout"] == "linear"
    assert len(best["curve"]) == 2 and max(best["curve"]) == best["validation"]
    assert best["parameters"] > 0 and best["multiply_adds"] > 0 and best["peak_memory_mb"] > 0
    assert "torch" in best["versions"] and best["machine"]
    (cell,) = (folder / "cells").glob(f"kd-lr{best['rate']}-seed0-*")
    groups = json.loads((cell / "metrics.json").read_text())["student"]["readouts"]["linear"]["groups"]
    assert {name: best[name] for name in groups} == {name: each["top1"] for name, each in groups.items()}
    assert all(each["images"] > 0 for each in groups.values())
    # kl had the same batches as kd, so the teacher did not compute them again
    (ledger,) = (folder / "cells").glob("kl-lr0.01-seed0-*/logs/teacher_seconds.txt")
    assert len(ledger.read_text().splitlines()) == 6
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("k*/metrics.json")}
    # after the method is fixed, only failed cells run again
    text = Path("own.py").read_text(encoding="utf-8")
    repaired = "return gendd.StepOutput(self.backbone(images)[1].square().mean(), self.backbone(images)[1])"
    Path("own.py").write_text(text.replace("raise RuntimeError('not\\nyet')", repaired), encoding="utf-8")
    monkeypatch.setattr("gendd.config.registry._OWN", {})
    assert main(["compare", "mine.yaml", "--trust-code"]) == 0
    rows = read_rows(folder / "results.csv")
    assert [row["chosen"] for row in rows if row["method"] == "own"].count(True) == 2
    assert not any(row["error"] for row in rows)
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("k*/metrics.json")}


@pytest.mark.usefixtures("no_pages")
def test_a_killed_comparison_ends_as_one_that_was_not(tmp_path: Path) -> None:
    file = small(seeds=[0, 1], budget={"epochs": 2})
    whole = compare(file, tmp_path / "whole")
    assert len(whole.rows) == 4 and not whole.errors
    folder, killed = tmp_path / "killed", 0
    moments = random.Random()
    for _ in range(3):
        process = Started(tmp_path / "said", run_without_pages, file, str(folder))
        deadline = time.monotonic() + 60
        # from the first line of a cell's log on, at any moment
        while not list(folder.glob("logs/*.txt")) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.join(moments.uniform(0.1, 1.5))
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed > 0
    done = compare(file, folder)
    assert steady(folder / "results.csv") == steady(tmp_path / "whole" / "results.csv")
    assert [row["chosen"] for row in done.rows] == [True] * 4
    for row in done.rows:
        assert row["train_seconds"] > 0


@pytest.mark.usefixtures("no_pages")
def test_committed_rows_are_not_run_again_and_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "committed.csv"
    first = compare(small(), tmp_path / "first", results=results)
    shutil.rmtree(tmp_path / "first")

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("it was run again")

    with monkeypatch.context() as patch:
        patch.setattr("gendd.compare.cells.execute", refused)
        again = compare(small(), tmp_path / "second", results=results)
        assert again.rows == first.rows
        # of the file's two methods only one is run; the other's rows stay
        dry = compare(small(seeds=[0, 1]), tmp_path / "second", results=results, only=["kd"], dry_run=True)
        assert [row["method"] for row in dry.rows] == ["kd", "gendd"]
    more = compare(small(seeds=[0, 1]), tmp_path / "second", results=results, only=["kd"])
    assert [(row["method"], row["seed"]) for row in more.rows] == [("kd", 0), ("kd", 1), ("gendd", 0)]
    # with other settings new rows replace the old ones as they finish
    changed = small(budget={"epochs": 2})
    other = compare(changed, tmp_path / "second", results=results, only=["kd"])
    assert [(row["method"], row["epochs"], row["chosen"]) for row in other.rows] == [
        ("kd", 2, True),
        ("kd", 1, False),
        ("gendd", 1, False),
    ]
    with pytest.raises(
        UserError, match=r"--only: expected methods of the file, got 'kdd'\. Did you mean 'kd'"
    ):
        compare(small(), tmp_path / "second", only=["kdd"])


@pytest.mark.usefixtures("no_pages")
def test_two_comparisons_may_write_to_one_file_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "shared.csv"
    file = small(methods={"kd": {"method": "kd"}, "kl": {"method": "kl"}}, rates=[0.01, 0.02])
    run_cell, others = gendd.compare.running.run_cell, []

    def interrupted(job: Any) -> Any:
        row = run_cell(job)
        if not others:
            # while a cell of the first comparison runs, a second one starts and ends
            others.append(job)
            compare(file, tmp_path / "second", results=results, only=["kl"])
        return row

    monkeypatch.setattr("gendd.compare.running.run_cell", interrupted)
    done = compare(file, tmp_path / "first", results=results, only=["kd"])
    rows = read_rows(results)
    assert rows == done.rows
    assert [(row["method"], row["rate"]) for row in rows] == [
        (name, rate) for name in ("kd", "kl") for rate in (0.01, 0.02)
    ]
    assert [row["chosen"] for row in rows].count(True) == 2


@pytest.mark.usefixtures("no_pages")
def test_ctrl_c_keeps_what_is_done_and_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(small(), sort_keys=False), encoding="utf-8")

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GenDD, "forward", stopped)
        assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 130
    again = f"gendd compare {path} --out {tmp_path / 'out'}"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"gendd: interrupted; what is done is kept. Go on with: {again}"
    )
    assert [row["method"] for row in read_rows(tmp_path / "out" / "results.csv")] == ["kd"]
    assert main(again.split()[1:]) == 0
    assert [row["method"] for row in read_rows(tmp_path / "out" / "results.csv")] == ["kd", "gendd"]


def test_a_budget_of_seconds_is_epochs_by_step_times_side_by_side(tmp_path: Path) -> None:
    plan = read_plan(small(budget={"seconds": 3}, methods={"kd": {"method": "kd"}, "gendd": {}}))
    kd, gendd = plan.groups
    assert steps_per_epoch(kd.config) == 3
    measured = Measured(tmp_path / "measured.json", plan)
    assert measured.epochs(kd) is None
    measured.measure(plan.groups, 2)
    seconds = measured.step_seconds(kd)
    assert seconds is not None and not measured.errors
    assert measured.epochs(kd) == max(1, int(3 / (seconds * 3)))
    # measured once
    again = Measured(tmp_path / "measured.json", plan)
    again.measure(plan.groups, 2)
    assert again.step_seconds(gendd) == measured.step_seconds(gendd)
    # on another machine: from an existing row
    epochs = measured.epochs(kd)
    cell = plan.cell(kd, 0, 0.02, epochs)
    told = {"data": "", "pair": "", "method": "kd", "seed": 0, "rate": 0.02, "epochs": epochs, "error": None}
    rows = [told | {"step_seconds": seconds, "config": cell.digest}]
    other = Measured(tmp_path / "other.json", plan, rows, keep=False)
    other.measure([kd], 2)
    assert other.epochs(kd) == epochs
    assert not (tmp_path / "other.json").exists()


def test_a_method_that_is_new_is_scaled_to_those_that_were_timed_before() -> None:
    assert scaled({"a": 2.0, "b": 3.0}, {}) == {"a": 2.0, "b": 3.0}
    assert scaled({"a": 2.0, "b": 3.0}, {"a": 1.0}) == {"a": 1.0, "b": 1.5}


def test_a_method_that_cannot_be_timed_is_a_row(tmp_path: Path) -> None:
    file = small(
        budget={"seconds": 0.001},
        methods={"kd": {"method": "kd"}, "linear_probe": {"method": "linear_probe"}},
    )
    done = compare(file, tmp_path, time_steps=1)
    assert [(row["method"], row["epochs"]) for row in done.rows] == [("kd", 1), ("linear_probe", None)]
    assert done.rows[1]["error"].startswith("student.weights: expected a trained student")
    assert done.rows[0]["step_seconds"] > 0
    assert done.report.is_file()


@pytest.mark.usefixtures("no_pages")
def test_a_cell_in_a_process_of_its_own_ends_as_one_in_this(tmp_path: Path) -> None:
    file = small(methods={"kd": {"method": "kd"}})
    compare(file, tmp_path / "here")
    done = compare(file, tmp_path / "apart", jobs=2)
    assert not done.errors
    assert steady(tmp_path / "here" / "results.csv") == steady(tmp_path / "apart" / "results.csv")
    assert not list((tmp_path / "apart" / "jobs").iterdir())


# replaces the module that runs a cell: reports its input, fails for one rate and dies for another
_WORKER = """
import json, os, pathlib, signal, sys, time
path = pathlib.Path(sys.argv[-1])
rate = json.loads(path.read_text())["config"]["training"]["lr"]
print("line", rate)
if rate == 0.3:
    os.kill(os.getpid(), signal.SIGKILL)
if rate == 0.4:
    sys.exit("no memory")
given = [os.environ[name] for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
row = {"machine": " ".join(given), "validation": 100 * rate, "monitor": "val/linear", "error": None}
path.with_suffix(".row.json").write_text(json.dumps(row))
"""


@pytest.mark.usefixtures("no_pages")
def test_processes_share_cores_and_devices_and_one_that_dies_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gendd.compare.running.COMMAND", (sys.executable, "-c", _WORKER))
    monkeypatch.setattr("gendd.compare.running._devices", lambda: ["3", "5"])
    monkeypatch.setattr("gendd.compare.running.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    file = small(methods={"kd": {"method": "kd"}}, rates=[0.1, 0.2, 0.3, 0.4], seeds=[0, 1])
    done = compare(file, tmp_path, jobs=2)
    assert [(row["rate"], row["seed"], row["chosen"]) for row in done.rows] == [
        (0.1, 0, False),
        (0.2, 0, True),
        (0.3, 0, False),
        (0.4, 0, False),
        (0.2, 1, True),
    ]
    assert {row["machine"] for row in done.rows if not row["error"]} <= {"4 3", "4 5"}
    killed, ended = done.rows[2:4]
    assert killed["error"].startswith("its process ended: killed by signal 9")
    assert ended["error"] == "its process ended: exit code 1; no memory"


@pytest.mark.usefixtures("no_pages")
def test_ctrl_c_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = (
        "import pathlib, os, sys, time; pathlib.Path(sys.argv[-1] + '.pid').write_text(str(os.getpid()))"
    )
    monkeypatch.setattr("gendd.compare.running.COMMAND", (sys.executable, "-c", sleeper + "; time.sleep(60)"))

    def stopped(_: float) -> None:
        if len(list(tmp_path.glob("jobs/*.pid"))) == 2 and all(
            each.read_text() for each in tmp_path.glob("jobs/*.pid")
        ):
            raise KeyboardInterrupt

    # only in that module, as waiting for processes also uses sleep
    clock = SimpleNamespace(sleep=stopped, monotonic=time.monotonic)
    monkeypatch.setattr("gendd.compare.running.time", clock)
    with pytest.raises(KeyboardInterrupt):
        compare(small(), tmp_path, jobs=2)
    for path in tmp_path.glob("jobs/*.pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
