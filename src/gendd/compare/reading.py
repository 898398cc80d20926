"""Read the file of a comparison."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gendd.compare.plan import Budget, BudgetKind, Entry, Plan
from gendd.config import (
    RunConfig,
    check,
    check_keys,
    extended,
    merge,
    plain_values,
    registry,
)
from gendd.errors import UserError, did_you_mean

_KEYS = (
    "name",
    "base",
    "methods",
    "pairs",
    "data",
    "seeds",
    "rates",
    "budget",
    "reference",
    "share_teacher",
    "share_teacher_gb",
)
_BUDGETS = ("epochs", "steps", "seconds")
# settings controlled by the comparison, and where to give them instead
_DECIDED = {"seed": "seeds", "out": "--out", "baselines": "methods"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"[\w.+-]+")


def read_plan(source: str | Path | Mapping[str, Any]) -> Plan:
    """Read the plan of a YAML file, or of its content.

    Raises:
        UserError: the file can't be read, or names a key, value or variable that can't be used.
    """
    if isinstance(source, Mapping):
        stem, values = "comparison", dict(source)
    else:
        path = Path(source)
        stem = re.sub(r"[^\w.+-]+", "-", path.stem)
        values = plain_values(path, f"Comparison {str(path)!r}", "docs/compare.md")
    _known("", values, _KEYS)
    spelled: dict[str, str] = {}
    return _plan(stem, _expanded(values, "", spelled), spelled)


def _plan(stem: str, values: dict[str, Any], spelled: dict[str, str]) -> Plan:
    rates = None if values.get("rates") is None else _rates("rates", values["rates"])
    budget = None if values.get("budget") is None else _budget(values["budget"])
    # before the methods, which may set options of a Python file named here
    base = _changes("base", _section("base", values.get("base")), budget, rates or ())
    methods = _sections("methods", values.get("methods"))
    check(bool(methods), "methods", "a section of one method or more", values.get("methods"))
    entries = tuple(_entry(name, changes, rates, budget) for name, changes in methods.items())
    reference = values.get("reference")
    if reference is not None and str(reference) not in methods:
        raise UserError(
            f"reference: expected one of the methods, got {reference!r}."
            f"{did_you_mean(str(reference), methods)}"
        )
    name = str(values.get("name") or stem)
    _check_name("name", name)
    share, gigabytes = values.get("share_teacher", True), values.get("share_teacher_gb", 8)
    check(isinstance(share, bool), "share_teacher", "true or false", share)
    check(_is_number(gigabytes) and gigabytes >= 0, "share_teacher_gb", "a non-negative number", gigabytes)
    places = {}
    for key in ("pairs", "data"):
        found = _sections(key, values.get(key))
        places[key] = {
            name: _changes(f"{key}.{name}", changes, budget, rates or ()) for name, changes in found.items()
        }
    return Plan(
        name=name,
        methods=entries,
        base=base,
        pairs=places["pairs"] or {"": {}},
        data=places["data"] or {"": {}},
        seeds=_seeds(values.get("seeds", [0])),
        rates=rates,
        budget=budget,
        reference=reference,
        share_teacher=share,
        share_teacher_gb=float(gigabytes),
        spelled=spelled,
    )


def _entry(
    name: str, changes: dict[str, Any], rates: tuple[float, ...] | None, budget: Budget | None
) -> Entry:
    where = f"methods.{name}"
    label, own = changes.pop("label", None), changes.pop("rates", None)
    check(label is None or isinstance(label, str), f"{where}.label", "text", label)
    grid = None if own is None else _rates(f"{where}.rates", own)
    nested = _changes(where, changes, budget, grid or rates or (), _OF_METHOD)
    return Entry(name, label, nested, grid)


def _known(prefix: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"Unknown key {prefix + str(key)!r}.{did_you_mean(str(key), known)}")


def _section(key: str, values: Any) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{key}: expected a section (key: value lines), got {values!r}.")
    return dict(values)


def _sections(key: str, values: Any) -> dict[str, dict[str, Any]]:
    """Read sections with user-defined names."""
    found = {}
    for name, changes in _section(key, values).items():
        _check_name(key, name)
        found[str(name)] = _section(f"{key}.{name}", changes)
    return found


def _check_name(key: str, name: Any) -> None:
    ok = isinstance(name, (str, int)) and _NAME.fullmatch(str(name)) is not None
    check(ok, key, "a name of letters, digits and any of _ . + -", name)


def _changes(
    where: str,
    values: dict[str, Any],
    budget: Budget | None,
    rates: tuple[float, ...],
    more: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Read a section of nested or dotted settings into nested ones, on top of the recipes it extends.

    Args:
        where: Dotted key of the section in the file.
        values: The section.
        budget: The file's budget; if given, the section may not set epochs.
        rates: The learning-rate grid; if given, the section may not set learning rates.
        more: Other keys the section may hold, for error messages.
    """
    nested = _nested(where, values)
    own = {key: value for key, value in nested.items() if key != "extends"}
    for key, instead in _DECIDED.items():
        if key in own:
            raise UserError(f"{where}.{key}: expected none, as {instead} sets it; leave it out.")
    training = own.get("training")
    if isinstance(training, dict):
        if training.get("devices", "auto") not in ("auto", 1):
            raise UserError(
                f"{where}.training.devices: expected none, got {training['devices']}: a cell is one process; "
                "leave it out and use --jobs."
            )
        if budget is not None and "epochs" in training:
            raise UserError(f"{where}.training.epochs: expected none beside budget; leave one out.")
        if rates and "lr" in training:
            raise UserError(f"{where}.training.lr: expected none beside rates; give rates alone.")
    valid = [entry.name for entry in dataclasses.fields(RunConfig) if entry.name != "settings"]
    try:
        valid += registry.sections(own)
        for key in own:
            if key not in valid:
                raise UserError(f"Unknown config key {key!r}.{did_you_mean(key, [*valid, *more])}")
        check_keys(own)
        return extended(nested)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _nested(where: str, values: dict[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to nested sections."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise UserError(f"{where}: expected settings by name, got the key {key!r}.")
        inner = _nested(f"{where}.{key}", value) if isinstance(value, dict) else value
        for part in reversed(key.split(".")[1:]):
            inner = {part: inner}
        merge(found, {key.split(".")[0]: inner})
    return found


def _rates(key: str, values: Any) -> tuple[float, ...]:
    listed = values if isinstance(values, list) else [values]
    try:
        # YAML reads 1e-3 as a string
        rates = tuple(float(value) for value in listed if not isinstance(value, bool))
    except (TypeError, ValueError):
        rates = ()
    good = bool(rates) and len(set(rates)) == len(listed) and all(0 < rate < math.inf for rate in rates)
    check(good, key, "a list of different positive numbers", values)
    return rates


def _seeds(values: Any) -> tuple[int, ...]:
    good = isinstance(values, list) and bool(values)
    good = good and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in values)
    check(good and len(set(values)) == len(values), "seeds", "a list of different integers from 0", values)
    return tuple(values)


def _budget(values: Any) -> Budget:
    section = _section("budget", values)
    _known("budget.", section, _BUDGETS)
    check(len(section) == 1, "budget", f"one of {', '.join(_BUDGETS)}", values)
    ((kind, amount),) = section.items()
    whole = kind != "seconds"
    good = _is_number(amount) and amount > 0 and (not whole or amount == int(amount))
    check(good, f"budget.{kind}", "a positive integer" if whole else "a positive number", amount)
    return Budget(cast(BudgetKind, kind), amount)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _expanded(value: Any, key: str, spelled: dict[str, str]) -> Any:
    """Expand ``${NAME}`` in the strings of a value; the original strings are added to ``spelled``."""
    if isinstance(value, dict):
        return {
            name: _expanded(item, f"{key}.{name}" if key else str(name), spelled)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_expanded(item, key, spelled) for item in value]
    if not isinstance(value, str) or not _VARIABLE.search(value):
        return value
    for name in _VARIABLE.findall(value):
        if name not in os.environ:
            raise UserError(
                f"{key}: expected the environment variable {name} to be set, found none; run: export {name}=…"
            )
    found = _VARIABLE.sub(lambda match: os.environ[match[1]], value)
    spelled[found] = value
    return found


# keys of an entry of `methods` besides the settings it changes
_OF_METHOD = ("label", "rates")
