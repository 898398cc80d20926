"""Learning rate, β2 and weight decay per step and parameter."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gendd.config import TrainingConfig
from gendd.methods import Method


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Factor on the peak learning rate at an optimiser step, counted from 0."""
    total = config.num_epochs(steps_per_epoch) * steps_per_epoch
    warmup = round(0.1 * total if config.warmup_epochs is None else config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "cosine":
        floor = config.min_lr / config.lr
        progress = (step - warmup) / max(1, total - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return config.gamma ** sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
    return 1.0


def beta2(step: int, total_steps: int, config: TrainingConfig) -> float:
    """Adam's β2 at a step: a half cosine from its start to its end value."""
    start, end = config.beta2
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps - 1))))


def parameter_groups(method: Method, weight_decay: float, decay_all: bool = False) -> list[dict[str, Any]]:
    """Parameter groups with and without decay; 1-d ones (unless ``decay_all``) and exempt ones have none."""
    exempt = {id(parameter) for parameter in method.undecayed()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in method.parameters():
        if parameter.requires_grad:
            spared = id(parameter) in exempt or (parameter.ndim < 2 and not decay_all)
            (plain if spared else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
