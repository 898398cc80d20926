from __future__ import annotations

import math

import pytest
import torch

from gendd.diffusion import Schedule, cosine_schedule
from gendd.errors import UserError

TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "log_betas",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def test_three_steps_by_hand() -> None:
    schedule = Schedule(torch.tensor([0.2, 0.5, 0.75], dtype=torch.float64))
    expected = {
        "alphas_cumprod": [0.8, 0.4, 0.1],
        "alphas_cumprod_prev": [1.0, 0.8, 0.4],
        "posterior_variance": [0.0, 0.5 * 0.2 / 0.6, 0.75 * 0.6 / 0.9],
        "posterior_log_variance_clipped": [math.log(1 / 6), math.log(1 / 6), math.log(0.5)],
        "posterior_mean_coef1": [1.0, 0.5 * math.sqrt(0.8) / 0.6, 0.75 * math.sqrt(0.4) / 0.9],
        "posterior_mean_coef2": [0.0, 0.2 * math.sqrt(0.5) / 0.6, 0.6 * math.sqrt(0.25) / 0.9],
    }
    for name, values in expected.items():
        torch.testing.assert_close(
            getattr(schedule, name), torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )
    assert schedule.timesteps.tolist() == [0, 1, 2]


def test_cosine_tables_are_the_formulas_in_float64() -> None:
    steps = 1000

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    schedule = cosine_schedule(steps)
    product, previous = 1.0, 1.0
    for i in range(steps):
        beta = min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999)
        previous, product = product, product * (1 - beta)
        expected = {
            "betas": beta,
            "alphas_cumprod": product,
            "alphas_cumprod_prev": previous,
            "log_betas": math.log(beta),
            "sqrt_alphas_cumprod": math.sqrt(product),
            "sqrt_one_minus_alphas_cumprod": math.sqrt(1 - product),
            "sqrt_recip_alphas_cumprod": 1 / math.sqrt(product),
            "sqrt_recipm1_alphas_cumprod": math.sqrt((1 - product) / product),
            "posterior_variance": beta * (1 - previous) / (1 - product),
            "posterior_mean_coef1": beta * math.sqrt(previous) / (1 - product),
            "posterior_mean_coef2": (1 - previous) * math.sqrt(1 - beta) / (1 - product),
        }
        if i > 0:
            expected["posterior_log_variance_clipped"] = math.log(expected["posterior_variance"])
        for name, value in expected.items():
            assert float(getattr(schedule, name)[i]) == pytest.approx(value, rel=1e-9, abs=1e-15), (name, i)
    assert schedule.posterior_log_variance_clipped[0] == schedule.posterior_log_variance_clipped[1]
    assert float(schedule.betas.max()) == 0.999
    assert all(getattr(schedule, name).dtype == torch.float64 for name in TABLES)


def test_cosine_schedule_is_diffusers_squaredcos_cap_v2() -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    ours = cosine_schedule(1000)
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=1e-6, atol=0)
    # diffusers multiplies up in float32
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=0)
    exact = torch.cumprod(1 - theirs.betas.double(), 0)
    theirs.alphas_cumprod, theirs.one = exact, torch.ones((), dtype=torch.float64)
    for t in (1, 2, 10, 500, 998, 999):
        variance = float(theirs._get_variance(t))
        assert float(ours.posterior_variance[t]) == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 10, 64, 100, 999, 1000])
def test_respacing_keeps_the_marginals_of_the_times_it_keeps(steps: int) -> None:
    full = cosine_schedule(1000)
    short = full.respace(steps)
    assert len(short) == len(short.timesteps) == steps
    torch.testing.assert_close(short.alphas_cumprod, full.alphas_cumprod[short.timesteps], rtol=1e-6, atol=0)
    assert int(short.timesteps[-1]) == 999
    assert steps == 1 or int(short.timesteps[0]) == 0


def test_respaced_times_are_distinct_and_even_at_every_count() -> None:
    full = cosine_schedule(37)
    for steps in range(2, 38):
        times = full.respace(steps).timesteps
        gaps = times.diff()
        assert int(gaps.min()) >= 1 and int(gaps.max() - gaps.min()) <= 1
        assert times.tolist() == sorted(set(times.tolist()))


def test_times_by_hand() -> None:
    assert cosine_schedule(11).respace(4).timesteps.tolist() == [0, 3, 7, 10]
    assert cosine_schedule(11).respace(3).timesteps.tolist() == [0, 5, 10]
    assert cosine_schedule(1000).respace(4).timesteps.tolist() == [0, 333, 666, 999]


def test_respacing_to_every_step_changes_nothing() -> None:
    full = cosine_schedule(50)
    same = full.respace(50)
    for name in TABLES:
        torch.testing.assert_close(getattr(same, name), getattr(full, name), rtol=1e-9, atol=1e-12)


def test_respacing_twice_tells_the_network_the_original_times() -> None:
    twice = cosine_schedule(101).respace(11).respace(3)
    assert twice.timesteps.tolist() == [0, 50, 100]


@pytest.mark.parametrize("steps", [0, -1, 21])
def test_more_steps_than_the_schedule_has_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match=f"expected 1 to 20, got {steps}") as caught:
        cosine_schedule(20).respace(steps)
    assert "\n" not in str(caught.value)


def test_entries_come_as_float32_columns_and_every_device_has_its_own() -> None:
    schedule = cosine_schedule(20)
    t = torch.tensor([0, 19, 3, 3])
    for _ in range(2):
        values = schedule.at("betas", t)
        assert values.shape == (4, 1) and values.dtype == torch.float32
        assert torch.equal(values[:, 0], schedule.betas[t].float())
        elsewhere = schedule.at("betas", t.to("meta"))
        assert elsewhere.device.type == "meta" and elsewhere.shape == (4, 1)
    assert torch.equal(schedule.at("log_betas", t)[:, 0], schedule.log_betas[t].float())


def test_entries_first_read_in_inference_mode_serve_training() -> None:
    schedule = cosine_schedule(20)
    t = torch.tensor([4, 7])
    with torch.inference_mode():
        schedule.at("betas", t)
    x = torch.ones(2, 3, requires_grad=True)
    (schedule.at("betas", t) * x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, schedule.betas[t].float().unsqueeze(1).expand(2, 3))


def test_one_step_has_every_coefficient() -> None:
    one = cosine_schedule(20).respace(1)
    assert one.timesteps.tolist() == [19]
    tables = {name: table for name, table in vars(one).items() if isinstance(table, torch.Tensor)}
    assert {len(table) for table in tables.values()} == {1}
    # the first step's variance is 0, and its clipped logarithm that of β
    assert one.posterior_variance.item() == 0
    assert one.posterior_log_variance_clipped.exp().item() == pytest.approx(one.betas.item())


def test_values_are_the_tables_entries_and_a_respaced_schedule_is_made_once() -> None:
    schedule = cosine_schedule(30)
    for name in ("posterior_variance", "half_log_snr", "alphas_cumprod_prev"):
        for step in (0, 7, 29):
            value = schedule.value(name, step)
            assert isinstance(value, float) and value == float(getattr(schedule, name)[step])
    ratio = schedule.sqrt_alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod
    torch.testing.assert_close(schedule.half_log_snr, ratio.log())
    assert schedule.respace(5) is schedule.respace(5) and schedule.respace(5) is not schedule.respace(6)
