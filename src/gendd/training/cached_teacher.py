"""A teacher with cached outputs: those for each view of the images are stored and read in later epochs.

Shapes: B images, D feature width, K classes, (E, h, w) map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gendd.data import Rows
from gendd.messages import say
from gendd.models import Asked, Frozen, Stages
from gendd.training.answers import Answers, Fault, decode, encode

_ASKED: tuple[Asked, ...] = ("feature", "map", "stages")
_TOLD: dict[Fault, str] = {
    "damaged": "is damaged",
    "of other pixels": "was computed for images with other pixels",
}


@dataclass(frozen=True)
class _About:
    """The current batch: the image tensor itself, its view and its rows."""

    images: Tensor
    view: int
    rows: Rows


class CachedTeacher(Frozen):
    """A teacher whose outputs for training batches are read from disk if they were computed before.

    Outputs are always returned as stored, also the first time, so that results don't depend on whether the
    cache was filled. Outputs for images other than those of :meth:`answering` are computed.

    Args:
        teacher: The teacher to run for outputs that are not stored.
        answers: Storage of the outputs.
        stages: The stage maps to store and return, see :meth:`gendd.Backbone.with_stages`.

    Attributes:
        computed: Number of batches of :meth:`answering` that were computed.
        found: Number of those that were read.
        error: Why storing outputs failed; after that, none are stored.
    """

    def __init__(self, teacher: Frozen, answers: Answers, stages: Stages = None) -> None:
        super().__init__(teacher.backbone)
        self.source = teacher
        self.answers = answers
        self.stages = stages
        self.computed = self.found = 0
        self.error: OSError | None = None
        self._about: _About | None = None
        self._told: set[Fault] = set()

    @contextmanager
    def answering(self, images: Tensor, view: int, rows: Rows) -> Iterator[None]:
        """Context in which these images are looked up as a batch of a view.

        Args:
            images: (B, C, H, W), mixed and on the device.
            view: Number of the view.
            rows: Rows of these images in the view.
        """
        self._about = _About(images, view, rows)
        try:
            yield
        finally:
            self._about = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Frozen.forward`."""
        feature, logits = self.answer(images, "feature")
        return feature, logits

    def with_map(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """See :meth:`Frozen.with_map`."""
        feature, logits, *maps = self.answer(images, "map")
        return feature, logits, maps[0] if maps else None

    def with_stages(
        self, images: Tensor, stages: Stages = None
    ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """See :meth:`Frozen.with_stages`."""
        del stages
        feature, logits, *maps = self.answer(images, "stages")
        return feature, logits, maps[0] if maps else None, maps[1:]

    def kept(self, asked: Asked, view: int, rows: Rows) -> bool:
        """Whether all requested outputs for a batch of a view are stored and undamaged."""
        arithmetic = _arithmetic(next(self.parameters()).device)
        parts = (
            self.answers.read(arithmetic, view, part, rows, any_pixels=True) for part in self.parts(asked)
        )
        return not any(isinstance(part, str) for part in parts)

    def parts(self, asked: Asked) -> tuple[str, ...]:
        """Names of the parts of the requested outputs, one file each."""
        count = 1 + _ASKED.index(asked) if self.has_map else 1
        return ("feature", "map", self.stages_part)[:count]

    def computed_parts(self, images: Tensor, asked: Asked) -> dict[str, list[Tensor]]:
        """Run the teacher; returns its outputs by part."""
        stages: list[Tensor] = []
        found: Tensor | None = None
        if asked == "feature" or not self.has_map:
            feature, logits = self.source(images)
        elif asked == "map":
            feature, logits, found = self.source.with_map(images)
        else:
            feature, logits, found, stages = self.source.with_stages(images, self.stages)
        maps = [] if found is None else [found]
        return dict(zip(self.parts(asked), ([feature, logits], maps, stages), strict=False))

    def answer(self, images: Tensor, asked: Asked) -> list[Tensor]:
        """Return the feature (B, D), logits (B, K) and the requested maps, stored or computed."""
        about = self._about
        if about is None or images is not about.images:
            return [tensor for part in self.computed_parts(images, asked).values() for tensor in part]
        found = self._found(about, asked)
        if found is None:
            self.computed += 1
            found = self._keep(about, self.computed_parts(images, asked))
        else:
            self.found += 1
        return found

    def _found(self, about: _About, asked: Asked) -> list[Tensor] | None:
        found = []
        for part in self.parts(asked):
            arithmetic = _arithmetic(about.images.device)
            rows = self.answers.read(arithmetic, about.view, part, about.rows)
            if isinstance(rows, str):
                self._tell(rows, about, part)
                return None
            found += decode(rows, about.images.device)
        return found

    def _tell(self, fault: Fault, about: _About, part: str) -> None:
        if fault in _TOLD and fault not in self._told:
            self._told.add(fault)
            path = self.answers.path(_arithmetic(about.images.device), about.view, part)
            say(f"teacher cache: a part of {path} {_TOLD[fault]}; it is computed again")

    def _keep(self, about: _About, parts: dict[str, list[Tensor]]) -> list[Tensor]:
        found = []
        arithmetic = _arithmetic(about.images.device)
        for part, tensors in parts.items():
            rows = encode(tensors, about.rows.marks, self.answers.storage)
            if self.error is None:
                try:
                    self.answers.write(arithmetic, about.view, part, about.rows, rows)
                except OSError as error:
                    self.error = error
                    say(
                        f"teacher cache: {error.strerror or error}: {str(self.answers.folder)!r}; what is "
                        "cached is kept, and the teacher computes the rest"
                    )
            found += decode(rows, about.images.device)
        return found


def _arithmetic(device: torch.device) -> str:
    """Name of the dtype that networks currently compute in (autocast)."""
    on = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type) if on else torch.float32).removeprefix("torch.")
