"""The tables in the docs are what the committed results say."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from gendd.config import RunConfig, merge, read_yaml, to_dict
from gendd.recipes import is_base, recipe_path, recipes

ROOT = Path(__file__).parents[1]


def test_tables_are_current() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run: python benchmarks/tables.py\n{done.stdout}{done.stderr}"


def test_every_recipe_is_measured_as_it_is() -> None:
    with (ROOT / "benchmarks" / "results" / "recipes.csv").open(newline="") as stream:
        rows = {row["recipe"]: row for row in csv.DictReader(stream)}
    names = {name for name in recipes() if not is_base(name)}
    assert set(rows) == names - {"digits", "published", "linear_probe"}
    for name, row in rows.items():
        values = to_dict(RunConfig())
        merge(values, read_yaml(recipe_path(name)))
        batch, repeats = values["data"]["batch_size"], values["gendd"]["repeats"]
        assert int(row["batch"]) == batch
        if values["method"] == "gendd":
            assert int(row["rows"]) == batch * int(row["tokens"]) * repeats
