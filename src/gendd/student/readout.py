"""Student feature → logits.

Shapes: B images · d student feature · D teacher feature · K classes · S samples.

==========  =============================================  =====================================
readout     logits                                         cost beyond the student
==========  =============================================  =====================================
``linear``  the probe on the student's feature             none
``mean``    teacher classifier of E[f | z]                 one head pass a token
``sample``  teacher classifier of the mean of S samples    S · steps (· 2 guided) passes a token
==========  =============================================  =====================================

Where the teacher has no classifier, or one of other classes than the data, the nearest class mean of its
features reads in its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gendd.config import ReadoutConfig
from gendd.student.generator import FeatureGenerator

# ᾱ of the times that an ε head may be asked at
_SIGNALS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7)


def fixed_classifier(weight: Tensor, bias: Tensor | None, device: torch.device) -> nn.Linear:
    """A float32 classifier of a weight (K, D) and a bias (K,), none being 0, that no training changes."""
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
    """The nearest-class-mean rule as a linear classifier of features as they are.

    With x = (f - mean) / scale the logits are (x·μ_c - |μ_c|²/2) / τ, so that the largest is that of the
    nearest class mean and their softmax is p(c | x) of Gaussian classes of one variance τ in all directions.

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
    """Logits (…, K) of teacher features (…, D), which are float32 whatever the student's weights are."""
    logits: Tensor = classifier(features.to(classifier.weight.dtype))
    return logits


def mean_logits(generator: FeatureGenerator, classifier: nn.Linear, features: Tensor) -> Tensor:
    """Logits (B, K) of the expected teacher feature, from student features (B, d)."""
    return read_features(classifier, generator.mean(generator.condition(features)))


@torch.no_grad()
def choose_mean_time(
    generator: FeatureGenerator, classifier: nn.Linear, features: Tensor, teacher_features: Tensor
) -> float:
    """Give an ε head the time at which its mean is read as the teacher's feature is, most often.

    Late, x̂_0 carries the head's error many times; early, x_t = 0 draws it towards the mean feature. Where
    the balance is depends on the head. No labels are needed. Of equally good times the latest stays; a head
    of another prediction keeps T-1.

    Args:
        generator: Whose ``mean_time`` is set.
        classifier: D -> K.
        features: (B, d) of the student, held out.
        teacher_features: (B, D) of the same images.

    Returns:
        How often, in [0, 1].
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
    """Generated teacher features (S, B, D) from student features (B, d).

    The noise is that of ``random``, or ``start`` and ``step_noise`` as for :meth:`FeatureGenerator.sample`.
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
    """Logits (B, K) of the mean of S generated teacher features; arguments as :func:`sampled_features`."""
    made = sampled_features(generator, features, config, random, start=start, step_noise=step_noise)
    return read_features(classifier, made.mean(0))
