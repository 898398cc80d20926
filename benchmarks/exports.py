"""Whether exported files give PyTorch's logits on real images, and the accuracy loss of int8.

Every readout of every student in a folder is exported to every format, run with the format's own runtime
(ONNX Runtime, torch.export.load, timm.create_model) and compared with the deployed student. STUDENTS is such
a folder, as for `benchmarks/uncertainty.py`. Missing students of the digits are trained: one by the recipe,
and a timm network at 32 pixels for one epoch; they are compared on training and test images, as the test set
is small. Students that already have rows are skipped.

    python benchmarks/exports.py digits STUDENTS
    python benchmarks/exports.py cifar10 STUDENTS DATA
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import records
import timm
import torch
import trained
from torch import Tensor
from uncertainty import taken

import gendd
from gendd.config import ReadoutName, RunConfig, from_dict, load_config, merge, to_dict
from gendd.data import Data, ImageSet, load_data
from gendd.deploy import deploy
from gendd.deploy.export import Exported, formats, int8
from gendd.recipes import recipe_path

RESULTS = Path(__file__).parent / "results" / "exports.csv"
FIELDS = ["dataset", "student", "network", "readout", "format", "images", "deviation", "bytes"]
FIELDS += ["test_images", "top1", "fp32_top1"]
BATCH = 100
# maximum number of sampling steps, as each is a copy of the head in the graph
STEPS = 10
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "timm": ".safetensors", "safetensors": ""}
DIGITS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "timm": {
        "student": {"name": "timm/test_resnet"},
        "data": {"image_size": 32},
        "training": {"epochs": 1},
        "teacher_training": {"epochs": 1},
    },
}

Run = Callable[[Tensor], Tensor]


def opened(found: Exported) -> Run:
    """Open an exported file as images (B, C, S, S) in [0, 1] -> logits (B, K), without gendd if possible."""
    if found.format == "onnx":
        return onnx_network(found.path)
    if found.format == "torch-export":
        program: Run = torch.export.load(found.path).module()
        return program
    if found.format == "safetensors":
        return deploy(gendd.load(found.path), found.readout)
    # the call that the export prints
    network = eval(found.notes[-1], {"timm": timm}).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    return lambda images: torch.as_tensor(network((images - mean) / std))


def onnx_network(path: Path) -> Run:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@torch.no_grad()
def logits_of(network: Run, images: Tensor) -> Tensor:
    return torch.cat([network(part) for part in torch.split(images, BATCH)])


def files(student: gendd.Student, readout: ReadoutName, data: Data) -> Iterator[tuple[str, Run, int]]:
    """Yield name, network and bytes of each format that supports a readout."""
    for to in formats():
        if to == "timm" and not (readout == "linear" and student.backbone.name.startswith("timm/")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / ("student" + SUFFIXES[to])
            found = gendd.export(student, to, readout=readout, out=out)
            yield to, opened(found), found.bytes
            if to == "onnx":
                small = out.with_stem("int8")
                int8.quantize(out, small, data, int8.CALIBRATION)
                yield "onnx int8", onnx_network(small), small.stat().st_size


def rows(student: gendd.Student, images: Tensor, data: Data, labels: Tensor) -> Iterator[dict[str, Any]]:
    """Yield a row for each readout and format of a student; the labels (n,) belong to the last n images.

    The deviation is relative to the largest logit, as in :func:`gendd.export`, over all images.
    """

    def top1(logits: Tensor) -> float:
        return round(100 * float((logits[-len(labels) :].argmax(-1) == labels).double().mean()), 2)

    for readout in student.readouts:
        expected = logits_of(deploy(student, readout), images)
        for name, network, size in files(student, readout, data):
            found = logits_of(network, images)
            deviation = float((found - expected).abs().max() / expected.abs().max())
            yield {
                "network": student.backbone.name,
                "readout": readout,
                "format": name,
                "images": len(images),
                "deviation": f"{deviation:.1e}",
                "bytes": size,
                "test_images": len(labels),
                "top1": top1(found),
                "fp32_top1": top1(expected),
            }


def train(folder: Path) -> None:
    """Train the students of the digits that ``folder`` lacks."""
    for name, changes in DIGITS.items():
        if not trained.is_student(folder / name):
            values = to_dict(load_config(recipe_path("digits")))
            merge(values, {"baselines": [], **changes})
            gendd.distill(from_dict(values, RunConfig), out=folder / name, overwrite=True)


def measure(dataset: str, found: Iterator[tuple[str, Path]], data: Data | None, limit: int | None) -> None:
    """Append the rows of students that have none yet.

    Args:
        dataset: Its name in the rows.
        found: Names and folders of students.
        data: Images to calibrate and test with; None: those of each student's run, comparing on all of them
            and not only on the test images.
        limit: Maximum number of test images.
    """
    done = {(row["dataset"], row["student"]) for row in records.read(RESULTS)}
    for name, place in found:
        if (dataset, name) in done:
            continue
        own = data or load_data(gendd.Run.open(place).config.data)
        images, labels = taken(own.test, limit)
        test = ImageSet((255 * images).round().byte(), labels, own.channels, own.image_size)
        if data is None:
            sets = [each for each in (own.train, own.val) if isinstance(each, ImageSet)]
            images = torch.cat([*(taken(each, None)[0] for each in sets), images])
        student = gendd.load(place)
        steps = min(student.settings.steps, STEPS)
        student.settings = dataclasses.replace(student.settings, steps=steps)
        made = list(rows(student, images, dataclasses.replace(own, test=test), labels))
        records.append(RESULTS, FIELDS, ({"dataset": dataset, "student": name, **row} for row in made))
        worst = max(float(row["deviation"]) for row in made if row["format"] != "onnx int8")
        print(f"{dataset} {name}: largest deviation {worst:.1e} on {len(images):,} images", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    digits = commands.add_parser("digits")
    digits.add_argument("students", type=Path)
    cifar = commands.add_parser("cifar10")
    cifar.add_argument("students", type=Path)
    cifar.add_argument("data", type=Path)
    cifar.add_argument("--images", type=int, default=1000, help="test images")
    given = parser.parse_args(words)
    if given.dataset == "digits":
        train(given.students)
        measure("digits", ((name, given.students / name) for name in DIGITS), None, None)
        return
    config = dataclasses.replace(trained.config(given.data).data, in_memory=False)
    found = ((f"{method}-{seed}", place) for method, seed, place in trained.students(given.students))
    measure("cifar10", found, load_data(config), given.images)


if __name__ == "__main__":
    main()
