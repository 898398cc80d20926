"""Range checks of the configuration: a rule per key, in a table per section."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gendd.errors import UserError

# an integer beyond is a slip, and two of them overflow 64 bits
MOST = 2**31


class Rule(NamedTuple):
    """What a value must be, as a predicate and in words."""

    ok: Callable[[Any], bool]
    expected: str


POSITIVE_INTEGER = Rule(lambda value: value >= 1, "a positive integer")
INTEGER = Rule(lambda value: value >= 0, "a non-negative integer")
POSITIVE = Rule(lambda value: value > 0, "a positive number")
NON_NEGATIVE = Rule(lambda value: value >= 0, "a non-negative number")
SEED = Rule(lambda value: 0 <= value < 2**63, "an integer from 0 to 2**63 - 1")
# larger images would fill the memory before a network saw them
SIDE = Rule(lambda value: 4 <= value <= 16_384, "an integer of 4 to 16,384")
FRACTION = Rule(lambda value: 0 <= value < 1, "a fraction in [0, 1)")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "a number in [0, 1)")
UNIT = Rule(lambda value: 0 <= value <= 1, "a number in [0, 1]")
PROBABILITY = Rule(lambda value: 0 <= value <= 1, "a probability in [0, 1]")


def or_null(rule: Rule) -> Rule:
    """The same rule, or null."""
    return Rule(lambda value: value is None or rule.ok(value), f"{rule.expected} or null")


def at_most(limit: int, rule: Rule) -> Rule:
    """The same rule up to a limit, beyond which a network would not be built but memory filled."""

    def ok(value: Any) -> bool:
        return rule.ok(value) and value <= limit

    return Rule(ok, f"{rule.expected} up to {limit:,}")


def one_of(choices: Sequence[str]) -> Rule:
    """One of some words."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def check(ok: bool, key: str, expected: str, came: object) -> None:
    """Raise :class:`UserError` of a config key where what came is not as expected."""
    if not ok:
        raise UserError(f"{key}: expected {expected}, got {came!r}.")


def check_usable(key: str, value: Any) -> None:
    """Raise :class:`UserError` of a config key at a number or a text that nothing can use."""
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(each, float):
            check(math.isfinite(each), key, "a finite number", each)
        elif isinstance(each, int) and not key.endswith("seed"):
            check(abs(each) < MOST, key, f"an integer below {MOST:,}", each)
        elif isinstance(each, str):
            check(_is_text(each), key, "text of characters that a file's name can have", each)


def _is_text(value: str) -> bool:
    """Whether the system can be given a text: one without NUL and halves of characters."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def check_section(section: Any, prefix: str, rules: Mapping[str, Rule]) -> None:
    """Raise :class:`UserError` at the first value of a section that breaks its rule.

    Args:
        section: A dataclass.
        prefix: What its keys begin with, ``data.``.
        rules: By key.
    """
    for entry in dataclasses.fields(section):
        check_usable(prefix + entry.name, getattr(section, entry.name))
    for key, rule in rules.items():
        value = getattr(section, key)
        check(_holds(rule, value), prefix + key, rule.expected, value)


def _holds(rule: Rule, value: Any) -> bool:
    try:
        return rule.ok(value)
    except (TypeError, IndexError):  # from Python a value may be of any type
        return False
