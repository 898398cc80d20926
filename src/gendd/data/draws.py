"""Explicit seeding, also for libraries that draw from the global generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed that depends on all parts and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Seed the global generators from one draw of ``generator`` and restore them afterwards.

    Applies to Python's, NumPy's and torch's CPU generators. Not thread-safe.
    """
    seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    python, legacy = random.getstate(), np.random.get_state()
    # no devices, as code on a device uses that device's own generator
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a generator whose draws depend on all parts of the key and nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
