"""A digest of a set's images: of their number, names and labels, and of the bytes of some of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from gendd.data.encoded import Encoded
from gendd.errors import UserError

# as many images, spread over the set, are read
_READ = 256


def fingerprint(source: Tensor | Encoded, labels: Tensor | None) -> str:
    """A digest of images and their labels; of names all are compared, of contents 256.

    Args:
        source: The images, before they are resized.
        labels: int64 (N,), or None.
    """
    spread = torch.linspace(0, len(source) - 1, min(_READ, len(source))).round().long()
    if isinstance(source, Tensor):
        return digest([f"{len(source)}", tensor_bytes(source[spread]), tensor_bytes(labels)])
    names = "\n".join(base_name(source.where(index)) for index in range(len(source)))
    contents: list[bytes] = []
    for index in spread.tolist():
        # one that can't be read is counted when it is loaded
        with contextlib.suppress(UserError):
            contents.append(source.read(index))
    return digest([names, *contents, tensor_bytes(labels)])


def base_name(name: str) -> str:
    """A name without the folders of the path in it: a set that was moved is still the same."""
    cut = max(name.rfind("/"), name.rfind("\\")) + 1
    quote = min((name.find(each) for each in "'\"" if each in name[:cut]), default=-1)
    return name[: quote + 1] + name[cut:] if cut else name


def digest(parts: Iterable[str | bytes]) -> str:
    """A digest of every part and of where each ends."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()


def tensor_bytes(values: Tensor | None) -> bytes:
    """The values of a tensor; nothing of None."""
    return b"" if values is None else values.contiguous().numpy().tobytes()
