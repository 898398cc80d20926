"""Plan a run without running it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import TINY

from gendd.cli import main
from gendd.methods import Method

Capture = pytest.CaptureFixture[str]


def test_a_dry_run_tells_of_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["distill", *TINY, "--baselines=kd", "--training.accumulate=2", "--training.clip_grad_norm=1"]
    assert main([*words, "--dry-run", "--out", "run"]) == 0
    assert list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    time = r"\d+ ms, about [\d.]+ s"
    wanted = [
        r"images   digits: 200 train, 144 validation, 359 test images of 1x8x8, 10 classes, .*",
        r"teacher  cifar/resnet8x0\.5: feature .*, 19\.8 k parameters, 0\.19 M multiply-adds",
        r"student  cifar/resnet8x0\.25: feature .*, [\d.]+ k parameters, [\d.]+ [kM] multiply-adds",
        rf"teacher  trained first: 4 epochs of 6 steps of 32 images: 24 steps of {time}",
        rf"kd       3 epochs of 3 steps of 64 images: 9 steps of {time}",
        rf"gendd    3 epochs of 3 steps of 64 images \(128 rows of the head\): 9 steps of {time}",
        r"memory   [\d,]+ MB at the peak of these steps, on (cpu|cuda|mps)",
        r"in all   about [\d.]+ s for the training steps; .*; nothing was written",
    ]
    assert len(lines) == len(wanted)
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), line
    parts = [float(line.split()[-2]) for line in lines[3:6]]
    assert sum(parts) == pytest.approx(float(lines[-1].split()[3]), abs=0.2)


def test_a_step_that_takes_longer_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import time

    from gendd.methods import Supervised

    forward = Supervised.forward

    def slow(self: Method, *args: object, **options: object) -> object:
        time.sleep(0.2)
        return forward(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Supervised, "forward", slow)
    alone = [word for word in TINY if word.startswith(("--student.", "--data.", "--training."))]
    assert main(["train", *alone, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    found = re.search(r"18 steps of (\d+) ms, about ([\d.]+) s", capsys.readouterr().out)
    assert found is not None and 200 <= int(found[1]) < 2000
    assert float(found[2]) == pytest.approx(18 * int(found[1]) / 1000, abs=0.1)


def test_what_would_be_refused_is_refused(small_run: Path, capsys: Capture) -> None:
    words = ["distill", *TINY, "--dry-run", "--out", str(small_run)]
    before = json.loads((small_run / "metrics.json").read_text())
    for more, message in (
        ([], f"Output folder {str(small_run)!r} exists: "),
        (["--resume"], "--dry-run: expected a new run, got --resume"),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"gendd: {message}")
    assert json.loads((small_run / "metrics.json").read_text()) == before
