"""CIFAR-10 as JPEGs, ResNet-56 → ResNet-20, 20,000 training images, 10 epochs: every method at every rate.

DATA is a folder with cifar10-jpeg-train.parquet, cifar10-jpeg-test.parquet (columns image, label) and
resnet56_cifar10.safetensors. Run the whole learning-rate grid with the first seed; `benchmarks/tables.py`
reports the best rate of each method on the validation images, so further seeds need only that one:

    python benchmarks/cifar10.py DATA --seed 0 --methods supervised kl kd
    python benchmarks/cifar10.py DATA --seed 1 --best
    python benchmarks/cifar10.py DATA --seconds 40
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lockstep
import records
import torch

from gendd.config import RunConfig, from_dict, read_yaml
from gendd.data import Data, load_data
from gendd.models import Frozen, build_model
from gendd.recipes import recipe_path

RESULTS = Path(__file__).parent / "results" / "cifar10.csv"
SECONDS = RESULTS.with_name("cifar10_seconds.csv")
RATES = (0.003, 0.006, 0.012)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

published = {f"gendd.{key}": value for key, value in read_yaml(recipe_path("published"))["gendd"].items()}
# the published head and repeats would cost ten times a student's step here, so both variants use small ones
published |= {"gendd.head_width": 256, "gendd.repeats": 8}
published |= {"readout.sampler": "ddpm", "readout.steps": 100, "readout.guidance": 2.0}
published |= {"readout.num_samples": 5}
# the defaults when this was measured
POOLED = {"gendd.map_weight": 0, "gendd.contract": "all", "gendd.head_width": 256}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method": "supervised"},
    "kl": {"method": "kl"},
    "kd": {"method": "kd", "kd.temperature": 4.0, "kd.weight": 0.9},
    "gendd_published": published,
    "gendd": POOLED,
    "gendd_unlabelled": {**POOLED, "data.labels": False},
    # required for guidance, at the learning rate of "gendd"; only run when named
    "gendd_dropout": {**POOLED, "gendd.condition_dropout": 0.2},
}
TABLE = [name for name in METHODS if name != "gendd_dropout"]


def base(data: Path, seed: int, epochs: int) -> RunConfig:
    """Return the settings that all methods share."""
    values = {
        "teacher": {
            "name": "cifar/resnet56",
            "weights": str(data / "resnet56_cifar10.safetensors"),
            **IMAGENET,
        },
        "student": {"name": "cifar/resnet20", **IMAGENET},
        "data": {
            "name": "parquet",
            "path": str(data / "cifar10-jpeg-train.parquet"),
            "test_path": str(data / "cifar10-jpeg-test.parquet"),
            "train_images": 20_000,
            "validation_images": "all",
        },
        "training": {"epochs": epochs, "precision": "auto"},
        "readout": {"name": "mean", "sampler": "ddim", "steps": 10, "num_samples": 1},
        "seed": seed,
    }
    return from_dict(values, RunConfig)


def opened(data: Path) -> tuple[Data, Frozen]:
    """Load the images and the teacher."""
    config = base(data, 0, 1)
    found = load_data(config.data)
    return found, Frozen(build_model(config.teacher, found.num_classes, found.channels))


def best_rates() -> dict[str, float]:
    """Return each method's learning rate with the best validation accuracy among the first seed's rows."""
    first = [row for row in records.read(RESULTS) if row["seed"] == "0"]
    rates = {
        name: float(records.best_rate(row for row in first if row["name"] == name))
        for name in {row["name"] for row in first}
    }
    return rates | {"gendd_dropout": rates["gendd"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=TABLE)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--best", action="store_true", help="only the best rate of each method")
    parser.add_argument("--students", type=Path, help="folder to save the best student of each method in")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="CSV to append to (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=int, metavar="STEPS", help="only time so many steps of every method, side by side"
    )
    arguments = parser.parse_args()
    chosen = best_rates() if arguments.best else {}
    changes = [
        {"name": method, **METHODS[method], "training.lr": rate}
        for method in arguments.methods
        for rate in ([chosen[method]] if arguments.best else arguments.rates)
    ]
    shared = base(arguments.data, arguments.seed, arguments.epochs)
    if arguments.seconds is None:
        lockstep.run(shared, changes, arguments.results, arguments.students)
        return
    once = {change["name"]: change for change in changes}
    found = lockstep.step_seconds(shared, list(once.values()), arguments.seconds)
    shared_columns = {"steps": arguments.seconds, "threads": torch.get_num_threads()}
    rows = [
        {"name": name, "step_seconds": round(value, 4), **shared_columns} for name, value in found.items()
    ]
    records.write(SECONDS, ["name", "step_seconds", *shared_columns], rows)


if __name__ == "__main__":
    main()
