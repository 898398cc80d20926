from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from gendd.diffusion import (
    Head,
    Prediction,
    add_noise,
    cosine_schedule,
    diffusion_loss,
    interpolated_log_variance,
    predicted_x0,
    prediction_target,
    variational_bound,
)
from gendd.diffusion.loss import discretised_gaussian_log_likelihood

PREDICTIONS: list[Prediction] = ["sample", "epsilon", "v"]


def rows(count: int = 12, channels: int = 5, steps: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    x0 = 3 * torch.randn(count, channels, generator=random) + 1
    t = torch.randint(0, steps, (count,), generator=random)
    return x0, t, torch.randn(count, channels, generator=random)


def test_noising_and_targets_are_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    schedule = cosine_schedule()
    x0, t, noise = rows()
    torch.testing.assert_close(
        add_noise(x0, t, noise, schedule), theirs.add_noise(x0, noise, t), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        prediction_target(x0, t, noise, schedule, "v"),
        theirs.get_velocity(x0, noise, t),
        rtol=1e-4,
        atol=1e-4,
    )
    assert prediction_target(x0, t, noise, schedule, "sample") is x0
    assert prediction_target(x0, t, noise, schedule, "epsilon") is noise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predicted_x0_inverts_the_target(prediction: Prediction) -> None:
    schedule = cosine_schedule()
    x0, _, noise = rows(200)
    t = torch.arange(200) * 4
    x_t = add_noise(x0, t, noise, schedule)
    target = prediction_target(x0, t, noise, schedule, prediction)
    torch.testing.assert_close(predicted_x0(target, x_t, t, schedule, prediction), x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_prediction_costs_nothing_and_zeros_cost_the_target(prediction: Prediction) -> None:
    schedule = cosine_schedule()
    x0, t, noise = rows()
    x_t = add_noise(x0, t, noise, schedule)
    target = prediction_target(x0, t, noise, schedule, prediction)
    exact = diffusion_loss(target, x0, x_t, t, noise, schedule, prediction)
    assert exact.vlb is None
    assert torch.equal(exact.mse, torch.zeros(12))
    zeros = diffusion_loss(torch.zeros_like(x0), x0, x_t, t, noise, schedule, prediction)
    torch.testing.assert_close(zeros.mse, (target**2).sum(1) / 5)


def test_log_variance_runs_from_the_posterior_to_beta() -> None:
    schedule = cosine_schedule()
    t = torch.arange(1000)
    ones = torch.ones(1000, 1)
    high, low = schedule.betas.log().float(), schedule.posterior_variance.log().float()
    torch.testing.assert_close(interpolated_log_variance(ones, t, schedule)[:, 0], high)
    torch.testing.assert_close(interpolated_log_variance(-ones, t, schedule)[1:, 0], low[1:])
    torch.testing.assert_close(
        interpolated_log_variance(0 * ones, t, schedule)[1:, 0], (high[1:] + low[1:]) / 2
    )
    assert torch.isfinite(interpolated_log_variance(-ones, t, schedule)).all()


def test_kl_is_zero_where_the_prediction_is_exact_and_v_selects_the_posterior() -> None:
    schedule = cosine_schedule()
    t = torch.arange(1, 1000)
    random = torch.Generator().manual_seed(0)
    x0 = 3 * torch.randn(999, 4, generator=random)
    x_t = add_noise(x0, t, torch.randn(999, 4, generator=random), schedule)
    bound = variational_bound(x0, x0, x_t, torch.full_like(x0, -1.0), t, schedule)
    torch.testing.assert_close(bound, torch.zeros(999), rtol=0, atol=1e-6)


def test_bound_is_the_kl_between_the_posteriors_in_bits() -> None:
    schedule = cosine_schedule()
    random = torch.Generator().manual_seed(0)
    t = torch.tensor([1, 2, 10, 300, 700, 990, 999])
    x0, x0_hat, noise = (torch.randn(7, 4, generator=random) for _ in range(3))
    v = 2 * torch.rand(7, 4, generator=random) - 1
    x_t = add_noise(x0, t, noise, schedule)
    bound = variational_bound(x0, x0_hat, x_t, v, t, schedule)

    def column(values: Tensor) -> Tensor:
        return values[t].unsqueeze(1)

    def posterior_mean(clean: Tensor) -> Tensor:
        return (
            column(schedule.betas * schedule.alphas_cumprod_prev.sqrt()) * clean.double()
            + column((1 - schedule.alphas_cumprod_prev) * (1 - schedule.betas).sqrt()) * x_t.double()
        ) / column(1 - schedule.alphas_cumprod)

    low, high = column(schedule.posterior_variance), column(schedule.betas)
    fraction = (v.double() + 1) / 2
    deviation = (high**fraction * low ** (1 - fraction)).sqrt()
    true = Normal(posterior_mean(x0), low.sqrt().expand(7, 4))
    expected = kl_divergence(true, Normal(posterior_mean(x0_hat), deviation)).mean(1) / math.log(2)
    torch.testing.assert_close(bound.double(), expected, rtol=1e-3, atol=1e-6)


def test_at_time_zero_the_bound_is_the_discretised_likelihood_in_bits() -> None:
    schedule = cosine_schedule()
    x0 = torch.tensor([[0.1, -0.3]])
    x0_hat = torch.tensor([[0.11, -0.28]])
    t = torch.zeros(1, dtype=torch.int64)
    v = torch.tensor([[-1.0, 1.0]])
    # at t = 0 the posterior's mean is x0_hat itself
    bound = variational_bound(x0, x0_hat, torch.randn(1, 2), v, t, schedule)
    variances = [float(schedule.posterior_variance[1]), float(schedule.betas[0])]
    bits = []
    for x, mean, variance in zip([0.1, -0.3], [0.11, -0.28], variances, strict=True):
        upper = 0.5 * (1 + math.erf((x - mean + 1 / 255) / math.sqrt(2 * variance)))
        lower = 0.5 * (1 + math.erf((x - mean - 1 / 255) / math.sqrt(2 * variance)))
        bits.append(-math.log2(upper - lower))
    assert float(bound) == pytest.approx(sum(bits) / 2, rel=2e-2)


def test_discretised_likelihood_sums_to_one_over_the_bins() -> None:
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.0, 0.05), (0.7, 0.3), (-0.95, 0.1), (0.2, 2.0)):
        likelihood = discretised_gaussian_log_likelihood(
            bins, torch.full_like(bins, mean), torch.full_like(bins, math.log(std))
        )
        assert float(likelihood.exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_bound_trains_the_variance_alone(prediction: Prediction) -> None:
    schedule = cosine_schedule()
    x0, t, noise = rows()
    t[0] = 0
    x_t = add_noise(x0, t, noise, schedule)
    random = torch.Generator().manual_seed(0)
    output = torch.randn(12, 10, generator=random).mul(0.5).requires_grad_(True)
    parts = diffusion_loss(output, x0, x_t, t, noise, schedule, prediction)
    assert parts.vlb is not None and parts.vlb.shape == parts.mse.shape == (12,)
    (gradient,) = torch.autograd.grad(parts.vlb.sum(), output, retain_graph=True)
    assert torch.equal(gradient[:, :5], torch.zeros(12, 5))
    assert (gradient[1:, 5:] != 0).any(1).all()
    (gradient,) = torch.autograd.grad(parts.mse.sum(), output)
    assert torch.equal(gradient[:, 5:], torch.zeros(12, 5))
    assert (gradient[:, :5] != 0).all()


@pytest.mark.parametrize("prediction", ["sample", "v"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.0])
def test_the_gradient_towards_a_contracted_target_is_the_weighted_sum_of_two_tasks(
    prediction: Prediction, strength: float
) -> None:
    schedule = cosine_schedule()
    torch.manual_seed(0)
    head = Head(5, 6, 2, width=16, depth=1, out_channels=5, zero_init=False)
    random = torch.Generator().manual_seed(2)
    feature, centre, x_t = (torch.randn(12, 5, generator=random) for _ in range(3))
    condition = torch.randn(12, 6, generator=random)
    token = torch.arange(12) % 2
    t = torch.arange(100, 940, 70)
    output = head(x_t, t, condition, token)

    def gradient(target: Tensor) -> Tensor:
        # the noise that leads from the target to the same noisy input
        signal = schedule.alphas_cumprod[t].unsqueeze(1).float()
        noise = (x_t - signal.sqrt() * target) / (1 - signal).sqrt()
        loss = diffusion_loss(output, target, x_t, t, noise, schedule, prediction).mse.mean()
        parts = torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    mixed = gradient((1 - strength) * feature + strength * centre)
    expected = (1 - strength) * gradient(feature) + strength * gradient(centre)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradient(feature), gradient(centre), rtol=1e-2, atol=1e-2)
