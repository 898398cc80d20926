"""Packages that only some formats need."""

from __future__ import annotations

from importlib.util import find_spec

from gendd.errors import UserError


def need(what: str, *packages: str) -> None:
    """Raise :class:`UserError` unless the packages of extra ``export`` that ``what`` needs are installed."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}: pip install 'gendd[export]'")
