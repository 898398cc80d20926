"""The tables in the docs are what the committed results say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_tables_are_current() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run: python benchmarks/tables.py\n{done.stdout}{done.stderr}"
