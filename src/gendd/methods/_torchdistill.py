"""The losses of torchdistill (Matsubara 2021, arXiv:2011.12913), for plain tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gendd.errors import UserError


class TorchdistillLoss(nn.Module):
    """A loss of ``torchdistill.losses.mid_level``, computed in float32.

    torchdistill looks up inputs in dictionaries of module outputs, by paths passed to the constructor.
    Here each path becomes a pair of tensors instead, in the order of the constructor's arguments.

    Args:
        method: Name of the method that uses it, for error messages.
        kind: Class name of the loss.
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
        # student_module_path and teacher_module_path share one entry, module_path
        paths = {key: key.split("_", 1)[1] for key in arguments if key.endswith("_path")}
        sides = {key: "output" for key in arguments if key.endswith("_io")}
        self.places = list(dict.fromkeys(paths.values()))
        self.loss = loss(**paths, **sides, **settings)

    def forward(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """Pairs of the student's and the teacher's tensors (B, …), one per path -> a scalar."""
        named = dict(zip(self.places, pairs, strict=True))
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            student, teacher = (
                {place: {"output": pair[role].float()} for place, pair in named.items()} for role in (0, 1)
            )
            loss: Tensor = self.loss(student, teacher)
        return loss
