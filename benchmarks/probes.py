"""Effect of `gendd probe` on the linear readout, and how long it takes.

DATA and STUDENTS are those of trained.py. Each student of GenDD is fitted three times, starting from the
classifier of its training: to the labels of the 20,000 training images, evaluated by the validation images'
labels; and without labels, to the outputs of the teacher and of readout mean, evaluated by the teacher.
Students that have rows are skipped.

`time` trains one epoch into a run folder and times the whole command `gendd probe` on copies of it.

    python benchmarks/probes.py fit DATA STUDENTS
    python benchmarks/probes.py time DATA
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import records
import torch
import trained

import gendd
from gendd.data import Data
from gendd.evaluation import evaluate
from gendd.evaluation.refit import refit_linear, targets_of
from gendd.models import Frozen

RESULTS = Path(__file__).parent / "results"
FIELDS = ["method", "seed", "target", "images", "weight_decay", "held_before", "held_after", "kept"]
FIELDS += ["test_before", "test_after"]
TIMES = ["images", "seconds", "test_before", "test_after", "threads"]


def top1(student: gendd.Student, data: Data) -> Any:
    """Return the top-1 of the linear readout on the test images, in percent."""
    return evaluate(student, data.test, readouts=("linear",))["linear"].as_dict()["top1"]


def fits(place: Path, data: Data, teacher: Frozen) -> Iterator[dict[str, Any]]:
    """Yield one row per target for a student."""
    loaded = gendd.load(place)
    before = top1(loaded, data)
    for target in targets_of(loaded, teacher, True):
        student = copy.deepcopy(loaded)
        fit = refit_linear(student, teacher, data, target, labels=target == "labels")
        yield {
            "target": target,
            "images": fit.images,
            "weight_decay": fit.l2,
            "held_before": round(fit.trained or 0, 2),
            "held_after": round(fit.refitted, 2),
            "kept": fit.kept,
            "test_before": before,
            "test_after": top1(student, data),
        }


def fit(place: Path, students: Path) -> None:
    data, teacher = trained.opened(place)
    path = RESULTS / "probes.csv"
    done = {(row["method"], int(row["seed"])) for row in records.read(path)}
    for method, seed, folder in trained.students(students):
        if method.startswith("gendd") and (method, seed) not in done:
            found = [{"method": method, "seed": seed, **row} for row in fits(folder, data, teacher)]
            records.append(path, FIELDS, found)
            print(*found, sep="\n", flush=True)


def timed(place: Path, repeats: int) -> None:
    """Time whole commands, each on a copy of the same run, and write their rows."""
    config = trained.config(place, epochs=1)
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        gendd.distill(dataclasses.replace(config, out=str(folder / "run"), baselines=[]))
        for repeat in range(repeats):
            copy = folder / f"copy{repeat}"
            shutil.copytree(folder / "run", copy)
            command = [sys.executable, "-m", "gendd", "probe", str(copy)]
            start = time.perf_counter()
            subprocess.run(command, check=True)
            seconds = round(time.perf_counter() - start, 1)
            probe = gendd.Run.open(copy).metrics["student"]["probe"]
            row = {"images": probe["images"], "seconds": seconds, "threads": torch.get_num_threads()}
            rows.append(row | {f"test_{when}": probe[when]["top1"] for when in ("before", "after")})
            print(rows[-1], flush=True)
    records.write(RESULTS / "probe_seconds.csv", TIMES, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("fit")
    command.add_argument("data", type=Path)
    command.add_argument("students", type=Path)
    command = commands.add_parser("time")
    command.add_argument("data", type=Path)
    command.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "fit":
        fit(arguments.data, arguments.students)
    else:
        timed(arguments.data, arguments.repeats)


if __name__ == "__main__":
    main()
