"""The deployed form of a student: one readout, images to logits, deterministic, constants folded.

Shapes: B images · d student feature · K classes · S samples · N tokens · C token width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gendd.config import ReadoutConfig, ReadoutName
from gendd.deploy.batch_norm import fold_batch_norms
from gendd.deploy.folded_mean import FoldedMean
from gendd.student import Student
from gendd.student.generator import FeatureGenerator
from gendd.student.readout import sample_logits


class Deployed(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K); created by :func:`deploy`.

    Args:
        student: The student whose backbone and classifiers are copied.
        readout: One of its readouts.
        seed: Seed of the noise of readout ``sample``.
    """

    def __init__(self, student: Student, readout: ReadoutName, seed: int = 0) -> None:
        super().__init__()
        self.readout = readout
        self.backbone = copy.deepcopy(student.backbone).eval()
        fold_batch_norms(self.backbone)
        self.backbone.settle()
        self.reader: nn.Module
        if readout == "linear":
            self.reader = self.backbone.classifier
        else:
            assert student.generator is not None and student.classifier is not None
            if readout == "mean":
                self.reader = FoldedMean(student.generator, student.classifier)
            else:
                self.reader = FixedSamples(student.generator, student.classifier, student.settings, seed)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.reader(self.backbone.features(images))
        return logits


class FixedSamples(nn.Module):
    """Student features (B, d) -> logits (B, K) of S generated features, the same noise for every image.

    An image's logits then depend only on the image, not on a random generator or its batch.

    Args:
        generator: The student's generator.
        classifier: D -> K.
        config: The sampler's settings.
        seed: Seed of the noise, which is drawn once.
    """

    start: Tensor
    step_noise: Tensor

    def __init__(
        self, generator: FeatureGenerator, classifier: nn.Linear, config: ReadoutConfig, seed: int = 0
    ) -> None:
        super().__init__()
        self.generator, self.classifier = copy.deepcopy(generator), copy.deepcopy(classifier)
        self.config = config
        random = torch.Generator().manual_seed(seed)
        shape = (config.num_samples, 1, generator.num_tokens, generator.token_width)
        device = classifier.weight.device
        noisy = config.sampler == "ddpm" or (config.sampler == "ddim" and config.eta > 0)
        steps = config.steps - 1 if noisy else 0
        # one draw at a time, as in the samplers
        start, *drawn = [torch.randn(shape, generator=random) for _ in range(steps + 1)]
        self.register_buffer("start", start.to(device))
        self.register_buffer("step_noise", torch.stack(drawn).to(device) if drawn else start.new_zeros(0))
        with torch.no_grad():
            # fill the schedule's caches now; tensors created while tracing a graph would be unusable later
            self(classifier.weight.new_zeros(1, generator.condition_width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, K)."""
        images, width = features.shape[0], self.start.shape[-1]

        def rows(noise: Tensor) -> Tensor:
            return noise.expand(-1, images, -1, -1).reshape(-1, width).float()

        noise = [rows(self.step_noise[step]) for step in range(len(self.step_noise))]
        return sample_logits(
            self.generator, self.classifier, features, self.config, start=rows(self.start), step_noise=noise
        )


def deploy(student: Student, readout: ReadoutName | None = None, *, seed: int = 0) -> Deployed:
    """Copy a student with a single readout, in eval mode and without gradients.

    ``linear`` is the backbone with its classifier. ``mean`` has all constants folded (:class:`FoldedMean`).
    ``sample`` uses noise drawn once, the same for every image.

    Args:
        student: On any device; its own parameters are not changed.
        readout: One of its readouts; the chosen one by default.
        seed: Seed of the noise of ``sample``.

    Raises:
        UserError: the student does not have this readout.
    """
    return Deployed(student, student.checked(readout), seed)
