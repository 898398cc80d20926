"""Runs that are interrupted, killed or diverge."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Finished
from runs import distil, untimed
from started import Started, run_gendd

from gendd.cli import main
from gendd.cli.signals import Stop
from gendd.data.workers import ignore_interrupts
from gendd.methods import GenDD
from gendd.run import Run


def test_resume_after_ctrl_c_ends_as_if_nothing_had_happened(
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    # only the folder is given; the rest is in its config
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert steps == 9 + 6 * 2
    metrics = Run.open(folder).metrics
    first = Run.open(digits_run.folder).metrics
    assert untimed(metrics["student"]) == untimed(first["student"])
    # a finished run resumed trains nothing
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert steps == 9 + 6 * 2
    assert untimed(Run.open(folder).metrics) == untimed(metrics)


def test_a_killed_run_resumes_to_the_same_metrics(digits_run: Finished, cache: Path, tmp_path: Path) -> None:
    longer = ["--training.epochs=8", "--baselines=[]"]
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    process = Started(tmp_path / "said", run_gendd, "distill", "--out", folder, *TINY, *longer)
    try:
        deadline = time.monotonic() + 60
        while not last.exists() and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.kill()
        code, err = process.ended()
    assert last.exists(), err
    assert code == -signal.SIGKILL, err
    assert not (folder / "checkpoints" / "finished.json").exists()
    assert main(["distill", "--resume", "--out", str(folder)]) == 0
    assert untimed(Run.open(folder).metrics) == untimed(distil(tmp_path / "whole", *longer))


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
        "Go on from the last good checkpoint with --resume and a lower training.lr, a "
        "training.clip_grad_norm or training.precision fp32."
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


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_one_line_and_an_exit_code(
    name: str,
    digits_run: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)

    def stopped(self: GenDD, *args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    monkeypatch.setattr(GenDD, "forward", stopped)
    distil(tmp_path / "run", "--baselines=[]", code=128 + number)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("gendd: ")] == [lines[-1]]
    assert lines[-1].endswith("Go on with the same command and --resume.")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("command", ["distill", "evaluate"])
def test_sigterm_while_scoring_is_one_line(
    command: str,
    small_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(batches: Iterable[Any], *given: Any, **named: Any) -> Iterator[Any]:
        yield next(iter(batches))
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    monkeypatch.setattr("gendd.evaluation.scores.followed", stopped)
    if command == "distill":
        distil(tmp_path / "run", "--baselines=[]", "--training.epochs=1", code=128 + signal.SIGTERM)
        assert not (tmp_path / "run" / "metrics.json").exists()
        how = "Go on with the same command and --resume."
    else:
        assert main(["evaluate", str(small_run)]) == 128 + signal.SIGTERM
        how = "Give the command again."
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.out == ""
    assert said.err.splitlines()[-1] == f"gendd: interrupted; what was written is kept. {how}"


STOPPED = """
import os, signal, sys
from gendd.cli.signals import Stop
stop = Stop(process=True)
try:
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_second_signal_ends_the_process_at_once_in_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith("gendd: interrupted; ") and done.stderr.count("\n") == 1


HALF_MADE = """
import os, signal, sys
from gendd.cli.signals import Stop

class Loader:
    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        self.workers = []

    def __del__(self):
        self.workers.clear()

stop = Stop(process=True)
try:
    with stop.on_signals():
        Loader()
except KeyboardInterrupt:
    stop.tell()
sys.exit(stop.code)
"""


def test_what_a_signal_left_half_made_is_not_complained_of() -> None:
    done = subprocess.run([sys.executable, "-c", HALF_MADE], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith("gendd: interrupted; ") and done.stderr.count("\n") == 1


def test_a_signal_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Loader:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def command(loader: Loader) -> None:
        with stop.on_signals():
            del loader
            time.sleep(10)

    stop, hook = Stop(process=False), sys.unraisablehook
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        command(Loader())
    assert time.monotonic() - start < 5
    assert stop.code == 128 + signal.SIGTERM
    assert sys.unraisablehook is hook and capsys.readouterr().err == ""


def deaf(ready: Any) -> None:
    """A loader process that ignores signals."""
    ignore_interrupts(0)
    ready.set()
    time.sleep(60)


def test_what_loads_images_is_not_waited_for() -> None:
    start, context = time.monotonic(), multiprocessing.get_context("fork")
    ready, other = context.Event(), context.Event()
    loader = context.Process(target=deaf, args=(ready,), daemon=True)
    kept = context.Process(target=other.wait, args=(60,))

    def interrupted() -> None:
        with Stop(process=False).on_signals():
            for process in (loader, kept):
                process.start()
            assert ready.wait(60)
            os.kill(os.getpid(), signal.SIGINT)

    def failed(number: int, frame: Any) -> None:
        raise RuntimeError("a loader was killed")

    # as PyTorch does
    before = signal.signal(signal.SIGCHLD, failed)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert signal.getsignal(signal.SIGCHLD) is failed
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert loader.exitcode == -signal.SIGKILL and kept.is_alive()
    other.set()
    kept.join(60)
    assert kept.exitcode == 0 and time.monotonic() - start < 50


def handing_over(pipe: Any, said: Path) -> None:
    """A loader process that hands over a file, as it does tensors."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    ignore_interrupts(0)
    pipe.send(DupFd(0)._id[0])
    pipe.recv()
    sys.excepthook(ValueError, ValueError("another"), None)
    pipe.send("done")


def test_a_loader_says_nothing_if_its_parent_ends_while_it_takes_over(tmp_path: Path) -> None:
    said, context = tmp_path / "said", multiprocessing.get_context("fork")
    here, there = context.Pipe()
    loader = context.Process(target=handing_over, args=(there, said), daemon=True)
    loader.start()
    address = here.recv()
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as parent:
            parent.connect(address)
            # pending data on both sides makes closing a reset
            parent.send(b"x")
        time.sleep(0.05)
    here.send("go on")
    assert here.recv() == "done"
    assert said.read_text() == "ValueError: another\n"
    loader.join(10)


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop(process=False).on_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interruption_that_is_lost_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.cli.signals._AGAIN", 0.02)
    stop = Stop(process=False)

    def lose() -> None:
        with stop.on_signals():
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        lose()
    assert (stop.number, signal.getitimer(signal.ITIMER_REAL)) == (signal.SIGINT, (0.0, 0.0))
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
