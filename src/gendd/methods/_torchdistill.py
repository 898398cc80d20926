"""The losses of torchdistill (Matsubara 2021, arXiv:2011.12913), of tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gendd.errors import UserError


class TorchdistillLoss(nn.Module):
    """A loss of ``torchdistill.losses.mid_level``, computed in float32.

    torchdistill looks inputs up in dictionaries of modules' outputs, by paths that the constructor is given.
    Here each place it has is a pair of tensors instead, in the order of the constructor's arguments.

    Args:
        method: The name of the method that uses it, for errors.
        kind: The name of the loss's class.
        settings: Arguments of its constructor, without paths.

    Raises:
        UserError: torchdistill is not installed.
    """

    def __init__(self, method: str, kind: str, **settings: Any) -> None:
        super().__init__()
        try:
            from torchdistill.losses import mid_level
        except ImportError as error:
            raise UserError(
                f"{method}: expected the package torchdistill, which is not installed. "
                "Run: pip install 'gendd[compare]'"
            ) from error
        loss = getattr(mid_level, kind)
        arguments = inspect.signature(loss).parameters
        # student_module_path and teacher_module_path are one place, module_path
        paths = {key: key.split("_", 1)[1] for key in arguments if key.endswith("_path")}
        sides = {key: "output" for key in arguments if key.endswith("_io")}
        self.places = list(dict.fromkeys(paths.values()))
        self.loss = loss(**paths, **sides, **settings)

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Pairs of student's and teacher's tensors (B, …), one for each place -> a scalar."""
        named = dict(zip(self.places, pairs, strict=True))
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            student, teacher = (
                {place: {"output": pair[role].float()} for place, pair in named.items()} for role in (0, 1)
            )
            loss: Tensor = self.loss(student, teacher)
        return loss
