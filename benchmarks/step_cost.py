"""Cost of a training step compared with the published one, and its scaling.

`published`: steps of ResNet-56 → ResNet-20 on images of 32 pixels in turns: KD's; GenDD's as published,
computed as in the released code (every row has its own token, condition and position, and every layer
processes all of them); the same mathematics computed as in gendd; the matrix products of that head alone,
forward and backward, which every implementation computes; and GenDD's with its defaults, with the
teacher or its cached answers. Loss and gradients of the first two GenDD variants are also compared.
`growth`: a step of networks of negligible cost, so that the method is timed, against the teacher's width D,
repeats M, batch, classes K, and an epoch against its images. Each time is a median over turns.
`draw`: the curves.

    OMP_NUM_THREADS=1 python benchmarks/step_cost.py published
    OMP_NUM_THREADS=1 python benchmarks/step_cost.py growth
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import records
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from throughput import CASES, Training
from torch import Tensor, nn

from gendd.config import DataConfig, GenDDConfig, read_yaml
from gendd.data import Batch, Data, ImageSet, train_loader
from gendd.diffusion import LossRows, add_noise, diffusion_loss, time_embedding, tokens
from gendd.methods.gendd import GenDD
from gendd.models import wrap
from gendd.recipes import recipe_path
from gendd.student.generator import FeatureGenerator

RESULTS = Path(__file__).parent / "results"
STEPS_FIELDS = ["arm", "repeat", "ms", "batch"]
GROWTH_FIELDS = ["axis", "value", "repeat", "ms"]
AXES = {
    "D": [64, 128, 256, 512, 1024, 2048],
    "M": [1, 2, 4, 8, 16, 32],
    "batch": [32, 64, 128, 256, 512],
    "K": [10, 100, 1000, 10_000],
    "images": [512, 1024, 2048, 4096],
}
LABELS = {
    "D": "teacher's width D",
    "M": "repeats M",
    "batch": "images of a step",
    "K": "classes K",
    "images": "images of an epoch",
}


def row_by_row(
    own: FeatureGenerator,
    targets: Tensor,
    condition: Tensor,
    t: Tensor,
    noise: Tensor,
    keep: Tensor | None = None,
) -> LossRows:
    """:meth:`FeatureGenerator.loss_rows` without sharing any computation between rows."""
    images, head = len(targets), own.head
    repeats = len(t) // (images * own.num_tokens)
    x0 = tokens.split(targets, own.token_width).flatten(0, 1).repeat(repeats, 1)
    z = condition.repeat_interleave(own.num_tokens, 0).repeat(repeats, 1)
    position = torch.arange(own.num_tokens).repeat(images).repeat(repeats)
    if keep is not None:
        z = torch.where(keep.unsqueeze(-1), z, torch.zeros_like(z))
    x_t = add_noise(x0, t, noise, own.schedule)
    y = head.time(time_embedding(t)) + head.condition(z) + head.position(position)
    x = head.input(x_t)
    for block in head.blocks:
        assert isinstance(block.modulation, nn.Linear) and isinstance(block.mlp, nn.Sequential)
        shift, scale, gate = block.modulation(nn.functional.silu(y)).chunk(3, dim=-1)
        assert isinstance(block.norm, nn.LayerNorm)
        x = x + gate * block.mlp(block.norm(x) * (1 + scale) + shift)
    shift, scale = head.final_modulation(nn.functional.silu(y)).chunk(2, dim=-1)
    output = head.final(head.final_norm(x) * (1 + scale) + shift)
    return diffusion_loss(output, x0, x_t, t, noise, own.schedule, own.prediction)


def training(settings: Mapping[str, Any], batch: int, rows: bool = False) -> Training:
    made = Training(dict(settings), replace(CASES["small"], batch=batch), "fp32", torch.device("cpu"), False)
    if rows:
        generator = gendd_of(made).generator
        vars(generator)["loss_rows"] = MethodType(row_by_row, generator)
    return made


def gendd_of(made: Training) -> GenDD:
    assert isinstance(made.method, GenDD)
    return made.method


def deviation(one: Training, other: Training) -> tuple[float, float]:
    """Return the relative differences in loss and gradient of a step with the same weights and draws."""
    # a head initialised to zero has gradients only in its last layer
    generator = torch.Generator().manual_seed(1)
    for parameter in one.method.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    other.method.load_state_dict(one.method.state_dict())
    losses, gradients = [], []
    for each in (one, other):
        each.method.zero_grad()
        out = each.method(each.images, each.labels, generator=torch.Generator().manual_seed(2))
        out.loss.backward()
        losses.append(float(out.loss.detach()))
        found = [p.grad.flatten() for p in each.method.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    apart = float((gradients[0] - gradients[1]).norm() / gradients[0].norm())
    return abs(losses[0] - losses[1]) / losses[0], apart


def published(repeats: int, batch: int) -> None:
    """Time the arms in turns."""
    settings = {"method": "gendd", "gendd": read_yaml(recipe_path("published"))["gendd"]}
    released, ours = training(settings, batch, rows=True), training(settings, batch)
    arms: dict[str, Training | Products] = {
        "released": released,
        "published": ours,
        "matrix products of the published head": Products(ours),
        "defaults": training({"method": "gendd"}, batch),
        "defaults, teacher kept": kept(training({"method": "gendd"}, batch)),
        "KD": training({"method": "kd"}, batch),
        "student alone": training({"method": "supervised"}, batch),
    }
    loss, gradient = deviation(released, ours)
    print(f"released and published: loss {loss:.1e}, gradients {gradient:.1e} apart")
    if max(loss, gradient) > 1e-5:
        raise SystemExit("expected the same mathematics to 1e-5")
    rows = []
    times: dict[str, list[float]] = {name: [] for name in arms}
    for each in arms.values():
        each.seconds(1)
    for repeat in range(repeats):
        for name, each in arms.items():
            taken = 1000 * each.seconds(1 if name in ("released", "published") else 3)
            times[name].append(taken)
            rows.append(dict(zip(STEPS_FIELDS, (name, repeat, f"{taken:.1f}", batch), strict=True)))
    records.write(RESULTS / "step_cost.csv", STEPS_FIELDS, rows)
    for name, own in times.items():
        ratios = [one / other for one, other in zip(times["released"], own, strict=True)]
        print(f"released / {name}: {statistics.median(ratios):.2f}")


def kept(made: Training) -> Training:
    """Replace the teacher by one that answers at no cost."""
    teacher = made.method.teacher
    assert teacher is not None
    answer = teacher.with_stages(made.images, made.method.asked_stages)
    vars(teacher)["with_stages"] = lambda images, asked: answer
    return made


class Products:
    """The matrix products of a training's head: of every layer's output, and of its two gradients."""

    def __init__(self, made: Training) -> None:
        method, images = gendd_of(made), len(made.images)
        head = method.generator.head
        self.layers: list[tuple[Tensor, Tensor, Tensor, bool]] = []
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                # the condition is the same for all rows of an image
                rows = images if layer is head.condition else method.rows(images)
                x, gradient = torch.randn(rows, layer.in_features), torch.randn(rows, layer.out_features)
                # noise and times have no gradients
                inner = layer not in (head.time[0], head.input)
                self.layers.append((layer.weight.detach(), x, gradient, inner))

    def seconds(self, steps: int) -> float:
        """Return the mean seconds of all products."""
        start = time.perf_counter()
        for _ in range(steps):
            for weight, x, gradient, inner in self.layers:
                x @ weight.T
                gradient.T @ x
                if inner:
                    gradient @ weight
        return (time.perf_counter() - start) / steps


class Free(nn.Module):
    """A network of negligible cost: a linear map of 16 pixels."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.map = nn.Linear(16, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.map(images.flatten(1)))
        return logits


class Pooled:
    """GenDD's step with networks of negligible cost."""

    def __init__(self, width: int = 512, repeats: int = 8, batch: int = 128, classes: int = 10) -> None:
        torch.manual_seed(0)
        student, teacher = (
            wrap(Free(d, classes), in_channels=1, mean=[0.0], std=[1.0], input_size=4) for d in (64, width)
        )
        config = GenDDConfig(repeats=repeats, head_width=128)
        self.method = GenDD(student, teacher, config, labels=True).train()
        self.images = ImageSet(
            torch.randint(0, 256, (batch, 1, 4, 4), dtype=torch.uint8), torch.arange(batch) % classes, 1, 4
        )
        names = [str(number) for number in range(classes)]
        self.data = Data("free", self.images, None, self.images, names, 1, 4, "crop-flip")
        self.config = DataConfig(batch_size=min(batch, 128) if batch > 512 else batch)
        self.optimiser = torch.optim.AdamW(self.method.parameters(), lr=1e-4, fused=True)
        self.method.prepare([Batch(self.images.images(range(16)).float() / 255, torch.arange(16) % classes)])

    def __call__(self) -> float:
        """Return the milliseconds of an epoch, which is one step for up to 512 images."""
        began = time.perf_counter()
        for batch in train_loader(self.data, self.config, seed=0, epoch=0):
            self.optimiser.zero_grad()
            self.method(batch.images, batch.labels).loss.backward()
            self.optimiser.step()
        return 1000 * (time.perf_counter() - began)


def growth(repeats: int) -> None:
    """Time every value of every axis, the values of an axis in turns."""
    made: dict[str, Callable[[int], Pooled]] = {
        "D": lambda value: Pooled(width=value),
        "M": lambda value: Pooled(repeats=value),
        "batch": lambda value: Pooled(batch=value),
        "K": lambda value: Pooled(classes=value),
        "images": lambda value: Pooled(batch=value),
    }
    rows = []
    for axis, values in AXES.items():
        arms = {value: made[axis](value) for value in values}
        for arm in arms.values():
            arm()
        for repeat in range(repeats):
            for value, arm in arms.items():
                rows.append(dict(zip(GROWTH_FIELDS, (axis, value, repeat, f"{arm():.2f}"), strict=True)))
        found = medians(rows, axis)
        print(axis, ", ".join(f"{value}: {ms:.1f} ms" for value, ms in found.items()), flush=True)
    records.write(RESULTS / "step_growth.csv", GROWTH_FIELDS, rows)


def medians(rows: list[dict[str, Any]], axis: str) -> dict[int, float]:
    """Return the median of each value of an axis."""
    found: dict[int, list[float]] = {}
    for each in rows:
        if each["axis"] == axis:
            found.setdefault(int(each["value"]), []).append(float(each["ms"]))
    return {value: statistics.median(times) for value, times in sorted(found.items())}


def draw() -> None:
    """Draw the scaling curves with a straight line through zero and the last point."""
    rows: list[dict[str, Any]] = [dict(each) for each in records.read(RESULTS / "step_growth.csv")]
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, axis in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        found = medians(rows, axis)
        values, times = list(found), list(found.values())
        axes.plot([0, values[-1]], [0, times[-1]], color="#bbbbbb", linewidth=1)
        axes.plot(values, times, color="#0072b2", marker="o", markersize=3)
        axes.set_xlabel(LABELS[axis])
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("ms")
    figure.savefig(RESULTS / "step_growth.png", dpi=150)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("what", choices=["published", "growth", "draw"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128, help="of the published step")
    given = parser.parse_args()
    if given.what == "published":
        published(given.repeats, given.batch)
    elif given.what == "growth":
        growth(given.repeats)
    draw()


if __name__ == "__main__":
    main()
