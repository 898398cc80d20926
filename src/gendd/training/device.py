"""Device, precision and memory format for training, and which images are on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gendd.data import Data, ImageSet
from gendd.errors import UserError
from gendd.models import Backbone
from gendd.models.trial import sample_images, still


def resolve_device(name: str, key: str = "training.device") -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``mps`` to a device.

    Raises:
        UserError: the device is not available; the message names the option ``key``.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name):
        raise UserError(f"{key}: expected a device of this machine, got {name!r}; use 'auto' or 'cpu'.")
    return torch.device(name)


def with_images_on(data: Data, device: torch.device) -> Data:
    """Move training images in memory to a CUDA device if they take at most a quarter of its free memory."""
    images = data.train
    if device.type != "cuda" or not isinstance(images, ImageSet) or not isinstance(images.source, Tensor):
        return data
    free, _ = torch.cuda.mem_get_info(device)
    return replace(data, train=images.on(device)) if images.source.nbytes <= free / 4 else data


def resolve_precision(name: str, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """Resolve the precision; ``auto`` is bf16 if the device has native bf16 matrix products, else fp32.

    Raises:
        UserError: fp16 on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError("training.precision: expected fp32 or bf16 on a CPU, got 'fp16'.")
    if name != "auto":
        return cast(Literal["fp32", "bf16", "fp16"], name)
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and _cpu_multiplies_bf16():
        return "bf16"
    return "fp32"


def autocast_type(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast dtype for training on a device (see :func:`resolve_precision`); None for fp32."""
    if name == "fp16" and device.type == "cpu":
        return None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[resolve_precision(name, device)]


def training_precision(
    name: str, device: torch.device, backbone: Backbone, channels: int, size: int
) -> Literal["fp32", "bf16", "fp16"]:
    """Precision for training a student: as :func:`resolve_precision`, but fp32 where bf16 would be wrong."""
    found = resolve_precision(name, device)
    if found == "bf16" and device.type == "cpu" and strides_over_one_position(backbone, channels, size):
        return "fp32"
    return found


def _cpu_multiplies_bf16() -> bool:
    # with either, a ResNet's training step in bf16 takes about half the time of one in fp32
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def strides_over_one_position(backbone: Backbone, channels: int, size: int) -> bool:
    """Whether a strided convolution of a network gets 1x1 maps as input, for images of this size.

    In bf16 on CPUs, PyTorch 2.14 leaves the gradient of its weights uninitialised.
    """
    found: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].shape[-2:] == (1, 1))

    strided = [
        part for part in backbone.net.modules() if isinstance(part, nn.Conv2d) and max(part.stride) > 1
    ]
    hooks = [part.register_forward_pre_hook(look) for part in strided]
    try:
        with still(backbone.net):
            backbone.net(sample_images(backbone.net, channels, (size, size)))
    finally:
        for hook in hooks:
            hook.remove()
    return any(found)


def overruns(network: nn.Module, device: torch.device) -> bool:
    """Whether channels-last training of a network corrupts memory on this device.

    On CPUs without AVX-512, the backward pass of PyTorch 2.14's strided 1x1 convolutions with fewer than 8
    input channels writes beyond its buffers in that format, and the process eventually crashes.
    """
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512":
        return False
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels // layer.groups < 8
        for layer in network.modules()
    )
