"""Helpers to make and compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import TINY

from gendd.cli import main
from gendd.config import load_config
from gendd.run import Run

TIMES = {"latency_ms", "latency_quartiles_ms", "train_seconds", "loading_seconds"}


def untimed(value: Any) -> Any:
    """Metrics without values that differ between repetitions, and without the folder's name."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES | {"name"}}
    return value


def distil(folder: Path, *options: str, code: int = 0) -> dict[str, Any]:
    assert main(["distill", "--out", str(folder), *TINY, *options]) == code
    return Run.open(folder).metrics if code == 0 else {}


def teacher_of(cache: Path) -> Path:
    """The folder of the only teacher trained by ``digits_run``."""
    (folder,) = [
        path.parent
        for path in cache.glob("teachers/*/config.yaml")
        if load_config(path).data.train_images == 200 and load_config(path).data.image_size is None
    ]
    return folder
