"""Fingerprint of a data set: a digest of its number of images, names, labels, and some images' bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from gendd.data.encoded import Encoded
from gendd.errors import UserError

# number of images to read, spread over the set
_READ = 256


def fingerprint(source: Tensor | Encoded, labels: Tensor | None) -> str:
    """Return a digest of images and their labels: of all names, and of the contents of 256 images.

    Args:
        source: The images, before resizing.
        labels: int64 (N,), or None.
    """
    spread = torch.linspace(0, len(source) - 1, min(_READ, len(source))).round().long()
    if isinstance(source, Tensor):
        return digest([f"{len(source)}", tensor_bytes(source[spread]), tensor_bytes(labels)])
    names = "\n".join(base_name(source.where(index)) for index in range(len(source)))
    contents: list[bytes] = []
    for index in spread.tolist():
        # unreadable images are counted when they are loaded
        with contextlib.suppress(UserError):
            contents.append(source.read(index))
    return digest([names, *contents, tensor_bytes(labels)])


def base_name(name: str) -> str:
    """Strip the folders from a name, so that moving a set does not change its fingerprint."""
    cut = max(name.rfind("/"), name.rfind("\\")) + 1
    quote = min((name.find(each) for each in "'\"" if each in name[:cut]), default=-1)
    return name[: quote + 1] + name[cut:] if cut else name


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a digest of all parts and of their boundaries."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()


def tensor_bytes(values: Tensor | None) -> bytes:
    """Return the bytes of a tensor; empty for None."""
    return b"" if values is None else values.contiguous().numpy().tobytes()
