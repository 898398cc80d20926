"""GenDD and the methods it is compared with: one interface, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gendd.methods._build import build_method
    from gendd.methods._pretraining import Pretraining
    from gendd.methods.base import Method, StepOutput
    from gendd.methods.gendd import GenDD
    from gendd.methods.kd import KD, KDConfig
    from gendd.methods.kl import KL
    from gendd.methods.linear_probe import LinearProbe
    from gendd.methods.supervised import Supervised

# imported lazily: the configuration only needs names and does not load torch
_HOMES = {
    "build_method": "_build",
    "Pretraining": "_pretraining",
    "Method": "base",
    "StepOutput": "base",
    "GenDD": "gendd",
    "KD": "kd",
    "KDConfig": "kd",
    "KL": "kl",
    "LinearProbe": "linear_probe",
    "Supervised": "supervised",
}

__all__ = [
    "KD",
    "KL",
    "GenDD",
    "KDConfig",
    "LinearProbe",
    "Method",
    "Pretraining",
    "StepOutput",
    "Supervised",
    "build_method",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"gendd.methods.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gendd.methods' has no attribute {name!r}")
