"""Images per second of a training step of each method compared with the plain student's, and peak memory.

Images are random and already on the device: a step is the teacher's pass, forward, backward and the
optimiser. Every repeat times all methods one after the other; a row's ratio is the median over repeats of its
seconds divided by those of the plain student in the same repeat. Peak memory is measured for each method
alone: of the tensors that a step allocates, and of the process (on a CPU, without the import of PyTorch) or
what PyTorch's allocator reserves (on CUDA). On CUDA, a few more steps run with PyTorch's check for
synchronisations. Steps are replayed as CUDA graphs, as in training, or not (`--no-graphs`).

    python benchmarks/throughput.py --case small --precision bf16
    python benchmarks/throughput.py --case large --precision bf16
    python benchmarks/throughput.py --case wide --batch 16 --steps 1 --repeats 3 --precision fp32 --threads 1
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import records
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gendd.compare.cells import circumstances
from gendd.config import RunConfig, from_dict
from gendd.methods import Method, build_method
from gendd.models import Frozen, create_backbone
from gendd.models.costs import synchronise
from gendd.training import GraphedSteps, autocast_type, overruns, parameter_groups, resolve_device
from gendd.training.memory import peak_memory, reset_peak

RESULTS = Path(__file__).parent / "results"
FIELDS = ["teacher", "student", "pixels", "batch", "precision", "method", "ratio", "lowest", "highest"]
FIELDS += ["images_per_second", "peak_memory_mb", "tensors_mb", "waits", "graphs", "repeats", "steps"]
PLAIN = "student alone"
METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {"method": "supervised"},
    "KD": {"method": "kd"},
    "SimKD": {"method": "simkd"},
    "GenDD": {"method": "gendd"},
    "GenDD, compiled": {"method": "gendd", "training": {"compile": True}},
    "GenDD, pooled": {"method": "gendd", "gendd": {"map_weight": 0}},
    "GenDD, published": {
        "method": "gendd",
        "gendd": {"map_weight": 0, "head_width": 1024, "repeats": 30, "token_width": 64},
    },
}


@dataclass(frozen=True)
class Case:
    """A pair of networks and their images."""

    teacher: str
    student: str
    pixels: int
    classes: int
    batch: int


CASES = {
    "small": Case("cifar/resnet56", "cifar/resnet20", 32, 10, 128),
    "small-512": Case("cifar/resnet56", "cifar/resnet20", 32, 10, 512),
    "wide": Case("timm/densenet121", "timm/resnet50", 224, 1000, 128),
    "large": Case("timm/resnet50", "timm/resnet18", 224, 1000, 128),
}


class Training:
    """A method trained repeatedly on one batch."""

    def __init__(
        self, settings: dict[str, Any], case: Case, precision: str, device: torch.device, graphs: bool
    ) -> None:
        config = from_dict(settings, RunConfig)
        torch.manual_seed(0)
        backbones = [create_backbone(name, case.classes) for name in (case.student, case.teacher)]
        student, teacher = (each.expect((case.pixels, case.pixels)) for each in backbones)
        self.method: Method = build_method(config, student, Frozen(teacher), True)
        self.images = torch.rand(case.batch, 3, case.pixels, case.pixels, device=device)
        self.labels = torch.arange(case.batch, device=device) % case.classes
        if not overruns(self.method, device):
            self.method.to(memory_format=torch.channels_last)
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.method.to(device).train()
        self.method.prepare([(self.images, self.labels)])
        if config.training.compile:
            self.method.compile_losses()
        self.optimiser = torch.optim.AdamW(parameter_groups(self.method, 0.05), lr=1e-3, fused=True)
        self.autocast = autocast_type(precision, device)
        self.losses = GraphedSteps(self.method, graphs)
        self.generator = torch.Generator(device).manual_seed(0)
        self.device = device

    def step(self) -> Tensor:
        """Take one step and return its loss."""
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            out = self.losses(self.images, self.labels, generator=self.generator)
        torch.autograd.backward(out.loss)
        self.optimiser.step()
        return out.loss.detach()

    def seconds(self, steps: int) -> float:
        """Return the mean seconds per step."""
        synchronise(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        synchronise(self.device)
        taken = time.perf_counter() - start
        if not bool(torch.isfinite(loss)):
            raise SystemExit("the loss is not finite")
        return taken / steps


@contextlib.contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Peak(NamedTuple):
    """Peak memory in MB, reserved or of the process, and of tensors; the first synchronisation, if any."""

    memory: float
    tensors: float | None
    waits: str = ""


def alone(training: Training, base: int) -> Peak:
    """Return CUDA's peak memory above ``base`` bytes, and the first synchronisation in three steps."""
    training.seconds(5)
    torch.cuda.reset_peak_memory_stats()
    kept = torch.cuda.memory_allocated()
    training.seconds(3)
    memory = round((torch.cuda.max_memory_reserved() - base) / 1e6, 1)
    # a replayed step uses the memory of its graph and allocates nothing
    graphed = training.losses.enabled
    tensors = None if graphed else round((torch.cuda.max_memory_allocated() - kept) / 1e6, 1)
    waits = "none"
    try:
        with waits_are_errors():
            for _ in range(3):
                training.step()
    except RuntimeError as error:
        waits = str(error).splitlines()[0]
    finally:
        synchronise(training.device)
    return Peak(memory, tensors, waits)


def _tensors(training: Training) -> float:
    """Return the peak in MB of the tensors that a step on a CPU allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.step()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return float(round((max(totals) - totals[0]) / 1e6, 1))


def _peak(settings: dict[str, Any], case: Case, precision: str, threads: int) -> Peak:
    """Return the peak memory that a method and its steps add to a process."""
    torch.set_num_threads(threads)
    reset_peak()
    base = peak_memory()
    training = Training(settings, case, precision, torch.device("cpu"), False)
    training.seconds(1)
    reset_peak()
    training.seconds(2)
    return Peak(round(peak_memory() - base, 1), _tensors(training))


def measure(
    case: Case,
    precision: str,
    device: torch.device,
    repeats: int,
    steps: int,
    names: list[str],
    graphs: bool,
) -> list[dict[str, Any]]:
    """Return one row per method; ``names`` contains the plain student, which ratios refer to."""
    if device.type == "cuda":
        # libraries allocate workspaces once
        alone(Training(METHODS[PLAIN], case, precision, device, graphs), 0)
    found: dict[str, Peak] = {}
    chosen = {name: METHODS[name] for name in names}
    for name, settings in chosen.items():
        if device.type != "cuda":
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                threads = torch.get_num_threads()
                found[name] = pool.submit(_peak, settings, case, precision, threads).result()
            continue
        gc.collect()
        torch.cuda.empty_cache()
        base = torch.cuda.memory_reserved()
        found[name] = alone(Training(settings, case, precision, device, graphs), base)
    trainings = {name: Training(each, case, precision, device, graphs) for name, each in chosen.items()}
    for training in trainings.values():
        training.seconds(max(5, steps))
    taken: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(repeats):
        for name, training in trainings.items():
            taken[name].append(training.seconds(steps))
    plain = taken[PLAIN]
    rows = []
    for name, seconds in taken.items():
        ratios = [each / base for each, base in zip(seconds, plain, strict=True)]
        rows.append(
            {
                "teacher": case.teacher,
                "student": case.student,
                "pixels": case.pixels,
                "batch": case.batch,
                "precision": precision,
                "method": name,
                "ratio": f"{statistics.median(ratios):.3f}",
                "lowest": f"{min(ratios):.3f}",
                "highest": f"{max(ratios):.3f}",
                "images_per_second": round(case.batch / statistics.median(seconds)),
                "peak_memory_mb": found[name].memory,
                "tensors_mb": found[name].tensors,
                "waits": found[name].waits,
                "graphs": str(graphs).lower() if device.type == "cuda" else "",
                "repeats": repeats,
                "steps": steps,
                **circumstances(device.type),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=[*CASES], nargs="+", default=["small"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, help="images of a step; default: the case's, 128 or 512")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="steps per repeat")
    parser.add_argument("--methods", choices=[*METHODS], nargs="+", default=[*METHODS])
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, help="of the processor; default: as PyTorch chooses")
    parser.add_argument("--results", type=Path, default=RESULTS / "throughput.csv")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    for case in arguments.case:
        for precision in arguments.precision:
            made = CASES[case] if arguments.batch is None else replace(CASES[case], batch=arguments.batch)
            names = [PLAIN, *(name for name in METHODS if name in arguments.methods and name != PLAIN)]
            rows = measure(
                made, precision, device, arguments.repeats, arguments.steps, names, arguments.graphs
            )
            records.append(arguments.results, FIELDS, rows)
            for row in rows:
                print(
                    f"{row['student']} {row['pixels']} px × {row['batch']} {precision} {row['method']}: "
                    f"{row['ratio']} × the student alone ({row['lowest']} to {row['highest']}), "
                    f"{row['images_per_second']} images/s, {row['peak_memory_mb']} MB, tensors "
                    f"{row['tensors_mb'] or '–'} MB, "
                    f"waits: {row['waits'] or '–'}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
