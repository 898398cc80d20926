"""The demo data that comes with gendd: Fashion-MNIST images, few of them labelled."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gendd.config import DataConfig
from gendd.data.readers.common import NO_LABEL, Found, Part, Reader, pixel_part
from gendd.data.readers.fashion_mnist import FASHION_CLASSES

FOLDER = Path(str(files("gendd.data"))) / "demo"
# images per row of a file, and their side
COLUMNS, _SIDE = 10, 28
# marks an unknown label
UNKNOWN = "-"


def read_demo(config: DataConfig) -> Found:
    """Read 8,000 Fashion-MNIST images: 6,000 to train on, 200 of them labelled, and 2,000 test images."""
    del config
    train, test = (FOLDER / "labels.txt").read_text(encoding="ascii").split()
    return Found(_part("train", train), _part("test", test), list(FASHION_CLASSES))


def _part(name: str, labels: str) -> Part:
    with Image.open(FOLDER / f"{name}.png") as image:
        tiles = torch.from_numpy(np.array(image))
    pixels = tiles.view(-1, _SIDE, COLUMNS, _SIDE).transpose(1, 2).reshape(-1, 1, _SIDE, _SIDE)
    return pixel_part(pixels, torch.tensor([NO_LABEL if sign == UNKNOWN else int(sign) for sign in labels]))


READER = Reader(read_demo, ("demo",), photographs=False, located=False)
