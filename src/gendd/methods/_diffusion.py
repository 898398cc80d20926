"""The mean diffusion loss of a batch, in bounded memory.

Every image has M·N rows in the head: 960 with the published M 30 and the 32 tokens of a feature of 2,048. If
those of all images would take much memory, the loss is computed for some of the images at a time, and its
gradients with it, so that the head's activations are freed before the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gendd.diffusion import Head, LossRows

# elements of an activation (rows × width) computed at a time: 64 MiB in fp32, and the head keeps about 25
_AT_A_TIME = 2**24

# (targets, condition, t, noise, keep) -> loss of every row, see FeatureGenerator.loss_rows
Rows = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], LossRows]


class MeanLoss(NamedTuple):
    """Means over rows.

    Attributes:
        loss: Sum of the others, with gradients.
        mse: Without gradients.
        vlb: Without gradients; None without a learned variance.
    """

    loss: Tensor
    mse: Tensor
    vlb: Tensor | None


@dataclass(frozen=True)
class Draws:
    """Random numbers of the rows (R), repeat-major.

    Attributes:
        t: (R,) int64 times.
        noise: (R, C) standard normal.
        keep: (R,) bool, False where the condition is dropped; None keeps all.
    """

    t: Tensor
    noise: Tensor
    keep: Tensor | None

    def of(self, images: slice, grid: tuple[int, int, int]) -> Draws:
        """Those of some images; ``grid`` is (M, B, N)."""

        def part(each: Tensor) -> Tensor:
            return each.view(*grid, *each.shape[1:])[:, images].flatten(0, 2)

        return Draws(part(self.t), part(self.noise), None if self.keep is None else part(self.keep))


def mean_loss(rows: Rows, head: Head, targets: Tensor, condition: Tensor, draws: Draws) -> MeanLoss:
    """Mean of the loss over all rows; equal to computing them at once but for rounding.

    In fp16 all rows are computed at once, as gradients that are not scaled yet would underflow.

    Args:
        rows: The loss of every row.
        head: The network that ``rows`` runs.
        targets: (B, D).
        condition: (B, d).
        draws: The rows' random numbers.
    """
    images, count = len(targets), len(draws.t)
    parts = min(images, -(-count * head.input.out_features // _AT_A_TIME))
    kind = condition.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if parts == 1 or half:
        return _mean(rows(targets, condition, draws.t, draws.noise, draws.keep))
    num_tokens = head.position.num_embeddings
    grid = (count // (images * num_tokens), images, num_tokens)
    ends = [images * part // parts for part in range(parts + 1)]
    slices = [slice(start, end) for start, end in pairwise(ends)]

    def losses(condition: Tensor, place: slice) -> MeanLoss:
        own = draws.of(place, grid)
        loss, mse, vlb = _mean(rows(targets[place], condition, own.t, own.noise, own.keep))
        share = (place.stop - place.start) / images
        return MeanLoss(share * loss, share * mse, None if vlb is None else share * vlb)

    parameters = [each for each in head.parameters() if each.requires_grad]
    # gradients are disabled inside of the function, and its needs_input_grad ignores that they are outside
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in (condition, *parameters))
    return MeanLoss(*_PartByPart.apply(losses, slices, wanted, condition, *parameters))


def _mean(rows: LossRows) -> MeanLoss:
    mse = rows.mse.mean()
    vlb = None if rows.vlb is None else rows.vlb.mean()
    loss = mse if vlb is None else mse + vlb
    return MeanLoss(loss, mse.detach(), None if vlb is None else vlb.detach())


class _PartByPart(torch.autograd.Function):
    """The loss of several slices of the images, whose gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Callable[[Tensor, slice], MeanLoss],
        slices: list[slice],
        wanted: bool,
        condition: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        found: list[list[Tensor]] = []
        conditions: list[Tensor] = []
        sums = [torch.zeros_like(each) for each in parameters] if wanted else []
        for place in slices:
            with torch.set_grad_enabled(wanted):
                own = condition[place].detach().requires_grad_(wanted)
                part = losses(own, place)
                if wanted:
                    gradient, *rest = torch.autograd.grad(part.loss, [own, *parameters])
                    conditions.append(gradient)
                    for total, more in zip(sums, rest, strict=True):
                        total += more
            found.append([each.detach() for each in part if each is not None])
        if wanted:
            ctx.save_for_backward(torch.cat(conditions), *sums)
        loss, mse, *vlb = (torch.stack(values).sum() for values in zip(*found, strict=True))
        ctx.mark_non_differentiable(mse, *vlb)
        return loss, mse, vlb[0] if vlb else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        return None, None, None, *torch._foreach_mul(ctx.saved_tensors, gradient)
