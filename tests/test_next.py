"""The last line of every command says what to do next."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, Finished

from gendd.cli import main
from gendd.cli.parsing import _NEXT, COMMANDS

Capture = pytest.CaptureFixture[str]
ALONE = [word for word in TINY if word.startswith(("--student.", "--data.", "--training."))]


def told_next(capsys: Capture, *words: str) -> str:
    """Return the last line of a command that succeeds."""
    capsys.readouterr()
    assert main(list(words)) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("next: ")
    return last.removeprefix("next: ")


def test_every_command_has_one_that_names_commands_alone() -> None:
    assert set(COMMANDS) <= set(_NEXT)
    for line in _NEXT.values():
        assert set(re.findall(r"gendd ([a-z-]+)", line)) <= set(COMMANDS)


def test_after_a_run(digits_run: Finished) -> None:
    folder = digits_run.folder
    assert digits_run.err.splitlines()[-1] == (
        f"next: gendd predict {folder} IMAGE…, or gendd export {folder} --to onnx"
    )


def test_after_what_a_run_is_used_for(
    small_run: Path,
    digits_run: Finished,
    digit_files: Callable[[int], list[str]],
    tmp_path: Path,
    capsys: Capture,
) -> None:
    run = str(small_run)
    onnx = f"gendd export {run} --to onnx"
    assert told_next(capsys, "evaluate", run, "--readout=linear") == f"gendd probe {run}, or {onnx}"
    assert (
        told_next(capsys, "predict", run, *digit_files(1)) == f"{onnx}, or gendd push {run} NAME/REPOSITORY"
    )
    words = ["export", run, "--to=safetensors", "--readout=linear", f"--out={tmp_path / 'plain'}"]
    assert told_next(capsys, *words) == (
        f"run the file as docs/export.md shows, or gendd push {run} NAME/REPOSITORY"
    )
    whole = str(digits_run.folder)
    assert told_next(capsys, "watch", whole).startswith(f"gendd predict {whole} IMAGE…")


def test_after_a_look_at_what_there_is(capsys: Capture) -> None:
    assert told_next(capsys, "recipes") == "gendd distill --recipe NAME, with --dry-run to see what it takes"
    for words in ([], ["kd"], ["supervised"]):
        assert told_next(capsys, "methods", *words).startswith("gendd distill --method NAME")
    assert told_next(capsys, "verify") == "gendd distill"


def test_after_a_training_on_labels(digits_run: Finished, tmp_path: Path, capsys: Capture) -> None:
    words = ["train", *ALONE, "--training.epochs=1", f"--out={tmp_path / 'a run'}"]
    assert told_next(capsys, *words, "--dry-run") == "the same command without --dry-run"
    assert not (tmp_path / "a run").exists()
    place = f"'{tmp_path / 'a run'}'"
    assert told_next(capsys, *words) == f"gendd distill --teacher {place} …, or gendd predict {place} IMAGE…"


def test_after_what_is_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    done = SimpleNamespace(report="runs/compare/mine/report.html", errors=[])
    monkeypatch.setattr("gendd.compare.compare", lambda *given, **named: done)
    assert told_next(capsys, "compare", "mine.yaml") == "open runs/compare/mine/report.html"
    assert told_next(capsys, "compare", "mine.yaml", "--dry-run") == "the same command without --dry-run"
    monkeypatch.setattr("gendd.deploy.hub.push_to_hub", lambda *given, **named: "https://example.org")
    assert told_next(capsys, "push", "run", "me/student") == "gendd predict me/student IMAGE…"
    monkeypatch.setattr("gendd.run.fill_cache", lambda config: "there")
    assert told_next(capsys, "cache", "--data", "digits") == "gendd distill with the same options"
