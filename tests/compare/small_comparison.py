"""A comparison small enough to run in a test, and helpers to compare results."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from gendd.compare.results import VARYING, read_rows

SMALL: dict[str, Any] = {
    "base": {
        "teacher.name": "cifar/resnet8x0.5",
        "student.name": "cifar/resnet8x0.5",
        "data": {"train_images": 96, "batch_size": 32},
        "teacher_training": {
            "epochs": 1,
            "lr": 0.02,
            "precision": "fp32",
            "loggers": ["csv"],
            "progress": False,
        },
        "training.precision": "fp32",
        "gendd": {"head_width": 16, "repeats": 2, "token_width": 32},
        "readout": {"num_samples": 1, "steps": 2},
    },
    "methods": {"kd": {"method": "kd"}, "gendd": {}},
    "seeds": [0],
    "rates": [0.02],
    "budget": {"epochs": 1},
    "reference": "kd",
}


def small(**changes: Any) -> dict[str, Any]:
    """Return the file with keys replaced; keys set to None are removed."""
    return {key: value for key, value in copy.deepcopy(SMALL | changes).items() if value is not None}


def steady(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a results file without columns that differ between repetitions."""
    return [{key: value for key, value in row.items() if key not in VARYING} for row in read_rows(path)]


def run_without_pages(file: dict[str, Any], out: str) -> None:
    """Run a comparison in a process to be killed, without reports, which take longer than the runs."""
    from gendd import report
    from gendd.compare import compare

    report.write_report = lambda content, path: path
    compare(file, out)
