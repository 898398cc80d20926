"""Run a comparison, from its file to its report."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gendd.compare.budget import STEPS, Measured
from gendd.compare.cells import Job, finished_row
from gendd.compare.locks import alone
from gendd.compare.page import write_page
from gendd.compare.plan import Cell, Group, Plan
from gendd.compare.reading import read_plan
from gendd.compare.results import COLUMNS, Row, best_rate, coordinates, read_rows, write_rows
from gendd.compare.running import run_apart, run_here
from gendd.compare.summary import markdown, summarise, write_summary
from gendd.compare.teacher import remove_unfinished
from gendd.config import check
from gendd.errors import UserError, did_you_mean
from gendd.files import locked
from gendd.messages import say
from gendd.report.numbers import duration, number

# data, pair, method, seed and learning rate of a cell
Key = tuple[str, str, str, int, float]


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison so far.

    Attributes:
        folder: Its folder: ``results.csv`` (unless named otherwise), ``summary.csv``, ``summary.md``,
            ``report.html`` and the cells' runs in ``cells/``.
        rows: One per cell, by the columns of the results file.
        summary: One per method, pair and data set, by the columns of ``summary.csv``.
    """

    folder: Path
    rows: list[Row]
    summary: list[Row]

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def errors(self) -> list[Row]:
        """The rows of cells that failed."""
        return [row for row in self.rows if row["error"]]

    def __str__(self) -> str:
        return markdown(self.summary)


def compare(
    source: str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    jobs: int = 1,
    results: str | Path | None = None,
    only: Sequence[str] = (),
    time_steps: int | None = None,
    dry_run: bool = False,
) -> Comparison:
    """Compare methods as described in a file; finished cells are kept, others are run or resumed.

    Args:
        source: The YAML file, or its content.
        out: Folder; None: ``runs/compare/`` and the comparison's name.
        jobs: Cells to run at a time; with more than one, each is a separate process.
        results: CSV file of rows, read and written; None: ``results.csv`` in the folder.
        only: Methods to run; finished cells of the others are kept.
        time_steps: Time this many training steps of every method, side by side; with a budget in seconds
            steps are always timed.
        dry_run: Report what would be run, and run and write nothing.

    Raises:
        UserError: the file or an argument can't be used. Errors in a cell are reported in its row.
    """
    plan = read_plan(source)
    check(jobs >= 1, "--jobs", "a positive integer", jobs)
    check(time_steps is None or time_steps >= 1, "--time", "a positive integer", time_steps)
    names = [entry.name for entry in plan.methods]
    for name in only:
        if name not in names:
            raise UserError(f"--only: expected methods of the file, got {name!r}.{did_you_mean(name, names)}")
    folder = Path(out) if out is not None else Path("runs") / "compare" / plan.name
    _ = plan.groups  # invalid settings are reported before anything is written
    csv = Path(results) if results is not None else folder / "results.csv"
    if dry_run:
        table = _Table(plan, folder, csv, only, dry_run)
        table.say_plan()
        return table.comparison()
    with alone(folder) as lock:
        # after locking, as another comparison may have written until now
        table = _Table(plan, folder, csv, only, dry_run)
        remove_unfinished(folder / "teacher")
        table.measure(time_steps)
        table.run(jobs, lock)
        done = table.comparison()
        write_page(plan, done.rows, done.summary, done.report)
    return done


class _Table:
    """The cells of a comparison and their results so far.

    Args:
        plan: Plan of the comparison.
        folder: Its folder.
        csv: The results file.
        only: Methods to run; all if empty.
        dry: Whether nothing may be written.
    """

    def __init__(self, plan: Plan, folder: Path, csv: Path, only: Sequence[str], dry: bool) -> None:
        self.plan, self.folder, self.csv, self.dry = plan, folder, csv, dry
        self.only = set(only) or {entry.name for entry in plan.methods}
        self.before = read_rows(csv)
        self.measured = Measured(folder / "measured.json", plan, self.before, keep=not dry)
        # by coordinates; failed cells are run again, so a failure may be an earlier invocation's
        self.finished: dict[Key, Row] = {}
        self.failed: dict[Key, Row] = {}
        self.started: set[Key] = set()
        self.ended: set[Key] = set()
        self._cells: dict[Key, Cell] = {}
        self._epochs: dict[str, int | None] = {}

    def measure(self, time_steps: int | None) -> None:
        """Time training steps if the budget or the caller asks for it."""
        seconds = self.plan.budget is not None and self.plan.budget.kind == "seconds"
        if not seconds and time_steps is None:
            return
        for place in dict.fromkeys(group.place for group in self.plan.groups):
            groups = [group for group in self.plan.groups if group.place == place]
            self.measured.measure(groups, time_steps or STEPS)

    def run(self, jobs: int, lock: int | None) -> None:
        """Run the remaining cells, and write the rows as cells end."""
        keys = self._own_keys()
        self.write()
        done, total = sum(key in self.finished for key in keys), self._total()
        cells = "1 cell" if total == 1 else f"{total} cells"
        say(f"{self.plan.name}: {cells}, {done} finished; their logs are in {self._logs}")
        start, count = time.monotonic(), 0
        if jobs == 1:
            ended = run_here(self._next, self._job)
        else:
            keep = () if lock is None else (lock,)
            ended = run_apart(self._next, self._job, jobs, self.folder / "jobs", keep)
        with closing(ended):
            for cell, figures in ended:
                self._enter(cell, figures)
                self.ended.add(cell.coordinates)
                self.write()
                count += 1
                self._tell(cell, count, time.monotonic() - start)

    def write(self) -> None:
        """Write the rows and the summary."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.csv.with_name(f"{self.csv.name}.lock")):
            self._read_others()
            rows = self.rows()
            write_rows(self.csv, rows)
        write_summary(summarise(self.plan, rows), self.folder)

    def _read_others(self) -> None:
        """Read the rows that other comparisons have written to the results file since it was read."""
        now = read_rows(self.csv)
        there = {coordinates(row) for row in now}
        self.before = now + [row for row in self.before if coordinates(row) not in there]
        for key, cell in self._cells.items():
            if key not in self.finished and cell.group.method not in self.only:
                self._look_up(cell)

    def comparison(self) -> Comparison:
        """Return the results so far."""
        rows = self.rows()
        return Comparison(self.folder, rows, summarise(self.plan, rows))

    def rows(self) -> list[Row]:
        """Return the rows in the order of the plan, then other rows of the results file."""
        found: list[Row] = []
        for group, seed, rate in self._wanted():
            key = self._key(group, seed, rate)
            row = self.finished.get(key) or self.failed.get(key)
            if row is not None:
                found.append(row | {"chosen": not row["error"] and rate == self._chosen(group)})
        there = {coordinates(row) for row in found}
        groups = {(*group.place, group.method) for group in self.plan.groups}
        for row in self.before:
            if row["error"] or coordinates(row) in there:
                continue
            mine = (row["data"], row["pair"], row["method"]) in groups
            found.append(row | {"chosen": False} if mine else row)
        return found

    def say_plan(self) -> None:
        """Report every cell known so far and what would be done with it."""
        for group, seed, rate in self._wanted():
            key = self._key(group, seed, rate)
            cell = self._cells.get(key)
            title = f"{group.title} · rate {rate:g} · seed {seed}"
            if cell is None:
                say(f"{title}: to run, with epochs that follow from timed steps")
                continue
            state = "finished" if key in self.finished else "to run"
            if key in self.failed:
                state = f"to run again ({self.failed[key]['error']})"
            elif state == "to run" and (self._place(cell) / "config.yaml").is_file():
                state = "to resume"
            if state != "finished" and group.method not in self.only:
                state = "left out"
            epochs = cell.config.training.epochs
            say(f"{title}{'' if epochs is None else f' · {epochs} epochs'}: {state}")
        later = [group for group in self.plan.groups if self._chosen(group) is None]
        if later and len(self.plan.seeds) > 1:
            others = ", ".join(map(str, self.plan.seeds[1:]))
            seeds = f"seed{'s' * (len(self.plan.seeds) > 2)} {others}"
            titles = ", ".join(group.title for group in later)
            say(f"then {seeds} at the chosen learning rate: {titles}")

    def _wanted(self) -> Iterator[tuple[Group, int, float]]:
        """Yield the cells known so far, in the order of the rows."""
        for group in self.plan.groups:
            first, *others = self.plan.seeds
            cells = [(first, rate) for rate in group.rates]
            if self._cell(group, *cells[0]) is None:
                yield group, *cells[0]
                continue
            for seed, rate in cells:
                self._cell(group, seed, rate)
                yield group, seed, rate
            chosen = self._chosen(group)
            for seed in others if chosen is not None else ():
                assert chosen is not None
                self._cell(group, seed, chosen)
                yield group, seed, chosen

    def _own_keys(self) -> list[Key]:
        """Return the cells known so far of the methods that are run."""
        return [self._key(*place) for place in self._wanted() if place[0].method in self.only]

    def _total(self) -> int:
        """Return the total number of cells of the methods that are run."""
        total = 0
        for group in self.plan.groups:
            if group.method not in self.only:
                continue
            if self._epochs.get(group.title, 0) is None:
                total += 1
                continue
            ends = self._settled(group) and self._chosen(group) is None
            total += len(group.rates) + (0 if ends else len(self.plan.seeds) - 1)
        return total

    def _first(self, group: Group) -> list[Key]:
        """Return the cells that choose a group's learning rate."""
        return [self._key(group, self.plan.seeds[0], rate) for rate in group.rates]

    def _settled(self, group: Group) -> bool:
        """Return whether all cells that choose a group's learning rate have ended, finished or failed."""
        runs = group.method in self.only and not self.dry
        return all(
            key in self.finished or (key in self.failed and (key in self.ended or not runs))
            for key in self._first(group)
        )

    def _chosen(self, group: Group) -> float | None:
        """Return a group's learning rate; None while it is not settled, or if all its cells failed."""
        if len(group.rates) == 1:
            return group.rates[0]
        if not self._settled(group):
            return None
        return best_rate([self.finished[key] for key in self._first(group) if key in self.finished])

    def _key(self, group: Group, seed: int, rate: float) -> Key:
        return *group.place, group.method, seed, rate

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.key

    @property
    def _logs(self) -> Path:
        return self.folder / "logs"

    def _cell(self, group: Group, seed: int, rate: float) -> Cell | None:
        """Return a cell, after looking for its row the first time; None if its epochs are not known."""
        key = self._key(group, seed, rate)
        if key in self._cells:
            return self._cells[key]
        if group.title not in self._epochs:
            self._epochs[group.title] = self.measured.epochs(group)
            if self._epochs[group.title] is None and not self.dry:
                self._enter_unmeasured(group)
        epochs = self._epochs[group.title]
        if epochs is None:
            return None
        cell = self._cells[key] = self.plan.cell(group, seed, rate, epochs)
        self._look_up(cell)
        if key not in self.finished and (figures := finished_row(self._place(cell))) is not None:
            self._enter(cell, figures)
        return cell

    def _look_up(self, cell: Cell) -> None:
        """Take a cell's row from the results file, if it has one of the same settings."""
        for row in self.before:
            if row["config"] == cell.digest and coordinates(row) == cell.coordinates:
                self._keep(cell, row)

    def _enter_unmeasured(self, group: Group) -> None:
        """Add a row with the error that kept a group's epochs from being determined."""
        key = self._key(group, self.plan.seeds[0], group.rates[0])
        error = self.measured.errors.get(group.title, "its steps were not timed")
        self.failed[key] = self._row(group, key, {"error": error})

    def _enter(self, cell: Cell, figures: Row) -> None:
        """Store the results of a cell that ended."""
        row = self._row(cell.group, cell.coordinates, figures)
        self._keep(cell, row | {"config": cell.digest})

    def _keep(self, cell: Cell, row: Row) -> None:
        seconds = self.measured.step_seconds(cell.group)
        timed = {} if seconds is None else {"step_seconds": seconds}
        kind = self.failed if row["error"] else self.finished
        kind[cell.coordinates] = row | {"label": cell.group.label} | timed
        if not row["error"]:
            self.failed.pop(cell.coordinates, None)

    @staticmethod
    def _row(group: Group, key: Key, figures: Row) -> Row:
        row: Row = {name: [] if kind is list else None for name, kind in COLUMNS.items()}
        names = dict(zip(("data", "pair", "method", "seed", "rate"), key, strict=True))
        return row | figures | names | {"label": group.label}

    def _next(self) -> Cell | None:
        """Return the next cell to start, each at most once; None if none is ready."""
        for group, seed, rate in self._wanted():
            key = self._key(group, seed, rate)
            cell = self._cells.get(key)
            if cell is None or group.method not in self.only:
                continue
            if key not in self.finished and key not in self.started:
                self.started.add(key)
                return cell
        return None

    def _job(self, cell: Cell) -> Job:
        plan = self.plan
        return Job(
            dataclasses.replace(cell.config, out=str(self._place(cell))),
            self._logs / f"{cell.key}.txt",
            self.folder / "teacher" if plan.share_teacher else None,
            plan.share_teacher_gb * 1e9,
        )

    def _tell(self, cell: Cell, count: int, seconds: float) -> None:
        """Report a cell that ended, and the progress of the comparison."""
        keys = self._own_keys()
        done = sum(key in self.finished or key in self.ended for key in keys)
        left = max(0, self._total() - done)
        row = self.finished.get(cell.coordinates) or self.failed[cell.coordinates]
        told = row["error"] and f"failed: {row['error']} ({self._logs / cell.key}.txt)"
        told = told or f"{number(row['test'])} %, {duration(row['train_seconds'] or 0.0)} of training"
        rest = f", about {duration(seconds / count * left)} left" if left else ""
        title = f"{cell.group.title} · rate {cell.rate:g} · seed {cell.seed}"
        say(f"{title}: {told} [{done}/{self._total()} cells, {duration(seconds)}{rest}]")
