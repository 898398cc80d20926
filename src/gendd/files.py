"""Atomic file writes, the cache folder, and the user's own Python files."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from gendd.errors import UntrustedCodeError, UserError, did_you_mean, typed_line
from gendd.messages import say

# prefix of paths relative to the package's folder
_OWN = "gendd:"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a process that is killed leaves the old file or the new one."""
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
    """Write text atomically, see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON atomically, see :func:`write_bytes`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, released at the latest when this process ends; no lock on Windows.

    Args:
        path: The lock file; removed afterwards, with any folders created for it that are still empty.
        busy: Error message if another process holds the lock; None: wait until it is released.

    Raises:
        UserError: another process holds the lock and ``busy`` is given.
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
        # its holder may have removed the file since it was opened
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
    """Replace ``~/`` at the start of any string in nested values by the user's home folder."""
    if isinstance(values, dict):
        return {key: expanded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [expanded(value) for value in values]
    return os.path.expanduser(values) if isinstance(values, str) and values.startswith("~/") else values


def user_path(value: str | Path) -> Path:
    """Resolve a path given by the user: ``~`` is the home folder, if any, ``gendd:`` the package's folder."""
    if str(value).startswith(_OWN):
        return Path(__file__).parent / str(value).removeprefix(_OWN)
    return Path(os.path.expanduser(value))


def file_stem(name: str) -> str:
    """Turn a network's name into the start of a file or folder name; of a path, its end is kept."""
    return re.sub(r"[^\w.+-]+", "-", name)[-100:].lstrip("-.")


def student_folder(path: str | Path) -> Path | None:
    """Folder of a saved student, ``path`` itself or ``student`` in it; None if there is none."""
    path = user_path(path)
    for folder in (path / "student", path):
        if all(os.path.isfile(folder / name) for name in ("config.json", "model.safetensors")):
            return folder
    return None


def no_student(path: str | Path) -> UserError:
    """Error for a ``path`` without a saved student."""
    return UserError(
        f"No student at {str(path)!r}: expected a run folder, or one with config.json and model.safetensors."
    )


def check_student(path: str | Path) -> bool:
    """Whether ``path`` is a local saved student (True) or the id of a Hub repository (False).

    Raises:
        UserError: it is neither.
    """
    name = str(path)
    there = student_folder(path) is not None
    foreign = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not there and (os.path.exists(path) or not foreign):
        raise no_student(path)
    return there


def check_run(path: str | Path) -> None:
    """Raise :class:`UserError` unless ``path`` is a run's folder, finished or not."""
    folder = user_path(path)
    if os.path.isfile(folder / "config.yaml"):
        return
    if os.path.isfile(folder / "config.json"):
        of_run = (folder.resolve().parent / "config.yaml").is_file()
        way = f"give {str(folder.parent)!r}" if of_run else "the images are in the run's config.yaml"
        raise UserError(f"Expected a run's folder, got only a student's, {str(path)!r}; {way}.")
    raise UserError(f"No run at {str(path)!r}: expected a folder with config.yaml, written by gendd.")


def check_file(path: str | Path, name: str) -> None:
    """Raise :class:`UserError` if there is no file; ``name`` is what messages call it."""
    if not os.path.isfile(path):
        raise UserError(f"{name}: expected a file, found none; check the path.")


def networks_of_runs(values: Mapping[str, Any]) -> dict[str, str]:
    """The folders named as ``teacher`` and ``student`` in a run's settings, by role."""
    sections = {role: values.get(role) for role in ("teacher", "student")}
    names = {role: given.get("name") for role, given in sections.items() if isinstance(given, Mapping)}
    return {
        role: name for role, name in names.items() if isinstance(name, str) and os.path.isdir(user_path(name))
    }


def check_path(path: str | Path, key: str) -> None:
    """Raise :class:`UserError` naming the option ``key`` if its value can't be a file path."""
    try:
        os.stat(path)
    except ValueError as error:
        raise UserError(f"{key}: expected a path, got {str(path)!r} ({error}); correct it.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{key}: expected a shorter path than {str(path)!r}; correct it.") from error


def read_bytes(path: str | Path) -> bytes:
    """Read a file; raises :class:`OSError` for pipes and devices, which may never end, and invalid names."""
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return Path(path).read_bytes()


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file; raises like :func:`read_bytes`, or ``UnicodeDecodeError``."""
    return read_bytes(path).decode("utf-8")


def cache_folder() -> Path:
    """Folder for cached results: ``$GENDD_CACHE``, else ``gendd`` in the user's cache folder."""
    if "GENDD_CACHE" in os.environ:
        return Path(os.environ["GENDD_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gendd"


# trusted names of code: all (True), or those that the user gave in this call
_TRUSTED: ContextVar[bool | frozenset[str]] = ContextVar("trusted", default=False)


@contextmanager
def trusted_code(names: Iterable[str] | None = None) -> Iterator[None]:
    """Allow running code named in a file or folder: networks, methods, readers and shell commands.

    Outside this context, a run folder, saved student, configuration file or comparison that names
    ``path/to/file.py:NAME`` or ``pipe:COMMAND`` is refused.

    Args:
        names: Names to trust; None: trust all.
    """
    held = _TRUSTED.get()
    given = True if names is None else frozenset(names) | (held or frozenset()) if held is not True else True
    token = _TRUSTED.set(given)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def check_code(values: Any, source: str) -> None:
    """Refuse values from a file that name code, unless it is trusted.

    Args:
        values: A string, or nested dictionaries and lists of strings and numbers.
        source: Where the values came from, for the error message.

    Raises:
        UntrustedCodeError: a string is ``path/to/file.py:NAME`` or ``pipe:COMMAND`` and is not trusted.
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
    """Whether a name has the form ``path/to/file.py:NAME``."""
    path, colon, _ = name.rpartition(":")
    return bool(colon) and path.endswith(".py")


def import_name(name: str, expected: str, fits: Callable[[object], bool]) -> Any:
    """Import the object that ``path/to/file.py:NAME`` names.

    Args:
        name: A name of that form.
        expected: What it should be, for error messages: ``a function``.
        fits: Whether an object of the file is what is expected.

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
    """Import a Python file by its path; imported again on each call, as it may have changed.

    Args:
        path: The file.
        name: The name it was requested by, for error messages.

    Raises:
        UserError: the file does not exist or can't be imported.
    """
    path = user_path(path)
    if not os.path.isfile(path):
        raise UserError(f"{name}: expected a Python file, found none at {path}; check the path.")
    # named by its path: two files of the same name are two modules
    key = "gendd_file_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look up a class's module there
    sys.modules[key] = module
    # files beside it can be imported as if it were run as a script
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
