"""One step type for every method: a batch in; total loss, logits and named parts out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gendd.models import Backbone, Frozen
from gendd.student import Student


@dataclass
class StepOutput:
    """What a method computes on a batch.

    Attributes:
        loss: Scalar to minimise.
        logits: (B, K) of the student's classifier.
        parts: Named scalars the loss is made of, detached.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """A student being trained, with the teacher (if any) beside it.

    The teacher follows the module from device to device, but is none of its submodules: it never is in
    a state dict, among the parameters, or in training mode.

    Args:
        backbone: The student network.
        teacher: The network to distil; None for a method without one.

    Attributes:
        needs_labels: Whether it can't learn without labels.
        has_diffusion: Whether it has a :meth:`diffusion_loss`.
    """

    needs_labels = True
    has_diffusion = False

    def __init__(self, backbone: Backbone, teacher: Backbone | Frozen | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        if isinstance(teacher, Backbone):
            teacher = Frozen(teacher)
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Frozen | None:
        """The frozen teacher."""
        return self._teacher[0]

    def _apply(self, fn: Any, recurse: bool = True) -> Method:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        return self

    @abstractmethod
    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64 or (B, K) probabilities; None without labels.
            generator: Source of the method's own randomness, on the images' device.
        """

    @abstractmethod
    def student(self) -> Student:
        """The trained student as it is deployed; shares its weights with this method."""

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) by every readout that costs one pass at most; what validation looks at."""
        student = self.student()
        features = student.features(images)
        return {name: student.logits(features, name) for name in student.readouts if name != "sample"}

    def diffusion_loss(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean diffusion loss of held-out images, a scalar; for a method with :attr:`has_diffusion`.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: As for :meth:`forward`.
            generator: Source of times and noise: from the same state, losses can be compared.
        """
        raise NotImplementedError(f"{type(self).__name__} diffuses nothing")

    def prepare(self, batches: Iterable[Any]) -> None:
        """Learn what has to be known of the training data before the first step; nothing by default.

        Args:
            batches: Of (images, labels) pairs or objects with these attributes; images (B, C, H, W) in
                [0, 1], labels (B,) or None. No more of them are taken than are needed.
        """

    def undecayed(self) -> Iterator[nn.Parameter]:
        """Parameters that take no weight decay whatever their shape; none by default."""
        return iter(())
