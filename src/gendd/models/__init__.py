"""Networks that return their feature as well as their logits: creation by name, weights, costs."""

from __future__ import annotations

from gendd.models.backbone import Backbone
from gendd.models.compiled import Compiled
from gendd.models.costs import count_parameters, memory_format, multiply_adds, timings
from gendd.models.feature import FeatureNetwork
from gendd.models.frozen import Asked, Frozen
from gendd.models.maps import Stages
from gendd.models.module import wrap
from gendd.models.registry import build_model, create_backbone, list_models
from gendd.models.teacher import build_teacher, teacher_class_names
from gendd.models.weights import load_weights, save_weights

__all__ = [
    "Asked",
    "Backbone",
    "Compiled",
    "FeatureNetwork",
    "Frozen",
    "Stages",
    "build_model",
    "build_teacher",
    "count_parameters",
    "create_backbone",
    "list_models",
    "load_weights",
    "memory_format",
    "multiply_adds",
    "save_weights",
    "teacher_class_names",
    "timings",
    "wrap",
]
