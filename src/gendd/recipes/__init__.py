"""The shipped recipes: YAML files beside this module, by name.

A name whose last part begins with ``_`` is a base: settings shared by several recipes, meant to be extended
and not an experiment by itself.
"""

from __future__ import annotations

import csv
from pathlib import Path

from gendd.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent


def recipes() -> dict[str, Path]:
    """Files of all recipes by name, bases included."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))
    }


def is_base(name: str) -> bool:
    """Whether a recipe is only meant to be extended."""
    return name.rpartition("/")[2].startswith("_")


def recipe_path(name: str) -> Path:
    """File of a recipe; raises :class:`UserError` with the nearest name if it does not exist."""
    known = recipes()
    if name not in known:
        raise UserError(f"Unknown recipe {name!r}.{did_you_mean(name, known)} See: gendd recipes.")
    return known[name]


def recorded(name: str) -> dict[str, list[float]]:
    """Recorded top-1 of each row of a recipe's table, one value per seed; empty if nothing was recorded."""
    file = FOLDER / f"{name}.csv"
    found: dict[str, list[float]] = {}
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                found.setdefault(row["method"], []).append(float(row["top1"]))
    return found


def summary(path: Path) -> str:
    """First line of a recipe's file, which describes it."""
    return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


__all__ = ["FOLDER", "is_base", "recipe_path", "recipes", "recorded", "summary"]
