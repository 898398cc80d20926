"""Atomic file writes, the cache folder, and Python files of the user's own."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from gendd.errors import UntrustedCodeError, UserError, did_you_mean, typed_line
from gendd.messages import say

# how a path begins that is below the folder of the package
_OWN = "gendd:"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by replacing it: a process that is killed leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """:func:`write_bytes` of text."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """:func:`write_text` of plain data."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, which this process can't outlive; no lock on Windows.

    Args:
        path: The file, removed afterwards with the folders made for it that are still empty then.
        busy: Error where another process holds it; None: wait until it lets go.

    Raises:
        UserError: it is held, and ``busy`` is given.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    made = [each for each in path.parents if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        stream = path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "?"
            stream.close()
            if busy is not None:
                raise UserError(f"{busy} (process {holder})") from error
            if not told:
                say(f"waiting for process {holder}, which holds {path}")
                told = True
            time.sleep(0.2)
            continue
        # whoever held it may have removed the file since it was opened
        with suppress(FileNotFoundError):
            if os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                break
        stream.close()
    try:
        with stream:
            stream.truncate(0)
            stream.write(f"{os.getpid()}\n")
            stream.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def expanded(values: Any) -> Any:
    """Values with ``~/`` at the start of any text in them replaced by the user's folder."""
    if isinstance(values, dict):
        return {key: expanded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [expanded(value) for value in values]
    return os.path.expanduser(values) if isinstance(values, str) and values.startswith("~/") else values


def user_path(value: str | Path) -> Path:
    """A path as a user spells it: ``~`` is the user's folder, where there is one, ``gendd:`` gendd's own."""
    if str(value).startswith(_OWN):
        return Path(__file__).parent / str(value).removeprefix(_OWN)
    return Path(os.path.expanduser(value))


def file_stem(name: str) -> str:
    """A network's name as the beginning of a file's or folder's: of a path its end."""
    return re.sub(r"[^\w.+-]+", "-", name)[-100:].lstrip("-.")


def student_folder(path: str | Path) -> Path | None:
    """The student's folder at or in ``path``."""
    path = user_path(path)
    for folder in (path / "student", path):
        if all(os.path.isfile(folder / name) for name in ("config.json", "model.safetensors")):
            return folder
    return None


def no_student(path: str | Path) -> UserError:
    """The error where no student is at ``path``."""
    return UserError(
        f"No student at {str(path)!r}: expected a run folder, or one with config.json and model.safetensors."
    )


def check_student(path: str | Path) -> bool:
    """Whether a student is at ``path``, which is the id of a Hub repository else.

    Raises:
        UserError: it is neither.
    """
    name = str(path)
    there = student_folder(path) is not None
    foreign = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not there and (os.path.exists(path) or not foreign):
        raise no_student(path)
    return there


def check_path(path: str | Path, key: str) -> None:
    """Raise :class:`UserError` of an option at a path that no file can have."""
    try:
        os.stat(path)
    except ValueError as error:
        raise UserError(f"{key}: expected a path, got {str(path)!r} ({error}); correct it.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{key}: expected a shorter path than {str(path)!r}; correct it.") from error


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; an :class:`OSError` at a pipe or device, which may never end, or an odd name."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8; raises as :func:`read_bytes`, or ``UnicodeDecodeError``."""
    return read_bytes(path).decode("utf-8")


def cache_folder() -> Path:
    """Where what took long is kept: ``$GENDD_CACHE``, else ``gendd`` in the user's cache folder."""
    if "GENDD_CACHE" in os.environ:
        return Path(os.environ["GENDD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gendd"


# names of code that may run though a file names it: all, or those that the user gave in this call
_TRUSTED: ContextVar[bool | frozenset[str]] = ContextVar("trusted", default=False)


@contextmanager
def trusted_code(names: Iterable[str] | None = None) -> Iterator[None]:
    """Let code run that a file or folder names: networks, methods, readers and shell commands.

    Without it, a run's or student's folder, a configuration file or a comparison that names
    ``path/to/file.py:NAME`` or ``pipe:COMMAND`` is refused.

    Args:
        names: Exactly these; None: whatever is named.
    """
    held = _TRUSTED.get()
    given = True if names is None else frozenset(names) | (held or frozenset()) if held is not True else True
    token = _TRUSTED.set(given)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_code(values: Any, source: str) -> None:
    """Refuse values that came from a file and name code, unless it is trusted.

    Args:
        values: Text, or nested dictionaries and lists of text and numbers.
        source: What they came from, for the error.

    Raises:
        UntrustedCodeError: a text is ``path/to/file.py:NAME`` or ``pipe:COMMAND`` and is not trusted.
    """
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        for value in values:
            check_code(value, source)
    elif isinstance(values, str) and (is_python_name(values) or "pipe:" in values):
        trusted = _TRUSTED.get()
        if trusted is not True and (not trusted or values not in trusted):
            raise UntrustedCodeError(
                f"{source} names code, {values!r}, which was not run. If you trust it, add --trust-code (in "
                "Python: with gendd.trusted_code())."
            )


def is_python_name(name: str) -> bool:
    """Whether a name is spelled ``path/to/file.py:NAME``."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def import_name(name: str, expected: str, fits: Callable[[object], bool]) -> Any:
    """What ``path/to/file.py:NAME`` names.

    Args:
        name: Spelled like that.
        expected: What it should be, for errors: ``a function``.
        fits: Whether something in the file is that.

    Raises:
        UserError: no such file, it can't be imported, or NAME is something else.
    """
    path, _, wanted = name.rpartition(":")
    module = import_file(Path(path), name)
    found = getattr(module, wanted, None)
    if not fits(found):
        own = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
        raise UserError(f"{name}: expected {expected} {wanted!r} in {path}.{did_you_mean(wanted, own)}")
    return found


def import_file(path: Path, name: str) -> ModuleType:
    """Import a Python file by its path; anew each time, as it may have changed.

    Args:
        path: The file.
        name: What it was asked by, for errors.

    Raises:
        UserError: there is none, or it can't be imported.
    """
    path = user_path(path)
    if not os.path.isfile(path):
        raise UserError(f"{name}: expected a Python file, found none at {path}; check the path.")
    # by its path: two files of one name are two modules
    key = "gendd_file_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a class's module up there
    sys.modules[key] = module
    # its neighbours can be imported as if it had been run
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # of the user's own code
        raise UserError(
            f"{name}: expected a Python file that can be imported; {typed_line(error)}"
        ) from error
    finally:
        sys.path.remove(folder)
    return module
