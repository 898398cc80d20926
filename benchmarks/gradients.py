"""How noisy the student's gradient through the head is, by rows and by how times and noise are drawn.

GenDD is trained for some steps on CIFAR-10; then, at fixed weights, the gradient of the student's weights is
taken on the same images again and again, with other times and noise. Its variance is given relative to the
variance that comes of other images (of whole steps' gradients, all losses included): where that ratio is
small, more rows change nothing.

    OMP_NUM_THREADS=1 python benchmarks/gradients.py DATA
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import records
import torch
from torch import Tensor

from gendd.config import RunConfig, from_dict
from gendd.methods.gendd import GenDD
from gendd.run.experiment import opened
from gendd.run.steps import Steps
from gendd.run.teacher import freeze

RESULTS = Path(__file__).parent / "results" / "gradients.csv"
FIELDS = ["steps", "draws", "rows", "noise", "images", "ratio", "batches", "machine", "torch"]
ROWS = [1, 2, 4, 8, 16, 32]
IMAGES = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def settings(data: Path) -> RunConfig:
    values = {
        "teacher": {
            "name": "cifar/resnet56",
            "weights": str(data / "resnet56_cifar10.safetensors"),
            **IMAGES,
        },
        "student": {"name": "cifar/resnet20", **IMAGES},
        "data": {
            "name": "parquet",
            "path": str(data / "cifar10-jpeg-train.parquet"),
            "test_path": str(data / "cifar10-jpeg-test.parquet"),
            "train_images": 20000,
            "batch_size": 128,
        },
        "training": {"lr": 0.01, "precision": "fp32"},
    }
    return from_dict(values, RunConfig)


def independent(count: int, images: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Times u (M, B, 1) in [0, 1) and noise (M, B, 1, C)."""
    u = torch.rand(count, images, 1, generator=generator)
    return u, torch.randn(count, images, 1, width, generator=generator)


def stratified(count: int, images: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One time of each M-th part of an image's."""
    u, noise = independent(count, images, width, generator)
    return (u + torch.arange(count).view(-1, 1, 1)) / count, noise


def paired(count: int, images: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Stratified, and each two rows have opposite noise."""
    u, noise = stratified(count, images, width, generator)
    return u, torch.cat([noise[: count - count // 2], -noise[: count // 2]])


DRAWS: dict[str, Callable[[int, int, int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "independent": independent,
    "stratified": stratified,
    "stratified, opposite noise": paired,
}


def gradient(method: GenDD, loss: Tensor) -> Tensor:
    """Of the student's weights, one vector."""
    weights = [p for p in method.backbone.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]
    return torch.cat([each.flatten() for each in flat])


def through_head(method: GenDD, images: Tensor, labels: Tensor, draws: str, rows: int, seed: int) -> Tensor:
    """The gradient of the diffusion loss alone."""
    generator = torch.Generator().manual_seed(seed)
    feature, taught, logits, _ = method._look(images)
    targets = method.targets(taught, logits, labels)
    u, noise = DRAWS[draws](rows, len(images), method.generator.token_width, generator)
    config = method.config
    t = ((1 - (1 - u).pow(config.time_power)) * config.timesteps).long().clamp(max=config.timesteps - 1)
    found = method.generator.loss_rows(
        targets, method.generator.condition(feature), t.flatten(), noise.flatten(0, 2)
    )
    return gradient(method, found.mse.mean())


def variance(vectors: list[Tensor]) -> float:
    """Mean squared distance to the mean, unbiased."""
    stacked = torch.stack(vectors)
    return float((stacked - stacked.mean(0)).square().sum(1).sum() / (len(vectors) - 1))


def measure(data: Path, steps: int, batches: int, repeats: int) -> list[dict[str, Any]]:
    config, images, network = opened(settings(data), {})
    device = torch.device("cpu")
    assert network is not None
    taken = Steps(config, images, freeze(network, config, device), device)
    method = taken.module.method
    assert isinstance(method, GenDD) and method.generator.num_tokens == 1
    while taken.taken < steps:
        taken.take()
        if taken.taken % 50 == 0:
            print(f"step {taken.taken} of {steps}", flush=True)
    given = [next(taken._batches) for _ in range(batches)]
    whole = [
        gradient(method, method(each.images, each.labels, generator=torch.Generator().manual_seed(0)).loss)
        for each in given
    ]
    of_images = variance(whole)
    rows = []
    for draws in DRAWS:
        for count in ROWS:
            spread = [
                variance(
                    [
                        through_head(method, each.images, each.labels, draws, count, seed)
                        for seed in range(repeats)
                    ]
                )
                for each in given[:4]
                if each.labels is not None
            ]
            noise = sum(spread) / len(spread)
            place = (platform.processor() or platform.machine(), torch.__version__)
            values = (steps, draws, count, f"{noise:.4g}", f"{of_images:.4g}", f"{noise / of_images:.4g}")
            rows.append(dict(zip(FIELDS, (*values, batches, *place), strict=True)))
            print(*values, flush=True)
    return rows


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, help="holds CIFAR-10's parquet files and the teacher")
    parser.add_argument("--steps", type=int, default=300, help="trained before")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=6, help="draws of the same images")
    given = parser.parse_args()
    rows = measure(given.data, given.steps, given.batches, given.repeats)
    records.replace(RESULTS, FIELDS, {"steps": str(given.steps)}, rows)


if __name__ == "__main__":
    main()
