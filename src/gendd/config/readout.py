"""Section ``readout``: how logits are read from the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gendd.config.checks import check

ReadoutName = Literal["linear", "mean", "sample"]
ReadoutChoice = Literal["linear", "mean", "sample", "auto"]
SamplerName = Literal["ddpm", "ddim", "dpm-solver"]


@dataclass
class ReadoutConfig:
    """How logits are read from the student.

    Args:
        name: ``linear`` (the probe on the student's feature), ``mean`` (one head pass: E[f | z]),
            ``sample`` (generated features) or ``auto`` (the cheapest that is within 0.1 point of the best
            on the validation images).
        sampler: ``ddpm`` (ancestral, as published), ``ddim`` or ``dpm-solver`` (DPM-Solver++(2M)).
        steps: Steps of the respaced schedule.
        guidance: Scale of classifier-free guidance; 1 is none.
        num_samples: Features generated an image and averaged.
        temperature: Factor on the step noise of ddpm.
        eta: η of ddim, in [0, 1]: 0 is deterministic, 1 as noisy as ddpm.
    """

    name: ReadoutChoice = "mean"
    sampler: SamplerName = "ddpm"
    steps: int = 10
    guidance: float = 1.0
    num_samples: int = 5
    temperature: float = 1.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        for key, choices in (("name", ReadoutChoice), ("sampler", SamplerName)):
            value = getattr(self, key)
            check(
                value in get_args(choices), f"readout.{key}", f"one of {', '.join(get_args(choices))}", value
            )
        check(0 <= self.eta <= 1, "readout.eta", "a number in [0, 1]", self.eta)
        check(self.steps >= 1, "readout.steps", "a positive integer", self.steps)
        check(self.num_samples >= 1, "readout.num_samples", "a positive integer", self.num_samples)
        check(self.temperature >= 0, "readout.temperature", "a non-negative number", self.temperature)
