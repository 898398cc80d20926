"""Seconds per epoch with a teacher that computes each batch and with one read from its cache.

CIFAR-10 as JPEGs, ResNet-56 → ResNet-20, one view of each image; loading, augmentation and optimiser
included. Every repeat takes one epoch of every training, in turns; a ratio is the median over repeats of
seconds divided by those of the student alone in the same repeat. `compiled` is `training.compile`, which
takes its time in the first epoch, before those measured. `cpu_ratio` is the ratio of processor seconds, which
are less affected by other work on the machine.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache.py DATA
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import records
import torch

from gendd.config import RunConfig, from_dict
from gendd.run.caching import fill_cache
from gendd.run.experiment import opened, prepared_teacher
from gendd.run.training import untrained
from gendd.run.view_cache import cached_teacher
from gendd.training import LightningMethod, autocast_type, training_precision

RESULTS = Path(__file__).parent / "results"
FIELDS = ["method", "teacher", "storage", "compiled", "seconds", "ratio", "lowest", "highest"]
FIELDS += ["cpu_ratio", "megabytes", "images", "batch", "precision", "repeats", "threads"]
CPU = torch.device("cpu")
# method, how the teacher is called, how its answers are stored, whether the losses are compiled
CASES = {
    "supervised": ("supervised", "none", "", False),
    "kd": ("kd", "asked", "", False),
    "kd cached": ("kd", "cached", "fp16", False),
    "gendd": ("gendd", "asked", "", False),
    "gendd cached": ("gendd", "cached", "fp16", False),
    "gendd cached in int8": ("gendd", "cached", "int8", False),
    "gendd cached, compiled": ("gendd", "cached", "fp16", True),
    "gendd cached in int8, compiled": ("gendd", "cached", "int8", True),
}
NORMALISED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def configuration(data: Path, images: int, method: str, storage: str, compiled: bool) -> RunConfig:
    return from_dict(
        {
            "method": method,
            "teacher": {
                "name": "cifar/resnet56",
                "weights": str(data / "resnet56_cifar10.safetensors"),
                **NORMALISED,
            },
            "student": {"name": "cifar/resnet20", **NORMALISED},
            "data": {
                "name": "parquet",
                "path": str(data / "cifar10-jpeg-train.parquet"),
                "test_path": str(data / "cifar10-jpeg-test.parquet"),
                "train_images": images,
                "batch_size": 128,
            },
            "training": {
                "epochs": 2,
                "device": "cpu",
                "progress": False,
                "cache_teacher": 1 if storage else 0,
                "cache_dtype": storage or "fp16",
                "compile": compiled,
            },
        },
        RunConfig,
    )


class Training:
    """Epochs of a method, as in training."""

    def __init__(self, config: RunConfig) -> None:
        if config.training.cache_teacher:
            fill_cache(config)
        config, data, network = opened(config, {})
        teacher, _ = prepared_teacher(config, data, network, CPU)
        if teacher is not None and config.training.cache_teacher:
            teacher = cached_teacher(config, data, teacher)
        self.module: LightningMethod = untrained(config, data, teacher, CPU)
        self.module.method.prepare(islice(self.module.epoch(0), 4))
        if config.training.compile:
            self.module.method.compile_losses()
        self.optimiser = self.module.configure_optimizers()["optimizer"]
        name, backbone = config.training.precision, self.module.method.backbone
        self.precision = training_precision(name, CPU, backbone, data.channels, data.image_size)
        self.autocast = autocast_type(self.precision, CPU)
        self.number = 0

    def epoch(self) -> tuple[float, float]:
        """Run an epoch and return wall-clock and processor seconds."""
        start, cpu = time.perf_counter(), time.process_time()
        module = self.module
        for number, batch in enumerate(module.epoch(self.number)):
            batch = module.transfer_batch_to_device(batch, CPU, 0)
            images, labels = module.mixed(batch, number, self.number)
            self.optimiser.zero_grad()
            generator = torch.Generator().manual_seed(number)
            with (
                torch.autocast("cpu", self.autocast, enabled=self.autocast is not None),
                module.answering(images, self.number, batch.rows),
            ):
                loss = module.method(images, labels, generator=generator).loss
            loss.backward()
            self.optimiser.step()
        self.number += 1
        return time.perf_counter() - start, time.process_time() - cpu

    @property
    def megabytes(self) -> float | str:
        """Return the size of the cache."""
        if self.module.cached is None:
            return ""
        answers, asked = self.module.cached.answers, self.module.method.asks
        arithmetic = "bfloat16" if self.precision == "bf16" else "float32"
        held = sum(answers.held(arithmetic, 0, part) for part in self.module.cached.parts(asked))
        if self.module.cached.computed:
            raise SystemExit(f"{self.module.cached.computed} batches were not in the cache")
        return round(held / 1e6, 2)


def measure(data: Path, images: int, repeats: int) -> list[dict[str, Any]]:
    """Return one row per case."""
    trainings = {
        name: Training(configuration(data, images, method, storage, compiled))
        for name, (method, _, storage, compiled) in CASES.items()
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for training in trainings.values():
        training.epoch()
    for repeat in range(repeats):
        # in a different order each time
        names = [*CASES][repeat % len(CASES) :] + [*CASES][: repeat % len(CASES)]
        for name in names:
            taken[name].append(trainings[name].epoch())
        print(f"repeat {repeat + 1} of {repeats}", flush=True)
    rows = []
    for name, (method, asked, storage, compiled) in CASES.items():
        pairs = [*zip(taken[name], taken["supervised"], strict=True)]
        ratios = [own[0] / alone[0] for own, alone in pairs]
        rows.append(
            {
                "method": method,
                "teacher": asked,
                "storage": storage,
                "compiled": str(compiled).lower(),
                "seconds": f"{statistics.median(own[0] for own, _ in pairs):.2f}",
                "ratio": f"{statistics.median(ratios):.3f}",
                "lowest": f"{min(ratios):.3f}",
                "highest": f"{max(ratios):.3f}",
                "cpu_ratio": f"{statistics.median(own[1] / alone[1] for own, alone in pairs):.3f}",
                "megabytes": trainings[name].megabytes,
                "images": images,
                "batch": 128,
                "precision": trainings[name].precision,
                "repeats": repeats,
                "threads": torch.get_num_threads(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "teacher_cache.csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["GENDD_CACHE"] = cache
        rows = measure(arguments.data, arguments.images, arguments.repeats)
    records.write(arguments.results, FIELDS, rows)
    for row in rows:
        print(
            f"{row['method']}, teacher {row['teacher']} {row['storage']}, compiled {row['compiled']}: "
            f"{row['seconds']} s, {row['ratio']} "
            f"× the student alone ({row['lowest']} to {row['highest']}), processor {row['cpu_ratio']} ×, "
            f"{row['megabytes'] or 0} MB"
        )


if __name__ == "__main__":
    main()
