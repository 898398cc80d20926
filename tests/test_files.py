from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gendd.errors import UserError
from gendd.files import locked

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
    assert lock.is_file()  # left by the killed process, and no hindrance
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
