"""Features of many images with what a classifier is fitted to, in memory or in temporary files.

Shapes: B images of a batch · N images · d feature width · K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gendd.errors import UserError

_FEATURES = "features"


@dataclass
class Rows:
    """Features (N, d) and, of each target, (N,) or (N, K), collected in batches.

    Attributes:
        names: The targets. Only rows whose classes are all known, not negative, are collected.
        on_disk: Whether to store them in temporary files; integer classes (N,) are always in memory.
    """

    names: Sequence[str]
    on_disk: bool = False
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    files: dict[str, _File] = field(default_factory=dict)

    def add(self, features: Tensor, said: Mapping[Any, Tensor]) -> None:
        """Append a batch; raises :class:`UserError` if there is no disk space."""
        columns = {_FEATURES: features, **{name: said[name] for name in self.names}}
        known = torch.ones(len(features), dtype=torch.bool, device=features.device)
        for column in columns.values():
            if column.ndim == 1:
                known &= column >= 0
        for name, column in columns.items():
            rows = column[known].cpu()
            if not (self.on_disk and rows.is_floating_point()):
                self.parts.setdefault(name, []).append(rows)
                continue
            if name not in self.files:
                self.files[name] = _File()
            self.files[name].write(rows)

    @property
    def features(self) -> Tensor:
        """All features (N, d)."""
        return self.of(_FEATURES)

    def of(self, name: str) -> Tensor:
        """All rows of a target."""
        if name in self.files:
            return self.files[name].mapped()
        if len(self.parts[name]) > 1:
            self.parts[name][:] = [torch.cat(self.parts[name])]
        return self.parts[name][0]


class _File:
    """Rows (N, width) of float32 in an anonymous temporary file, deleted once it is no longer used."""

    def __init__(self) -> None:
        self.file: IO[Any] = tempfile.TemporaryFile(prefix="gendd-")  # noqa: SIM115
        self.count = self.width = 0

    def __del__(self) -> None:
        # existing memory maps stay valid
        self.file.close()

    def write(self, rows: Tensor) -> None:
        try:
            rows.contiguous().numpy().tofile(self.file)
        except OSError as error:
            raise UserError(
                f"Features of the training images: expected room for them in {tempfile.gettempdir()!r}, got "
                f"none after {self.count:,} images ({error}); set TMPDIR to a folder with more, or take "
                "fewer images."
            ) from error
        self.count, self.width = self.count + len(rows), rows.shape[1]

    def mapped(self) -> Tensor:
        """The rows, memory-mapped."""
        self.file.flush()
        shape = (self.count, self.width)
        return torch.from_numpy(np.memmap(self.file, dtype=np.float32, mode="r+", shape=shape))
