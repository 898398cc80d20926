"""One cell of a comparison: a run, and its row of results.

``python -m gendd.compare.cells JOB.json`` runs a cell in a separate process.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import sys
import threading
import traceback
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gendd.compare.teacher import RecordedTeacher, answers_folder, ledger_seconds
from gendd.config import RunConfig, from_dict, to_dict
from gendd.errors import UserError, typed_line
from gendd.files import write_json
from gendd.models import Frozen
from gendd.run.exhibits import curves
from gendd.run.experiment import execute
from gendd.student.folders import RunFolder
from gendd.training import resolve_device
from gendd.training.memory import peak_memory, reset_peak

# files in a run folder: seconds saved by the recorded teacher, and the finished row
_LEDGER = Path("logs") / "teacher_seconds.txt"
_ROW = Path("logs") / "row.json"
_READOUTS = ("linear", "mean", "sample")
_CURVES = ("val/top1", "val/agreement", "val/diffusion")

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Everything needed to run a cell.

    Attributes:
        config: Configuration of the run; ``out`` is its folder.
        log: Log file of the run's messages.
        answers: Folder of recorded teachers; None: the teacher is not recorded.
        limit: Maximum bytes of recorded answers.
    """

    config: RunConfig
    log: Path
    answers: Path | None = None
    limit: float = 0.0

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        assert self.config.out is not None
        return Path(self.config.out)

    def write(self, path: Path) -> None:
        """Write the job for a separate process."""
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
        """Read a job written by :meth:`write`."""
        values = json.loads(path.read_text(encoding="utf-8"))
        answers = None if values["answers"] is None else Path(values["answers"])
        config = from_dict(values["config"], RunConfig)
        return cls(config, Path(values["log"]), answers=answers, limit=values["limit"])


def finished_row(folder: Path) -> Row | None:
    """Return the results of a finished cell; None if it has not finished."""
    path = folder / _ROW
    if not path.is_file():
        return None
    row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row


def run_cell(job: Job) -> Row:
    """Run or resume a cell and return its results; if it fails, ``error`` says why.

    All its output goes to its log file.
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
            row = {
                **_figures(job),
                "peak_memory_mb": peak_memory(),
                **circumstances(job.config.training.device),
            }
        except Exception as error:  # whatever a method raises goes into its row, and the other cells continue
            if isinstance(error, UserError):
                print(f"error: {error}", file=log)
            else:
                traceback.print_exception(error, file=log)
            return {"error": _one_line(error), **circumstances(job.config.training.device)}
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
    """Read the results from a finished run's folder."""
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
        **{name: group["top1"] for name, group in (figures.get("groups") or {}).items()},
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
    """Return the validation metric that chose the checkpoint after each epoch."""
    rows = curves(job.folder, job.config.readout.name)
    metric = next((name for name in _CURVES if any(name in row for row in rows)), None)
    if metric is None:
        return []
    return [round(row[metric], 5 if metric == "val/diffusion" else 2) for row in rows if metric in row]


def circumstances(device: str = "auto") -> dict[str, str]:
    """Return with which versions, on which machine and when something is measured, for a row of results."""
    versions = {"gendd": version("gendd"), "torch": torch.__version__, "python": platform.python_version()}
    now = datetime.datetime.now(datetime.UTC)
    return {
        "versions": " ".join(f"{name} {number}" for name, number in versions.items()),
        "machine": _machine(device),
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _machine(asked: str) -> str:
    """Return the name of the processor, and of the compute device if it is a different one."""
    found = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                found = line.partition(":")[2].strip()
                break
    try:
        device = resolve_device(asked)
    except ValueError:
        return found
    if device.type == "cuda":
        return f"{found} · {torch.cuda.get_device_name()}"
    return found if device.type == "cpu" else f"{found} · {device.type}"


def _one_line(error: BaseException) -> str:
    """Format an exception for a row: user errors as their message, others with their type."""
    text = str(error) if isinstance(error, UserError) else typed_line(error)
    return " ".join(text.split())[:300]


def main(arguments: list[str] | None = None) -> int:
    """Run the cell of a job file and write its row beside it; exits when the parent process dies."""
    (path,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        row = run_cell(Job.read(path))
    except KeyboardInterrupt:
        return 130
    write_json(outcome_path(path), row)
    return 0


def outcome_path(job: Path) -> Path:
    """Return where the row of a job file's cell is written."""
    return job.with_suffix(".row.json")


def _end_with_parent() -> None:
    # the pipe closes when the parent process dies, for whatever reason
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
