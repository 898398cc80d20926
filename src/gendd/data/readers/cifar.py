"""CIFAR-10 and -100."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch

from gendd.config import DataConfig
from gendd.data.readers.common import Found, Part, Reader, pixel_part, required_path
from gendd.errors import UserError


def read_cifar(config: DataConfig) -> Found:
    """Read CIFAR-10 or -100, the python version, unpacked below ``data.path``."""
    from torchvision import datasets

    kind: Any = datasets.CIFAR10 if config.name == "cifar10" else datasets.CIFAR100
    path = required_path(config, f"the directory that holds {kind.base_folder}/")
    root = path.parent if path.name == kind.base_folder else path

    def part(train: bool) -> tuple[Part, list[str]]:
        try:
            with warnings.catch_warnings():
                # The published pickles predate NumPy's current dtype arguments.
                warnings.filterwarnings("ignore", message=r"dtype\(\): align", category=Warning)
                found = kind(str(root), train=train, download=False)
        except (RuntimeError, OSError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise UserError(
                f"data.path: expected a complete {kind.base_folder}/ in '{root}', found none; download "
                f"{kind.url}, unpack it there and give its parent as data.path."
            ) from error
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return pixel_part(pixels, torch.tensor(found.targets)), [str(name) for name in found.classes]

    train, names = part(True)
    return Found(train, part(False)[0], names)


READER = Reader(read_cifar, ("cifar10", "cifar100"), photographs=False)
