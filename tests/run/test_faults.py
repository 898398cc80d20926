"""Disks that are full, folders that are taken, memory that runs out: one line, and nothing is lost."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TINY
from runs import untimed

import gendd
from gendd.cli import main
from gendd.errors import UserError
from gendd.files import locked
from gendd.run.output import claim, restore

Capture = pytest.CaptureFixture[str]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files, which simulates a full disk or a quota for each file."""
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return ["distill", "--out", str(tmp_path / "run"), *TINY, "--method=supervised", "--training.epochs=2"]


def last_line(capsys: Capture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_that_does_not_fit_is_one_line_and_the_run_goes_on(
    words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    with largest_file(30_000):
        assert main(words) == 2
    message = last_line(capsys)
    assert message.startswith("gendd: Checkpoint '")
    assert "can't be written (File too large)" in message or "can't be written (is the disk full?)" in message
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert main([*words, "--resume"]) == 0
    assert gendd.Run.open(tmp_path / "run").metrics["student"]["readouts"]["linear"]["top1"] > 0


def test_a_disk_that_is_full_again_and_again_loses_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    replace, left = Path.replace, 0

    def replaced(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return replace(self, target)

    ends = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        while not ends or ends[-1] != 0:
            left = 4 + 3 * len(ends)
            ends.append(main([*words, "--resume"] if ends else words))
            said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gendd: ")]
            assert len(said) == (ends[-1] != 0) and all("No space left on device" in line for line in said)
    assert len(ends) > 2 and set(ends) == {0, 2}
    folder, whole = tmp_path / "run", tmp_path / "whole" / "run"
    assert main([*words, "--out", str(whole)]) == 0
    weights = "student/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    assert untimed(gendd.Run.open(folder).metrics) == untimed(gendd.Run.open(whole).metrics)
    assert not list(folder.rglob("*.tmp"))


def test_a_settings_file_that_does_not_fit_is_one_line(words: list[str], capsys: Capture) -> None:
    with largest_file(100):
        assert main(words) == 2
    assert last_line(capsys).startswith("gendd: File too large; what was written before is kept.")


def test_two_runs_can_not_write_into_one_folder(words: list[str], tmp_path: Path, capsys: Capture) -> None:
    with locked(tmp_path / "run" / ".lock"):
        assert main(words) == 2
    assert "run': another run writes there; wait for it, or give another --out. (process " in last_line(
        capsys
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "out of memory"),
        (OSError(errno.EROFS, "Read-only file system", "/there"), "Read-only file system: '/there'"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    error: Exception, message: str, words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*given: object) -> None:
        raise error

    monkeypatch.setattr("gendd.run.experiment.load_data", lacking)
    assert main(words) == 2
    assert last_line(capsys).startswith(f"gendd: {message}")


def test_a_mistake_of_ours_is_no_mistake_of_the_user_s(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gendd.run.experiment.load_data", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(words)


def kept(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "logs" not in file.parts
    }


@pytest.mark.parametrize(
    "options", [["--training.precision=fp16"], ["--seed=99999999999999999999"], ["--training.loggers=[none]"]]
)
def test_a_run_is_not_replaced_by_settings_that_can_not_be(
    options: list[str], small_run: Path, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder, ignore=shutil.ignore_patterns("export"))
    before = kept(folder)
    assert main([*words, "--overwrite", *options]) == 2
    assert kept(folder) == before
    assert last_line(capsys).startswith("gendd: ")


def test_a_run_that_is_being_replaced_is_set_aside_until_the_new_one_is_complete(
    small_run: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder, ignore=shutil.ignore_patterns("export"))
    before = kept(folder)

    def broken(*_: object) -> None:
        raise UserError("too bad")

    with monkeypatch.context() as patch:
        patch.setattr("gendd.run.experiment.prepared_teacher", broken)
        for _ in range(2):  # the run set aside is the last finished one
            assert main([*words, "--overwrite"]) == 2
            assert kept(folder / ".replaced") == before
    assert main([*words, "--overwrite"]) == 0
    assert not (folder / ".replaced").exists() and not (folder / ".lock").exists()
    assert gendd.Run.open(folder).config.method == "supervised"


def test_a_run_killed_before_it_had_begun_is_started_again(words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", "config.yaml.tmp"):
        (folder / name).write_text("metho")
    assert main(words) == 0
    assert not [each.name for each in folder.iterdir() if each.name.startswith(".") or "tmp" in each.name]


@pytest.mark.parametrize("moves", range(6))
def test_a_process_that_is_killed_while_it_sets_a_run_aside_loses_nothing(
    moves: int, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder, ignore=shutil.ignore_patterns("export"))
    before, config = kept(folder), gendd.Run.open(folder).config
    rename, done = Path.rename, 0

    def renamed(self: Path, target: Path) -> Path:
        nonlocal done
        if done == moves:
            raise KeyboardInterrupt
        done += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    try:
        claim(folder, config)
    except KeyboardInterrupt:
        assert (folder / "config.yaml").is_file()
        assert done == 0 or not (folder / "metrics.json").exists()
        (folder / ".replaced.tmp" / "config.yaml").write_text("data:")
        restore(folder)
        assert kept(folder) == before
    else:
        assert done == 3  # the metrics, the student, everything
        assert kept(folder / ".replaced") == before
