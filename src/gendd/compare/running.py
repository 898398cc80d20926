"""Run cells one after another in this process, or several at a time in separate processes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gendd.compare.cells import Job, outcome_path, run_cell
from gendd.compare.plan import Cell
from gendd.compare.results import Row
from gendd.data.workers import cores

# command that runs the cell of the job file given as its last argument
COMMAND = (sys.executable, "-P", "-m", "gendd.compare.cells")
_POLL = 0.05
_PATIENCE = 5.0

# the next cell to run, or None if none is ready yet; and its job
Next = Callable[[], Cell | None]
MakeJob = Callable[[Cell], Job]


def run_here(ready: Next, job: MakeJob) -> Generator[tuple[Cell, Row], None, None]:
    """Run cells in this process until none is ready; yields each with its row as it ends."""
    while (cell := ready()) is not None:
        row = run_cell(job(cell))
        _free()
        yield cell, row


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class _Worker:
    cell: Cell
    process: subprocess.Popen[bytes]
    file: Path
    log: Path
    slot: int


def run_apart(
    ready: Next, job: MakeJob, jobs: int, folder: Path, keep: Sequence[int] = ()
) -> Generator[tuple[Cell, Row], None, None]:
    """Run cells in up to ``jobs`` processes at a time; yields each with its row as it ends.

    The processes share the cores; visible CUDA devices are assigned in turn. They end with this process.

    Args:
        ready: Called whenever a process is free; returns None while others have to end first.
        job: Makes the job of a cell.
        jobs: Processes at a time.
        folder: Folder for the job files.
        keep: File descriptors they inherit, so that a lock is held as long as any of them lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    devices = _devices()
    threads = max(1, cores() // jobs)
    workers: list[_Worker] = []
    try:
        while True:
            while len(workers) < jobs and (cell := ready()) is not None:
                slot = min(set(range(jobs)) - {worker.slot for worker in workers})
                device = devices[slot % len(devices)] if devices else None
                workers.append(_start(cell, job(cell), folder, threads, slot, device, keep))
            if not workers:
                return
            ended = [worker for worker in workers if worker.process.poll() is not None]
            for worker in ended:
                workers.remove(worker)
                yield worker.cell, _outcome(worker)
            if not ended:
                time.sleep(_POLL)
    finally:
        _stop(workers)


def _start(
    cell: Cell, job: Job, folder: Path, threads: int, slot: int, device: str | None, keep: Sequence[int]
) -> _Worker:
    file = folder / f"{cell.key}.json"
    outcome_path(file).unlink(missing_ok=True)
    job.write(file)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(_at_most(threads))}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [*COMMAND, str(file)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=keep,
            # this process handles Ctrl-C
            start_new_session=True,
        )
    return _Worker(cell, process, file, job.log, slot)


def _at_most(threads: int) -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(given)) if given.isdigit() and int(given) > 0 else threads


def _devices() -> list[str]:
    """Return the CUDA devices this process may use, as named in CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named:
        return [part.strip() for part in named.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _outcome(worker: _Worker) -> Row:
    if worker.process.stdin is not None:
        worker.process.stdin.close()
    path = outcome_path(worker.file)
    if path.is_file():
        row: Row = json.loads(path.read_text(encoding="utf-8"))
        for file in (path, worker.file):
            file.unlink()
        return row
    code = worker.process.returncode
    lines = [line for line in worker.log.read_text(errors="replace").splitlines() if line.strip()]
    end = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    last = f"; {lines[-1].strip()}" if lines else ""
    return {"error": f"its process ended: {end}{last}"[:300]}


def _stop(workers: list[_Worker]) -> None:
    """Terminate the processes; what they have written is kept."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        if worker.process.stdin is not None:
            worker.process.stdin.close()
