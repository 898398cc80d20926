"""The digits recipe over several seeds: student alone, KL distillation, and GenDD by readout.

Every seed trains its own teacher. One CSV row a seed and method.

    python benchmarks/digits.py --seeds 5
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import records

import gendd
from gendd.config import load_config
from gendd.recipes import recipe_path

RESULTS = Path(__file__).parent / "results" / "digits.csv"
FIELDS = ["seed", "method", "readout", "test_top1", "multiply_adds", "train_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    config = load_config(recipe_path("digits"))
    rows = []
    for seed in range(arguments.seeds):
        with TemporaryDirectory() as folder:
            run = gendd.distill(
                config, seed=seed, out=Path(folder) / "run", baselines=["supervised", "kl", "kd"]
            )
            metrics = run.metrics
        student = metrics["student"]
        found = [("teacher", "linear", metrics["teacher"], "")]
        found += [(name, "linear", m, m["train_seconds"]) for name, m in metrics["baselines"].items()]
        found += [("gendd", name, m, student["train_seconds"]) for name, m in student["readouts"].items()]
        for method, readout, figures, seconds in found:
            values = [seed, method, readout, figures["top1"], figures["multiply_adds"], seconds]
            rows.append(dict(zip(FIELDS, values, strict=True)))
    records.write(RESULTS, FIELDS, rows)


if __name__ == "__main__":
    main()
