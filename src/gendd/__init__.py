"""Generative Distribution Distillation: knowledge distillation as conditional generation (arXiv 2507.14503).

The names listed here are the public interface; everything else may change.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendd.config import (
        DataConfig,
        GenDDConfig,
        ModelConfig,
        ReadoutConfig,
        RunConfig,
        TrainingConfig,
    )
    from gendd.deploy.export import export
    from gendd.deploy.hub import load, push_to_hub
    from gendd.errors import UserError
    from gendd.files import trusted_code
    from gendd.methods import KD, GenDD, KDConfig, Method, StepOutput, Supervised
    from gendd.models import Backbone, build_model, create_backbone, wrap
    from gendd.released import import_released
    from gendd.run import Run, distill
    from gendd.student import Student

__version__ = version("gendd")

# imported lazily: the command line answers --help without loading torch
_HOMES = {
    "gendd.config": (
        "DataConfig",
        "GenDDConfig",
        "ModelConfig",
        "ReadoutConfig",
        "RunConfig",
        "TrainingConfig",
    ),
    "gendd.errors": ("UserError",),
    "gendd.files": ("trusted_code",),
    "gendd.deploy.export": ("export",),
    "gendd.deploy.hub": ("load", "push_to_hub"),
    "gendd.methods": ("KD", "GenDD", "KDConfig", "Method", "StepOutput", "Supervised"),
    "gendd.models": ("Backbone", "build_model", "create_backbone", "wrap"),
    "gendd.released": ("import_released",),
    "gendd.run": ("Run", "distill"),
    "gendd.student": ("Student",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "KD",
    "Backbone",
    "DataConfig",
    "GenDD",
    "GenDDConfig",
    "KDConfig",
    "Method",
    "ModelConfig",
    "ReadoutConfig",
    "Run",
    "RunConfig",
    "StepOutput",
    "Student",
    "Supervised",
    "TrainingConfig",
    "UserError",
    "build_model",
    "create_backbone",
    "distill",
    "export",
    "import_released",
    "load",
    "push_to_hub",
    "trusted_code",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'gendd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
