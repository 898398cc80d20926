"""The setting and the students of benchmarks/compare/students.yaml, for the benchmarks that measure them.

STUDENTS is the folder `cells` of that comparison (`gendd compare benchmarks/compare/students.yaml --out
DIR`), or any folder with students in folders named METHOD-SEED. DATA is what `${DATA}` stands for in the
file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from gendd.compare.reading import read_plan
from gendd.config import RunConfig
from gendd.data import Data, load_data
from gendd.models import Frozen, build_model

PLAN = Path(__file__).parent / "compare" / "students.yaml"
# a cell's name has its learning rate and a digest of its settings as well
_NAME = re.compile(r"(?P<method>\w+)-(?:lr.+-seed)?(?P<seed>\d+)(?:-[0-9a-f]{8})?")


def config(data: Path, epochs: int = 0) -> RunConfig:
    """Return the settings of GenDD with the first seed; 0 epochs means those of a run."""
    os.environ["DATA"] = str(data)
    plan = read_plan(PLAN)
    group = next(group for group in plan.groups if group.method == "gendd")
    return plan.cell(group, plan.seeds[0], group.rates[0], epochs).config


def opened(data: Path) -> tuple[Data, Frozen]:
    """Load the images and the teacher."""
    settings = config(data)
    found = load_data(settings.data)
    return found, Frozen(build_model(settings.teacher, found.num_classes, found.channels))


def is_student(place: Path) -> bool:
    """Whether a folder is a student's, or a run's with a student."""
    return any((inner / "model.safetensors").is_file() for inner in (place, place / "student"))


def students(folder: Path, seeds: int | None = None) -> Iterator[tuple[str, int, Path]]:
    """Yield method, seed and path of the students in a folder, by seed, methods in the order of the file."""
    methods = [*yaml.safe_load(PLAN.read_text(encoding="utf-8"))["methods"]]
    found: dict[tuple[int, int], Path] = {}
    # of cells that differ in their settings, the last
    for place in sorted(filter(is_student, folder.iterdir()), key=lambda place: place.stat().st_mtime):
        named = _NAME.fullmatch(place.name)
        if named is not None and named["method"] in methods:
            found[int(named["seed"]), methods.index(named["method"])] = place
    for (seed, method), place in sorted(found.items()):
        if seeds is None or seed < seeds:
            yield methods[method], seed, place
