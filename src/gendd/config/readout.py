"""Section ``readout``: how logits are read from the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gendd.config.checks import NON_NEGATIVE, POSITIVE_INTEGER, UNIT, check_section, one_of

ReadoutName = Literal["linear", "mean", "sample"]
ReadoutChoice = Literal["linear", "mean", "sample", "auto"]
SamplerName = Literal["ddpm", "ddim", "dpm-solver"]


_RULES = {
    "name": one_of(get_args(ReadoutChoice)),
    "sampler": one_of(get_args(SamplerName)),
    "eta": UNIT,
    "steps": POSITIVE_INTEGER,
    "num_samples": POSITIVE_INTEGER,
    "temperature": NON_NEGATIVE,
}


@dataclass
class ReadoutConfig:
    """How logits are read from the student.

    Args:
        name: ``linear`` (the probe on the student's feature), ``mean`` (one pass of the head: E[f | z]),
            ``sample`` (generated features) or ``auto``: linear or mean, whichever is better on the
            validation images (linear if it is within 0.1 point; mean without validation images).
        sampler: ``ddpm`` (ancestral, as published), ``ddim`` or ``dpm-solver`` (DPM-Solver++(2M)).
        steps: Steps of the respaced schedule.
        guidance: Scale of classifier-free guidance; 1 is none.
        num_samples: Features generated per image and averaged.
        temperature: Factor on the noise of each ddpm step.
        eta: η of ddim, in [0, 1]: 0 is deterministic, 1 as noisy as ddpm.
    """

    name: ReadoutChoice = "auto"
    sampler: SamplerName = "ddpm"
    steps: int = 10
    guidance: float = 1.0
    num_samples: int = 5
    temperature: float = 1.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_section(self, "readout.", _RULES)
