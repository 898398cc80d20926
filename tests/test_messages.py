"""Progress messages and the log."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY

from gendd import messages
from gendd.cli import main
from gendd.messages import Steps, beat, followed, following, logged, say

Capture = pytest.CaptureFixture[str]


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(messages.time, "monotonic", clock)
    return clock


def test_a_line_every_half_minute_tells_of_the_end(clock: Clock, capsys: Capture) -> None:
    def slowly() -> Iterator[int]:
        for number in range(10):
            clock.now += 10
            yield number

    assert list(followed(slowly(), 10, "scoring")) == list(range(10))
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 3 of 10 batches · about 70 s left",
        "scoring: 6 of 10 batches · about 40 s left",
        "scoring: 9 of 10 batches · about 10 s left",
    ]


def test_what_is_quick_is_not_told(clock: Clock, capsys: Capture) -> None:
    assert list(followed(range(1000), 1000, "scoring")) == list(range(1000))
    assert capsys.readouterr().err == ""


def test_how_long_is_spelled(clock: Clock) -> None:
    for total, spelled in ((2, "60 s"), (11, "10 min"), (90, "89 min"), (121, "2 h 00 min"), (1, None)):
        steps = Steps("x", total)
        clock.now += 60
        steps.done = 1
        assert steps.left() == ("" if spelled is None else f" · about {spelled} left")
    assert Steps("x", 5).left() == ""


def test_a_long_step_tells_of_the_whole(clock: Clock, capsys: Capture) -> None:
    beat()
    with following("fitting", 4, "fits") as steps:
        steps.add()
        clock.now += 31
        beat()
        beat()
    clock.now += 31
    beat()
    assert capsys.readouterr().err == "fitting: 1 of 4 fits · about 2 min left\n"


def test_a_log_gets_what_was_said_before_it_had_a_place(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "console.log"

    def run() -> None:
        with logged() as log:
            say("before")
            assert not file.exists()
            log.open(file)
            say("after")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run()
    say("outside")
    assert capsys.readouterr().err == "before\nafter\noutside\n"
    lines = file.read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert all(re.match(stamp, line) for line in lines)
    assert [line[21:] for line in lines] == ["before", "after", "ended by ValueError: no"]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: Capture) -> None:
    with logged() as log:
        log.open(tmp_path / "none" / "console.log")
        say("said")
    assert capsys.readouterr().err == "said\n" and not list(tmp_path.iterdir())


def test_a_run_is_never_silent_and_its_folder_has_the_log(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "EVERY", 0.0)
    threads = threading.active_count()
    words = [*TINY, "--training.epochs=2", "--teacher_training.epochs=1", "--baselines=[]", "--seed=77"]
    assert main(["distill", "--out", str(tmp_path), *words]) == 0
    assert threading.active_count() <= threads
    said = capsys.readouterr().err.splitlines()
    for pattern in (
        r"statistics of the teacher: 32 of 192 images · about \d+ s left",
        r"gendd: epoch 1/2 · batch 1 of 6 · [\d,]+ images/s · about \d+ s left",
        r"gendd: epoch 1/2 · validation, batch 1",
        r"gendd: epoch 1/2 · diffusion .* images/s · about \d+ s left",
        r"gendd: epoch 2/2 · diffusion .* images/s",
        r"scoring: 1 of 2 batches · about \d+ s left",
        r"supervised: epoch 1/1 · batch 1 of 6 · .*",
    ):
        assert any(re.fullmatch(pattern, line) for line in said), pattern
    logged = [line[21:] for line in (tmp_path / "logs" / "console.log").read_text().splitlines()]
    # the suggestion comes from the command, not from the run
    assert [*logged, said[-1]] == said and said[-1].startswith(f"next: gendd predict {tmp_path} ")
    assert main(["probe", str(tmp_path)]) == 0
    said = capsys.readouterr().err.splitlines()
    for start in ("features of training images: 1 of ", "features of validation images: 1 of ", "fitting: "):
        assert any(line.startswith(start) for line in said), start
