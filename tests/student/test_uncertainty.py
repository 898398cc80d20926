from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import seeded
from test_generator import ExactHead
from torch import Tensor, nn

from gendd.config import GenDDConfig, ReadoutConfig
from gendd.errors import UserError
from gendd.models import create_backbone
from gendd.student import Student
from gendd.student.generator import FeatureGenerator
from gendd.student.readout import sampled_features
from gendd.student.uncertainty import PredictiveDistribution, check_samples, decompose, entropy, spread


def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=seeded(1))


def make(readout: ReadoutConfig | None = None) -> Student:
    torch.manual_seed(0)
    backbone = create_backbone("cifar/resnet8x0.25", 5, in_channels=1)
    settings = GenDDConfig(
        token_width=4, head_width=16, head_depth=1, timesteps=20, zero_init=False, condition_dropout=0.1
    )
    generator = FeatureGenerator(backbone.feature_dim, 10, settings)
    generator.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    student = Student(backbone, generator, nn.Linear(10, 5), readout)
    return student.requires_grad_(False).eval()


# --- the decomposition ---


def test_samples_sure_of_different_classes_differ_in_nothing_but_the_sample() -> None:
    found = decompose(torch.eye(5)[:4].unsqueeze(1).expand(4, 3, 5))
    torch.testing.assert_close(found.mixture, torch.tensor([0.25] * 4 + [0.0]).expand(3, 5))
    torch.testing.assert_close(found.total, torch.full((3,), math.log(4)))
    assert torch.equal(found.aleatoric, torch.zeros(3))
    torch.testing.assert_close(found.mutual_information, torch.full((3,), math.log(4)))


def test_samples_that_agree_have_no_mutual_information() -> None:
    one = torch.randn(6, 7, generator=seeded()).softmax(-1)
    found = decompose(one.expand(9, 6, 7))
    torch.testing.assert_close(found.mixture, one)
    torch.testing.assert_close(found.total, -(one * one.log()).sum(-1))
    torch.testing.assert_close(found.aleatoric, found.total)
    # rounding leaves nothing below 0
    assert found.mutual_information.min() >= 0 and found.mutual_information.max() < 1e-5


def test_a_mixture_of_two_points_by_hand() -> None:
    found = decompose(torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]]))
    total = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    first = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert float(found.total) == pytest.approx(total, abs=1e-6)
    assert float(found.aleatoric) == pytest.approx((first + math.log(2)) / 2, abs=1e-6)
    assert float(found.mutual_information) == pytest.approx(total - (first + math.log(2)) / 2, abs=1e-6)


def test_the_bounds_of_entropies() -> None:
    probabilities = (8 * torch.randn(3, 50, 6, generator=seeded())).softmax(-1)
    found = decompose(probabilities)
    assert torch.equal(entropy(probabilities).mean(0), found.aleatoric)
    assert (found.total <= math.log(6)).all()
    assert (found.aleatoric <= found.total + 1e-6).all()
    assert (found.mutual_information <= math.log(3)).all() and found.mutual_information.max() > 0.5


def test_the_spread_of_two_samples_by_hand() -> None:
    # variances 2 and 0 a dimension, of distances 1 and 0 to the mean
    samples = torch.tensor([[[1.0, 5.0]], [[3.0, 5.0]]])
    assert float(spread(samples)) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [2, 4, 32])
def test_the_spread_of_the_prior_is_one_whatever_the_number_of_samples(count: int) -> None:
    samples = torch.randn(count, 500, 64, generator=seeded())
    assert spread(samples).square().mean().item() == pytest.approx(1, abs=0.02)
    assert spread(0.5 * samples + 3).square().mean().item() == pytest.approx(0.25, abs=0.005)


# --- of a student ---


@torch.no_grad()
@pytest.mark.parametrize("name", ["linear", "mean", "sample"])
def test_without_uncertainty_it_is_the_readouts_softmax(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make(ReadoutConfig(name, steps=3, num_samples=2))  # type: ignore[arg-type]
    expected = student.logits(student.features(images()), generator=seeded()).softmax(-1)
    sure = student.predict(images(), 4, seeded())
    if name != "sample":
        # nothing is generated unless requested
        monkeypatch.setattr(FeatureGenerator, "sample", None)
    found = student.predict(images(), generator=seeded())
    assert torch.equal(found.probabilities, expected) and found == PredictiveDistribution(found.probabilities)
    assert torch.equal(sure.probabilities, expected)
    other = "mean" if name == "linear" else "linear"
    assert torch.equal(
        student.predict(images(), readout=other).probabilities,
        student.logits(student.features(images()), other).softmax(-1),
    )
    assert student.readout == name


def test_the_figures_are_those_of_the_generated_features() -> None:
    student = make(ReadoutConfig("mean", "ddim", steps=3, guidance=2.0, temperature=0.5, eta=0.4))
    found = student.predict(images(), 6, seeded())
    assert student.generator is not None and student.classifier is not None
    config = ReadoutConfig("mean", "ddim", steps=3, num_samples=6, eta=0.4)
    samples = sampled_features(student.generator, student.features(images()), config, seeded())
    said = student.classifier(samples).softmax(-1)
    mean = said.mean(0)
    torch.testing.assert_close(found.mixture, mean)
    total = -(mean * mean.log()).sum(-1)
    aleatoric = -(said * said.log()).sum(-1).mean(0)
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(found.aleatoric, aleatoric)
    assert found.mutual_information is not None and found.mutual_information.min() > 0
    torch.testing.assert_close(found.mutual_information, total - aleatoric)
    standard = (samples - torch.arange(10.0)) / (torch.arange(10.0) + 1)
    squares = (standard - standard.mean(0)).square().sum(0) / 5
    torch.testing.assert_close(found.spread, squares.mean(-1).sqrt())


def test_the_spread_of_a_generator_that_is_known() -> None:
    whole = make()
    width = whole.backbone.feature_dim
    generator = FeatureGenerator(width, 10, GenDDConfig(token_width=4, timesteps=1000))
    generator.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    weight = torch.randn(3, width, 4, generator=seeded(3), dtype=torch.float64)
    generator.head = ExactHead(generator.schedule, weight, 0.5, "sample")  # type: ignore[assignment]
    student = Student(whole.backbone, generator, whole.classifier).eval()
    found = {}
    for steps in (10, 100):
        spreads = student.predict(
            images(), 400, seeded(), readout="linear", sampler="ddim", steps=steps
        ).spread
        assert spreads is not None
        found[steps] = float(spreads.square().mean().sqrt())
    assert found[100] == pytest.approx(0.5, abs=0.02)
    # with few steps the samples are too narrow
    assert 0.38 < found[10] < 0.46


@pytest.mark.parametrize(
    "change", [{"steps": 5}, {"guidance": 2.0}, {"sampler": "ddim"}, {"temperature": 0.3}, {"eta": 0.9}]
)
def test_every_setting_reaches_the_sampler(change: dict[str, float]) -> None:
    student = make(ReadoutConfig("mean", "ddim" if "eta" in change else "ddpm", steps=3))
    base = student.predict(images(), 4, seeded())
    other = student.predict(images(), 4, seeded(), **change)  # type: ignore[arg-type]
    assert torch.equal(other.probabilities, base.probabilities)
    assert base.spread is not None and other.spread is not None
    assert not torch.allclose(other.spread, base.spread)


def test_the_same_generator_gives_the_same_figures_and_another_does_not() -> None:
    student = make(ReadoutConfig("sample", steps=3))
    first, again = (student.predict(images(), 4, seeded()) for _ in range(2))
    for name, value in vars(first).items():
        assert torch.equal(vars(again)[name], value), name
    other = student.predict(images(), 4, seeded(1))
    for name, value in vars(first).items():
        assert not torch.equal(vars(other)[name], value), name


def test_classes_may_be_others_than_the_readouts() -> None:
    whole = make()
    student = Student(whole.backbone, whole.generator, nn.Linear(10, 7), ReadoutConfig("linear")).eval()
    found = student.predict(images(), 3, seeded())
    assert found.probabilities.shape == (3, 5)
    assert found.mixture is not None and found.mixture.shape == (3, 7)
    assert found.total is not None and not found.total.requires_grad


def refused(student: Student, samples: int) -> str:
    with pytest.raises(UserError) as caught:
        student.predict(images(), samples)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("samples", [1, -3, 10_001, 10**30, 2.5, "8"])
def test_numbers_of_samples_that_tell_nothing(samples: Any) -> None:
    assert refused(make(), samples) == (
        f"Uncertainty: expected 2 to 10,000 generated features per image, got {samples!r}; "
        "ask for 8 or more, or for 0 to do without."
    )
    check_samples(2, True, True)


def test_what_a_student_lacks_is_said() -> None:
    whole = make()
    assert refused(Student(whole.backbone).eval(), 8) == (
        "Uncertainty: expected a student with a generator, got one without; distil one with method gendd."
    )
    assert refused(Student(whole.backbone, whole.generator).eval(), 8) == (
        "Uncertainty: expected a student with a classifier of generated features, got one without; "
        "distil with gendd.centres means."
    )
    with pytest.raises(UserError, match="expected 1 to 20, got 21"):
        whole.predict(images(), 2, steps=21)
    with pytest.raises(UserError, match="has no readout"):
        Student(whole.backbone, whole.generator, linear=False).eval().predict(images())
