"""Samplers: plain functions of a denoiser, a starting point and a schedule.

Shapes: R rows · C token width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gendd.diffusion.schedule import Schedule


class Denoised(NamedTuple):
    """Output of a denoiser at x_t.

    Attributes:
        x0: (R, C) estimate of the clean rows.
        log_variance: (R, C) of p(x_{t-1} | x_t); None for the posterior variance β̃.
    """

    x0: Tensor
    log_variance: Tensor | None


class Denoiser(Protocol):
    """(x_t (R, C), step index in the given schedule) -> :class:`Denoised`."""

    def __call__(self, x: Tensor, step: int) -> Denoised: ...


def ancestral(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    temperature: float = 1.0,
    step_noise: Sequence[Tensor] | Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2).

    Args:
        denoise: The model.
        x: (R, C) start, standard normal.
        schedule: Steps to take, from the last to the first.
        temperature: Factor on the noise of every step.
        step_noise: One (R, C) draw per step, noisiest step first; None: drawn here.
        generator: Source of the noise, on the device of ``x``.
        callback: Called with (step, x) after every step.
    """
    for count, step in enumerate(reversed(range(len(schedule)))):
        estimate = denoise(x, step)
        mean = schedule.value("posterior_mean_coef1", step) * estimate.x0
        mean = mean + schedule.value("posterior_mean_coef2", step) * x
        if step > 0:
            noise = (
                torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                if (step_noise is None)
                else step_noise[count]
            )
            if estimate.log_variance is None:
                deviation: Tensor | float = math.sqrt(schedule.value("posterior_variance", step))
            else:
                deviation = torch.exp(0.5 * estimate.log_variance)
            mean = mean + temperature * deviation * noise
        x = mean
        if callback is not None:
            callback(step, x)
    return x


def ddim(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    step_noise: Sequence[Tensor] | Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12).

    Args:
        eta: η: 0 is deterministic, 1 uses the posterior's noise. The other arguments are as for
            :func:`ancestral`.
    """
    for count, step in enumerate(reversed(range(len(schedule)))):
        x0 = denoise(x, step).x0
        epsilon = schedule.value("sqrt_recip_alphas_cumprod", step) * x - x0
        epsilon = epsilon / schedule.value("sqrt_recipm1_alphas_cumprod", step)
        previous = schedule.value("alphas_cumprod_prev", step)
        deviation = eta * math.sqrt(schedule.value("posterior_variance", step))
        x = previous**0.5 * x0 + max(1 - previous - deviation**2, 0.0) ** 0.5 * epsilon
        if deviation > 0 and step > 0:
            noise = (
                torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                if (step_noise is None)
                else step_noise[count]
            )
            x = x + deviation * noise
        if callback is not None:
            callback(step, x)
    return x


def dpm_solver(
    denoise: Denoiser,
    x: Tensor,
    schedule: Schedule,
    *,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): deterministic, second order in log-SNR.

    The first step, without a previous one to extrapolate from, and the last one, to x_0, are of first order.
    The arguments are as for :func:`ancestral`.
    """
    last: Tensor | None = None
    for step in reversed(range(len(schedule))):
        x0 = denoise(x, step).x0
        if step == 0:
            x = x0
        else:
            estimate = x0
            snr = schedule.value("half_log_snr", step)
            h = schedule.value("half_log_snr", step - 1) - snr
            if last is not None:
                ratio = (snr - schedule.value("half_log_snr", step + 1)) / h
                estimate = x0 + (x0 - last) / (2 * ratio)
            sigma = schedule.value("sqrt_one_minus_alphas_cumprod", step - 1)
            x = sigma / schedule.value("sqrt_one_minus_alphas_cumprod", step) * x
            x = x - schedule.value("sqrt_alphas_cumprod", step - 1) * math.expm1(-h) * estimate
        last = x0
        if callback is not None:
            callback(step, x)
    return x
