"""Whether gendd works with the oldest versions of its declared dependencies.

``python benchmarks/lower_bounds.py VENV`` creates a virtual environment with each dependency at its lower
bound and runs a distillation on the digits, an evaluation, a prediction and an export there. Torch's wheels
take gigabytes, so this is not part of the tests: ``make lowest``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("hf", "parquet", "webdataset")
# a separate step, as it needs a newer torch than the rest
EXPORT = "export"
_BOUND = re.compile(r"([\w-]+)(\[\w+\])?>=([\w.]+)")
_SMALL = [
    "--teacher_training.epochs=1",
    "--training.epochs=1",
    "--student=cifar/resnet8x0.25",
    "--teacher=cifar/resnet8x0.5",
    "--baselines=[kd]",
]


def pinned(extras: Iterable[str], base: bool = True) -> list[str]:
    """Return the declared dependencies of some extras, and of the package itself, at their lower bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"]) if base else []
    for name in extras:
        lines += project["optional-dependencies"][name]
    found = []
    for line in lines:
        match = _BOUND.fullmatch(line)
        if match is None:
            raise SystemExit(f"expected NAME>=VERSION in pyproject.toml, got {line!r}")
        found.append(f"{match[1]}{match[2] or ''}=={match[3]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path, help="where to make the environment; reused where it is there")
    given = parser.parse_args()
    python = given.venv / "bin" / "python"
    if not python.exists():
        venv.create(given.venv, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    gendd = [str(python), "-m", "gendd"]
    out = given.venv / "runs" / "digits"
    image = out.parent / "digit.png"
    draw = f"from PIL import Image; Image.new('L', (8, 8)).save({str(image)!r})"
    base, export = pinned(EXTRAS), pinned([EXPORT], base=False)
    # including installed packages, which the export's dependencies would otherwise replace
    other = {name.partition("==")[0] for name in export}
    kept = [name for name in base if name.partition("==")[0] not in other]
    for words in (
        [*pip, *base],
        [*pip, "--no-deps", "--editable", str(ROOT)],
        [*gendd, "distill", "--out", str(out), "--overwrite", *_SMALL],
        [*gendd, "evaluate", str(out)],
        [str(python), "-c", draw],
        [*gendd, "predict", str(out), str(image)],
        [*gendd, "verify"],
        [*pip, *export, *kept],
        [*gendd, "export", str(out), "--to", "onnx", "--overwrite"],
    ):
        print("+", " ".join(words), file=sys.stderr)
        subprocess.run(words, check=True)
    print(f"all commands ran with {', '.join(base)}; the export with {', '.join(export)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
