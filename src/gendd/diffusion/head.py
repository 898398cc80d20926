"""The diffusion head: an MLP modulated by time, condition and token position (adaptive LayerNorm).

Shapes: R rows · C token width · W head width · E condition width · N tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIME_CHANNELS = 256
MAX_PERIOD = 10_000.0


# by number and device; not in lru_cache, which torch.compile ignores
_FREQUENCIES: dict[tuple[int, torch.device], Tensor] = {}


def _frequencies(count: int, device: torch.device) -> Tensor:
    key = count, device
    if key not in _FREQUENCIES:
        # exponential in float64, rounded once: an angle is up to T times a frequency and multiplies its
        # rounding error as much, and float32 exponentials differ between machines
        exponents = -math.log(MAX_PERIOD) * torch.arange(count, dtype=torch.float32) / count
        _FREQUENCIES[key] = torch.exp(exponents.double()).float().to(device)
    return _FREQUENCIES[key]


def time_embedding(t: Tensor, channels: int = TIME_CHANNELS) -> Tensor:
    """Sinusoidal embedding [cos | sin] of times (R,) -> (R, channels) float32."""
    half = channels // 2
    frequencies = _frequencies(half, t.device)
    angles = t.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Block(nn.Module):
    """Residual MLP: x + gate · MLP(LN(x)(1 + scale) + shift); (…, W) and modulation (…, 3 W) -> (…, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm(x), 1 + scale)))


class Head(nn.Module):
    """The denoising network of one token.

    Args:
        token_width: C, channels of a token.
        condition_width: E, channels of the condition.
        num_tokens: N, tokens per feature.
        width: W.
        depth: Residual blocks.
        out_channels: 2 C with a learned variance, else C.
        zero_init: Whether modulations and the final layer start at zero (as published).
    """

    def __init__(
        self,
        token_width: int,
        condition_width: int,
        num_tokens: int,
        width: int = 1024,
        depth: int = 3,
        out_channels: int | None = None,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        self.token_width = token_width
        out_channels = 2 * token_width if out_channels is None else out_channels
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition_width, width)
        self.position = nn.Embedding(num_tokens, width)
        self.input = nn.Linear(token_width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, out_channels)
        self.silu = nn.SiLU()
        self.reset_parameters(zero_init)

    def reset_parameters(self, zero_init: bool = True) -> None:
        """Xavier weights, zero biases, time N(0, 0.02); with ``zero_init``, zero modulations and output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        if not zero_init:
            return
        zeroed = [self.final_modulation, self.final]
        zeroed += [block.modulation for block in self.blocks if isinstance(block, Block)]
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, token: Tensor) -> Tensor:
        """One denoising pass.

        Args:
            x: (R, C) noisy tokens.
            t: (R,) int64 times.
            condition: (R, E); zeros for the unconditional branch.
            token: (R,) int64 position of each token in its feature.

        Returns:
            (R, out_channels): the prediction, then (with a learned variance) its interpolation v.
        """
        return self.denoise(x, self.modulate(t, condition, token))

    def modulate(self, t: Tensor, condition: Tensor, token: Tensor) -> list[Tensor]:
        """Modulations of every layer by time, condition and position, independent of the noisy token.

        Leading dimensions only need to broadcast, as in t (1,), condition (B, 1, E), token (N,), so that
        values shared by rows are computed once.

        Args:
            t: (…) int64 times.
            condition: (…, E).
            token: (…) int64 positions.

        Returns:
            Shift, scale and gate (…, 3 W) of each block, then the final shift and scale (…, 2 W).
        """
        embedded = time_embedding(t).to(self.condition.weight.dtype)
        y = self.time(embedded) + self.condition(condition) + self.position(token)
        y = self.silu(y)
        layers = [block.modulation for block in self.blocks if isinstance(block, Block)]
        layers.append(self.final_modulation)
        if not torch.is_grad_enabled():
            return [layer(y) for layer in layers]
        # one matrix product makes a training step cheaper than several
        weight = torch.cat([layer.weight for layer in layers])
        said = F.linear(y, weight, torch.cat([layer.bias for layer in layers]))
        return list(torch.split(said, [layer.out_features for layer in layers], dim=-1))

    def denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """Denoise x (…, C) with the modulations of :meth:`modulate`, broadcast to it -> (…, out_channels)."""
        *inner, last = modulations
        x = self.input(x.to(self.input.weight.dtype))
        for block, modulation in zip(self.blocks, inner, strict=True):
            x = block(x, modulation)
        shift, scale = last.chunk(2, dim=-1)
        out: Tensor = self.final(torch.addcmul(shift, self.final_norm(x), 1 + scale))
        return out
