"""The ``config.json`` of a saved student, validated before anything is built from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gendd.config import GenDDConfig, ReadoutConfig, check, from_dict
from gendd.config.checks import POSITIVE_INTEGER, Rule, at_most, check_section, or_null
from gendd.errors import UserError
from gendd.models.described import SIDE, WIDTH
from gendd.models.described import checked as checked_backbone
from gendd.student.generator import FeatureGenerator

FORMAT = 1
_KEYS = ("backbone", "generator", "readout", "info")


@dataclass
class Generator:
    """The conditional generator and the classifier of its features."""

    condition_width: int
    feature_width: int
    settings: GenDDConfig
    num_classes: int | None = None
    mean_time: int | None = None

    def __post_init__(self) -> None:
        last = self.settings.timesteps - 1
        rules = {
            **dict.fromkeys(("condition_width", "feature_width"), WIDTH),
            "num_classes": or_null(at_most(1_000_000, POSITIVE_INTEGER)),
            "mean_time": or_null(Rule(lambda time: 0 <= time <= last, f"an integer of 0 to {last}")),
        }
        check_section(self, "generator.", rules)
        check(
            not self.settings.residual or self.condition_width == self.feature_width,
            "generator.settings.residual",
            "false where condition_width and feature_width differ",
            self.settings.residual,
        )


@dataclass
class Described:
    """A saved student; ``backbone`` holds arguments of :func:`gendd.models.create_backbone`."""

    backbone: dict[str, Any]
    generator: Generator | None
    readout: ReadoutConfig
    info: dict[str, Any]
    linear: bool


@dataclass
class _Part:
    """Wrapper that gives the section its name in error messages."""

    generator: Generator


@dataclass
class _Info:
    """Validated entries of ``info``; the others are free."""

    image_size: int | None = None
    framing: float | None = None
    class_names: list[str] | None = None
    teacher_class_names: list[str] | None = None

    def __post_init__(self) -> None:
        rules = {
            "image_size": or_null(SIDE),
            "framing": or_null(Rule(lambda part: 0.01 <= part <= 1, "a number in [0.01, 1]")),
        }
        check_section(self, "info.", rules)


@dataclass
class _Informed:
    info: _Info


@dataclass
class _Read:
    readout: ReadoutConfig


def checked(config: Any) -> Described:
    """Validate the content of a ``config.json``.

    Raises:
        UserError: a key is missing, or a value has the wrong type or is out of range.
    """
    if not isinstance(config, dict):
        raise UserError(
            "expected a folder written by gendd; its config.json holds no section; restore its files."
        )
    if (found := config.get("format")) != FORMAT:
        raise UserError(
            f"expected format {FORMAT}, got {found!r}; if another version wrote it, use that one."
        )
    for key in _KEYS:
        if key not in config:
            raise UserError(f"config.json lacks {key!r}.")
    generator, info, linear = config["generator"], config["info"], config.get("linear", True)
    if generator is not None:
        generator = from_dict({"generator": generator}, _Part).generator
    check(isinstance(info, dict), "info", "a section", info)
    used = {entry.name for entry in dataclasses.fields(_Info)}
    from_dict({"info": {key: value for key, value in info.items() if key in used}}, _Informed)
    check(isinstance(linear, bool), "linear", "true or false", linear)
    readout = from_dict({"readout": config["readout"]}, _Read).readout
    return Described(checked_backbone(config["backbone"]), generator, readout, info, linear)


class _Uninitialised(TorchFunctionMode):
    """Skips ``torch.nn.init``: initialising parameters on the meta device would import PyTorch's compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def check_size(described: Described, there: int) -> None:
    """Raise :class:`UserError` if a student would have more parameters than its weights file holds."""
    backbone = described.backbone
    projector = backbone.get("projector") or {"width": 0, "hidden": 0}
    hidden = projector["hidden"]
    numbers = backbone["num_classes"] + backbone["in_channels"] + hidden * (9 * hidden + projector["width"])
    if (saved := described.generator) is not None:
        settings = dataclasses.replace(saved.settings, timesteps=2, prediction="sample")
        with torch.device("meta"), _Uninitialised():
            generator = FeatureGenerator(saved.condition_width, saved.feature_width, settings)
        numbers += sum(each.numel() for each in generator.parameters())
        numbers += (saved.num_classes or 0) * saved.feature_width
    if numbers > there:
        raise UserError(
            f"expected the network of model.safetensors in config.json, got one of at least {numbers:,} "
            f"parameters for {there:,}; restore both files."
        )
