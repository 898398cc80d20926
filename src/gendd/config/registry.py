"""The methods by name: one class per file, in gendd/methods or in the user's own file.

Every file in that folder without a leading underscore is a method named after the file. It is imported only
when requested, so that listing names is cheap. ``path/to/file.py:CLASS`` names a class of the user's own.
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
# the user's own methods by requested name, for the lifetime of this process
_OWN: dict[str, type[Method]] = {}


@cache
def names() -> tuple[str, ...]:
    """Names of the methods that come with gendd, the main one first."""
    files = [each.name for each in pkgutil.iter_modules([str(_FOLDER)])]
    known = [name for name in files if not name.startswith("_") and name != "base"]
    return tuple(sorted(known, key=lambda name: (name != "gendd", name)))


def check_name(key: str, name: str) -> None:
    """Raise :class:`UserError` for a config key that is not a method's name; reads no file."""
    if name not in names() and not is_python_name(name):
        raise UserError(
            f"{key}: expected one of {', '.join(names())}, or path/to/file.py:CLASS, got {name!r}."
            f"{nearest(name, names())}"
        )


def method_class(name: str) -> type[Method]:
    """Class of a method.

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
    """Name of the section of a method's settings."""
    return method_class(name).section() if is_python_name(name) else name


def sections(values: Mapping[str, Any]) -> list[str]:
    """Method sections that a run's plain values may hold, in addition to the sections of every run."""
    asked = [values.get("method"), *(values.get("baselines") or ())]
    own = [section(name) for name in asked if isinstance(name, str) and is_python_name(name)]
    return [name for name in names() if name != "gendd"] + own + list(_by_section())


def _by_section() -> dict[str, type[Method]]:
    return {method.section(): method for method in _OWN.values()}


def settings_type(name: str) -> type[Any]:
    """Dataclass of a method's settings, by the name of the method or of its section."""
    own = _by_section()
    kind: type[Any] = (own[name] if name in own else method_class(name)).Settings
    return kind


def label(name: str) -> str:
    """Name of a method in tables; for an unknown method, the name it was given. Imports no file."""
    found = _known(name)
    return name.rpartition(":")[2] if found is None else found.label


def colors(name: str) -> tuple[str, str] | None:
    """Plot colours of a method on light and on dark pages; None for an unknown method."""
    found = _known(name)
    return None if found is None else found.colors


def marker(name: str) -> str:
    """Matplotlib marker of a method."""
    found = _known(name)
    return "o" if found is None else found.marker


def learns_from_teacher(name: str) -> bool:
    """Whether a method has a teacher; assumed for an unknown method."""
    found = _known(name)
    return True if found is None else found.needs_teacher


def origin(name: str) -> str:
    """How a method teaches, to follow "Distilled from TEACHER"."""
    found = _known(name)
    return f"by method {name}" if found is None or not found.origin else found.origin


def _known(name: str) -> type[Method] | None:
    if name in _OWN:
        return _OWN[name]
    return method_class(name) if name in names() else None
