"""The digits that come with scikit-learn."""

from __future__ import annotations

from typing import Any

import torch

from gendd.config import DataConfig
from gendd.data.readers.common import Found, Reader, pixel_part
from gendd.data.split import stratified_split


def read_digits(config: DataConfig) -> Found:
    """Read the 1,797 8×8 digits of scikit-learn; a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    values = torch.from_numpy(bunch.images)
    pixels = (values * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = stratified_split(labels, 0.2, torch.Generator().manual_seed(0))
    return Found(
        pixel_part(pixels[train], labels[train]),
        pixel_part(pixels[test], labels[test]),
        [str(digit) for digit in range(10)],
    )


READER = Reader(read_digits, ("digits",), photographs=False, mirrored=False, located=False)
