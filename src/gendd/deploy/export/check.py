"""Check that an exported file gives the same logits as PyTorch.

Shapes: B images · C channels · S side · K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gendd.data import sample_loader
from gendd.deploy.export.source import Network, Source
from gendd.errors import UserError

TOLERANCE = 1e-4
IMAGES = 64
_BATCH = 16


def images_of(source: Source, count: int = IMAGES) -> tuple[Tensor, str]:
    """Return images (B, C, S, S) to check with, and what they are: of the run's test set, else random."""
    reason = source.data
    if not isinstance(reason, str):
        try:
            found = torch.cat([batch.images for batch in sample_loader(reason.test, _BATCH, count)])
            return found, f"{len(found)} test images"
        except UserError as error:
            reason = str(error).rstrip(".")
    shape = (_BATCH, source.channels, source.size, source.size)
    made = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return made, f"{_BATCH} random images ({reason})"


@torch.no_grad()
def logits_of(network: Network, images: Tensor) -> Tensor:
    """Compute logits (B, K) of images (B, C, S, S), in batches of different sizes including one."""
    parts = [images[:1], *torch.split(images[1:], _BATCH)]
    return torch.cat([network(part) for part in parts if len(part)])


def deviation(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two sets of logits (B, K), relative to the largest expected logit."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def checked(network: Network, source: Source, images: Tensor, written: str) -> float:
    """Return the deviation of ``network`` from the deployed student.

    Args:
        network: The exported network, loaded from its file.
        source: The exported readout.
        images: (B, C, S, S).
        written: Name of the export in the error message.

    Raises:
        UserError: it is above :data:`TOLERANCE`, or not a number.
    """
    found = deviation(logits_of(network, images), logits_of(source.deployed, images))
    if not found <= TOLERANCE:
        raise UserError(
            f"Export: expected {written} to give the student's logits to {TOLERANCE:g} of the largest, got a "
            f"deviation of {found:.1e}; nothing is kept. Export another format or readout."
        )
    return found
