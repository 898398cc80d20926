from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import seeded
from test_generator import exact
from torch import Tensor, nn

from gendd.config import GenDDConfig, ReadoutConfig
from gendd.student.generator import FeatureGenerator
from gendd.student.readout import (
    choose_mean_time,
    mean_logits,
    nearest_mean_classifier,
    sample_logits,
    sampled_features,
)


def parts() -> tuple[FeatureGenerator, nn.Linear, Tensor]:
    torch.manual_seed(0)
    config = GenDDConfig(
        token_width=4, head_width=16, head_depth=1, timesteps=30, zero_init=False, condition_dropout=0.1
    )
    generator = FeatureGenerator(6, 10, config)
    generator.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    return generator.requires_grad_(False), nn.Linear(10, 7).requires_grad_(False), torch.randn(3, 6)


def test_mean_logits_are_the_classifier_of_the_generators_mean() -> None:
    generator, classifier, features = parts()
    expected = generator.mean(generator.norm(features)) @ classifier.weight.T + classifier.bias
    logits = mean_logits(generator, classifier, features)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, expected)


def test_the_nearest_class_mean_is_its_formula() -> None:
    random = seeded(3)
    means, mean = torch.randn(5, 8, generator=random), torch.randn(8, generator=random)
    scale = torch.rand(8, generator=random) + 0.5
    features = torch.randn(20, 8, generator=random)
    classifier = nearest_mean_classifier(means, mean, scale, 0.7)
    assert not classifier.weight.requires_grad and not classifier.bias.requires_grad
    standard = (features - mean) / scale
    wanted = (standard @ means.T - means.square().sum(-1) / 2) / 0.7
    torch.testing.assert_close(classifier(features), wanted, atol=1e-5, rtol=1e-5)
    nearest = torch.cdist(standard, means).argmin(-1)
    assert torch.equal(classifier(features).argmax(-1), nearest)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_every_setting_reaches_the_sampler(sampler: str) -> None:
    generator, _, features = parts()
    base: dict[str, Any] = {"steps": 4, "guidance": 2.0, "num_samples": 3, "temperature": 0.7, "eta": 0.4}
    base["sampler"] = sampler
    out = sampled_features(generator, features, ReadoutConfig("sample", **base), seeded())
    expected = generator.sample(generator.norm(features), **base, generator=seeded())
    assert out.shape == (3, 3, 10)
    assert torch.equal(out, expected)
    other = "ddim" if sampler == "ddpm" else "ddpm"
    strength = {"temperature": 0.2} if sampler == "ddpm" else {"eta": 0.9}
    for change in ({"steps": 5}, {"guidance": 1.0}, strength, {"sampler": other}):
        config = ReadoutConfig("sample", **{**base, **change})
        assert not torch.allclose(sampled_features(generator, features, config, seeded()), out), change


def test_sample_logits_are_the_classifier_of_the_mean_sample_and_the_mean_of_their_logits() -> None:
    generator, classifier, features = parts()
    config = ReadoutConfig("sample", steps=4, num_samples=6)
    logits = sample_logits(generator, classifier, features, config, seeded())
    samples = sampled_features(generator, features, config, seeded())
    torch.testing.assert_close(logits, classifier(samples.mean(0)))
    torch.testing.assert_close(logits, classifier(samples).mean(0), rtol=1e-4, atol=1e-4)


def test_a_student_gets_the_gradient_of_the_mean_readout() -> None:
    generator, classifier, features = parts()
    features.requires_grad_(True)
    mean_logits(generator, classifier, features).square().sum().backward()
    assert features.grad is not None and features.grad.abs().min() > 0


@pytest.mark.parametrize("amplified", [0.0, 0.5])
def test_the_time_of_the_mean_is_where_it_agrees_most_with_the_teacher(amplified: float) -> None:
    model, matrix = exact("epsilon")
    head = model.head.denoise

    def wrong(x: Tensor, modulations: list[Tensor]) -> Tensor:
        return head(x, modulations) + amplified

    model.head.denoise = wrong  # type: ignore[method-assign]
    classifier = nn.Linear(8, 3)
    features = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    teacher = model.norm(features) @ matrix
    wanted = classifier(teacher).argmax(-1)
    share = choose_mean_time(model, classifier, features, teacher)
    chosen = model.mean_time

    def agreed(time: int) -> float:
        model.mean_time = time
        said = mean_logits(model, classifier, features).argmax(-1)
        return float((said == wanted).double().mean())

    assert share == agreed(chosen)
    tried = {time: agreed(time) for time in range(100, 1000, 50)}
    # later time steps amplify the head's error; without error, later is better
    assert share >= max(tried.values()) - 0.02
    assert tried[950] > 0.99 if amplified == 0 else tried[950] < share - 0.2
    if amplified == 0:
        assert chosen == model.schedule.nearest(0.002)


def test_the_time_of_a_well_conditioned_mean_stays_the_last() -> None:
    model, matrix = exact("sample")
    classifier = nn.Linear(8, 3)
    features = torch.randn(20, 6)
    share = choose_mean_time(model, classifier, features, model.norm(features) @ matrix)
    assert model.mean_time == 999 and share == 1.0
