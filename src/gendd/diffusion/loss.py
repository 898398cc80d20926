"""The diffusion loss per row, with its random inputs as arguments.

Shapes: R rows · C token width. Symbols follow Nichol & Dhariwal 2021.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gendd.diffusion.schedule import Schedule

Prediction = Literal["sample", "epsilon", "v"]


class LossRows(NamedTuple):
    """Parts of the loss of each row.

    Attributes:
        mse: (R,) squared error of the prediction, mean over channels.
        vlb: (R,) variational bound in bits per channel, which trains only the variance; None without one.
    """

    mse: Tensor
    vlb: Tensor | None


def add_noise(x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε; all (R, C), t (R,)."""
    signal = schedule.at("sqrt_alphas_cumprod", t)
    return signal * x0 + schedule.at("sqrt_one_minus_alphas_cumprod", t) * noise


def prediction_target(
    x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule, prediction: Prediction
) -> Tensor:
    """Target of the head: x_0, ε, or v = √ᾱ_t ε - √(1-ᾱ_t) x_0 (Salimans & Ho 2022); (R, C)."""
    if prediction == "sample":
        return x0
    if prediction == "epsilon":
        return noise
    signal = schedule.at("sqrt_alphas_cumprod", t)
    return signal * noise - schedule.at("sqrt_one_minus_alphas_cumprod", t) * x0


def predicted_x0(
    output: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, prediction: Prediction
) -> Tensor:
    """x̂_0 (R, C) from the head's prediction (R, C) at x_t (R, C); no clipping, as features are unbounded."""
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (
            schedule.at("sqrt_recip_alphas_cumprod", t) * x_t
            - schedule.at("sqrt_recipm1_alphas_cumprod", t) * output
        )
    signal = schedule.at("sqrt_alphas_cumprod", t)
    return signal * x_t - schedule.at("sqrt_one_minus_alphas_cumprod", t) * output


def interpolated_log_variance(v: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """log-variance between β̃_t and β_t: v' log β_t + (1-v') log β̃_t, v' = (v+1)/2; (R, C)."""
    low = schedule.at("posterior_log_variance_clipped", t)
    fraction = (v + 1) / 2
    return fraction * schedule.at("log_betas", t) + (1 - fraction) * low


def diffusion_loss(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: Schedule,
    prediction: Prediction = "sample",
) -> LossRows:
    """Loss of the head's output for noisy rows.

    Args:
        output: (R, C), or (R, 2C) with the variance's interpolation in the second half.
        x0: (R, C) clean tokens.
        x_t: (R, C) from :func:`add_noise` with the same ``t`` and ``noise``.
        t: (R,) int64 in 0 .. T-1.
        noise: (R, C) standard normal.
        schedule: The schedule of ``t``.
        prediction: What the first C channels of ``output`` predict.
    """
    channels = x0.shape[-1]
    output = output.float()
    predicted, v = output[:, :channels], output[:, channels:]
    target = prediction_target(x0, t, noise, schedule, prediction)
    mse = (target - predicted).square().mean(-1)
    if v.shape[-1] == 0:
        return LossRows(mse, None)
    x0_hat = predicted_x0(predicted.detach(), x_t, t, schedule, prediction)
    return LossRows(mse, variational_bound(x0, x0_hat, x_t, v, t, schedule))


def variational_bound(
    x0: Tensor, x0_hat: Tensor, x_t: Tensor, v: Tensor, t: Tensor, schedule: Schedule
) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)), at t = 0 the discretised -log p(x_0 | x_1).

    Returns:
        (R,) bits per channel.
    """
    coef1, coef2 = schedule.at("posterior_mean_coef1", t), schedule.at("posterior_mean_coef2", t)
    true_mean = coef1 * x0 + coef2 * x_t
    mean = coef1 * x0_hat + coef2 * x_t
    true_log_variance = schedule.at("posterior_log_variance_clipped", t)
    log_variance = interpolated_log_variance(v, t, schedule)
    kl = 0.5 * (
        -1.0
        + log_variance
        - true_log_variance
        + torch.exp(true_log_variance - log_variance)
        + (true_mean - mean).square() * torch.exp(-log_variance)
    )
    nll = -discretised_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    bound = torch.where((t == 0).unsqueeze(-1), nll, kl)
    return bound.mean(-1) / math.log(2.0)


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log of a Gaussian's mass on [x - 1/255, x + 1/255]; the outer bins extend to ±∞.

    The normal CDF is the tanh approximation of Nichol & Dhariwal's code, so that bounds agree with theirs.
    """
    centred = x - mean
    inverse_std = torch.exp(-log_std)
    upper = _normal_cdf(inverse_std * (centred + 1.0 / 255.0))
    lower = _normal_cdf(inverse_std * (centred - 1.0 / 255.0))
    tiny = 1e-12
    inner = (upper - lower).clamp(min=tiny).log()
    above = (1.0 - lower).clamp(min=tiny).log()
    below = upper.clamp(min=tiny).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inner))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
