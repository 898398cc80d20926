"""Uncertainty from confidence and generated features: calibration, and out-of-distribution detection.

STUDENTS is a folder of students. Those of the digits are in folders {method}-{seed}, and missing ones are
trained by the recipe; for CIFAR-10 see trained.py.
Students that already have rows are skipped, so that a call can be repeated after an interruption.

    python benchmarks/uncertainty.py digits STUDENTS --seeds 5
    python benchmarks/uncertainty.py cifar10 STUDENTS DATA --fashion FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import records
import torch
import trained
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

import gendd
from gendd.config import DataConfig, load_config
from gendd.data import ImageSet, load_data
from gendd.data.loading import sample_loader
from gendd.evaluation.calibration import auroc, calibration, fpr
from gendd.recipes import recipe_path

RESULTS = Path(__file__).parent / "results" / "uncertainty.csv"
FIELDS = ["dataset", "method", "seed", "images", "readout", "n", "top1", "ece", "nll", "brier"]
FIELDS += ["score", "out", "auroc", "fpr95"]
BATCH = 256
SAMPLES = (8, 32)
DIGITS = ("supervised", "kd", "gendd")
SHIFT = 3


@dataclasses.dataclass
class Said:
    """A student's outputs for N images: by readout and n, probabilities (N, K) and scores (N,).

    Scores are higher for in-distribution images. Readout ``mixture`` is the mean of the probabilities of n
    generated features; n is "" for the readouts that do not sample.
    """

    probabilities: dict[tuple[str, int | str], Tensor]
    scores: dict[tuple[str, int | str, str], Tensor]


def said(student: gendd.Student, images: Tensor) -> Said:
    """Compute a student's outputs for images (N, C, H, W) in [0, 1], deterministically."""
    random = torch.Generator().manual_seed(0)
    parts: dict[Any, list[Tensor]] = {}
    for batch in torch.split(images, BATCH):
        for readout in (name for name in student.readouts if name != "sample"):
            found = student.predict(batch, readout=readout).probabilities
            parts.setdefault((readout, ""), []).append(found)
        for n in SAMPLES if student.classifier is not None else ():
            told = student.predict(batch, n, random, readout="mean")
            assert told.mixture is not None
            parts.setdefault(("mixture", n), []).append(told.mixture)
            for name in ("total", "aleatoric", "mutual_information", "spread"):
                parts.setdefault(("mixture", n, name), []).append(-getattr(told, name))
    joined = {key: torch.cat(values) for key, values in parts.items()}
    probabilities = {key: value for key, value in joined.items() if len(key) == 2}
    scores = {(*key, "max_softmax"): value.max(-1).values for key, value in probabilities.items()}
    return Said(probabilities, scores | {key: value for key, value in joined.items() if len(key) == 3})


def rows(student: gendd.Student, images: Tensor, labels: Tensor, outside: dict[str, Tensor]) -> list[Any]:
    """Return the rows of one student: one per prediction, then one per score and out-of-distribution set."""
    inside = said(student, images)
    found: list[dict[str, Any]] = []
    for (readout, n), probabilities in inside.probabilities.items():
        right = (probabilities.argmax(-1) == labels).double().mean()
        told = {name: round(value, 5) for name, value in vars(calibration(probabilities, labels)).items()}
        found.append({"readout": readout, "n": n, "top1": round(100 * float(right), 2), **told})
    for out, others in outside.items():
        scores = said(student, others).scores
        for (readout, n, name), own in inside.scores.items():
            pair = own, scores[readout, n, name]
            judged = {"auroc": round(auroc(*pair), 5), "fpr95": round(fpr(*pair), 5)}
            found.append({"readout": readout, "n": n, "score": name, "out": out, **judged})
    return found


def taken(images: ImageSet, limit: int | None) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) in [0, 1], evenly spread over a set, and their labels (N,)."""
    batches = list(sample_loader(images, BATCH, limit))
    labels = [batch.labels for batch in batches if batch.labels is not None]
    assert len(labels) == len(batches)
    return torch.cat([batch.images for batch in batches]), torch.cat(labels)


def noise(images: Tensor) -> Tensor:
    """Uniform noise, as many images of the same shape."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(0))


def shifted(images: Tensor, pixels: int = SHIFT) -> Tensor:
    """Images shifted to the right, filled with black."""
    moved = torch.zeros_like(images)
    moved[..., pixels:] = images[..., :-pixels]
    return moved


def noisy(images: Tensor, sigma: float = 0.2) -> Tensor:
    """Images with Gaussian noise of this standard deviation, clipped to [0, 1]."""
    random = torch.Generator().manual_seed(1)
    return (images + sigma * torch.randn(images.shape, generator=random)).clamp(0, 1)


def blurred(images: Tensor, sigma: float = 2.0) -> Tensor:
    """Images under a Gaussian blur of this many pixels."""
    found: Tensor = VF.gaussian_blur(images, [13, 13], [sigma, sigma])
    return found


def clothes(folder: str | None, limit: int | None) -> Tensor:
    """Return test images of Fashion-MNIST (N, 3, 32, 32), from its folder or Debian's package."""
    images, _ = taken(load_data(DataConfig("fashion-mnist", folder, validation=0)).test, limit)
    resized: Tensor = VF.resize(images, [32, 32])
    return resized.expand(-1, 3, -1, -1).contiguous()


def train(folder: Path, seeds: int) -> None:
    """Train missing students of the digits with the recipe; a seed's methods share its teacher."""
    config = load_config(recipe_path("digits"))
    for seed in range(seeds):
        for method in DIGITS:
            place = folder / f"{method}-{seed}"
            if not trained.is_student(place):
                gendd.distill(config, method=method, baselines=[], seed=seed, out=place, overwrite=True)


def measure(
    dataset: str,
    found: Iterator[tuple[str, int, Path]],
    images: ImageSet,
    limit: int | None,
    fashion: str | None,
) -> None:
    """Append the rows of students that have none yet."""
    done = {(row["dataset"], row["method"], row["seed"]) for row in records.read(RESULTS)}
    inside, labels = taken(images, limit)
    outside = {"uniform noise": noise(inside)}
    if dataset == "digits":
        outside[f"shifted {SHIFT} px"] = shifted(inside)
    else:
        outside["Fashion-MNIST"] = clothes(fashion, limit)
        outside |= {"Gaussian noise": noisy(inside), "blur": blurred(inside)}
    for method, seed, place in found:
        if (dataset, method, str(seed)) in done:
            continue
        shared = {"dataset": dataset, "method": method, "seed": seed, "images": len(inside)}
        made = [shared | row for row in rows(gendd.load(place), inside, labels, outside)]
        records.append(RESULTS, FIELDS, made)
        print(
            dataset, method, seed, {row["readout"]: row["top1"] for row in made if "top1" in row}, flush=True
        )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    digits = commands.add_parser("digits")
    digits.add_argument("students", type=Path)
    digits.add_argument("--seeds", type=int, default=5)
    digits.add_argument("--images", type=int, help="test images; all by default")
    digits.set_defaults(fashion=None)
    cifar = commands.add_parser("cifar10")
    cifar.add_argument("students", type=Path)
    cifar.add_argument("data", type=Path)
    cifar.add_argument("--images", type=int, default=2000, help="of each set; sampling is what takes long")
    cifar.add_argument("--fashion", metavar="FOLDER", help="the IDX files; by default Debian's package")
    cifar.set_defaults(seeds=None)
    given = parser.parse_args(words)
    if given.dataset == "digits":
        train(given.students, given.seeds)
        config = load_config(recipe_path("digits")).data
    else:
        config = trained.config(given.data).data
    # the training images need no decoding
    images = load_data(dataclasses.replace(config, in_memory=False)).test
    measure(given.dataset, trained.students(given.students, given.seeds), images, given.images, given.fashion)


if __name__ == "__main__":
    main()
