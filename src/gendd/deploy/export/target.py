"""Destination of an export, which is written atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gendd.deploy.hub import FILES
from gendd.errors import UserError
from gendd.files import check_path


def target(out: str | Path | None, folder: Path | None, name: str, to: str, suffix: str) -> Path:
    """Return the path to write to.

    Args:
        out: The user's choice.
        folder: Folder of the run or the student; None if there is none.
        name: Name without suffix, unless ``out`` is given.
        to: The format.
        suffix: File suffix; "" if it is a folder.

    Raises:
        UserError: ``out`` doesn't suit the format, or is required and not given.
    """
    if out is None:
        if folder is None:
            raise UserError("Export: expected --out for a student without a folder of its own, got none.")
        return folder / "export" / f"{name}{suffix}"
    check_path(out, "--out")
    path = Path(out)
    if suffix and path.is_dir():
        return path / f"{name}{suffix}"
    if suffix and path.suffix != suffix:
        raise UserError(f"--out: expected a file name that ends in {suffix} for {to}, got {str(out)!r}.")
    if not suffix and path.is_file():
        raise UserError(f"--out: expected a folder for {to}, got the file {str(out)!r}.")
    return path


@contextlib.contextmanager
def fresh(path: Path, folder: Path | None, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, renamed to it at the end, or deleted on an error.

    Args:
        path: Path of a file or a folder.
        folder: Folder of the exported run or student, whose own files are never replaced.
        overwrite: Whether an earlier export may be replaced.

    Raises:
        UserError: something at ``path`` may not be replaced, or the folder is not writable.
    """
    _check_free(path, folder, overwrite)
    made = [each for each in path.parents if not each.exists()]
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in files(temporary):
            # safetensors makes files readable by the owner only, whatever the umask
            file.chmod(0o644)
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            for each in made:
                each.rmdir()
        if isinstance(error, OSError):
            reason = error.strerror or type(error).__name__
            raise UserError(
                f"--out: expected a place to write to, got {str(path)!r} ({reason}); give another."
            ) from error
        raise


def _check_free(path: Path, folder: Path | None, overwrite: bool) -> None:
    homes = [] if folder is None else [folder, folder / "student"]
    own = {each.resolve() for home in homes for each in (home, *(home / name for name in FILES))}
    if path.resolve() in own:
        raise UserError(
            f"--out: expected a path other than that of the exported student, got {str(path)!r}; "
            "give one beside it."
        )
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"Export: {str(path)!r} exists: give another --out, or --overwrite to replace it.")
    if path.is_dir() and (foreign := {entry.name for entry in path.iterdir()}.difference(FILES)):
        raise UserError(
            f"--overwrite: expected an exported student alone in {str(path)!r}, found "
            f"{', '.join(sorted(foreign)[:3])} beside it; give another --out."
        )


def files(path: Path) -> list[Path]:
    """Return the files of an export, which is a file or a folder of files."""
    return [path] if path.is_file() else list(path.iterdir())
