"""CPU seconds of whole commands that do little, compared with importing PyTorch alone, in turns.

python benchmarks/startup.py --repeats 7 --source now=src --source before=OLDER_CHECKOUT/src
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import records
from PIL import Image

from gendd import Student
from gendd.models import create_backbone

HERE = Path(__file__).parent
FIELDS = ["source", "command", "repeat", "cpu_s"]


def seconds(arguments: list[str], source: str) -> float:
    """Return the user and system time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the commands to time, by name."""
    Student(create_backbone("cifar/resnet20", 10)).save(folder / "student")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    words = {
        "gendd --help": ["--help"],
        "gendd recipes": ["recipes"],
        "an unknown option": ["distill", "--epoch", "3"],
        "a path without a student": ["predict", str(folder / "none"), "image.png"],
        "gendd predict, one image": ["predict", str(folder), str(folder / "image.png")],
    }
    return {"import torch": ["-c", "import torch"]} | {
        name: ["-m", "gendd", *each] for name, each in words.items()
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--source", action="append", metavar="NAME=SRC", help="default: now, this checkout's")
    given = parser.parse_args()
    sources = dict(each.split("=", 1) for each in given.source or [f"now={HERE.parent / 'src'}"])
    rows = []
    with tempfile.TemporaryDirectory() as name:
        asked = commands(Path(name))
        for repeat in range(given.repeats):
            for source, path in sources.items():
                for command, arguments in asked.items():
                    spent = seconds(arguments, os.path.abspath(path))
                    values = (source, command, repeat, f"{spent:.2f}")
                    rows.append(dict(zip(FIELDS, values, strict=True)))
    records.write(HERE / "results" / "startup.csv", FIELDS, rows)
    for command in asked:
        for source in sources:
            own = [row["cpu_s"] for row in rows if (row["source"], row["command"]) == (source, command)]
            print(f"{command:28} {source:8} {statistics.median(map(float, own)):.2f}")


if __name__ == "__main__":
    main()
