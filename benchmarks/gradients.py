"""Where the student's gradient comes from during GenDD's training, and how much the condition says at each t.

For one training of a method in a comparison's file, on fixed training images at the end of every epoch:

- the norm of each loss's gradient with respect to the student's weights but for its classifier, and its
  cosine to the sum of the gradients of the other distillation losses (diffusion, map, stages; the fourth is
  the linear readout's loss on the labels, with weight 1);
- on test images, the cosine of the predicted and the teacher's standardised feature at several t, with the
  image's own condition and with another image's.

    python benchmarks/gradients.py benchmarks/compare/label_weight.yaml weight_0
    DATA=… python benchmarks/gradients.py benchmarks/compare/label_weight_short.yaml weight_0 weight_03
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import records
import torch
from torch import Tensor
from torch.nn import functional as F

from gendd.compare.reading import read_plan
from gendd.config import GenDDConfig, RunConfig
from gendd.data import ImageSet, eval_loader, train_loader
from gendd.diffusion import tokens
from gendd.diffusion.loss import add_noise
from gendd.methods import GenDD
from gendd.run.experiment import opened, prepared_teacher
from gendd.run.training import untrained
from gendd.training import learning_rate_factor, resolve_device
from gendd.training.schedule import beta2

RESULTS = Path(__file__).parent / "results"
GRADIENTS = ["file", "method", "epoch", "part", "norm", "cosine"]
CONDITIONS = ["file", "method", "epoch", "t", "own", "other"]
# the losses that train the student
PARTS = ("diffusion", "map", "stages", "labels")
TIMES = (0.999, 0.9, 0.75, 0.5, 0.25, 0.1)
IMAGES = 512


def weighted(config: GenDDConfig, part: str) -> GenDDConfig:
    """Return the settings with the weights of all other losses 0."""
    return dataclasses.replace(
        config,
        diffusion_weight=config.diffusion_weight if part == "diffusion" else 0.0,
        map_weight=config.map_weight if part == "map" else 0.0,
        stage_weight=config.stage_weight if part == "stages" else 0.0,
        label_weight=1.0 if part == "labels" else 0.0,
    )


def gradients(method: GenDD, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Return norm and cosine of every loss's gradient, weighted as in the training."""
    readout = {id(each) for each in method.backbone.classifier.parameters()}
    weights = [
        each for each in method.backbone.parameters() if each.requires_grad and id(each) not in readout
    ]
    config, buffers = method.config, {name: each.clone() for name, each in method.named_buffers()}
    found: dict[str, Tensor] = {}
    for part in PARTS:
        method.config = weighted(config, part)
        out = method(images, labels, generator=torch.Generator(images.device).manual_seed(0))
        each = torch.autograd.grad(out.loss, weights, allow_unused=True, materialize_grads=True)
        found[part] = torch.cat([gradient.flatten() for gradient in each])
    method.config = config
    for name, buffer in method.named_buffers():
        buffer.copy_(buffers[name])
    rows = []
    for part, gradient in found.items():
        others = sum(found[name] for name in PARTS if name not in (part, "labels"))
        assert isinstance(others, Tensor)
        cosine = F.cosine_similarity(gradient, others, dim=0)
        rows.append({"part": part, "norm": f"{gradient.norm():.5g}", "cosine": f"{cosine:.4f}"})
    return rows


@torch.no_grad()
def conditions(method: GenDD, images: Tensor) -> list[dict[str, Any]]:
    """Return the cosine of predicted and teacher's feature with the own and another image's condition."""
    assert method.teacher is not None
    own = method.generator
    method.eval()
    targets = own.standardise(method.teacher(images)[0].float())
    condition = own.condition(method.backbone.features(images))
    x0 = tokens.split(targets, own.token_width)
    rows = x0.flatten(0, 1)
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows.device)
    found = []
    for share in TIMES:
        step = round(share * len(own.schedule))
        x_t = add_noise(rows, torch.full((len(rows),), step, device=rows.device), noise, own.schedule)
        cosines = []
        for given in (condition, condition.roll(1, 0)):
            predicted = own.denoiser(given, own.schedule)(x_t, step).x0
            merged = tokens.merge(predicted.view(len(images), own.num_tokens, -1), own.feature_width)
            cosines.append(F.cosine_similarity(merged, targets).mean())
        found.append({"t": share, "own": f"{cosines[0]:.4f}", "other": f"{cosines[1]:.4f}"})
    method.train()
    return found


def measure(file: str, name: str, config: RunConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train a method and return its rows of both results."""
    device = resolve_device(config.training.device)
    config, data, network = opened(config, {})
    teacher, _ = prepared_teacher(config, data, network, device)
    module = untrained(config, data, teacher, device)
    method = module.method
    assert isinstance(method, GenDD)
    method.prepare(train_loader(data, config.data, seed=config.seed, epoch=0))
    optimiser: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(data.train, ImageSet)
    fixed = next(iter(eval_loader(data.train, IMAGES))).to(device)
    tested = next(iter(eval_loader(data.test, IMAGES))).to(device)
    assert fixed.labels is not None
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    step = 0
    epochs = module.config.num_epochs(module.steps_per_epoch)
    for epoch in range(epochs + 1):
        key = {"file": file, "method": name, "epoch": epoch}
        found[0].extend({**key, **row} for row in gradients(method, fixed.images, fixed.labels))
        found[1].extend({**key, **row} for row in conditions(method, tested.images))
        print(*found[0][-len(PARTS) :], found[1][-len(TIMES)], sep="\n", flush=True)
        if epoch == epochs:
            break
        for number, batch in enumerate(train_loader(data, config.data, seed=config.seed, epoch=epoch)):
            rate = config.training.lr * learning_rate_factor(step, module.steps_per_epoch, config.training)
            betas = config.training.beta1, beta2(step, module.total_steps, config.training)
            for group in optimiser.param_groups:
                group["lr"], group["betas"] = rate, betas
            images, labels = module.mixed(batch.to(device), number, epoch)
            optimiser.zero_grad()
            generator = torch.Generator(device).manual_seed(step)
            method(images, labels, generator=generator).loss.backward()
            optimiser.step()
            step += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a comparison's file")
    parser.add_argument("methods", nargs="+", help="its methods to measure, of GenDD")
    given = parser.parse_args()
    plan = read_plan(given.file)
    for name in given.methods:
        group = next(each for each in plan.groups if each.method == name)
        if plan.budget is not None and plan.budget.kind != "epochs":
            raise SystemExit(f"{given.file}: expected a budget in epochs, got {plan.budget.kind}")
        epochs = 0 if plan.budget is None else int(plan.budget.amount)
        cell = plan.cell(group, plan.seeds[0], group.rates[0], epochs)
        for result, fields, rows in zip(
            ("gradients.csv", "conditions.csv"),
            (GRADIENTS, CONDITIONS),
            measure(given.file.stem, name, cell.config),
            strict=True,
        ):
            records.append(RESULTS / result, fields, rows)


if __name__ == "__main__":
    main()
