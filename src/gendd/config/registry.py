"""The methods by name: one class in a file each, in gendd/methods or in a file of the user's.

A file of that folder that begins with no underscore is a method, called as the file is. It is imported when
it is asked for, so that the names cost nothing. ``path/to/file.py:CLASS`` names a class of the user's own.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gendd.errors import UserError, nearest
from gendd.files import import_name, is_python_name

if TYPE_CHECKING:
    from gendd.methods.base import Method

_FOLDER = Path(__file__).parents[1] / "methods"
# the user's own by the names they were asked by, as long as this process lives
_OWN: dict[str, type[Method]] = {}


@cache
def names() -> tuple[str, ...]:
    """The methods that come with gendd, the main one first."""
    files = [each.name for each in pkgutil.iter_modules([str(_FOLDER)])]
    known = [name for name in files if not name.startswith("_") and name != "base"]
    return tuple(sorted(known, key=lambda name: (name != "gendd", name)))


def check_name(key: str, name: str) -> None:
    """Raise :class:`UserError` of a config key at what is no method's name; no file is read."""
    if name not in names() and not is_python_name(name):
        raise UserError(
            f"{key}: expected one of {', '.join(names())}, or path/to/file.py:CLASS, got {name!r}."
            f"{nearest(name, names())}"
        )


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no method of that name, or no such class in the file.
    """
    check_name("method", name)
    base: type[Method] = import_module("gendd.methods").Method
    if is_python_name(name):
        if name not in _OWN:
            _OWN[name] = _own(name, base)
        return _OWN[name]
    module = import_module(f"gendd.methods.{name}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, base) and each.__dict__.get("name") == name
    ]
    assert len(found) == 1, f"{module.__name__} defines {len(found)} methods called {name!r}"
    return found[0]


def _own(name: str, base: type[Method]) -> type[Method]:
    wanted = name.rpartition(":")[2]
    found: type[Method] = import_name(
        name,
        "a subclass of gendd.Method called",
        lambda each: isinstance(each, type) and issubclass(each, base) and each is not base,
    )
    if "name" not in found.__dict__:
        found.name = wanted
    if found.section() in names():
        raise UserError(
            f"{name}: expected a method with a name of its own, got {found.section()!r}; set {wanted}.name."
        )
    return found


def section(name: str) -> str:
    """What the section of a method's settings is called."""
    return method_class(name).section() if is_python_name(name) else name


def sections(values: Mapping[str, Any]) -> list[str]:
    """The sections that a run's plain values may hold for its methods, beside those every run has."""
    asked = [values.get("method"), *(values.get("baselines") or ())]
    own = [section(name) for name in asked if isinstance(name, str) and is_python_name(name)]
    return [name for name in names() if name != "gendd"] + own + list(_by_section())


def _by_section() -> dict[str, type[Method]]:
    return {method.section(): method for method in _OWN.values()}


def settings_type(name: str) -> type[Any]:
    """The dataclass of a method's settings, by the method's name or that of its section."""
    own = _by_section()
    kind: type[Any] = (own[name] if name in own else method_class(name)).Settings
    return kind


def label(name: str) -> str:
    """What tables call a method; of one that is not to be had here, its own name. No file is imported."""
    found = _known(name)
    return name.rpartition(":")[2] if found is None else found.label


def colors(name: str) -> tuple[str, str] | None:
    """Its colours on light and on dark pages; None for a method that is not to be had here."""
    found = _known(name)
    return None if found is None else found.colors


def marker(name: str) -> str:
    """The sign of its points, as matplotlib spells it."""
    found = _known(name)
    return "o" if found is None else found.marker


def learns_from_teacher(name: str) -> bool:
    """Whether a method has a teacher; one that is not to be had here has."""
    found = _known(name)
    return True if found is None else found.needs_teacher


def origin(name: str) -> str:
    """How it teaches, to be read after "Distilled from TEACHER"."""
    found = _known(name)
    return f"by method {name}" if found is None or not found.origin else found.origin


def _known(name: str) -> type[Method] | None:
    if name in _OWN:
        return _OWN[name]
    return method_class(name) if name in names() else None
