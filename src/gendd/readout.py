"""Student feature → logits.

Shapes: B images · d student feature · D teacher feature · K classes · S samples.

==========  =============================================  =====================================
readout     logits                                         cost beyond the student
==========  =============================================  =====================================
``linear``  the probe on the student's feature             none
``mean``    teacher classifier of E[f | z]                 one head pass a token
``sample``  teacher classifier of the mean of S samples    S · steps (· 2 guided) passes a token
==========  =============================================  =====================================
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gendd.config import ReadoutConfig
from gendd.generator import FeatureGenerator


def mean_logits(generator: FeatureGenerator, classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits (B, K) of the expected teacher feature, from student features (B, d)."""
    logits: Tensor = classifier(generator.mean(generator.condition(features)))
    return logits


def sampled_features(
    generator: FeatureGenerator,
    features: Tensor,
    config: ReadoutConfig,
    random: torch.Generator | None = None,
) -> Tensor:
    """Generated teacher features (S, B, D) from student features (B, d)."""
    return generator.sample(
        generator.condition(features),
        steps=config.steps,
        guidance=config.guidance,
        num_samples=config.num_samples,
        temperature=config.temperature,
        eta=config.eta,
        sampler=config.sampler,
        generator=random,
    )


def sample_logits(
    generator: FeatureGenerator,
    classifier: nn.Linear,
    features: Tensor,
    config: ReadoutConfig,
    random: torch.Generator | None = None,
) -> Tensor:
    """Logits (B, K) of the mean of S generated teacher features, from student features (B, d)."""
    logits: Tensor = classifier(sampled_features(generator, features, config, random).mean(0))
    return logits
