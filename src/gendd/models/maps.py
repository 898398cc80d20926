"""Feature maps of a network: conversion, pooling, and the modules that give them.

Shapes: B images, D or E channels, h x w positions, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# positions per row and column of a thinned map
SIDE = 8
# for each of the last stage maps, finest first, whether it is thinned; None: all of them, whole
Stages = tuple[bool, ...] | None


def first_tensor(output: Any) -> Tensor:
    """Return a module's output tensor, or the first tensor of a tuple or mapping."""
    values = output.values() if isinstance(output, Mapping) else output
    if isinstance(values, Tensor):
        return values
    return next(value for value in values if isinstance(value, Tensor))


def as_map(output: Tensor, prefix: int | None = None, channels_last: bool = False) -> Tensor | None:
    """Convert a module's output before pooling to a map (B, D, h, w); None for a vector.

    Args:
        output: (B, D, h, w), or tokens (B, N, D).
        prefix: Number of leading tokens without a position; None: as many as leave a square of tokens.
        channels_last: Whether a map is (B, h, w, D).
    """
    if output.dim() == 3:
        count = output.shape[1]
        if prefix is None:
            prefix = next((k for k in range(9) if count > k and math.isqrt(count - k) ** 2 == count - k), 0)
        tokens = output[:, prefix:].transpose(1, 2)
        side = math.isqrt(tokens.shape[-1])
        shape = (side, side) if side * side == tokens.shape[-1] else (tokens.shape[-1], 1)
        output = tokens.reshape(*tokens.shape[:2], *shape)
    elif channels_last and output.dim() == 4:
        output = output.permute(0, 3, 1, 2)
    return output if output.dim() == 4 else None


def thinned(found: Tensor) -> Tensor:
    """A map (B, D, h, w) at evenly spaced positions, about :data:`SIDE` per row and column if finer."""
    down, right = (max(1, round(size / SIDE)) for size in found.shape[2:])
    return found[:, :, down // 2 :: down, right // 2 :: right]


def has_positions(found: Tensor | None) -> bool:
    """Whether ``found`` is a map (B, D, h, w) of more than one position."""
    return found is not None and found.shape[-1] * found.shape[-2] > 1


def pooled(output: Tensor, token: int | None) -> Tensor:
    if output.dim() == 4:
        return F.adaptive_avg_pool2d(output, 1).flatten(1)
    if output.dim() == 3:
        return output.mean(1) if token is None else output[:, token].clone()
    if output.dim() == 2:
        return output.clone()
    raise ValueError(f"an output of shape {tuple(output.shape)}")


def stage_names(net: nn.Module, run: Callable[[], Tensor], size: tuple[int, int]) -> list[str]:
    """Names of the modules that give the last map of each grid finer than the final one, finest first.

    Among the modules of one grid, the last of the least deeply nested ones is taken: the output of a stage,
    not of the first layers of the next stage's block.

    Args:
        net: The network.
        run: Runs it once on images of one size and returns the final map (B, E, h, w).
        size: (H, W) of the images, used to tell maps from other 4-d outputs.
    """
    seen: dict[tuple[int, int], tuple[int, str]] = {}

    def note(name: str, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            return
        grid, depth = (output.shape[2], output.shape[3]), name.count(".")
        # excludes attention weights (queries x keys) and channels-last outputs
        steps = [-(-side // max(1, round(side / cells))) for side, cells in zip(size, grid, strict=True)]
        if steps == list(grid) and depth <= seen.get(grid, (depth, ""))[0]:
            seen[grid] = depth, name

    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: note(name, out))
        for name, module in net.named_modules()
        if name
    ]
    try:
        final = run()
    finally:
        for handle in handles:
            handle.remove()
    finer = [grid for grid in seen if grid[0] > final.shape[2]]
    return [seen[grid][1] for grid in sorted(finer, reverse=True)]
