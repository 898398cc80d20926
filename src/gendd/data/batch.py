"""A batch, and the identity of its images within the epoch."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# minimum number of pixels per side that a mark is computed from
_MARKED = 16


@dataclass(frozen=True)
class Rows:
    """Identity of the images of a batch.

    Args:
        places: int64 (B,): their positions in the epoch, ascending.
        marks: uint32 (B,): checksums of their pixels after augmentation, before mixing.
    """

    places: NDArray[np.int64]
    marks: NDArray[np.uint32]

    @classmethod
    def of(cls, places: Tensor, images: Tensor) -> Rows:
        """Create from images (B, C, H, W) on the CPU and their positions (B,)."""
        step = max(1, min(images.shape[-2:]) // _MARKED)
        sampled = images[..., ::step, ::step].contiguous().numpy()
        return cls(places.numpy(), np.array([zlib.crc32(image) for image in sampled], dtype=np.uint32))


@dataclass(frozen=True)
class Batch:
    """Images and labels.

    Args:
        images: float32 (B, C, H, W) in [0, 1]; each network normalises its own input.
        labels: int64 (B,), or float32 (B, K) probabilities; None only where the set has none.
        rows: Which of the epoch's images they are, if requested.
    """

    images: Tensor
    labels: Tensor | None
    rows: Rows | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move the batch to ``device``."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=non_blocking)
        return replace(self, images=self.images.to(device, non_blocking=non_blocking), labels=labels)
