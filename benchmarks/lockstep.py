"""Train many students side by side on the same batches, behind one pass of the teacher.

For ablations and learning-rate grids: every variant sees the same images, order and augmentation, and the
teacher, which costs as much as a student's step, runs once. Optimisation is the library's own. Variants are
a JSON file, a list of {"name": …, "dotted.key": value, …} over a base configuration; a row a variant is
appended to the CSV.

    python benchmarks/lockstep.py variants.json results.csv --config base.yaml
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gendd.config import RunConfig, from_dict, to_dict
from gendd.data import Data, load_data, train_loader
from gendd.evaluation import evaluate
from gendd.methods import Method, build_method
from gendd.models import Backbone, Frozen, build_model
from gendd.training import beta2, derive_seed, learning_rate_factor, parameter_groups, resolve_precision

STATISTICS_BATCHES = 20


class Shared(Frozen):
    """A teacher that answers the same batch once."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] is not images:
            self._last = (images, super().forward(images))
        return self._last[1]


def override(base: dict[str, Any], changes: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = value
    return from_dict(values, RunConfig)


class Variant:
    def __init__(self, name: str, config: RunConfig, data: Data, teacher: Shared) -> None:
        self.name, self.config = name, config
        torch.manual_seed(derive_seed(config.seed, "student"))
        backbone = build_model(config.student, data.num_classes, data.channels)
        torch.manual_seed(derive_seed(config.seed, "method"))
        self.method: Method = build_method(config, backbone, teacher)
        self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        training = config.training
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.method, training.weight_decay), lr=training.lr, fused=True
        )
        self.seconds = 0.0

    def step(self, images: Tensor, labels: Tensor | None, step: int, per_epoch: int, bf16: bool) -> float:
        start, training = time.perf_counter(), self.config.training
        for group in self.optimiser.param_groups:
            group["lr"] = training.lr * learning_rate_factor(step, per_epoch, training)
            group["betas"] = (training.beta1, beta2(step, per_epoch * training.epochs, training))
        key = derive_seed(self.config.seed, "step", step, 0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = self.method(
                images,
                labels if self.config.data.labels else None,
                generator=torch.Generator().manual_seed(key),
            )
        self.optimiser.zero_grad()
        out.loss.backward()
        if training.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), training.clip_grad_norm)
        self.optimiser.step()
        self.seconds += time.perf_counter() - start
        return float(out.loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    base = to_dict(from_dict(yaml.safe_load(arguments.config.read_text()), RunConfig))
    changes = json.loads(arguments.variants.read_text())
    configs = {c["name"]: override(base, {k: v for k, v in c.items() if k != "name"}) for c in changes}
    first = next(iter(configs.values()))
    data = load_data(first.data)
    teacher = Shared(build_model(first.teacher, data.num_classes, data.channels))
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = resolve_precision(first.training.precision, torch.device("cpu")) == "bf16"
    variants = [Variant(name, config, data, teacher) for name, config in configs.items()]
    for variant in variants:
        loader = train_loader(data, first.data, seed=first.seed, epoch=0)
        variant.method.prepare(batch for _, batch in zip(range(STATISTICS_BATCHES), loader, strict=False))
    step = 0
    for epoch in range(first.training.epochs):
        loader = train_loader(data, first.data, seed=first.seed, epoch=epoch)
        losses = dict.fromkeys(configs, 0.0)
        for batch in loader:
            images = batch.images.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                teacher(images)
            for variant in variants:
                losses[variant.name] += variant.step(images, batch.labels, step, len(loader), bf16) / len(
                    loader
                )
            step += 1
        print(f"epoch {epoch + 1}", {name: round(value, 4) for name, value in losses.items()}, flush=True)
    fields = ["name", "changes", "epochs", "seed", "val_linear", "val_mean", "val_sample"]
    fields += ["test_linear", "test_mean", "test_sample", "student_seconds"]
    new = not arguments.results.exists()
    with arguments.results.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fields)
        if new:
            writer.writeheader()
        for variant, change in zip(variants, changes, strict=True):
            student = variant.method.student().eval()
            student.settings = variant.config.readout
            row: dict[str, Any] = {
                "name": variant.name,
                "changes": json.dumps({k: v for k, v in change.items() if k != "name"}),
                "epochs": first.training.epochs,
                "seed": first.seed,
                "student_seconds": round(variant.seconds),
            }
            for split, images_ in (("val", data.val), ("test", data.test)):
                assert images_ is not None
                for readout, score in evaluate(student, images_, readouts=student.readouts).items():
                    row[f"{split}_{readout}"] = score.as_dict()["top1"]
            writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
