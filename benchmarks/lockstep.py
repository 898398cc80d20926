"""Train many students side by side on the same batches, behind one pass of the teacher.

For ablations and learning-rate grids: every variant sees the same images in the same order with the same
augmentation, and the teacher, which costs about as much as a student's step, runs once. Optimisation is the
library's own. Readout sample, which can take longest of all, is only measured for the best variant of each
name on the validation images (by agreement if they have no labels).
Test results are top-1, or the agreement with a teacher whose classes are not those of the images.
Variants are a JSON file, a list of {"name": …, "dotted.key": value, …} over a base configuration; one row per
variant is appended to the CSV. Seconds include a variant's own steps, the loading of the batches and, unless
it is trained on labels alone, the teacher's passes.

    python benchmarks/lockstep.py variants.json results.csv --config base.yaml
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import records
import torch
import yaml
from torch import Tensor

from gendd.config import ReadoutName, RunConfig, from_dict, to_dict
from gendd.data import Batch, Data, ImageSet, load_data, train_loader
from gendd.evaluation import Scores, evaluate
from gendd.evaluation.embedding import collect_features
from gendd.evaluation.long_tail import Shots, shots_of
from gendd.methods import Method, build_method
from gendd.models import Backbone, Frozen
from gendd.run.networks import student_network, teacher_network
from gendd.student import Student
from gendd.student.readout import choose_mean_time
from gendd.training import beta2, derive_seed, learning_rate_factor, parameter_groups, resolve_precision

STATISTICS_BATCHES = 20
FIELDS = ["name", "changes", "epochs", "seed", "lr", "val_linear", "val_mean"]
FIELDS += ["test_linear", "test_mean", "test_sample", "train_seconds"]
# for long-tailed training sets: top-1 of classes with many, a medium number and few images
GROUPS = ["groups_linear", "groups_mean", "groups_sample"]


class Shared(Frozen):
    """A teacher that computes each batch once, and counts its seconds."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.seconds = 0.0
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] is not images:
            start = time.perf_counter()
            self._last = (images, super().forward(images))
            self.seconds += time.perf_counter() - start
        return self._last[1]


def override(base: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Return ``base`` with dotted keys changed."""
    values = to_dict(base)
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = value
    return from_dict(values, RunConfig)


class Variant:
    """One student in training."""

    def __init__(self, change: dict[str, Any], base: RunConfig, data: Data, teacher: Shared) -> None:
        self.name = change["name"]
        self.changes = {key: value for key, value in change.items() if key != "name"}
        self.config = config = override(base, self.changes)
        torch.manual_seed(derive_seed(config.seed, "student"))
        backbone = student_network(config, data, teacher, None)
        torch.manual_seed(derive_seed(config.seed, "method"))
        self.method: Method = build_method(config, backbone, teacher)
        self.method.to(memory_format=torch.channels_last)
        groups = parameter_groups(self.method, config.training.weight_decay)
        self.optimiser = torch.optim.AdamW(groups, lr=config.training.lr, fused=True)
        self.seconds = 0.0
        self.validation: dict[str, float | None] = {}

    def foreign(self, data: Data) -> bool:
        """Whether its classes are not those of the images, so that only the teacher can score it."""
        return self.method.backbone.num_classes != data.num_classes

    def step(self, batch: Batch, step: int, per_epoch: int, bf16: bool) -> float:
        start, training = time.perf_counter(), self.config.training
        for group in self.optimiser.param_groups:
            group["lr"] = training.lr * learning_rate_factor(step, per_epoch, training)
            group["betas"] = (training.beta1, beta2(step, per_epoch * training.epochs, training))
        key = derive_seed(self.config.seed, "step", step, 0)
        labels = batch.labels if self.config.data.labels else None
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = self.method(batch.images, labels, generator=torch.Generator().manual_seed(key))
        self.optimiser.zero_grad()
        out.loss.backward()
        if training.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), training.clip_grad_norm)
        self.optimiser.step()
        self.seconds += time.perf_counter() - start
        return float(out.loss.detach())

    def scores(
        self,
        student: Student,
        data: Data,
        images: ImageSet,
        readouts: tuple[ReadoutName, ...],
        shots: Shots | None = None,
    ) -> tuple[dict[ReadoutName, Scores], str]:
        """Return scores on images of the data, and which of their metrics to use."""
        said = images.labels is None or self.foreign(data)
        teacher = self.method.teacher if said else None
        scores = evaluate(
            student, images, readouts=readouts, shots=shots, num_classes=data.num_classes, teacher=teacher
        )
        return scores, "agreement" if said else "top1"

    def validate(self, data: Data) -> float:
        """Score every one-pass readout on the validation images; return the better of the two that choose."""
        assert data.val is not None
        student = self.method.student().eval()
        if student.generator is not None and student.classifier is not None:
            held = collect_features(student, self.method.teacher, data.val)
            assert held.teacher is not None
            choose_mean_time(student.generator, student.classifier, held.own, held.teacher)
        scores, figure = self.scores(student, data, data.val, student.readouts[:2])
        self.validation = {f"val_{name}": score.as_dict()[figure] for name, score in scores.items()}
        return float(self.validation.get("val_mean") or self.validation["val_linear"] or 0)

    def student(self, data: Data) -> Student:
        """Return the current student, with the configured sampler."""
        student = self.method.student().eval()
        if not self.foreign(data):
            student.info["class_names"] = data.class_names
        student.info |= {"image_size": data.image_size, "framing": data.test.framing}
        if len(student.readouts) > 1:
            student.settings = self.config.readout
        return student

    def row(self, data: Data, shared_seconds: float, teacher_seconds: float, sampled: bool) -> dict[str, Any]:
        config, student = self.config, self.student(data)
        seconds = self.seconds + shared_seconds
        seconds += 0 if config.method == "supervised" else teacher_seconds
        row: dict[str, Any] = {
            "name": self.name,
            "changes": json.dumps(self.changes),
            "epochs": config.training.epochs,
            "seed": config.seed,
            "lr": config.training.lr,
            "train_seconds": round(seconds),
        }
        readouts = student.readouts if sampled else student.readouts[:2]
        scores, figure = self.scores(student, data, data.test, readouts, shots_of(data, config.data))
        for readout, score in scores.items():
            row[f"test_{readout}"] = score.as_dict()[figure]
            if score.groups is not None:
                top1 = {name: group["top1"] for name, group in score.groups.items()}
                row[f"groups_{readout}"] = json.dumps(top1)
        return row | self.validation


def _set_up(base: RunConfig, changes: list[dict[str, Any]]) -> tuple[Data, Shared, list[Variant], bool]:
    """Return the data, the teacher, the variants ready to train, and whether to compute in bf16."""
    data = load_data(base.data)
    network = teacher_network(base, data, {})
    assert network is not None
    teacher = Shared(network)
    teacher.to(memory_format=torch.channels_last)
    bf16 = resolve_precision(base.training.precision, torch.device("cpu")) == "bf16"
    variants = [Variant(change, base, data, teacher) for change in changes]
    for variant in variants:
        loader = train_loader(data, base.data, seed=base.seed, epoch=0)
        variant.method.prepare(batch for _, batch in zip(range(STATISTICS_BATCHES), loader, strict=False))
    return data, teacher, variants, bf16


def run(base: RunConfig, changes: list[dict[str, Any]], results: Path, students: Path | None = None) -> None:
    """Train the variants and append their rows.

    Args:
        base: Shared configuration.
        changes: A name and dotted keys for each variant.
        results: The CSV.
        students: Where to save the best of each name, in a folder named by name and seed.
    """
    data, teacher, variants, bf16 = _set_up(base, changes)
    teacher.seconds = step = 0
    loading = 0.0
    for epoch in range(base.training.epochs):
        start = time.perf_counter()
        loader = train_loader(data, base.data, seed=base.seed, epoch=epoch)
        losses = [0.0] * len(variants)
        for raw in loader:
            batch = Batch(raw.images.contiguous(memory_format=torch.channels_last), raw.labels)
            loading += time.perf_counter() - start
            if any(variant.config.method != "supervised" for variant in variants):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    teacher(batch.images)
            for index, variant in enumerate(variants):
                losses[index] += variant.step(batch, step, len(loader), bf16) / len(loader)
            step += 1
            start = time.perf_counter()
        shown = {variant.name: round(loss, 4) for variant, loss in zip(variants, losses, strict=True)}
        print(f"epoch {epoch + 1}", shown, flush=True)
    best: dict[str, tuple[float, Variant]] = {}
    for variant in variants:
        found = variant.validate(data)
        if variant.name not in best or found > best[variant.name][0]:
            best[variant.name] = (found, variant)
    fields = FIELDS if data.class_counts is None or not data.long_tailed else [*FIELDS, *GROUPS]
    for variant in variants:
        chosen = best[variant.name][1] is variant
        if chosen and students is not None:
            variant.student(data).save(students / f"{variant.name}-{variant.config.seed}")
        row = variant.row(data, loading, teacher.seconds, chosen)
        records.append(results, fields, [row])
        print(row, flush=True)


def step_seconds(base: RunConfig, changes: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Return the median seconds per step of each variant, including batch and teacher's pass, side by side.

    Args:
        base: Shared configuration.
        changes: A name and dotted keys for each variant.
        steps: Number of steps to time, after three warm-up steps.
    """
    data, teacher, variants, bf16 = _set_up(base, changes)
    loader = train_loader(data, base.data, seed=base.seed, epoch=0)
    found: dict[str, list[float]] = {name: [] for name in ("loading", "teacher", *(v.name for v in variants))}
    batches = iter(loader)
    for step in range(steps + 3):
        start = time.perf_counter()
        raw = next(batches)
        batch = Batch(raw.images.contiguous(memory_format=torch.channels_last), raw.labels)
        found["loading"].append(time.perf_counter() - start)
        teacher.seconds = 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            teacher(batch.images)
        found["teacher"].append(teacher.seconds)
        for variant in variants:
            variant.seconds = 0.0
            variant.step(batch, step, len(loader), bf16)
            found[variant.name].append(variant.seconds)
    median = {name: statistics.median(values[3:]) for name, values in found.items()}
    return {
        variant.name: median[variant.name]
        + median["loading"]
        + (0 if variant.config.method == "supervised" else median["teacher"])
        for variant in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("variants", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--students", type=Path, help="folder to save the best student of each name in")
    arguments = parser.parse_args()
    base = from_dict(yaml.safe_load(arguments.config.read_text()), RunConfig)
    run(base, json.loads(arguments.variants.read_text()), arguments.results, arguments.students)


if __name__ == "__main__":
    main()
