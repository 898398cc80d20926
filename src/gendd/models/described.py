"""Description of a student's network in its ``config.json``, validated before the network is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gendd.config import check, from_dict, to_dict
from gendd.config.checks import POSITIVE_INTEGER, Rule, at_most, check_section, or_null

# more classes, channels or pixels would not fit in memory
CLASSES = at_most(1_000_000, Rule(lambda value: value >= 0, "a non-negative integer"))
WIDTH = at_most(65_536, POSITIVE_INTEGER)
SIDE = at_most(16_384, POSITIVE_INTEGER)


@dataclass
class _Network:
    """Arguments of :func:`gendd.models.create_backbone`."""

    name: str
    num_classes: int
    in_channels: int
    mean: list[float]
    std: list[float]
    feature: str | None = None
    classifier: bool = True
    input_size: int | None = None
    channels: int | None = None
    config: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        rules = {
            "num_classes": CLASSES,
            "in_channels": WIDTH,
            "channels": or_null(WIDTH),
            "input_size": or_null(SIDE),
            "std": Rule(lambda values: all(each > 0 for each in values), "positive numbers"),
        }
        check_section(self, "backbone.", rules)


@dataclass
class _Projector:
    """Arguments of :func:`gendd.models.projector.project` except the classes."""

    width: int
    hidden: int
    rectified: bool = True

    def __post_init__(self) -> None:
        check_section(self, "projector.", {"width": WIDTH, "hidden": WIDTH})


@dataclass
class _Backbone:
    backbone: _Network


@dataclass
class _Projected:
    projector: _Projector


def checked(values: Any) -> dict[str, Any]:
    """Validate the description of a network in a ``config.json`` and convert its values to their types.

    Raises:
        UserError: a key is missing or unknown, or a value has the wrong type or is out of range.
    """
    check(isinstance(values, dict), "backbone", "a section", values)
    described: dict[str, Any] = to_dict(from_dict({"backbone": values}, _Backbone))["backbone"]
    if described["projector"] is not None:
        described |= to_dict(from_dict({"projector": described["projector"]}, _Projected))
    return {key: described[key] for key in values}
