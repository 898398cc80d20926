"""Range checks of the configuration: one rule per key, one table of rules per section."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gendd.errors import UserError

# a larger integer is a mistake, and products of two overflow 64 bits
MOST = 2**31


class Rule(NamedTuple):
    """Requirement on a value, as a predicate and in words."""

    ok: Callable[[Any], bool]
    expected: str


POSITIVE_INTEGER = Rule(lambda value: value >= 1, "a positive integer")
INTEGER = Rule(lambda value: value >= 0, "a non-negative integer")
POSITIVE = Rule(lambda value: value > 0, "a positive number")
NON_NEGATIVE = Rule(lambda value: value >= 0, "a non-negative number")
SEED = Rule(lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1")
# larger images would exhaust memory before reaching a network
SIDE = Rule(lambda value: 4 <= value <= 16_384, "an integer of 4 to 16,384")
FRACTION = Rule(lambda value: 0 <= value < 1, "a fraction in [0, 1)")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "a number in [0, 1)")
UNIT = Rule(lambda value: 0 <= value <= 1, "a number in [0, 1]")
PROBABILITY = Rule(lambda value: 0 <= value <= 1, "a probability in [0, 1]")


def or_null(rule: Rule) -> Rule:
    """The same rule, or null."""
    return Rule(lambda value: value is None or rule.ok(value), f"{rule.expected} or null")


def at_most(limit: int, rule: Rule) -> Rule:
    """The same rule with an upper limit, beyond which building a network would exhaust memory."""

    def ok(value: Any) -> bool:
        return rule.ok(value) and value <= limit

    return Rule(ok, f"{rule.expected} up to {limit:,}")


def one_of(choices: Sequence[str]) -> Rule:
    """Rule for one of several strings."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def check(ok: bool, key: str, expected: str, came: object) -> None:
    """Raise :class:`UserError` for a config key unless ``ok``."""
    if not ok:
        raise UserError(f"{key}: expected {expected}, got {came!r}.")


def check_usable(key: str, value: Any) -> None:
    """Raise :class:`UserError` for numbers and strings that are invalid for any config key."""
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, float):
            check(math.isfinite(each), key, "a finite number", each)
        elif isinstance(each, int) and not key.endswith("seed"):
            check(abs(each) < MOST, key, f"an integer below {MOST:,}", each)
        elif isinstance(each, str):
            check(_is_text(each), key, "text of characters that a file's name can have", each)


def _is_text(value: str) -> bool:
    """Whether a string can be passed to the operating system: no NUL, no lone surrogates."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def check_section(section: Any, prefix: str, rules: Mapping[str, Rule]) -> None:
    """Raise :class:`UserError` for the first value of a section that breaks its rule.

    Args:
        section: A dataclass.
        prefix: Prefix of its keys, ``data.``.
        rules: Rules by key.
    """
    for entry in dataclasses.fields(section):
        check_usable(prefix + entry.name, getattr(section, entry.name))
    for key, rule in rules.items():
        value = getattr(section, key)
        check(_holds(rule, value), prefix + key, rule.expected, value)


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.ok(value)
    except (TypeError, IndexError):  # in Python a value may have any type
        return False
