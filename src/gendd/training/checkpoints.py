"""Checkpoints that survive a full disk, a kill and a flipped bit.

A checkpoint is written under a temporary name, synced and renamed; the one before the last is kept. A file
beside them, written first, holds their SHA-256 digests: a checkpoint with another digest is damaged.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from gendd.errors import UserError
from gendd.files import write_text
from gendd.messages import say

_AGAIN = "start again with --overwrite."


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoint plugin, using :func:`write` and :func:`read`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """See :func:`write`; for ``last.ckpt``, the previous one is kept."""
        write(checkpoint, Path(path), keep=Path(path).stem == "last")

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See :func:`read`."""
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, its previous version and their digests."""
        for each in (Path(path), previous(Path(path)), _digests(Path(path))):
            each.unlink(missing_ok=True)


def write(checkpoint: dict[str, Any], path: Path, keep: bool = True) -> None:
    """Write a checkpoint; the previous one stays readable whatever happens.

    Args:
        checkpoint: Tensors and plain values.
        path: File to write.
        keep: Whether to keep the previous checkpoint once this one is written.

    Raises:
        UserError: the checkpoint can't be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _kept(path, temporary)
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        write_text(_digests(path), "\n".join([_digest(temporary), *known]) + "\n")
        if keep and path.exists():
            path.replace(previous(path))
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch's writer raises its own error, with the system's as context
        system = error if isinstance(error, OSError) else error.__context__
        reason = getattr(system, "strerror", None) or "is the disk full?"
        raise UserError(
            f"Checkpoint {str(path)!r} can't be written ({reason}); the one before it is kept. Make room, "
            "then go on with the same command and --resume."
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values; code in it is refused.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    if not is_whole(path):
        raise UserError(f"Checkpoint {str(path)!r} is damaged; {_AGAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"Checkpoint {str(path)!r}: expected tensors and plain values, got a file that is damaged or "
            f"holds something else; {_AGAIN}"
        ) from error
    return content


def usable(path: Path) -> Path | None:
    """Return the checkpoint at ``path``, or the previous one if it is damaged; None if there is none.

    The damaged one is removed, so that it does not replace the previous one later.

    Raises:
        UserError: all checkpoints are damaged.
    """
    found = [each for each in (path, previous(path)) if each.exists()]
    for each in found:
        if is_whole(each):
            if each is not path:
                lost = "is damaged" if path.exists() else "is missing"
                say(f"checkpoint {path} {lost}: going on from the one before it")
                path.unlink(missing_ok=True)
            return each
    if not found:
        return None
    raise UserError(f"Checkpoint {str(path)!r} is damaged, and there is no other; {_AGAIN}")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is undamaged; assumed for one without a digest."""
    known = _known(path)
    try:
        return not known or _digest(path) in known
    except OSError:
        return False


def previous(path: Path) -> Path:
    """Path of the previous version of a checkpoint."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _kept(path: Path, temporary: Path) -> list[str]:
    """Digests of a checkpoint about to be replaced and of the one before it."""
    known = _known(path)
    if known and not temporary.exists():
        return known[:2]
    # none are known, or a process killed while writing recorded the digest of a checkpoint never finished
    return [_digest(each) for each in (path, previous(path)) if each.exists() and is_whole(each)]


def _digests(path: Path) -> Path:
    return path.with_name(path.name.replace(".previous", "") + ".sha256")


def _known(path: Path) -> list[str]:
    try:
        return _digests(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return []


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
