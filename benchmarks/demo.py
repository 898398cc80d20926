"""The images and the teacher of the demo, and its results.

    python benchmarks/demo.py images             # Fashion-MNIST's, tiled into PNGs
    python benchmarks/demo.py teacher            # trained on images that are not in the demo
    python benchmarks/demo.py rates              # results/demo_rates.csv: search of the learning rate
    python benchmarks/demo.py figures --seeds 5  # results/demo.csv, one row per seed and method

Fashion-MNIST is taken from Debian's package dataset-fashion-mnist, or its four files below ``--path``. Of its
60,000 training images the demo has 6,000, its settings were chosen on 2,000, and the teacher is trained on
the others; of its 10,000 test images the demo has 2,000.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import records
import torch
from PIL import Image
from torch import Tensor

from gendd.config import DataConfig, ModelConfig, RunConfig, TrainingConfig, from_dict
from gendd.config.reading import read_yaml
from gendd.data.readers.common import Found, pixel_part
from gendd.data.readers.demo import COLUMNS, FOLDER, UNKNOWN, read_demo
from gendd.data.readers.fashion_mnist import read_fashion_mnist
from gendd.models import create_backbone, load_weights, save_weights
from gendd.recipes import recipe_path

TRAIN, LABELLED, CHOSEN_ON, TEST, CLASSES = 6000, 200, 2000, 2000, 10
TEACHER = "cifar/resnet14"
RESULTS = Path(__file__).parent / "results" / "demo.csv"
RATES = RESULTS.with_name("demo_rates.csv")
LEARNING_RATES = (0.01, 0.02, 0.04, 0.08)
METHODS = ("gendd", "kl", "supervised")


def split(found: Found) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the images (n, 1, 28, 28) and labels (n,) of each part: a fixed, stratified split."""
    generator = torch.Generator().manual_seed(0)

    def shuffled(count: int, of: Tensor) -> list[Tensor]:
        """Return the rows of each class in random order, dealt out in turn."""
        rows = [torch.randperm(count, generator=generator) for _ in range(CLASSES)]
        return [(of == label).nonzero()[:, 0][order] for label, order in enumerate(rows)]

    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for part, cuts in (
        (found.train, {"train": TRAIN, "chosen_on": CHOSEN_ON, "teacher": None}),
        (found.test, {"test": TEST}),
    ):
        assert part is not None and part.labels is not None
        by_class = shuffled(part.count // CLASSES, part.labels)
        start = 0
        for name, size in cuts.items():
            stop = None if size is None else start + size // CLASSES
            rows = torch.stack([each[start:stop] for each in by_class], 1).flatten()
            pixels = part.take(rows)
            assert isinstance(pixels, Tensor)
            parts[name] = pixels, part.labels[rows]
            start = stop or 0
    return parts


def write_images(path: str | None) -> None:
    """Write the package's tiles and labels: the first training images of each class keep their labels."""
    parts = split(read_fashion_mnist(DataConfig(name="fashion-mnist", path=path)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in ("train", "test"):
        pixels, labels = parts[name]
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
        # the images are dealt out by class, so the first rows have equally many of each
        known = order < (LABELLED if name == "train" else len(labels))
        said = torch.where(known, labels[order], -1).tolist()
        lines.append("".join(UNKNOWN if label < 0 else str(label) for label in said))
        side = pixels.shape[-1]
        tiles = pixels[order].view(-1, COLUMNS, side, side).transpose(1, 2).reshape(-1, COLUMNS * side)
        Image.fromarray(tiles.numpy()).save(FOLDER / f"{name}.png", optimize=True)
    (FOLDER / "labels.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def others(config: DataConfig) -> Found:
    """Return the images not in the demo: the teacher's, and those the demo's settings were chosen on."""
    found = read_fashion_mnist(config)
    parts = split(found)
    return Found(pixel_part(*parts["teacher"]), pixel_part(*parts["chosen_on"]), found.class_names)


def chosen_on(config: DataConfig) -> Found:
    """Return the demo's training images, with the images its settings were chosen on as the test set."""
    found = read_demo(config)
    parts = split(read_fashion_mnist(DataConfig(name="fashion-mnist", path=config.path)))
    return Found(found.train, pixel_part(*parts["chosen_on"]), found.class_names)


def train_teacher(path: str | None, folder: Path) -> None:
    """Train the package's teacher."""
    from gendd.run import execute

    config = RunConfig(
        method="supervised",
        student=ModelConfig(TEACHER),
        data=DataConfig(
            name=f"{__file__}:others", path=path, augment="crop-flip", validation=0, batch_size=128
        ),
        training=TrainingConfig(epochs=4, lr=0.01, precision="fp32"),
        out=str(folder),
    )
    execute(config, overwrite=folder.exists())
    backbone = create_backbone(TEACHER, CLASSES, 1)
    load_weights(backbone, folder)
    save_weights(backbone, FOLDER / "teacher.safetensors")


def write_rates(path: str | None, folder: Path) -> None:
    """Run each method of the recipe alone at each rate, scored on the images that rates are chosen on."""
    from gendd.run import execute

    recipe = read_yaml(recipe_path("demo"))
    recipe["data"] |= {"name": f"{__file__}:chosen_on", "path": path, "augment": "crop-flip"}
    for lr, method in itertools.product(LEARNING_RATES, METHODS):
        key = {"method": method, "lr": lr}
        if any(all(row[name] == str(key[name]) for name in key) for row in records.read(RATES)):
            continue
        values = recipe | {"method": method, "baselines": [], "seed": 100, "out": str(folder / "rate")}
        values["training"] = recipe["training"] | {"lr": lr}
        run = execute(from_dict(values, RunConfig), overwrite=(folder / "rate").exists())
        top1 = run.metrics["student"]["readouts"]["linear"]["top1"]
        records.append(RATES, [*key, "top1"], [{**key, "top1": top1}])


def write_figures(seeds: int, folder: Path) -> None:
    """Run the recipe, and GenDD without labels, with each seed; one row of test top-1 for each result."""
    from gendd.report.comparison import rows

    fields = ["method", "seed", "top1"]
    table: list[tuple[object, ...]] = []
    for seed in range(seeds):
        out = folder / f"seed{seed}"
        if not (out / "metrics.json").exists():
            words = ["distill", "--recipe", "demo", "--baselines", "supervised,kl,gendd_no_labels"]
            words += ["--seed", str(seed), "--out", str(out), *(["--resume"] if out.exists() else [])]
            subprocess.run([sys.executable, "-m", "gendd", *words], check=True)
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        own = [row for row in rows(metrics) if row["chosen"] or row["key"] != "gendd"]
        table += [(row["key"], seed, row["top1"]) for row in own]
        records.write(RESULTS, fields, (dict(zip(fields, row, strict=True)) for row in table))
        with recipe_path("demo").with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, lineterminator="\n").writerows([fields, *table])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["images", "teacher", "rates", "figures"])
    parser.add_argument("--path", help="the folder of Fashion-MNIST's files; default: Debian's")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo-benchmark"), help="where runs are written"
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.what == "images":
        write_images(arguments.path)
    elif arguments.what == "teacher":
        train_teacher(arguments.path, arguments.out)
    elif arguments.what == "rates":
        write_rates(arguments.path, arguments.out)
    else:
        write_figures(arguments.seeds, arguments.out)


if __name__ == "__main__":
    main()
