"""Fashion-MNIST and its IDX files."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.readers.common import Found, Part, Reader, pixel_part, required_path
from gendd.errors import UserError

_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
FASHION_CLASSES += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_fashion_mnist(config: DataConfig) -> Found:
    """Read the four IDX files, gzipped or not, below ``data.path`` or from Debian's package."""
    if config.path is None:
        roots = [_DEBIAN_FASHION_MNIST]
    else:
        path = required_path(config, "a directory with the Fashion-MNIST IDX files")
        roots = [path, path / "FashionMNIST" / "raw", path / "raw"]

    def part(prefix: str) -> Part:
        images = read_idx(_idx_file(roots, f"{prefix}-images-idx3-ubyte", config.path), 3)
        labels = read_idx(_idx_file(roots, f"{prefix}-labels-idx1-ubyte", config.path), 1).long()
        if len(images) != len(labels) or images.shape[1] != images.shape[2]:
            raise UserError(
                f"Expected as many labels as square images in {prefix}-*, got {len(labels)} labels and "
                f"images of shape {tuple(images.shape)}; download the files again."
            )
        if len(labels) == 0 or labels.max() >= len(FASHION_CLASSES):
            raise UserError(f"Expected labels 0 to 9 in {prefix}-labels-idx1-ubyte; download it again.")
        return pixel_part(images[:, None], labels)

    return Found(part("train"), part("t10k"), list(FASHION_CLASSES))


def _idx_file(roots: Sequence[Path], name: str, given: str | None) -> Path:
    for root in roots:
        for file in (root / name, root / f"{name}.gz"):
            if file.is_file():
                return file
    if given is None:
        raise UserError(
            "data.path: expected Fashion-MNIST in Debian's place, found none; run 'apt install "
            "dataset-fashion-mnist', or set data.path to a directory with the four IDX files "
            "(https://github.com/zalandoresearch/fashion-mnist)."
        )
    raise UserError(
        f"data.path: expected {name}[.gz] in {given!r} or its FashionMNIST/raw, found none; download "
        "the four IDX files from https://github.com/zalandoresearch/fashion-mnist."
    )


def read_idx(file: Path, ndim: int) -> Tensor:
    """Read a uint8 IDX file (yann.lecun.com/exdb/mnist), gzipped or not.

    Raises:
        UserError: unreadable, or not ``ndim``-dimensional uint8 IDX of the stated length.
    """
    header = 4 + 4 * ndim
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise UserError(
            f"Expected a readable IDX file, got '{file}' ({error}); download it again."
        ) from error
    if len(content) < header or content[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(f"Expected a {ndim}-dimensional uint8 IDX file, got '{file}'; download it again.")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise UserError(
            f"Expected {math.prod(shape)} values in '{file}', got {len(content) - header}; download it again."
        )
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


READER = Reader(read_fashion_mnist, ("fashion-mnist",), photographs=False)
