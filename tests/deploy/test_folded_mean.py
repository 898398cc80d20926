from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gendd.config import GenDDConfig
from gendd.deploy.folded_mean import FoldedMean, savings
from gendd.diffusion import Prediction
from gendd.models import multiply_adds
from gendd.student.generator import FeatureGenerator
from gendd.student.readout import mean_logits


def parts(feature_width: int, classes: int, **changed: Any) -> tuple[FeatureGenerator, nn.Linear]:
    """A student's head with random statistics and biases, and a classifier."""
    torch.manual_seed(0)
    settings = {"token_width": 8, "head_width": 16, "head_depth": 2, "timesteps": 30, "zero_init": False}
    generator = FeatureGenerator(6, feature_width, GenDDConfig(**{**settings, **changed}))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    generator.set_statistics(torch.randn(feature_width), torch.rand(feature_width) + 0.5)
    return generator.requires_grad_(False), nn.Linear(feature_width, classes)


@pytest.mark.parametrize("prediction", ["sample", "epsilon", "v"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("classes", [3, 50])
@pytest.mark.parametrize("depth", [1, 3])
def test_folding_changes_no_logits(prediction: Prediction, learned: bool, classes: int, depth: int) -> None:
    # 20 channels: the last of three tokens is padded
    generator, classifier = parts(
        20, classes, prediction=prediction, learned_variance=learned, head_depth=depth
    )
    folded = FoldedMean(generator, classifier)
    assert (folded.final.output is None) is (classes == 3)
    features = 3 * torch.randn(5, 6) + 1
    with torch.no_grad():
        expected = mean_logits(generator, classifier, features)
        found = folded(features)
    assert found.shape == (5, classes)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-6)


@pytest.mark.parametrize("classes", [3, 50])
def test_the_students_own_estimate_is_folded_too(classes: int) -> None:
    torch.manual_seed(0)
    generator = FeatureGenerator(20, 20, GenDDConfig(token_width=8, head_width=16, residual=True))
    generator.set_statistics(torch.randn(20), torch.rand(20) + 0.5)
    classifier = nn.Linear(20, classes)
    folded, features = FoldedMean(generator, classifier), torch.randn(5, 20)

    class Plain(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return mean_logits(generator, classifier, features)

    with torch.no_grad():
        torch.testing.assert_close(folded(features), Plain()(features), rtol=1e-4, atol=1e-5)
    saved = sum(savings(generator, classifier).values())
    assert saved == multiply_adds(Plain(), features[:1]) - multiply_adds(folded, features[:1])


def test_a_classifier_without_bias_is_folded_too() -> None:
    generator, _ = parts(16, 3)
    classifier = nn.Linear(16, 3, bias=False)
    features = torch.randn(4, 6)
    expected = mean_logits(generator, classifier, features)
    torch.testing.assert_close(FoldedMean(generator, classifier)(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [10, 40, 1000])
def test_folding_saves_multiply_adds(classes: int) -> None:
    generator, classifier = parts(64, classes, token_width=64, head_width=32, head_depth=3)

    class Plain(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return mean_logits(generator, classifier, features)

    features = torch.randn(1, 6)
    folded = FoldedMean(generator, classifier)
    saved = multiply_adds(Plain(), features) - multiply_adds(folded, features)
    time, start, first_block = 256 * 32 + 32 * 32, 64 * 32, 2 * 32 * 32
    apart, together = 2 * 32 * 32 + 32 * 64 + 64 * classes, 32 * 32 + 2 * 32 * classes
    assert saved == time + start + first_block + max(0, apart - together)
    assert (folded.final.output is None) is (together < apart)


@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize("learned", [False, True])
def test_what_each_fold_saves_adds_up(classes: int, learned: bool) -> None:
    # three tokens, the last of which is padded
    generator, classifier = parts(20, classes, learned_variance=learned)

    class Plain(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return mean_logits(generator, classifier, features)

    features = torch.randn(1, 6)
    saved = savings(generator, classifier)
    folded = FoldedMean(generator, classifier)
    assert sum(saved.values()) == multiply_adds(Plain(), features) - multiply_adds(folded, features)
    assert saved["input layer"] == 8 * 16 and saved["time embedding"] == 256 * 16 + 16 * 16


def test_folding_leaves_the_student_as_it_is() -> None:
    generator, classifier = parts(16, 3)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    folded = FoldedMean(generator, classifier)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())


@pytest.mark.parametrize("feature_width", [8, 20])
def test_the_fold_keeps_its_precision_under_autocast(feature_width: int) -> None:
    # one token, and three
    generator, classifier = parts(feature_width, 3)
    folded = FoldedMean(generator, classifier)
    features = torch.randn(4, 6).bfloat16()
    with torch.no_grad():
        expected = folded(features.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = folded(features)
        low = folded.to(torch.bfloat16)(features)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.05)
