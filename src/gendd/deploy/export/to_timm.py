"""``timm``: backbone and linear classifier for timm.create_model(NAME, checkpoint_path=FILE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendd.config import ReadoutName
from gendd.deploy.export.formats import Format
from gendd.deploy.export.source import Network, Source
from gendd.errors import UserError
from gendd.models import save_weights
from gendd.student import Student


def linear(student: Student, readout: ReadoutName | None) -> ReadoutName:
    """Return ``linear``; raise :class:`UserError` if another is wanted, or timm can't build the student."""
    name = student.backbone.name
    if not name.startswith("timm/"):
        raise UserError(
            f"Export to timm: expected a student timm/NAME, got {name}; export it to onnx, torch-export or "
            "safetensors."
        )
    if "projector" in student.backbone.arguments:
        raise UserError(
            f"Export to timm: expected a network as timm builds it, got {name} with a projector; export it "
            "to onnx, torch-export or safetensors."
        )
    if readout not in (None, "linear"):
        raise UserError(
            f"Export to timm: expected readout linear, as timm's networks have no head, got {readout!r}; "
            "leave it out, or export it to onnx, torch-export or safetensors."
        )
    return student.checked("linear")


def arguments(source: Source) -> dict[str, Any]:
    """Return timm.create_model's arguments besides name and file: of the network, then of its input."""
    backbone = source.student.backbone
    given: dict[str, Any] = {"num_classes": backbone.num_classes}
    if backbone.channels != 3:
        given["in_chans"] = backbone.channels
    height, width = backbone.image_size or (source.size, source.size)
    fixed = getattr(backbone.net, "pretrained_cfg", {}).get("fixed_input_size")
    if fixed:
        given["img_size"] = height
    given["pretrained_cfg_overlay"] = {
        "mean": tuple(backbone.input_mean),
        "std": tuple(backbone.input_std),
        "input_size": (backbone.channels, height, width),
        "crop_pct": source.framing,
        "interpolation": "bilinear",
    }
    return given


def call(source: Source, path: Path) -> list[str]:
    """Return the Python code that loads the file."""
    name = source.student.backbone.name.removeprefix("timm/")
    given = [f"{key}={value!r}" for key, value in arguments(source).items()]
    return [f"timm.create_model({', '.join([repr(name), f'checkpoint_path={str(path)!r}', *given])})"]


def write(source: Source, path: Path) -> Network:
    """Write the plain state dict, and load it with timm."""
    import timm

    backbone = source.student.backbone
    save_weights(backbone, path)
    name, given = backbone.name.removeprefix("timm/"), arguments(source)
    try:
        loaded: torch.nn.Module = timm.create_model(name, checkpoint_path=str(path), **given).eval()
    except Exception as error:  # mismatched keys or arguments
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"Export to timm: expected a student that timm builds, got {backbone.name} changed ({reason}); "
            "export it to onnx, torch-export or safetensors."
        ) from error

    def network(images: Tensor) -> Tensor:
        logits: Tensor = loaded(backbone.prepare(images))
        return logits

    return network


FORMAT = Format("timm", ".safetensors", write, readout=linear, remarks=call, tag="timm")
