"""Convert budgets to epochs, with the measurements this needs, each made once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gendd.compare.plan import Group, Plan
from gendd.compare.results import Row
from gendd.compare.timing import scaled, step_seconds, steps_per_epoch
from gendd.config import RunConfig
from gendd.errors import UserError, first_line
from gendd.files import write_json
from gendd.messages import say

STEPS = 20


class Measured:
    """Steps per epoch and seconds per step, saved in a comparison's folder.

    Args:
        path: The file.
        plan: The plan whose groups are measured.
        rows: Finished rows, which may hold measurements from another machine.
        keep: Whether the file may be written.
    """

    def __init__(self, path: Path, plan: Plan, rows: Iterable[Row] = (), keep: bool = True) -> None:
        self.path = path
        self.keep = keep
        self.plan = plan
        self.rows = list(rows)
        self.errors: dict[str, str] = {}
        self._kept: dict[str, dict[str, Any]] = {"steps_per_epoch": {}, "step_seconds": {}}
        if path.is_file():
            self._kept |= json.loads(path.read_text(encoding="utf-8"))

    def steps_per_epoch(self, group: Group) -> int | None:
        """Return a group's steps per epoch; None if its images can't be opened (see :attr:`errors`)."""
        config = group.config
        key = self.plan.digest(_of_loading(config))
        kept = self._kept["steps_per_epoch"]
        if key not in kept:
            try:
                kept[key] = steps_per_epoch(config)
            except Exception as error:  # reported in the rows of the cells it prevents
                self.errors[group.title] = first_line(error)
                return None
            self._write()
        return int(kept[key])

    def step_seconds(self, group: Group) -> float | None:
        """Return a group's seconds per step; None if not measured."""
        kept = self._kept["step_seconds"].get(_where(group))
        return None if kept is None else float(kept)

    def measure(self, groups: Sequence[Group], steps: int) -> None:
        """Measure the seconds per step of groups of one place side by side, unless all are known.

        Args:
            groups: All groups of the place, so that known times set the scale of new ones.
            steps: Number of steps to time.
        """
        for group in groups:
            self._recall(group)
        kept = self._kept["step_seconds"]
        if all(_where(group) in kept for group in groups):
            return
        say(f"timing {steps} steps of {', '.join(group.method for group in groups)} side by side")
        configs = {
            group.method: self.plan.cell(group, self.plan.seeds[0], group.rates[0]).config for group in groups
        }
        found = step_seconds(configs, steps)
        for group in groups:
            if isinstance(error := found[group.method], UserError):
                self.errors[group.title] = str(error)
        measured = {name: each for name, each in found.items() if not isinstance(each, UserError)}
        known = {group.method: kept[_where(group)] for group in groups if _where(group) in kept}
        for group in groups:
            if group.method in measured:
                seconds = scaled(measured, known)[group.method]
                kept[_where(group)] = round(seconds, 6)
        self._write()

    def epochs(self, group: Group) -> int | None:
        """Return the epochs of a group's cells, 0 for the configured ones; None if not known."""
        budget = self.plan.budget
        if budget is None:
            return 0
        if budget.kind == "epochs":
            return int(budget.amount)
        if budget.kind == "seconds" and self.step_seconds(group) is None:
            return None
        steps = self.steps_per_epoch(group)
        if steps is None:
            return None
        if budget.kind == "steps":
            return math.ceil(budget.amount / steps)
        seconds = self.step_seconds(group)
        assert seconds is not None
        return max(1, math.floor(budget.amount / (seconds * steps)))

    def _recall(self, group: Group) -> None:
        """Use the step time in a finished row of the group, measured on another machine."""
        if _where(group) in self._kept["step_seconds"]:
            return
        for row in self.rows:
            told = row["epochs"] and row["step_seconds"] and not row["error"]
            if not told or (row["data"], row["pair"], row["method"]) != (*group.place, group.method):
                continue
            try:
                cell = self.plan.cell(group, row["seed"], row["rate"], row["epochs"])
            except UserError:
                continue
            if cell.digest == row["config"]:
                self._kept["step_seconds"][_where(group)] = row["step_seconds"]
                return

    def _write(self) -> None:
        if self.keep:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._kept)


def _where(group: Group) -> str:
    return "/".join((*group.place, group.method, group.key))


def _of_loading(config: RunConfig) -> RunConfig:
    """Reduce a configuration to what determines the number of steps per epoch."""
    plain = RunConfig(data=config.data)
    plain.training.accumulate = config.training.accumulate
    return plain
