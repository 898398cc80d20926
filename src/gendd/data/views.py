"""Which images of an epoch a batch has, and what tells their pixels from others'."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# pixels a side that a mark is taken of, at least
_MARKED = 16


@dataclass(frozen=True)
class Rows:
    """The images of a batch.

    Args:
        places: int64 (B,): their places in the epoch, ascending.
        marks: uint32 (B,): of the pixels of each as it was augmented, before it is mixed.
    """

    places: NDArray[np.int64]
    marks: NDArray[np.uint32]

    @classmethod
    def of(cls, places: Tensor, images: Tensor) -> Rows:
        """Those of images (B, C, H, W) on the CPU at their places (B,)."""
        step = max(1, min(images.shape[-2:]) // _MARKED)
        sampled = images[..., ::step, ::step].contiguous().numpy()
        return cls(places.numpy(), np.array([zlib.crc32(image) for image in sampled], dtype=np.uint32))
