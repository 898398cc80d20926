"""Costs of a network: parameters, multiply-adds, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gendd.models.trial import still


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module: nn.Module, images: Tensor) -> int:
    """Multiply-adds per image of convolutions, linear layers, matrix products and attention.

    Biases, norms, activations and pooling are not counted. Runs the module once, in eval mode; every
    submodule's mode is restored.

    Args:
        module: Any module that takes only ``images``.
        images: (1, C, H, W), or a batch whose cost is divided by its size.
    """
    # slow to import
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    learned = [each for each in module.parameters() if each.requires_grad]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator, which the counter can't see into
    # the counter needs the grad_fn of a submodule's inputs that require gradients; a parameter has none
    for each in learned:
        each.requires_grad_(False)
    try:
        # likewise torch's fused CPU attention, unknown to the counter of some versions
        with still(module), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for each in learned:
            each.requires_grad_(True)
    flops: int = counter.get_total_flops()
    return flops // (2 * images.shape[0])


def timings(
    fn: Callable[[Tensor], object], images: Tensor, *, warmup: int = 3, repeats: int = 20
) -> list[float]:
    """Seconds per image of each of several calls of ``fn(images)``, without gradients.

    Args:
        fn: Function to time; its result is dropped.
        images: (B, C, H, W) on the device where ``fn`` runs; the time of a call is divided by B.
        warmup: Untimed calls before.
        repeats: Timed calls, at least 1.
    """
    seconds = []
    with torch.no_grad():
        for _ in range(warmup):
            fn(images)
        for _ in range(repeats):
            synchronise(images.device)
            start = time.perf_counter()
            fn(images)
            synchronise(images.device)
            seconds.append((time.perf_counter() - start) / images.shape[0])
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_format(network: nn.Module) -> torch.memory_format:
    """Memory format of a network's convolutions: the one it was trained in and runs fastest in."""
    for weight in network.parameters():
        # weights with one input channel or a 1x1 kernel are contiguous in both formats
        last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        if last and not weight.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
