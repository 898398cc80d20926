"""Why contraction is multi-task learning, and why one pass suffices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gendd.config import GenDDConfig
from gendd.diffusion import Prediction, diffusion_loss, tokens
from gendd.student.generator import FeatureGenerator

ROWS, WIDTH, CLASSES = 64, 8, 5


def generator(prediction: Prediction) -> FeatureGenerator:
    torch.manual_seed(0)
    config = GenDDConfig(token_width=WIDTH, head_width=16, head_depth=2, prediction=prediction)
    return FeatureGenerator(6, WIDTH, config).double()


@pytest.mark.parametrize("prediction", ["sample", "v", "epsilon"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.0])
def test_the_gradient_of_contracted_targets_is_that_of_two_tasks(
    prediction: Prediction, strength: float
) -> None:
    """(1-λ) ∇ distance to the teacher's feature + λ ∇ distance to the centre, at a fixed noisy input."""
    network = generator(prediction)
    random = torch.Generator().manual_seed(1)
    feature = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    centres = torch.randn(CLASSES, WIDTH, generator=random, dtype=torch.float64)
    condition = torch.randn(ROWS, 6, generator=random, dtype=torch.float64)
    x_t = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64)
    # at t near 0 a fixed input barely determines the noise
    t = torch.randint(50, 1000, (ROWS,), generator=random)
    token = torch.zeros(ROWS, dtype=torch.int64)

    def gradient(target: Tensor) -> Tensor:
        schedule = network.schedule
        signal = schedule.at("sqrt_alphas_cumprod", t).double()
        sigma = schedule.at("sqrt_one_minus_alphas_cumprod", t).double()
        noise = (x_t - signal * target) / sigma  # the noise that leads from this target to this input
        output = network.head(x_t, t, condition, token)
        channels = target.shape[-1]
        assert output.shape[-1] == channels
        if prediction == "sample":
            wanted = target
        elif prediction == "epsilon":
            wanted = noise
        else:
            wanted = signal * noise - sigma * target
        loss = (wanted - output).square().mean()
        parameters = list(network.head.parameters())
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([each.flatten() for each in found if each is not None])

    probabilities = tokens.class_probabilities(labels, CLASSES).double()
    contracted = tokens.contract(feature, probabilities, centres, strength)
    expected = (1 - strength) * gradient(feature) + strength * gradient(centres[labels])
    torch.testing.assert_close(gradient(contracted), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("prediction", ["sample", "v"])
def test_the_loss_that_is_trained_is_that_distance(prediction: Prediction) -> None:
    network = generator(prediction)
    random = torch.Generator().manual_seed(2)
    x0, noise, x_t = (torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64) for _ in range(3))
    t = torch.randint(1000, (ROWS,), generator=random)
    output = torch.randn(ROWS, WIDTH, generator=random)
    found = diffusion_loss(output, x0, x_t, t, noise, network.schedule, prediction).mse
    wanted = x0
    if prediction == "v":
        signal = network.schedule.at("sqrt_alphas_cumprod", t)
        wanted = signal * noise - network.schedule.at("sqrt_one_minus_alphas_cumprod", t) * x0
    torch.testing.assert_close(found, (wanted - output).square().mean(-1), check_dtype=False)


def test_the_average_of_samples_tends_to_a_limit_as_one_over_the_root_of_their_number() -> None:
    network = generator("sample").float()
    condition = torch.randn(1, 6, generator=torch.Generator().manual_seed(3))
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        made = network.sample(condition, steps=20, num_samples=65_536, generator=random)[:, 0]
    limit = made.mean(0)

    def distance(count: int) -> float:
        groups = made[: 65_536 // count * count].reshape(-1, count, WIDTH).mean(1)
        return float((groups - limit).square().mean().sqrt())

    for count in (4, 16, 64, 256):
        assert distance(4 * count) == pytest.approx(distance(count) / 2, rel=0.1)
