"""Accuracy of every readout and sampler of a student, from zero to a thousand passes of the head.

Digits: for each seed, distils a teacher with the recipe, with the condition dropout that guidance needs, and
with the published settings of the method, a head 256 wide and M 8 (the training is the recipe's). CIFAR-10:
uses the students of trained.py, the first seed's with every sampler, the others' with the published one.
Students that have rows are skipped.

    python benchmarks/samplers.py digits --seeds 5
    python benchmarks/samplers.py cifar10 DATA STUDENTS
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import records
import torch
import trained

import gendd
from gendd.config import ReadoutConfig, ReadoutName, RunConfig, from_dict, merge, read_yaml
from gendd.data import Data, eval_loader, load_data
from gendd.deploy import deploy
from gendd.evaluation.refit import refit_linear
from gendd.models import multiply_adds
from gendd.recipes import recipe_path

RESULTS = Path(__file__).parent / "results" / "samplers.csv"
FIELDS = ["data", "setting", "seed", "readout", "sampler", "steps", "num_samples", "guidance"]
FIELDS += ["passes", "multiply_adds", "test_top1"]
# sampler, steps, samples, guidance
SAMPLERS: list[tuple[str, int, int, float]] = [
    ("ddim", 1, 1, 1),
    ("ddim", 2, 1, 1),
    ("ddim", 5, 1, 1),
    ("ddim", 10, 1, 1),
    ("ddim", 10, 1, 2),
    ("ddim", 10, 5, 1),
    ("ddim", 10, 5, 2),
    ("ddim", 100, 1, 1),
    ("dpm-solver", 2, 1, 1),
    ("dpm-solver", 5, 1, 1),
    ("dpm-solver", 10, 1, 1),
    ("dpm-solver", 10, 1, 2),
    ("dpm-solver", 10, 5, 1),
    ("dpm-solver", 10, 5, 2),
    ("ddpm", 10, 1, 1),
    ("ddpm", 10, 5, 2),
    ("ddpm", 100, 1, 1),
    ("ddpm", 100, 1, 2),
    ("ddpm", 100, 5, 1),
    ("ddpm", 100, 5, 2),
    ("ddpm", 1000, 1, 1),
]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A student and what is needed to measure it.

    Attributes:
        setting: Its name in the rows.
        seed: Seed of its training.
        data: Its images; it is scored on the test images.
        student: In eval mode.
    """

    setting: str
    seed: int
    data: Data
    student: gendd.Student


@torch.no_grad()
def rows(subject: Subject, everything: bool) -> Iterator[dict[str, Any]]:
    """Yield top-1 of the readouts, with every sampler or the published one; features are computed once."""
    student, images = subject.student, subject.data.test
    parts = [(student.features(batch.images), batch.labels) for batch in eval_loader(images, 250)]
    labels = torch.cat([label for _, label in parts if label is not None])

    def top1(readout: ReadoutName) -> float:
        generator = torch.Generator().manual_seed(subject.seed)
        said = torch.cat([student.logits(feature, readout, generator).argmax(-1) for feature, _ in parts])
        return round(100 * float((said == labels).double().mean()), 2)

    one = images.images([0]).float() / 255

    def figures(readout: ReadoutName, passes: int) -> dict[str, Any]:
        cost = multiply_adds(deploy(student, readout), one)
        return {"passes": passes, "multiply_adds": cost, "test_top1": top1(readout)}

    yield {"readout": "linear", **figures("linear", 0)}
    yield {"readout": "mean", **figures("mean", 1)}
    assert student.generator is not None
    guidable = student.generator.config.condition_dropout > 0
    published: tuple[str, int, int, float] = ("ddpm", 100, 5, 2 if guidable else 1)
    for sampler, steps, samples, guidance in SAMPLERS if everything else [published]:
        if guidance != 1 and not guidable:
            continue
        values = {"sampler": sampler, "steps": steps, "num_samples": samples, "guidance": guidance}
        student.settings = from_dict({"name": "sample", **values}, ReadoutConfig)
        passes = steps * samples * (1 if guidance == 1 else 2)
        yield {"readout": "sample", **values, **figures("sample", passes)}
    # the linear readout after `gendd probe`
    with torch.enable_grad():
        refit_linear(student, None, subject.data, "labels", labels=True)
    yield {"readout": "probed", **figures("linear", 0)}


def digits_with(changes: dict[str, Any]) -> RunConfig:
    """Return the digits recipe with other settings of GenDD."""
    values = read_yaml(recipe_path("digits"))
    merge(values, {"gendd": changes})
    return from_dict(values, RunConfig)


def digits(seeds: int, done: set[tuple[str, int]]) -> Iterator[Subject]:
    published = read_yaml(recipe_path("published"))["gendd"]
    settings = {
        "default": digits_with({}),
        "default, condition dropout 0.2": digits_with({"condition_dropout": 0.2}),
        "published": digits_with(published | {"head_width": 256, "repeats": 8}),
    }
    for seed in range(seeds):
        for name, config in settings.items():
            if (name, seed) in done:
                continue
            with TemporaryDirectory() as folder:
                config = dataclasses.replace(config, seed=seed, baselines=[], out=str(Path(folder) / "run"))
                student = gendd.distill(config).student()
            yield Subject(name, seed, load_data(config.data), student)


def cifar(place: Path, students: Path, done: set[tuple[str, int]]) -> Iterator[Subject]:
    data, _ = trained.opened(place)
    settings = {"gendd": "default", "gendd_published": "published"}
    for method, seed, folder in trained.students(students):
        name = settings.get(method)
        if name is not None and (name, seed) not in done:
            yield Subject(name, seed, data, gendd.load(folder))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("digits").add_argument("--seeds", type=int, default=5)
    command = commands.add_parser("cifar10")
    command.add_argument("data", type=Path)
    command.add_argument("students", type=Path)
    command.add_argument("--all", action="store_true", help="every sampler for every seed")
    arguments = parser.parse_args()
    there = [row for row in records.read(RESULTS) if row["data"] == arguments.command]
    done = {(row["setting"], int(row["seed"])) for row in there}
    if arguments.command == "digits":
        subjects, everything = digits(arguments.seeds, done), True
    else:
        subjects, everything = cifar(arguments.data, arguments.students, done), arguments.all
    for subject in subjects:
        key = {"data": arguments.command, "setting": subject.setting, "seed": subject.seed}
        found = []
        for row in rows(subject, everything or subject.seed == 0):
            found.append({**key, **row})
            print(found[-1], file=sys.stderr, flush=True)
        records.append(RESULTS, FIELDS, found)


if __name__ == "__main__":
    main()
