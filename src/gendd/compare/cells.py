"""One cell of a comparison: a run, and its row of figures.

``python -m gendd.compare.cells JOB.json`` carries one out in a process of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import sys
import threading
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gendd.compare.teacher import RecordedTeacher, answers_folder, ledger_seconds
from gendd.config import RunConfig, from_dict, to_dict
from gendd.errors import typed_line
from gendd.files import write_json
from gendd.models import Frozen
from gendd.run.exhibits import curves
from gendd.run.experiment import execute
from gendd.student.folders import RunFolder
from gendd.training import resolve_device
from gendd.training.memory import peak_memory, reset_peak

# in a run's folder: the seconds that the record of its teacher saved, and the finished row
_LEDGER = Path("logs") / "teacher_seconds.txt"
_ROW = Path("logs") / "row.json"
_READOUTS = ("linear", "mean", "sample")
_CURVES = ("val/top1", "val/agreement", "val/diffusion")

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is needed to run a cell.

    Attributes:
        config: Of the run; ``out`` is its folder.
        log: File that gets what the run says.
        answers: Folder of recorded teachers; None: the teacher is asked itself.
        limit: Bytes of answers to keep.
    """

    config: RunConfig
    log: Path
    answers: Path | None = None
    limit: float = 0.0

    @property
    def folder(self) -> Path:
        """Of the run."""
        assert self.config.out is not None
        return Path(self.config.out)

    def write(self, path: Path) -> None:
        """Write it for a process of its own."""
        write_json(
            path,
            {
                "config": to_dict(self.config),
                "log": str(self.log),
                "answers": None if self.answers is None else str(self.answers),
                "limit": self.limit,
            },
        )

    @classmethod
    def read(cls, path: Path) -> Job:
        """The one that :meth:`write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        answers = None if values["answers"] is None else Path(values["answers"])
        config = from_dict(values["config"], RunConfig)
        return cls(config, Path(values["log"]), answers=answers, limit=values["limit"])


def finished_row(folder: Path) -> Row | None:
    """The figures of a finished cell; None where it has not finished."""
    path = folder / _ROW
    if not path.is_file():
        return None
    row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row


def run_cell(job: Job) -> Row:
    """Carry a cell out, or go on with it, and give its figures; ``error`` tells what ended it, if anything.

    Everything it says goes into its log.
    """
    there = finished_row(job.folder)
    if there is not None:
        return there
    job.log.parent.mkdir(parents=True, exist_ok=True)
    reset_peak()
    with job.log.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            if not (job.folder / "metrics.json").is_file():
                _execute(job)
            row = {**_figures(job), "peak_memory_mb": peak_memory(), **_circumstances(job.config)}
        except Exception as error:  # whatever a method raises is told in its row, and the others go on
            print(f"error: {typed_line(error)}", file=log)
            return {"error": _one_line(error), **_circumstances(job.config)}
    write_json(job.folder / _ROW, row)
    return row


def _execute(job: Job) -> None:
    wrapper = None
    if job.answers is not None:
        wrapper = partial(_recorded, job=job)
    again = (job.folder / "config.yaml").is_file()
    execute(job.config, resume=again, teacher_wrapper=wrapper)


def _recorded(teacher: Frozen, job: Job) -> Frozen:
    assert job.answers is not None
    folder = answers_folder(job.answers, teacher, job.config.teacher)
    ledger = job.folder / _LEDGER
    return RecordedTeacher(teacher, folder, limit=job.limit, root=job.answers, ledger=ledger)


def _figures(job: Job) -> Row:
    """What a finished run's folder tells of it."""
    folder = job.folder
    metrics = RunFolder.open(folder).metrics
    student, about = metrics["student"], metrics["run"]
    fitted = json.loads((folder / "checkpoints" / "finished.json").read_text(encoding="utf-8"))
    readouts: dict[str, Any] = student["readouts"]
    own = student["readout"]
    figures = readouts[own] if own else (student.get("embedding") or {}).get("generated", {})
    test = figures.get("top1")
    validation = student["validation"] or {}
    row: Row = {f"test_{name}": readouts.get(name, {}).get("top1") for name in _READOUTS}
    seconds = student["train_seconds"] + _stage1_seconds(folder) + ledger_seconds(folder / _LEDGER)
    row |= {
        "epochs": about["epochs"],
        "steps": fitted["steps"],
        "agreement": figures.get("agreement"),
        "readout": own,
        "test": figures.get("agreement") if test is None else test,
        "validation": validation.get("percent", validation.get("loss")),
        "monitor": validation.get("metric"),
        "curve": _curve(job),
        "train_seconds": round(seconds, 2),
        **{name: figures.get(name) for name in ("parameters", "multiply_adds", "latency_ms")},
        "error": None,
    }
    return row


def _stage1_seconds(folder: Path) -> float:
    path = folder / "stage1" / "checkpoints" / "finished.json"
    if not path.is_file():
        return 0.0
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def _curve(job: Job) -> list[float]:
    """What validation found after each epoch, by what chose the checkpoint."""
    rows = curves(job.folder, job.config.readout.name)
    metric = next((name for name in _CURVES if any(name in row for row in rows)), None)
    if metric is None:
        return []
    return [round(row[metric], 5 if metric == "val/diffusion" else 2) for row in rows if metric in row]


def _circumstances(config: RunConfig) -> Row:
    """Where, when and with what a cell was run."""
    versions = {"gendd": version("gendd"), "torch": torch.__version__, "python": platform.python_version()}
    now = datetime.datetime.now(datetime.UTC)
    return {
        "versions": " ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": machine(config),
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def machine(config: RunConfig) -> str:
    """The processor, and the device that computes where it is another."""
    found = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                found = line.partition(":")[2].strip()
                break
    try:
        device = resolve_device(config.training.device)
    except ValueError:
        return found
    if device.type == "cuda":
        return f"{found} · {torch.cuda.get_device_name()}"
    return found if device.type == "cpu" else f"{found} · {device.type}"


def _one_line(error: BaseException) -> str:
    """What a row tells of an exception: a user's mistake in its own words, others with their type."""
    text = str(error) if type(error).__name__ == "UserError" else typed_line(error)
    return " ".join(text.split())[:300]


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a job file and write its row beside it; ends with whoever started it."""
    (path,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        row = run_cell(Job.read(path))
    except KeyboardInterrupt:
        return 130
    write_json(outcome_path(path), row)
    return 0


def outcome_path(job: Path) -> Path:
    """Where the row of a job file's cell is written."""
    return job.with_suffix(".row.json")


def _end_with_parent() -> None:
    # the pipe closes when the process that holds its other end dies, however it dies
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
