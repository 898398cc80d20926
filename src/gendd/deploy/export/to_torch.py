"""``torch-export``: an exported program, run with ``torch.export.load(path).module()`` without gendd."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from gendd.deploy.export.formats import Format
from gendd.deploy.export.source import Network, Source
from gendd.errors import UserError, first_line

METADATA = "metadata.json"
# sampling steps from which to warn, and the maximum: one is some hundred nodes, traced in about a second
LARGE, MOST = 30, 200


def dynamic_batch() -> tuple[dict[int, Dim]]:
    """Return the dynamic shapes of a program's images: any B."""
    return ({0: Dim("batch", min=1)},)


def traced(source: Source) -> ExportedProgram:
    """Trace the deployed student for any batch size.

    Raises:
        UserError: its network can't be traced.
    """
    images = torch.zeros(2, source.channels, source.size, source.size)
    try:
        with torch.no_grad():
            program = torch.export.export(source.deployed, (images,), dynamic_shapes=dynamic_batch())
    except Exception as error:  # the tracer raises many kinds
        raise unwritten(source, "a network that torch.export can trace", error) from error
    for node in program.graph.nodes:
        # file paths of this machine, which should not be published
        node.meta.pop("stack_trace", None)
    return program


def unwritten(source: Source, expected: str, error: Exception) -> UserError:
    """Return the error for an exception that torch raised while exporting."""
    return UserError(
        f"Export: expected {expected}, got {source.student.backbone.name} ({first_line(error)}); export it "
        "to safetensors and run it with gendd."
    )


def check_steps(steps: int) -> str | None:
    """Return a remark if this many sampling steps make a large graph, with one copy of the head per step.

    Raises:
        UserError: the graph would be too large.
    """
    if steps > MOST:
        raise UserError(
            f"Export: expected at most {MOST} sampling steps, each of which is a copy of the head in the "
            f"graph, got {steps}; give --steps 10 --sampler dpm-solver, or --readout mean."
        )
    if steps <= LARGE:
        return None
    return f"{steps} sampling steps are as many copies of the head in the graph: large, and slow to export"


def write(source: Source, path: Path) -> Network:
    """Write the program with the metadata in an extra file, and load it."""
    files = {METADATA: json.dumps(source.metadata(), indent=2, ensure_ascii=False)}
    program = traced(source)
    try:
        torch.export.save(program, path, extra_files=files)
        loaded = torch.export.load(path).module()
    except RuntimeError as error:
        raise unwritten(source, "a network that torch.export can save", error) from error

    def network(images: Tensor) -> Tensor:
        logits: Tensor = loaded(images)
        return logits

    return network


FORMAT = Format("torch-export", ".pt2", write, unrolled=True)
