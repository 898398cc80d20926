"""Build the method of a run."""

from __future__ import annotations

from gendd.config import RunConfig, registry
from gendd.methods.base import Method
from gendd.models import Backbone, Frozen


def build_method(
    config: RunConfig,
    backbone: Backbone,
    teacher: Backbone | Frozen | None,
    labels: bool | None = None,
) -> Method:
    """Build the method named by ``config.method``.

    Args:
        config: The run's configuration.
        backbone: The student.
        teacher: The teacher; None for a method without one.
        labels: Whether training sees labels; None: not known yet.

    Raises:
        UserError: the method can't learn from this teacher or with these labels.
    """
    method = registry.method_class(config.method)
    return method(
        backbone,
        teacher if method.needs_teacher else None,
        config.settings_of(config.method),
        labels=labels,
    )
