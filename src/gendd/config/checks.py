"""Range checks of the configuration."""

from __future__ import annotations

from gendd.errors import UserError


def check(ok: bool, key: str, expected: str, came: object) -> None:
    """Raise :class:`UserError` of a config key where what came is not as expected."""
    if not ok:
        raise UserError(f"{key}: expected {expected}, got {came!r}.")
