"""Training of any method with Lightning: schedule, monitor, module, callbacks, fit."""

from gendd.data.draws import derive_seed
from gendd.training.answers import Answers, row_type
from gendd.training.cached_teacher import CachedTeacher
from gendd.training.callbacks import WAITS, shows_progress
from gendd.training.device import (
    autocast_type,
    overruns,
    resolve_device,
    resolve_precision,
    training_precision,
)
from gendd.training.graphed import GraphedSteps
from gendd.training.launch import join, restarted
from gendd.training.module import LightningMethod
from gendd.training.monitor import choose_monitor, chosen_readouts, is_share
from gendd.training.schedule import beta2, learning_rate_factor, parameter_groups
from gendd.training.trainer import FitResult, fit, placed

__all__ = [
    "WAITS",
    "Answers",
    "CachedTeacher",
    "FitResult",
    "GraphedSteps",
    "LightningMethod",
    "autocast_type",
    "beta2",
    "choose_monitor",
    "chosen_readouts",
    "derive_seed",
    "fit",
    "is_share",
    "join",
    "learning_rate_factor",
    "overruns",
    "parameter_groups",
    "placed",
    "resolve_device",
    "resolve_precision",
    "restarted",
    "row_type",
    "shows_progress",
    "training_precision",
]
