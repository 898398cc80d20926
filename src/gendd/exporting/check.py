"""Whether what was written gives the logits of PyTorch.

Shapes: B images · C channels · S side · K classes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gendd.data import Data, load_data, sample_loader
from gendd.errors import UserError
from gendd.exporting.job import Job, Network
from gendd.run import Run

TOLERANCE = 1e-4
IMAGES = 64
_BATCH = 16


def run_data(run: Run) -> Data:
    """The images of a run, streamed. Raises :class:`UserError` where they are gone."""
    return load_data(dataclasses.replace(run.config.data, in_memory=False))


def images_of(job: Job, count: int = IMAGES) -> tuple[Tensor, str]:
    """Images (B, C, S, S) to check with and what they are: of the run's test set, else random."""
    reason = "no run beside the student"
    if job.run is not None:
        try:
            data = run_data(job.run)
            if (data.channels, data.image_size) == (job.channels, job.size):
                found = torch.cat([batch.images for batch in sample_loader(data.test, _BATCH, count)])
                return found, f"{len(found)} test images"
            reason = "the run's are of another shape"
        except UserError as error:
            reason = f"the run's are not there: {error}"
    shape = (_BATCH, job.channels, job.size, job.size)
    made = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return made, f"{_BATCH} random images ({reason.rstrip('.')})"


@torch.no_grad()
def logits_of(network: Network, images: Tensor) -> Tensor:
    """Logits (B, K) of images (B, C, S, S), in batches of several sizes and of one."""
    parts = [images[:1], *torch.split(images[1:], _BATCH)]
    return torch.cat([network(part) for part in parts if len(part)])


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of two sets of logits (B, K), in units of the largest expected logit."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def checked(network: Network, job: Job, images: Tensor, written: str) -> float:
    """The deviation of ``network`` from the deployed student.

    Args:
        network: What was written, loaded from its file.
        job: The export.
        images: (B, C, S, S).
        written: What it is called in the error.

    Raises:
        UserError: it is above :data:`TOLERANCE`, or not a number.
    """
    found = deviation(logits_of(network, images), logits_of(job.deployed, images))
    if not found <= TOLERANCE:
        raise UserError(
            f"Export: expected {written} to give the student's logits to {TOLERANCE:g} of the largest, got a "
            f"deviation of {found:.1e}; nothing is kept. Export another format or readout."
        )
    return found
