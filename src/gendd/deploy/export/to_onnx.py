"""``onnx``: a graph for ONNX Runtime and the like, ``images`` (B, C, S, S) in [0, 1] -> ``logits`` (B, K)."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gendd.deploy.export.formats import Format
from gendd.deploy.export.source import Network, Source
from gendd.deploy.export.to_torch import dynamic_batch, traced, unwritten
from gendd.errors import UserError

OPSET = 18


def needs() -> None:
    """Raise :class:`UserError` if a package of the extra ``export`` is missing or can't be imported."""
    names = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(f"Export to onnx needs {', '.join(missing)}: pip install 'gendd[export]'")
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"Export to onnx needs {name}, which can't be imported ({reason}): "
                "pip install --force-reinstall 'gendd[export]'"
            ) from error


def write(source: Source, path: Path) -> Network:
    """Write the graph, with its weights, and load it."""
    program = traced(source)
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
    except Exception as error:  # the converter raises many kinds
        raise unwritten(source, "a network that torch.onnx can convert", error) from error
    assert made is not None
    for node in made.model.graph:
        # PyTorch's conversion metadata, as large as the weights of a small network
        node.metadata_props.clear()
    made.model.metadata_props.clear()
    made.model.metadata_props.update(source.metadata())
    made.model.producer_name = "gendd"
    made.save(path, external_data=False)
    return load(path)


def session(path: Path) -> Any:
    """Open a file with ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # its warnings do not concern users
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load(path: Path) -> Network:
    """Load an ONNX file as a network run by ONNX Runtime."""
    opened = session(path)

    def network(images: Tensor) -> Tensor:
        given: NDArray[np.float32] = images.numpy()
        return torch.from_numpy(opened.run(["logits"], {"images": given})[0])

    return network


FORMAT = Format("onnx", ".onnx", write, needs, unrolled=True, quantizable=True)
