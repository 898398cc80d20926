"""``torch-export``: a traced program, run by ``torch.export.load(path).module()`` without gendd."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gendd.errors import UserError
from gendd.exporting.job import Job, Network

SUFFIX = ".pt2"
METADATA = "metadata.json"
# a step of the sampler is some hundred nodes, traced in about a second
LARGE, MOST = 30, 200


def dynamic_batch() -> tuple[dict[int, Dim]]:
    """The shapes of a program's images: any B."""
    return ({0: Dim("batch", min=1)},)


def traced(job: Job) -> ExportedProgram:
    """The deployed student as a graph for any number of images.

    Raises:
        UserError: its network can't be traced.
    """
    images = torch.zeros(2, job.channels, job.size, job.size)
    try:
        with torch.no_grad():
            program = torch.export.export(job.deployed, (images,), dynamic_shapes=dynamic_batch())
    except Exception as error:  # of the tracer, which raises many kinds
        raise unwritten(job, "a network that torch.export can trace", error) from error
    for node in program.graph.nodes:
        # the places of this machine's files, which are no one else's business
        node.meta.pop("stack_trace", None)
    return program


def unwritten(job: Job, expected: str, error: Exception) -> UserError:
    """The error for what torch raised instead of exporting a student."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return UserError(
        f"Export: expected {expected}, got {job.student.backbone.name} ({reason}); export it to safetensors "
        "and run it with gendd."
    )


def check_steps(steps: int) -> str | None:
    """A remark where a sampler of that many steps makes a large graph, which has one head a step.

    Raises:
        UserError: it makes one too large.
    """
    if steps > MOST:
        raise UserError(
            f"Export: expected at most {MOST} sampling steps, each of which is a copy of the head in the "
            f"graph, got {steps}; give --steps 10 --sampler dpm-solver, or --readout mean."
        )
    if steps <= LARGE:
        return None
    return f"{steps} sampling steps are as many copies of the head in the graph: large, and slow to export"


def write(job: Job, path: Path) -> Network:
    """Write the program with the metadata in a file of its own, and load it."""
    files = {METADATA: json.dumps(job.metadata(), indent=2, ensure_ascii=False)}
    program = traced(job)
    try:
        torch.export.save(program, path, extra_files=files)
        loaded = torch.export.load(path).module()
    except RuntimeError as error:
        raise unwritten(job, "a network that torch.export can save", error) from error

    def network(images: Tensor) -> Tensor:
        logits: Tensor = loaded(images)
        return logits

    return network
