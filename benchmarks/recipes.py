"""Cost of a step of every recipe: parameters, rows of the head, memory. One CSV row per recipe.

Networks have random weights and images are noise; none of the results depends on either. Memory is the
maximum resident set of a separate process that takes one training step in fp32 on a CPU: teacher, student,
head, gradients and the optimiser's state, and about 0.5 GiB of Python and its libraries. Recipes with images
of 224 pixels are measured at a smaller batch, given in the CSV.

    python benchmarks/recipes.py [--only cifar100/]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import records

from gendd.config import RunConfig, load_config
from gendd.methods.gendd import GenDD
from gendd.recipes import is_base, recipe_path, recipes

RESULTS = Path(__file__).parent / "results" / "recipes.csv"
FIELDS = [
    "recipe",
    "teacher_parameters",
    "student_parameters",
    "head_parameters",
    "tokens",
    "batch",
    "rows",
    "batch_measured",
    "peak_mib",
]
# complete experiments only, not the recipes that modify others, nor the demo
LEFT_OUT = {"demo", "digits", "published", "linear_probe"}
BATCH_AT_224 = 8


def experiments() -> list[str]:
    return [name for name in recipes() if not is_base(name) and name not in LEFT_OUT]


def measure(name: str) -> dict[str, Any]:
    """Return the row of a recipe, measured in this process, which should do nothing else."""
    import torch

    from gendd.methods import build_method
    from gendd.models import count_parameters, create_backbone
    from gendd.training import parameter_groups

    config: RunConfig = load_config(recipe_path(name))
    small = config.data.name == "cifar100"
    classes, side = (100, 32) if small else (1000, 224)
    taught = config.method != "supervised"
    teacher = create_backbone(config.teacher.name, classes) if taught else None
    student = create_backbone(config.student.name, classes)
    method = build_method(config, student, teacher).train()
    batch = config.data.batch_of(50_000)
    row: dict[str, Any] = {
        "recipe": name,
        "teacher_parameters": "" if teacher is None else count_parameters(teacher),
        "student_parameters": count_parameters(student),
        "batch": batch,
        "batch_measured": batch if small else min(batch, BATCH_AT_224),
    }
    if config.method == "gendd":
        assert teacher is not None
        assert isinstance(method, GenDD)
        tokens = method.generator.num_tokens
        row |= {
            "head_parameters": count_parameters(method.generator),
            "tokens": tokens,
            "rows": batch * tokens * method.repeats,
        }
    training = config.training
    groups = parameter_groups(method, training.weight_decay, training.decay_all)
    optimiser: torch.optim.Optimizer
    if training.optimizer == "sgd":
        optimiser = torch.optim.SGD(groups, lr=1e-3, momentum=training.momentum)
    else:
        optimiser = torch.optim.AdamW(groups, lr=1e-3)
    images = torch.rand(row["batch_measured"], 3, side, side)
    labels = torch.randint(classes, (len(images),)) if config.data.labels else None
    method.prepare([(images[:2], None if labels is None else labels[:2])])
    method(images, labels).loss.backward()
    optimiser.step()
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="recipes of names that begin so; the others' rows stay")
    parser.add_argument("--measure", metavar="RECIPE", help="print the row of one recipe")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    rows: dict[str, dict[str, Any]] = {row["recipe"]: row for row in records.read(RESULTS)}
    for name in experiments():
        if not name.startswith(arguments.only):
            continue
        command = [sys.executable, __file__, "--measure", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[name] = json.loads(done.stdout)
        print(name, rows[name]["peak_mib"], "MiB", flush=True)
        records.write(RESULTS, FIELDS, (rows[each] for each in experiments() if each in rows))


if __name__ == "__main__":
    main()
