"""``onnx``: a graph for ONNX Runtime and its like, ``images`` (B, C, S, S) in [0, 1] -> ``logits`` (B, K)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gendd.exporting.job import Job, Network
from gendd.exporting.needed import need
from gendd.exporting.to_torch import dynamic_batch, traced, unwritten

SUFFIX = ".onnx"
OPSET = 18


def needs() -> None:
    """Raise :class:`UserError` where a package is missing."""
    need("Export to onnx", "onnx", "onnxscript", "onnxruntime")


def write(job: Job, path: Path) -> Network:
    """Write the graph, its weights inside, and load it."""
    program = traced(job)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=dynamic_batch(),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # of the converter, which raises many kinds
        raise unwritten(job, "a network that torch.onnx can convert", error) from error
    assert made is not None
    for node in made.model.graph.all_nodes():
        # how PyTorch came to it: as large as the weights of a small network
        node.metadata_props.clear()
    made.model.metadata_props.clear()
    made.model.metadata_props.update(job.metadata())
    made.model.producer_name = "gendd"
    made.save(path, external_data=False)
    return load(path)


def session(path: Path) -> Any:
    """ONNX Runtime's session of a file, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # what it warns of is no matter of the user's
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(path: Path) -> Network:
    """The network of an ONNX file, run by ONNX Runtime."""
    opened = session(path)

    def network(images: Tensor) -> Tensor:
        given: NDArray[np.float32] = images.numpy()
        return torch.from_numpy(opened.run(["logits"], {"images": given})[0])

    return network
