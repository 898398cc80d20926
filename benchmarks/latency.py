"""Latency of the readouts compared with the plain student, and of sampling with a direct implementation.

Every repeat times all candidates one after the other, in a new order; a row's ratio is the median over
repeats of its seconds divided by those of the first candidate in the same repeat. Weights are random, as
they don't affect the cost of a layer.

    python benchmarks/latency.py readouts --threads 2
    python benchmarks/latency.py sampling --threads 2
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import records
import torch
from torch import Tensor, nn

import gendd
from gendd.config import GenDDConfig, ReadoutConfig
from gendd.deploy import deploy
from gendd.deploy.folded_mean import savings
from gendd.diffusion import Denoised, ancestral, interpolated_log_variance, predicted_x0, tokens
from gendd.models import create_backbone, multiply_adds
from gendd.student.generator import FeatureGenerator

RESULTS = Path(__file__).parent / "results"
READOUT_FIELDS = ["student", "teacher_width", "tokens", "head_width", "precision", "batch", "readout"]
READOUT_FIELDS += ["multiply_adds", "ratio", "lowest", "highest", "ratio_linear", "ms", "repeats", "threads"]
SAMPLING_FIELDS = ["case", "images", "ratio", "lowest", "highest", "seconds", "direct_seconds"]
SAMPLING_FIELDS += ["deviation", "repeats", "threads"]
# student, image size, width and classes of the teacher, head width
STUDENTS: list[tuple[str, int, int, int, int]] = [
    ("cifar/resnet20", 32, 64, 10, 256),
    ("cifar/resnet20", 32, 64, 10, 1024),
    ("timm/resnet50", 224, 1024, 1000, 256),
    ("timm/resnet50", 224, 1024, 1000, 1024),
]


def make_student(name: str, width: int, classes: int, head: int, **settings: Any) -> gendd.Student:
    """Create an untrained student of a teacher with features of ``width``, with non-zero head layers."""
    torch.manual_seed(0)
    backbone = create_backbone(name, classes)
    config = GenDDConfig(**{"head_width": head, **settings})
    generator = FeatureGenerator(backbone.feature_dim, width, config)
    student = gendd.Student(backbone, generator, nn.Linear(width, classes))
    return student.to(memory_format=torch.channels_last).eval()


def paired(
    candidates: Mapping[str, Callable[[], object]], repeats: int, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Return the seconds per call by candidate and repeat; short calls are repeated to fill ``seconds``."""
    calls = {}
    for name, candidate in candidates.items():
        candidate()
        start = time.perf_counter()
        candidate()
        calls[name] = max(1, round(seconds / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    order = random.Random(0)
    for _ in range(repeats):
        names = list(candidates)
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            for _ in range(calls[name]):
                candidates[name]()
            found[name].append((time.perf_counter() - start) / calls[name])
    return found


def ratios(found: dict[str, list[float]], name: str, base: str) -> dict[str, float]:
    values = [mine / other for mine, other in zip(found[name], found[base], strict=True)]
    return {
        "ratio": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


def _call(network: nn.Module, images: Tensor, low: bool) -> object:
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return network(images)


@torch.inference_mode()
def readouts(repeats: int, threads: int) -> list[dict[str, Any]]:
    rows = []
    for name, size, width, classes, head in STUDENTS:
        student = make_student(name, width, classes, head)
        assert student.generator is not None and student.classifier is not None
        saved = savings(student.generator, student.classifier)
        print(name, f"head {head}: multiply-adds saved by folding:", saved)
        networks: dict[str, nn.Module] = {
            "student": student.backbone,
            "linear": deploy(student, "linear"),
            "mean": deploy(student, "mean"),
        }
        for precision in ("fp32", "bf16"):
            for batch in (1, 64):
                images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)

                candidates = {
                    each: partial(_call, network, images, precision == "bf16")
                    for each, network in networks.items()
                }
                # more repeats of short calls, as disturbances last longer than a call
                times = repeats if size > 32 else 6 * repeats
                found = paired(candidates, times)
                for each, network in networks.items():
                    row: dict[str, Any] = {
                        "student": name,
                        "teacher_width": width,
                        "tokens": student.generator.num_tokens,
                        "head_width": head,
                        "precision": precision,
                        "batch": batch,
                        "readout": each,
                        "multiply_adds": multiply_adds(network, images[:1]),
                        **ratios(found, each, "student"),
                        # a plain student deployed in the same way costs the same as the linear readout
                        "ratio_linear": ratios(found, each, "linear")["ratio"],
                        "ms": round(1000 * statistics.median(found[each]) / batch, 4),
                        "repeats": times,
                        "threads": threads,
                    }
                    print(row, flush=True)
                    rows.append(row)
    return rows


def direct(
    generator: FeatureGenerator, condition: Tensor, steps: int, guidance: float, samples: int, seed: int
) -> Tensor:
    """Sample exactly as in the formulas: every row, with and without its condition, in every step."""
    images, count = condition.shape[0], generator.num_tokens
    random = torch.Generator().manual_seed(seed)
    z = tokens.repeat_rows(condition.unsqueeze(1).expand(-1, count, -1), samples)
    token = torch.arange(count).repeat(samples * images)
    schedule = generator.schedule.respace(steps)
    channels = generator.token_width

    def denoise(x: Tensor, step: int) -> Denoised:
        t = torch.full((2 * len(x),), int(schedule.timesteps[step]))
        output = generator.head(
            torch.cat([x, x]), t, torch.cat([z, torch.zeros_like(z)]), torch.cat([token, token])
        )
        conditional, unconditional = output.chunk(2)
        guided = unconditional[:, :channels] + guidance * (
            conditional[:, :channels] - unconditional[:, :channels]
        )
        index = torch.full((len(x),), step)
        x0 = predicted_x0(guided, x, index, schedule, generator.prediction)
        v = conditional[:, channels:]
        return Denoised(x0, interpolated_log_variance(v, index, schedule) if v.shape[1] else None)

    x = ancestral(denoise, torch.randn(len(z), channels, generator=random), schedule, generator=random)
    merged = tokens.merge(x.reshape(samples, images, count, -1), generator.feature_width)
    return generator.restore(merged)


@torch.inference_mode()
def sampling(repeats: int, threads: int) -> list[dict[str, Any]]:
    """Time 5 x 100 steps, guidance 2, with the published head and with ours."""
    rows = []
    cases = {
        "64-d teacher, head 256": ("cifar/resnet20", 64, 10, 256, 64),
        "64-d teacher, published head 1024": ("cifar/resnet20", 64, 10, 1024, 64),
        "1024-d teacher, head 256": ("cifar/resnet20", 1024, 10, 256, 16),
    }
    for case, (name, width, classes, head, images) in cases.items():
        student = make_student(
            name, width, classes, head, prediction="epsilon", learned_variance=True, condition_dropout=0.2
        )
        generator = student.generator
        assert generator is not None
        condition = torch.randn(images, generator.condition_width)
        config = ReadoutConfig("sample", sampler="ddpm", steps=100, guidance=2.0, num_samples=5)

        def ours(generator: Any = generator, condition: Tensor = condition, config: Any = config) -> Tensor:
            made: Tensor = generator.sample(
                condition,
                steps=config.steps,
                guidance=config.guidance,
                num_samples=config.num_samples,
                generator=torch.Generator().manual_seed(0),
            )
            return made

        def plainly(generator: Any = generator, condition: Tensor = condition) -> Tensor:
            return direct(generator, condition, 100, 2.0, 5, 0)

        expected = plainly()
        deviation = float((ours() - expected).abs().max() / expected.abs().max())
        found = paired({"direct": plainly, "ours": ours}, repeats, seconds=0)
        row = {
            "case": case,
            "images": images,
            # speed-up
            **ratios(found, "direct", "ours"),
            "seconds": round(statistics.median(found["ours"]), 3),
            "direct_seconds": round(statistics.median(found["direct"]), 3),
            "deviation": f"{deviation:.1e}",
            "repeats": repeats,
            "threads": threads,
        }
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["readouts", "sampling"])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "readouts":
        rows, fields, file = readouts(arguments.repeats, arguments.threads), READOUT_FIELDS, "latency.csv"
    else:
        rows, fields, file = sampling(arguments.repeats, arguments.threads), SAMPLING_FIELDS, "sampling.csv"
    records.write(RESULTS / file, fields, rows)


if __name__ == "__main__":
    main()
