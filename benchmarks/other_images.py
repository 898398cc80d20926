"""Training images of other things than the teacher's classes: a reader for `data.name`.

Used by benchmarks/compare/other_images.yaml. Training and validation images are CIFAR-10's in grey, 28 × 28
pixels and without labels, from the parquet file at `data.path`. Test images are Fashion-MNIST's, from the
Debian package dataset-fashion-mnist.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.decoding import decode
from gendd.data.encoded import Held
from gendd.data.readers.common import Found, Part
from gendd.data.readers.fashion_mnist import read_fashion_mnist
from gendd.data.readers.parquet import read_parquet

SIDE = 28


def photographs(config: DataConfig) -> Found:
    """Animals and vehicles, with which to distil a teacher of clothes."""
    found = read_parquet(config).train

    def take(rows: Tensor) -> Tensor:
        encoded = found.take(rows)
        assert isinstance(encoded, Held)
        images = (decode(encoded.read(index), encoded.where(index), 1)[0] for index in range(len(encoded)))
        small = [np.asarray(Image.fromarray(image.numpy()).resize((SIDE, SIDE))) for image in images]
        return torch.from_numpy(np.stack(small))[:, None]

    return replace(read_fashion_mnist(replace(config, path=None)), train=Part(found.count, None, take))
