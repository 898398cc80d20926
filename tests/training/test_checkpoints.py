from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from gendd.errors import UserError
from gendd.training.checkpoints import SafeCheckpointIO, previous, read, usable, write


def content(value: float) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((300,), value)}, "epoch": value}


def value(path: Path | None) -> float:
    assert path is not None
    return float(read(path)["epoch"])


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def killed_writing(number: int, path: Path, renamed: str) -> None:
    """Write a checkpoint in a process that is killed before the file of this name exists."""
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        if target.name == renamed:
            raise KeyboardInterrupt
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        with pytest.raises(KeyboardInterrupt):
            write(content(number), path)


@pytest.fixture
def last(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for number in (1.0, 2.0, 3.0):
        write(content(number), path)
    return path


def test_the_last_two_are_kept(last: Path) -> None:
    assert usable(last) == last and (value(last), value(previous(last))) == (3, 2)
    assert {each.name for each in last.parent.iterdir()} == {
        "last.ckpt", "last.ckpt.sha256", "last.previous.ckpt",
    }  # fmt: skip
    SafeCheckpointIO().remove_checkpoint(last)
    assert list(last.parent.iterdir()) == [] and usable(last) is None


def test_of_the_best_there_is_one(tmp_path: Path) -> None:
    best = tmp_path / "best.ckpt"
    for number in (1.0, 2.0):
        SafeCheckpointIO().save_checkpoint(content(number), best)
    assert value(best) == 2 and not previous(best).exists()
    assert SafeCheckpointIO().load_checkpoint(best)["epoch"] == 2


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"PK"), Path.unlink])
def test_a_damaged_one_gives_way_to_the_one_before(
    damage: Any, last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(last)
    assert value(usable(last)) == 2
    assert "going on from the one before it" in capsys.readouterr().err
    # not even by a process killed at this moment
    killed_writing(4, last, "last.ckpt")
    assert value(usable(last)) == 2
    flip(previous(last))
    with pytest.raises(UserError, match=r"last\.ckpt' is damaged, and there is no other"):
        usable(last)
    with pytest.raises(UserError, match=r"last\.previous\.ckpt' is damaged; start again"):
        read(previous(last))


def test_one_without_a_digest_is_read(last: Path) -> None:
    last.with_name("last.ckpt.sha256").unlink()
    assert value(usable(last)) == 3
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        read(last)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("writer\nfailed")]
)
def test_a_full_disk_leaves_the_one_before(
    error: Exception, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        UserError, match=r"can't be written \((No space left on device|is the disk full\?)\)"
    ) as caught:
        write(content(4), last)
    assert "\n" not in str(caught.value)
    assert value(usable(last)) == 3 and not list(last.parent.glob("*.tmp"))


@pytest.mark.parametrize("step", range(4))
def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_one(
    step: int, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    done = 0
    replace = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        nonlocal done
        if done == step:
            raise Killed
        done += 1
        return replace(self, target)

    # the digests, the previous checkpoint, this one
    monkeypatch.setattr(Path, "replace", replaced)
    if step == 3:
        write(content(4), last)
    else:
        with pytest.raises(Killed):
            write(content(4), last)
    monkeypatch.undo()
    assert value(usable(last)) == (4 if step == 3 else 3)
    write(content(5), last)
    assert value(usable(last)) == 5


@pytest.mark.parametrize("renamed", ["last.ckpt", "last.previous.ckpt"])
@pytest.mark.parametrize("digests", [True, False])
def test_processes_killed_one_after_another_leave_the_last_one(
    digests: bool, renamed: str, last: Path
) -> None:
    if not digests:
        last.with_name("last.ckpt.sha256").unlink()
    for number in range(4, 8):
        killed_writing(number, last, renamed)
    assert value(usable(last)) == 3
