"""Explicit randomness for libraries that draw from the global generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within, the global generators follow one draw of ``generator``; afterwards they are as before.

    They are Python's, numpy's and torch's for the CPU. Not for code that runs in threads.
    """
    seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    python, legacy = random.getstate(), np.random.get_state()
    # no devices: what runs on one keeps its own generator
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
    """A generator whose draws depend on every part of the key, and on nothing else."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
