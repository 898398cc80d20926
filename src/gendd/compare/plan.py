"""The plan of a comparison: methods × pairs × data × learning rates × seeds."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from gendd.config import (
    RunConfig,
    from_dict,
    merge,
    registry,
    with_settings,
)
from gendd.errors import UserError
from gendd.run.checks import check_names
from gendd.run.networks import with_folders
from gendd.run.settings import binding_of

BudgetKind = Literal["epochs", "steps", "seconds"]


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    Attributes:
        name: Its name in the file.
        label: Its label in tables; None: the method's own label.
        changes: Nested settings that override the shared ones.
        rates: Its own learning-rate grid; None: that of the file.
    """

    name: str
    label: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Budget:
    """Training budget of every method: a number of epochs, steps or seconds."""

    kind: BudgetKind
    amount: float


@dataclass(frozen=True)
class Group:
    """The cells of one method on one data set and pair of networks.

    Attributes:
        data: Name in the file; empty if it names none.
        pair: Name of the pair of networks; empty if the file names none.
        method: The entry's name.
        label: Label of the method in tables.
        config: The settings of its cells except seed, learning rate and epochs.
        rates: Learning rates, at least one; only the first is used without a search.
        key: Digest of the settings; the same wherever the file is run.
    """

    data: str
    pair: str
    method: str
    label: str
    config: RunConfig
    rates: tuple[float, ...]
    key: str

    @property
    def place(self) -> tuple[str, str]:
        """Data set and pair; methods of one place are timed and compared side by side."""
        return self.data, self.pair

    @property
    def title(self) -> str:
        """Its names in one line."""
        return " · ".join(filter(None, (self.data, self.pair, self.method)))


@dataclass(frozen=True)
class Cell:
    """One training: a row of the results and a run folder.

    Attributes:
        group: The group it belongs to.
        seed: Seed of the run.
        rate: Peak learning rate.
        config: Configuration of the run, without an output folder.
        digest: Digest of the settings that its results depend on.
    """

    group: Group
    seed: int
    rate: float
    config: RunConfig
    digest: str

    @property
    def key(self) -> str:
        """Name of its folder: readable, and unique to its settings."""
        group = self.group
        parts = (group.data, group.pair, group.method, f"lr{self.rate:g}", f"seed{self.seed}")
        return "-".join([*filter(None, parts), self.digest[:8]])

    @property
    def coordinates(self) -> tuple[str, str, str, int, float]:
        """The key of its row: data, pair, method, seed and learning rate."""
        return self.group.data, self.group.pair, self.group.method, self.seed, self.rate


@dataclass(frozen=True)
class Plan:
    """The parsed file of a comparison.

    Attributes:
        name: Name of the comparison.
        methods: Methods in the order of the tables.
        base: Nested settings that all cells share.
        pairs: Changes by name of the pair; a single unnamed one if the file has no pairs.
        data: Changes by name of the data set; a single unnamed one if the file has none.
        seeds: At least one; learning rates are chosen on the first.
        rates: Learning-rate grid of every method; None: each method's configured rate.
        budget: Training budget; None: the configured epochs.
        reference: Method that paired differences are computed against; None: no differences.
        share_teacher: Whether the teacher's answers are recorded and shared by the cells.
        share_teacher_gb: Maximum GB of recorded answers.
        spelled: Strings that contained environment variables, by their expanded values.
    """

    name: str
    methods: tuple[Entry, ...]
    base: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    data: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] | None = None
    budget: Budget | None = None
    reference: str | None = None
    share_teacher: bool = True
    share_teacher_gb: float = 8.0
    spelled: dict[str, str] = field(default_factory=dict)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every method on every pair and data set, in the order of the rows.

        Raises:
            UserError: a group's settings can't be used.
        """
        found = [
            self._group(data, pair, entry)
            for data in self.data
            for pair in self.pairs
            for entry in self.methods
        ]
        return tuple(found)

    def _group(self, data: str, pair: str, entry: Entry) -> Group:
        values: dict[str, Any] = {}
        for layer in (self.base, self.data[data], self.pairs[pair], entry.changes):
            merge(values, copy.deepcopy(layer))
        training = values.get("training")
        given = training if isinstance(training, dict) else {}
        where = f"methods.{entry.name}"
        try:
            with_folders(values)
            config = from_dict({**values, "baselines": []}, RunConfig)
            check_names(config, {})
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if entry.name in registry.names() and config.method != entry.name:
            raise UserError(
                f"{where}: expected method {entry.name!r} by its name, got {config.method!r}; "
                f"add 'method: {entry.name}', or choose another name."
            )
        loggers = list(given.get("loggers") or ["csv"])
        views = config.training.cache_teacher
        own = entry.changes.get("training")
        if not registry.learns_from_teacher(config.method) and "cache_teacher" not in (own or {}):
            # a shared setting that this method has no use for
            views = 0
        config = with_settings(
            dataclasses.replace(
                config,
                out=None,
                training=dataclasses.replace(
                    config.training,
                    # curves are read from its CSV log
                    loggers=loggers if "csv" in loggers else ["csv", *loggers],
                    progress=bool(given.get("progress")),
                    cache_teacher=views,
                ),
            )
        )
        rates = entry.rates or self.rates or (config.training.lr,)
        if len(rates) > 1 and config.data.validation == 0 and config.data.name != "webdataset":
            raise UserError(
                f"{where}: expected data.validation above 0 to choose between {len(rates)} learning rates, "
                "got 0; hold images out, or give one rate."
            )
        label = entry.label or self._label(entry, config.method)
        # shared by the group's cells, without the values that the comparison sets
        plain = dataclasses.replace(
            config,
            seed=0,
            training=dataclasses.replace(config.training, lr=1.0, epochs=1, warmup_epochs=None),
        )
        key = f"{self.digest(plain)}-{config.training.warmup_epochs}"
        return Group(data, pair, entry.name, label, config, rates, key)

    def _label(self, entry: Entry, method: str) -> str:
        """Return the method's label if the entry is its only one or has its name, else the entry's name."""
        shared = self.base.get("method", "gendd")
        same = [each for each in self.methods if each.changes.get("method", shared) == method]
        if len(same) == 1 or entry.name == registry.section(method):
            return registry.label(method)
        return entry.name

    def cell(self, group: Group, seed: int, rate: float, epochs: int = 0) -> Cell:
        """Return a cell of a group; 0 epochs means those of its settings.

        Raises:
            UserError: the settings don't fit the number of epochs.
        """
        training = group.config.training
        try:
            training = dataclasses.replace(training, lr=rate, epochs=epochs or training.epochs)
            config = dataclasses.replace(group.config, seed=seed, training=training)
        except UserError as error:
            raise UserError(f"methods.{group.method}: {error}") from error
        return Cell(group, seed, rate, config, self.digest(config))

    def digest(self, config: RunConfig) -> str:
        """Return the digest of the settings that a run's results depend on, as spelled in the file.

        Environment variables count by name, so the digest is the same on another machine, where a variable
        may name a different folder.
        """
        values = {key: self._as_spelled(value) for key, value in binding_of(config).items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def _as_spelled(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._as_spelled(item) for item in value]
        return self.spelled.get(value, value) if isinstance(value, str) else value
