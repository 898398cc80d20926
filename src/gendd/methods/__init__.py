"""GenDD and the baselines it is compared with; all of one step type."""

from __future__ import annotations

from gendd.config import KDConfig, RunConfig
from gendd.methods.base import Method, StepOutput
from gendd.methods.baselines import KD, LinearProbe, Pretraining, Supervised
from gendd.methods.gendd import GenDD
from gendd.models import Backbone, Frozen


def build_method(
    config: RunConfig,
    backbone: Backbone,
    teacher: Backbone | Frozen | None,
    labels: bool | None = None,
) -> Method:
    """The method that ``config.method`` names.

    Args:
        config: The run's.
        backbone: The student.
        teacher: None for method supervised.
        labels: Whether training sees labels; None: not known yet.

    Raises:
        UserError: the method can't learn from this teacher, or not with such labels.
    """
    if config.method == "supervised":
        return Supervised(backbone)
    if config.method == "linear_probe":
        return LinearProbe(backbone)
    assert teacher is not None
    if config.method == "gendd":
        return GenDD(backbone, teacher, config.gendd, labels=labels)
    return KD(backbone, teacher, KDConfig(1.0, 1.0) if config.method == "kl" else config.kd)


__all__ = [
    "KD",
    "GenDD",
    "LinearProbe",
    "Method",
    "Pretraining",
    "StepOutput",
    "Supervised",
    "build_method",
]
