"""Readouts: student feature → logits.

Shapes: B images · d student feature · D teacher feature · K classes · S samples.

==========  =============================================  =====================================
readout     logits                                         cost beyond the student
==========  =============================================  =====================================
``linear``  the probe on the student's feature             none
``mean``    teacher classifier on E[f | z]                 one head pass per token
``sample``  teacher classifier on the mean of S samples    S · steps (· 2 guided) passes per token
==========  =============================================  =====================================

If the teacher has no classifier, or one for other classes than the data's, a nearest-class-mean classifier
of its features is used instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gendd.config import ReadoutConfig
from gendd.student.generator import FeatureGenerator

# ᾱ of the candidate times for the mean of an ε head
_SIGNALS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)


def fixed_classifier(weight: Tensor, bias: Tensor | None, device: torch.device) -> nn.Linear:
    """Frozen float32 classifier with the given weight (K, D) and bias (K,); None: zero bias."""
    classes, width = weight.shape
    classifier: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, width, classes, device=device
    )
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if bias is None:
            classifier.bias.zero_()
        else:
            classifier.bias.copy_(bias)
    return classifier.requires_grad_(False)


def nearest_mean_classifier(
    means: Tensor, feature_mean: Tensor, feature_scale: Tensor, temperature: float = 1.0
) -> nn.Linear:
    """The nearest-class-mean rule as a linear classifier of unstandardised features.

    With x = (f - mean) / scale the logits are (x·μ_c - |μ_c|²/2) / τ: the largest is that of the nearest
    class mean, and their softmax is p(c | x) for Gaussian classes of isotropic variance τ.

    Args:
        means: μ (K, D), in the standardised space.
        feature_mean: (D,).
        feature_scale: (D,), positive.
        temperature: τ, positive.
    """
    weight = means.double() / feature_scale.double() / temperature
    bias = -weight @ feature_mean.double() - means.double().square().sum(-1) / (2 * temperature)
    return fixed_classifier(weight, bias, means.device)


def read_features(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits (…, K) of teacher features (…, D), which are float32 whatever the student's dtype."""
    logits: Tensor = classifier(features.to(classifier.weight.dtype))
    return logits


def mean_logits(generator: FeatureGenerator, classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits (B, K) of the expected teacher feature, from student features (B, d)."""
    return read_features(classifier, generator.mean(generator.condition(features)))


@torch.no_grad()
def choose_mean_time(
    generator: FeatureGenerator, classifier: nn.Linear, features: Tensor, teacher_features: Tensor
) -> float:
    """Set the ``mean_time`` of an ε head at which its mean agrees most often with the teacher's prediction.

    At late times x̂_0 amplifies the head's error; at early times x_t = 0 pulls it towards the mean feature.
    The best trade-off depends on the head. No labels are needed. Ties go to the latest time; heads with
    another prediction keep T-1.

    Args:
        generator: The generator whose ``mean_time`` is set.
        classifier: D -> K.
        features: (B, d) of the student, for held-out images.
        teacher_features: (B, D) of the same images.

    Returns:
        The rate of agreement, in [0, 1].
    """
    wanted = classifier(teacher_features).argmax(-1)

    def agreed(time: int) -> float:
        generator.mean_time = time
        return float((mean_logits(generator, classifier, features).argmax(-1) == wanted).double().mean())

    times = [generator.mean_time]
    if generator.prediction == "epsilon":
        times = sorted({generator.schedule.nearest(signal) for signal in _SIGNALS}, reverse=True)
    found = {time: agreed(time) for time in times}
    generator.mean_time = max(times, key=lambda time: found[time])
    return found[generator.mean_time]


def sampled_features(
    generator: FeatureGenerator,
    features: Tensor,
    config: ReadoutConfig,
    random: torch.Generator | None = None,
    *,
    start: Tensor | None = None,
    step_noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Generate teacher features (S, B, D) from student features (B, d).

    Noise is drawn from ``random``, or given by ``start`` and ``step_noise`` as for
    :meth:`FeatureGenerator.sample`.
    """
    return generator.sample(
        generator.condition(features),
        steps=config.steps,
        guidance=config.guidance,
        num_samples=config.num_samples,
        temperature=config.temperature,
        eta=config.eta,
        sampler=config.sampler,
        generator=random,
        start=start,
        step_noise=step_noise,
    )


def sample_logits(
    generator: FeatureGenerator,
    classifier: nn.Linear,
    features: Tensor,
    config: ReadoutConfig,
    random: torch.Generator | None = None,
    *,
    start: Tensor | None = None,
    step_noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Logits (B, K) of the mean of S generated teacher features; arguments as in :func:`sampled_features`."""
    made = sampled_features(generator, features, config, random, start=start, step_noise=step_noise)
    return read_features(classifier, made.mean(0))
