from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gendd.diffusion import (
    Denoised,
    Denoiser,
    Prediction,
    Schedule,
    ancestral,
    cosine_schedule,
    ddim,
    dpm_solver,
    interpolated_log_variance,
    predicted_x0,
)

Model = Callable[[Tensor, int], Tensor]

NAMES: dict[Prediction, str] = {"sample": "sample", "epsilon": "epsilon", "v": "v_prediction"}
Sampler = Callable[..., Tensor]
SAMPLERS: list[Sampler] = [ancestral, ddim, dpm_solver]
NOISY: list[Sampler] = [ancestral, ddim]


def noise(sampler: Sampler, level: float) -> dict[str, float]:
    """The setting that scales the step noise of a sampler, where it takes any."""
    if sampler is dpm_solver:
        return {}
    return {"temperature" if sampler is ancestral else "eta": level}


def network(out_channels: int) -> Model:
    weight = torch.randn(4, out_channels, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def model(x: Tensor, time: int) -> Tensor:
        return torch.tanh(x @ weight + math.sin(time))

    return model


def denoiser(model: Model, schedule: Schedule, prediction: Prediction = "sample") -> Denoiser:
    def denoise(x: Tensor, step: int) -> Denoised:
        output = model(x, int(schedule.timesteps[step]))
        index = torch.full((len(x),), step)
        predicted, v = output[:, : x.shape[1]], output[:, x.shape[1] :]
        x0 = predicted_x0(predicted, x, index, schedule, prediction)
        return Denoised(x0, interpolated_log_variance(v, index, schedule) if v.shape[1] else None)

    return denoise


def start(rows: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("times", [None, [19, 12, 4, 0]])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", list(NAMES))
def test_ancestral_takes_the_steps_of_diffusers(
    prediction: Prediction, learned: bool, times: list[int] | None
) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(
        20,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=NAMES[prediction],
        variance_type="learned_range" if learned else "fixed_small",
        clip_sample=False,
    )
    theirs.alphas_cumprod = torch.cumprod(1 - theirs.betas.double(), 0)
    theirs.one = torch.ones((), dtype=torch.float64)
    schedule = Schedule(theirs.betas)
    if times is None:
        theirs.set_timesteps(20)
    else:
        theirs.set_timesteps(timesteps=times)
        kept = torch.tensor(times[::-1])
        marginals = schedule.alphas_cumprod[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), marginals[:-1]])
        schedule = Schedule(1 - marginals / previous, kept)
    model = network(8 if learned else 4)

    expected = start()
    random = torch.Generator().manual_seed(7)
    for t in theirs.timesteps:
        expected = theirs.step(model(expected, int(t)), t, expected, generator=random).prev_sample
    random = torch.Generator().manual_seed(7)
    out = ancestral(denoiser(model, schedule, prediction), start(), schedule, generator=random)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", list(NAMES))
@pytest.mark.parametrize("stride", [1, 5])
def test_ddim_takes_the_steps_of_diffusers(prediction: Prediction, eta: float, stride: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(
        21, beta_schedule="squaredcos_cap_v2", prediction_type=NAMES[prediction], clip_sample=False
    )
    theirs.alphas_cumprod = torch.cumprod(1 - theirs.betas.double(), 0)
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    # diffusers steps back by the whole part of 21 / count
    theirs.set_timesteps(21 // stride)
    schedule = Schedule(theirs.betas).respace(20 // stride + 1)
    model = network(4)

    expected = start()
    random = torch.Generator().manual_seed(7)
    for t in reversed(schedule.timesteps.tolist()):
        expected = theirs.step(model(expected, t), t, expected, eta=eta, generator=random).prev_sample
    random = torch.Generator().manual_seed(7)
    denoise = denoiser(model, schedule, prediction)
    out = ddim(denoise, start(), schedule, eta=eta, generator=random)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", list(NAMES))
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_dpm_solver_takes_the_steps_of_diffusers(prediction: Prediction, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        21,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=NAMES[prediction],
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        # otherwise a noise schedule with β near 1 would be truncated
        lambda_min_clipped=-math.inf,
    )
    schedule = Schedule(theirs.betas).respace(steps)
    theirs.set_timesteps(steps)
    # diffusers spaces time steps differently, so set ours
    kept = schedule.timesteps.flip(0)
    theirs.timesteps = kept
    marginals = schedule.alphas_cumprod.flip(0)
    theirs.sigmas = torch.cat([((1 - marginals) / marginals).sqrt(), torch.zeros(1)])
    model = network(4)
    expected = start()
    for t in kept:
        expected = theirs.step(model(expected, int(t)), t, expected).prev_sample
    out = dpm_solver(denoiser(model, schedule, prediction), start(), schedule)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


MEAN, STD = 2.0, 0.5


def gaussian(schedule: Schedule, exact_variance: bool = False) -> Denoiser:
    """E[x_0 | x_t] of x_0 ~ N(MEAN, STD²), if asked with the variance of p(x_{t-1} | x_t)."""

    def denoise(x: Tensor, step: int) -> Denoised:
        signal = float(schedule.alphas_cumprod[step])
        total = signal * STD**2 + 1 - signal
        x0 = MEAN + STD**2 * math.sqrt(signal) * (x - math.sqrt(signal) * MEAN) / total
        if not exact_variance or step == 0:
            return Denoised(x0, None)
        uncertainty = STD**2 * (1 - signal) / total
        variance = schedule.posterior_variance[step] + schedule.posterior_mean_coef1[step] ** 2 * uncertainty
        return Denoised(x0, variance.log().expand_as(x))

    return denoise


def wide(seed: int = 0) -> tuple[Tensor, torch.Generator]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(20_000, 1, generator=random, dtype=torch.float64), random


def test_ancestral_sampling_with_the_exact_denoiser_recovers_the_gaussian() -> None:
    schedule = cosine_schedule(1000)
    x, random = wide()
    out = ancestral(gaussian(schedule), x, schedule, generator=random)
    # 4 standard errors of 20 000 draws, and 1 / T for taking β̃ as the variance
    assert float(out.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(20_000))
    assert float(out.std()) == pytest.approx(STD, abs=4 * STD / math.sqrt(40_000) + 2e-3)


def test_ancestral_sampling_with_the_exact_variance_needs_few_steps() -> None:
    schedule = cosine_schedule(1000).respace(5)
    x, random = wide()
    out = ancestral(gaussian(schedule, exact_variance=True), x, schedule, generator=random)
    assert float(out.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(20_000))
    assert float(out.std()) == pytest.approx(STD, abs=4 * STD / math.sqrt(40_000) + 1e-3)
    coarse = ancestral(gaussian(schedule), x, schedule, generator=random)
    assert float(coarse.std()) < 0.9 * STD


def test_ddim_with_the_exact_denoiser_maps_noise_to_its_quantile() -> None:
    schedule = cosine_schedule(1000)
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).unsqueeze(1)
    out = ddim(gaussian(schedule), x, schedule)
    torch.testing.assert_close(out, MEAN + STD * x, rtol=0, atol=2e-2)


def test_dpm_solver_is_of_second_order() -> None:
    x = torch.linspace(-3, 3, 25, dtype=torch.float64).unsqueeze(1)
    full = cosine_schedule(1000)

    def error(sampler: Sampler, steps: int) -> float:
        schedule = full.respace(steps)
        return float((sampler(gaussian(schedule), x, schedule) - (MEAN + STD * x)).abs().max())

    # twice the steps: a quarter of the error where DDIM, of first order, keeps half
    assert error(dpm_solver, 100) / error(dpm_solver, 200) == pytest.approx(4, abs=0.5)
    assert error(ddim, 100) / error(ddim, 200) == pytest.approx(2, abs=0.1)
    assert error(dpm_solver, 100) < 0.3 * error(ddim, 100)


def test_ddim_at_eta_one_recovers_the_gaussian() -> None:
    schedule = cosine_schedule(1000)
    x, random = wide(1)
    out = ddim(gaussian(schedule), x, schedule, eta=1.0, generator=random)
    assert float(out.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(20_000))
    assert float(out.std()) == pytest.approx(STD, abs=4 * STD / math.sqrt(40_000) + 2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_denoiser_that_knows_the_answer_gives_it(sampler: Sampler) -> None:
    answer = start(seed=5)
    schedule = cosine_schedule(50)
    out = sampler(lambda x, step: Denoised(answer, None), start(), schedule, **noise(sampler, 1.0))
    torch.testing.assert_close(out, answer, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", NOISY)
def test_without_step_noise_it_is_deterministic_and_the_generator_reproduces_the_rest(
    sampler: Sampler,
) -> None:
    schedule = cosine_schedule(10)
    denoise = denoiser(network(4), schedule)

    def run(level: float, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return sampler(denoise, start(), schedule, **noise(sampler, level), generator=random)

    assert torch.equal(run(0.0, 1), run(0.0, 2))
    assert torch.equal(run(1.0, 1), run(1.0, 1))
    assert not torch.allclose(run(1.0, 1), run(1.0, 2))
    assert not torch.allclose(run(1.0, 1), run(0.5, 1))


@pytest.mark.parametrize("sampler", NOISY)
def test_given_noise_is_used_noisiest_step_first(sampler: Sampler) -> None:
    schedule = cosine_schedule(10)
    denoise = denoiser(network(4), schedule)
    random = torch.Generator().manual_seed(4)
    drawn = [torch.randn(6, 4, generator=random, dtype=torch.float64) for _ in range(9)]
    expected = sampler(
        denoise, start(), schedule, **noise(sampler, 1.0), generator=torch.Generator().manual_seed(4)
    )
    given = sampler(denoise, start(), schedule, **noise(sampler, 1.0), step_noise=drawn)
    assert torch.equal(given, expected)
    # the last step uses no noise; an entry for it is ignored
    stacked = torch.stack([*drawn, torch.full((6, 4), math.nan, dtype=torch.float64)])
    longer = sampler(denoise, start(), schedule, **noise(sampler, 1.0), step_noise=stacked)
    assert torch.equal(longer, expected)
    swapped = sampler(denoise, start(), schedule, **noise(sampler, 1.0), step_noise=drawn[::-1])
    assert not torch.allclose(swapped, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_callback_sees_every_step_down_to_the_result(sampler: Sampler) -> None:
    schedule = cosine_schedule(6)
    seen: list[tuple[int, Tensor]] = []
    out = sampler(
        denoiser(network(4), schedule), start(), schedule, callback=lambda step, x: seen.append((step, x))
    )
    assert [step for step, _ in seen] == [5, 4, 3, 2, 1, 0]
    assert torch.equal(seen[-1][1], out)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_start(sampler: Sampler, dtype: torch.dtype) -> None:
    x = start().to(dtype)
    out = sampler(lambda x, step: Denoised(0.5 * x, None), x, cosine_schedule(5), **noise(sampler, 1.0))
    assert out.dtype == dtype and out.shape == x.shape
