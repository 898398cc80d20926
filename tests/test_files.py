from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import gendd
from gendd.cli import main
from gendd.data.encoded import Files
from gendd.data.tars import find_tars
from gendd.errors import UserError
from gendd.files import check_path, expanded, locked, read_bytes, read_text, user_path

HOLDER = """
import sys, time
from pathlib import Path
from gendd.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "mine" / ".lock"


@pytest.fixture
def holder(lock: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_what_was_made_for_the_lock_is_removed(lock: Path) -> None:
    with locked(lock):
        assert lock.is_file()
    assert not (lock.parents[1]).exists()
    with locked(lock):
        (lock.parent / "config.yaml").touch()
    assert [each.name for each in lock.parent.iterdir()] == ["config.yaml"]


def test_a_lock_that_is_held_is_refused_until_its_process_dies(
    lock: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError, match=rf"^busy \(process {holder.pid}\)$"), locked(lock, "busy"):
        pytest.fail("held by two")
    holder.kill()
    holder.communicate()
    assert lock.is_file()  # left by the killed process, without effect
    with locked(lock, "busy"):
        pass
    assert not lock.exists()


def test_a_lock_is_waited_for(
    lock: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    threading.Timer(0.5, holder.kill).start()
    start = time.monotonic()
    with locked(lock):
        assert time.monotonic() - start > 0.3
    assert f"waiting for process {holder.pid}" in capsys.readouterr().err
    holder.communicate()


def test_the_user_s_folder_is_expanded_wherever_a_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded({"a": ["~/x", 1, "b~/c"], "~": None}) == {"a": [f"{tmp_path}/x", 1, "b~/c"], "~": None}
    Path("mine.yaml").write_text("out: ~/from_file\nteacher: {weights: ~/t.safetensors}\n", encoding="utf-8")
    for words, folder in (
        (["--out=~/run"], "run"),
        (["--out", "~/other"], "other"),
        (["--config=~/mine.yaml"], "from_file"),
    ):
        assert main(["distill", *words, "--print_config"]) == 0
        printed = capsys.readouterr().out
        assert f"out: {tmp_path}/{folder}" in printed
    assert f"weights: {tmp_path}/t.safetensors" in printed
    with pytest.raises(UserError, match="No student at '~/nothing'"):
        gendd.load("~/nothing")
    backbone = gendd.create_backbone("cifar/resnet8x0.25", 3)
    gendd.Student(backbone).save(tmp_path / "student")
    assert gendd.load("~/student").num_classes() == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_device_is_no_file_to_read(tmp_path: Path) -> None:
    pipe = tmp_path / "image.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bytes(path)
    with pytest.raises(UserError, match=r"not a regular file\); restore or remove it"):
        Files([str(pipe)]).read(0)
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(UserError, match=r"expected tar files, got .*0\.tar', which is none"):
        find_tars(str(tmp_path / "*.tar"), "data.path")


@pytest.mark.parametrize("name", ["a\0b", "caf\ud800", "x" * 300, "x/" * 3000])
def test_a_path_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--out: expected a (shorter )?path"):
        check_path(tmp_path / name, "--out")
    for good in (tmp_path, tmp_path / "not" / "there"):
        check_path(good, "--out")


def test_a_user_s_folder_is_replaced_where_there_is_one() -> None:
    assert user_path("~/a") == Path.home() / "a"
    assert user_path("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert user_path(Path("a/~")) == Path("a/~")


def test_text_is_read_of_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(OSError, match="not a regular file"):
            read_text(path)
    for name in ("a\0b", "caf\ud800"):
        with pytest.raises(OSError, match="no file can have this name"):
            read_text(tmp_path / name)
    (tmp_path / "text").write_bytes("é\n".encode())
    assert read_text(tmp_path / "text") == "é\n"
