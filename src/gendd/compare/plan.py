"""The typed file of a comparison: methods × pairs × data × rates × seeds."""

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
from gendd.run.settings import binding_of

BudgetKind = Literal["epochs", "steps", "seconds"]


@dataclass(frozen=True)
class Entry:
    """A method of a comparison.

    Attributes:
        name: As the file calls it.
        label: What tables call it; None: the method's own label.
        changes: Nested settings laid over those shared.
        rates: Its own learning-rate grid; None: that of the file.
    """

    name: str
    label: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Budget:
    """What every method may spend on training: an amount of epochs, steps or seconds."""

    kind: BudgetKind
    amount: float


@dataclass(frozen=True)
class Group:
    """The cells of one method on one set of images and pair of networks.

    Attributes:
        data: Name in the file; empty where it names none.
        pair: Likewise.
        method: The entry's name.
        label: What tables call the method.
        config: The settings of its cells but for seed, rate and epochs.
        rates: At least one; the first where there is no search.
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
        """Data and pair; methods of one place are timed and compared side by side."""
        return self.data, self.pair

    @property
    def title(self) -> str:
        """Its names on one line."""
        return " · ".join(filter(None, (self.data, self.pair, self.method)))


@dataclass(frozen=True)
class Cell:
    """One training: a row of the results and a run's folder.

    Attributes:
        group: Whose cell it is.
        seed: Of the run.
        rate: Peak learning rate.
        config: Of the run, without an output folder.
        digest: Of the settings that its results depend on.
    """

    group: Group
    seed: int
    rate: float
    config: RunConfig
    digest: str

    @property
    def key(self) -> str:
        """Name of its folder: readable, and another one for other settings."""
        group = self.group
        parts = (group.data, group.pair, group.method, f"lr{self.rate:g}", f"seed{self.seed}")
        return "-".join([*filter(None, parts), self.digest[:8]])

    @property
    def coordinates(self) -> tuple[str, str, str, int, float]:
        """What tells its row from others: data, pair, method, seed and rate."""
        return self.group.data, self.group.pair, self.group.method, self.seed, self.rate


@dataclass(frozen=True)
class Plan:
    """What a comparison's file says.

    Attributes:
        name: Of the comparison.
        methods: In the order of the tables.
        base: Nested settings that all cells share.
        pairs: Changes by the pair's name; one unnamed where the file has none.
        data: Likewise of the images.
        seeds: At least one; rates are chosen on the first.
        rates: Learning-rate grid of every method; None: each method's configured rate.
        budget: None: the configured epochs.
        reference: Name of the method that paired differences are against; None: no differences.
        share_teacher: Whether the teacher's answers are recorded and shared by the cells.
        share_teacher_gb: How many GB of them are kept at most.
        spelled: Strings that held environment variables, by what they became.
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
        """Every method on every pair and set of images, in the order of the rows.

        Raises:
            UserError: settings that can't be used; says whose.
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
        config = with_settings(
            dataclasses.replace(
                config,
                out=None,
                training=dataclasses.replace(
                    config.training,
                    # curves are read from it
                    loggers=loggers if "csv" in loggers else ["csv", *loggers],
                    progress=bool(given.get("progress")),
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
        # what its cells share: none of the values that the comparison sets
        plain = dataclasses.replace(
            config,
            seed=0,
            training=dataclasses.replace(config.training, lr=1.0, epochs=1, warmup_epochs=None),
        )
        key = f"{self.digest(plain)}-{config.training.warmup_epochs}"
        return Group(data, pair, entry.name, label, config, rates, key)

    def _label(self, entry: Entry, method: str) -> str:
        """The method's label where it is the only entry of that method, or called as the method is."""
        shared = self.base.get("method", "gendd")
        same = [each for each in self.methods if each.changes.get("method", shared) == method]
        if len(same) == 1 or entry.name == registry.section(method):
            return registry.label(method)
        return entry.name

    def cell(self, group: Group, seed: int, rate: float, epochs: int = 0) -> Cell:
        """A cell of a group; 0 epochs are those of its settings.

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
        """Digest of the settings that a run's results depend on, as the file spells them.

        Environment variables count by their name: the digest is the same on another machine, where the
        folder that one names is elsewhere.
        """
        values = {key: self._as_spelled(value) for key, value in binding_of(config).items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def _as_spelled(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._as_spelled(item) for item in value]
        return self.spelled.get(value, value) if isinstance(value, str) else value
