"""Whether gendd works with the oldest versions of what it declares to need.

``python benchmarks/lower_bounds.py VENV`` makes a virtual environment with each dependency at its lower bound
and runs a distillation on the digits, an evaluation, a prediction and an export there. Torch's wheels take
gigabytes, so this is no part of the tests: ``make lowest``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("export", "hf", "parquet", "webdataset")
_BOUND = re.compile(r"([\w-]+)(\[\w+\])?>=([\w.]+)")
_SMALL = [
    "--teacher_training.epochs=1",
    "--training.epochs=1",
    "--student=cifar/resnet8x0.25",
    "--teacher=cifar/resnet8x0.5",
    "--baselines=[kd]",
]


def pinned() -> list[str]:
    """The declared dependencies and those of some extras, each at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for name in EXTRAS for line in project["optional-dependencies"][name]),
    ]
    found = []
    for line in declared:
        match = _BOUND.fullmatch(line)
        if match is None:
            raise SystemExit(f"expected NAME>=VERSION in pyproject.toml, got {line!r}")
        found.append(f"{match[1]}{match[2] or ''}=={match[3]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("venv", type=Path, help="where to make the environment; reused where it is there")
    parser.add_argument("--print", action="store_true", help="print the versions and stop")
    given = parser.parse_args()
    wanted = pinned()
    if given.print:
        print("\n".join(wanted))
        return 0
    python = given.venv / "bin" / "python"
    if not python.exists():
        venv.create(given.venv, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
    out = given.venv / "runs" / "digits"
    gendd = [str(python), "-m", "gendd"]
    image = out / "digit.png"
    draw = f"from PIL import Image; Image.new('L', (8, 8)).save({str(image)!r})"
    for words in (
        [*gendd, "distill", "--out", str(out), "--overwrite", *_SMALL],
        [*gendd, "evaluate", str(out)],
        [str(python), "-c", draw],
        [*gendd, "predict", str(out), str(image)],
        [*gendd, "export", str(out), "--to", "onnx", "--out", str(out / "export" / "student.onnx")],
    ):
        print("+", " ".join(words), file=sys.stderr)
        subprocess.run(words, check=True)
    print("all commands ran with", ", ".join(wanted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
