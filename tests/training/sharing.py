"""A training and its scores in any number of processes; the first saves the results of all."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from started import run_gendd
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gendd.config import DataConfig, ReadoutConfig, TrainingConfig
from gendd.data import load_data
from gendd.evaluation import evaluate
from gendd.evaluation.embedding import collect_features
from gendd.methods import KD, GenDD, Method
from gendd.methods.mgd import MGD
from gendd.models import Frozen, create_backbone, wrap
from gendd.processes import is_first, rank
from gendd.training import fit, join
from gendd.training.sharding import shard_teacher

# kd has one process without validation images; mgd has none at all, and steps of two batches
METHODS = ("gendd", "kd", "mgd", "kd_average")
STEPS = 20
# within the second epoch
STOPPED = 15
# the steps after which a training is interrupted
stops: list[int] = []


class StoppedError(Exception):
    """A training is interrupted on purpose."""


class Plain(nn.Module):
    """A network without BatchNorm, whose gradient is a mean over images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 16, 3, 1, 1), nn.GELU(), nn.Dropout(0.0)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(images).mean((2, 3)))
        return found


def methods() -> dict[str, Method]:
    """Methods whose loss is a mean over images."""
    torch.manual_seed(9)
    teacher = create_backbone("cifar/resnet8x0.5", 10, in_channels=1)
    made: dict[str, Method] = {}
    for name in METHODS:
        torch.manual_seed(3)
        student = wrap(Plain(), mean=[0.5], std=[0.25], in_channels=1)
        if name == "gendd":
            made[name] = GenDD(
                student,
                teacher,
                token_width=16,
                head_width=16,
                head_depth=1,
                repeats=2,
                map_weight=0.0,
                mixup=1.0,
                condition_dropout=0.3,
                zero_init=False,
            )
        else:
            made[name] = MGD(student, teacher) if name == "mgd" else KD(student, teacher)
    return made


def command(folder: Path, *words: str | Path) -> None:
    """Run ``python -m gendd WORDS`` and return if it succeeds; the process id is in FOLDER/RANK.pid."""
    (folder / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    try:
        run_gendd(*words)
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        atexit._run_exitfuncs()


def find(folder: Path, batch_size: int, *strategies: str) -> None:
    """Train with each strategy and save the result to FOLDER/STRATEGY.pt."""
    torch.set_num_threads(1)
    gradients: list[dict[str, Tensor]] = []
    torch.optim.AdamW.step = watched(torch.optim.AdamW.step, gradients)  # type: ignore[method-assign]
    for strategy in strategies:
        found = trained(folder / strategy, batch_size, strategy, gradients)
        if is_first():
            torch.save(found, folder / f"{strategy}.pt")


def trained(
    folder: Path, batch_size: int, strategy: str, gradients: list[dict[str, Tensor]]
) -> dict[str, Any]:
    training = TrainingConfig(
        epochs=2,
        lr=0.02,
        precision="fp32",
        device="cpu",
        loggers=["csv"],
        clip_grad_norm=1.0,
        progress=False,
        strategy=strategy,  # type: ignore[arg-type]
    )
    join(training, torch.device("cpu"))
    found: dict[str, Any] = {}
    whole_training = training
    for name, method in methods().items():
        if name == "kd_average" and strategy == "fsdp":
            continue
        gradients.clear()
        accumulate = 2 if name == "mgd" else 1
        training = dataclasses.replace(
            whole_training, accumulate=accumulate, ema=0.9 if name == "kd_average" else None
        )
        # with 3 validation images one process has none
        held = {"kd": 3, "mgd": 0}.get(name, 150)
        config = DataConfig(
            batch_size=batch_size // accumulate,
            train_images=640,
            validation=held / 1438,
            mixup=0.3,
            cutmix=1.0,
        )
        data = load_data(config)
        result = fit(method, data, training, config, seed=0, folder=folder / name)
        student = method.student().eval()
        student.settings = ReadoutConfig("linear", steps=3, num_samples=2)
        scores = evaluate(student, data.test, teacher=method.teacher, num_classes=10)
        features = collect_features(student, method.teacher, data.test, limit=300)
        found[name] = {
            "gradients": list(gradients),
            "best": result.best,
            "scores": {
                each: (score.top1, score.top5, score.agreement, score.confusion, score.images)
                for each, score in scores.items()
            },
            "features": vars(features),
            "weights": method.state_dict(),
        }
        if strategy == "fsdp":
            often = dataclasses.replace(training, checkpoint_minutes=1e-6)
            gradients.clear()
            stops.append(STOPPED)
            with contextlib.suppress(StoppedError):
                fit(methods()[name], data, often, config, seed=0, folder=folder / "again" / name)
            again = methods()[name]
            # kd is resumed with the other strategy
            other = dataclasses.replace(training, strategy="ddp" if name == "kd" else "fsdp")
            fit(again, data, other, config, seed=0, folder=folder / "again" / name, resume=True)
            found[name]["resumed"] = again.state_dict()
    if strategy == "fsdp":
        found["teachers"] = {name: sharded(name) for name in ("timm/test_vit", "cifar/resnet8")}
    return found


def sharded(name: str) -> dict[str, Any]:
    """A network's outputs whole and sharded, and this process's share of its weights."""
    torch.manual_seed(5)
    whole = Frozen(create_backbone(name, 10))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(rank()))
    parts = shard_teacher(whole, torch.device("cpu"))
    said = {"whole": whole.with_stages(images), "sharded": parts.with_stages(images)}
    kept = sum(each.to_local().numel() for each in parts.parameters() if isinstance(each, DTensor))
    return said | {"share": kept / sum(each.numel() for each in whole.parameters())}


def watched(step: Any, gradients: list[dict[str, Tensor]]) -> Any:
    """Wrap an optimiser's step to record the gradients."""

    def noted(self: torch.optim.Optimizer, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        gradients.append(
            {
                str(place): whole(value.grad)
                for place, value in enumerate(each for group in self.param_groups for each in group["params"])
                if value.grad is not None
            }
        )
        found = step(self)
        if stops == [len(gradients)]:
            stops.clear()
            raise StoppedError
        return found

    return noted


def whole(value: Tensor) -> Tensor:
    """Copy a tensor; a sharded one is gathered first."""
    return value.full_tensor() if isinstance(value, DTensor) else value.clone()
