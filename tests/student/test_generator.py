from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

from gendd.config import GenDDConfig
from gendd.diffusion import Prediction, Schedule, add_noise, cosine_schedule, diffusion_loss
from gendd.errors import UserError
from gendd.student.generator import FeatureGenerator, SamplerName

PREDICTIONS: list[Prediction] = ["sample", "epsilon", "v"]
SAMPLERS: list[SamplerName] = ["ddpm", "ddim", "dpm-solver"]


def generator(feature_width: int = 10, **changed: Any) -> FeatureGenerator:
    torch.manual_seed(0)
    settings = {
        "token_width": 4,
        "head_width": 16,
        "head_depth": 1,
        "timesteps": 30,
        "zero_init": False,
        "condition_dropout": 0.1,
    }
    return FeatureGenerator(6, feature_width, GenDDConfig(**{**settings, **changed})).requires_grad_(False)


def test_a_token_is_at_most_the_whole_feature() -> None:
    wide = generator(token_width=64)
    assert (wide.token_width, wide.num_tokens) == (10, 1)
    assert wide.sample(conditions(), steps=2, generator=seeded()).shape == (1, 3, 10)
    assert FeatureGenerator(6, 10, wide.config).state_dict().keys() == wide.state_dict().keys()


def conditions(images: int = 3) -> Tensor:
    return torch.randn(images, 6, generator=seeded(9))


class FakeHead(nn.Module):
    """A head that receives all inputs when denoising."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, token: Tensor) -> Tensor:
        return self.denoise(x, self.modulate(t, condition, token))

    def modulate(self, t: Tensor, condition: Tensor, token: Tensor) -> list[Tensor]:
        grid = torch.broadcast_shapes(t.shape, condition.shape[:-1], token.shape)
        return [t.expand(grid), condition.expand(*grid, -1), token.expand(grid)]

    def denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        raise NotImplementedError


class ExactHead(FakeHead):
    """E[target | x_t] where token n of x_0 is N(z @ weight[n], std²)."""

    def __init__(self, schedule: Schedule, weight: Tensor, std: float, prediction: Prediction) -> None:
        super().__init__()
        self.schedule, self.weight, self.std, self.prediction = schedule, weight, std, prediction

    def denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        t, condition, token = modulations
        mean = torch.einsum("...e,...ec->...c", condition.double(), self.weight[token])
        signal = self.schedule.alphas_cumprod[t].unsqueeze(-1)
        residual = x.double() - signal.sqrt() * mean
        x0 = mean + self.std**2 * signal.sqrt() * residual / (signal * self.std**2 + 1 - signal)
        epsilon = (x.double() - signal.sqrt() * x0) / (1 - signal).sqrt()
        outputs = {
            "sample": x0,
            "epsilon": epsilon,
            "v": signal.sqrt() * epsilon - (1 - signal).sqrt() * x0,
        }
        return outputs[self.prediction].float()


def exact(prediction: Prediction, timesteps: int = 1000, std: float = 0.5) -> tuple[FeatureGenerator, Tensor]:
    """A generator of two tokens with standardised features N(z @ matrix, std²), and the matrix (6, 8)."""
    model = generator(8, prediction=prediction, timesteps=timesteps)
    weight = torch.randn(2, 6, 4, generator=seeded(3), dtype=torch.float64)
    model.head = ExactHead(model.schedule, weight, std, prediction)  # type: ignore[assignment]
    return model, torch.cat([weight[0], weight[1]], dim=1).float()


class Recorder(FakeHead):
    """Keeps the rows (R, …) that the head is asked to denoise; outputs zeros."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.modulated: list[int] = []

    def modulate(self, t: Tensor, condition: Tensor, token: Tensor) -> list[Tensor]:
        self.modulated.append(torch.broadcast_shapes(t.shape, condition.shape[:-1], token.shape).numel())
        return super().modulate(t, condition, token)

    def denoise(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        t, condition, token = modulations
        grid = torch.broadcast_shapes(x.shape[:-1], t.shape, condition.shape[:-1], token.shape)
        rows = [part.expand(*grid, part.shape[-1]).flatten(0, -2) for part in (x, condition)]
        self.calls.append((rows[0], t.expand(grid).flatten(), rows[1], token.expand(grid).flatten()))
        return x.new_zeros(*grid, self.out_channels)


def test_standardise_and_restore_are_inverse_and_normalise() -> None:
    model = generator()
    features = 5 * torch.randn(200, 10, generator=seeded()) + 3
    model.set_statistics(features.mean(0), features.std(0, correction=0))
    plain = model.standardise(features)
    torch.testing.assert_close(plain.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(plain.std(0, correction=0), torch.ones(10))
    torch.testing.assert_close(model.restore(plain), features)


def test_without_statistics_features_stay_as_they_are() -> None:
    features = torch.randn(3, 10)
    assert torch.equal(generator().standardise(features), features)
    assert torch.equal(generator().restore(features), features)


def test_dimensions_that_never_vary_keep_scale_one() -> None:
    model = generator(4)
    model.set_statistics(torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 1e-9, 1e-3]))
    torch.testing.assert_close(model.feature_scale, torch.tensor([1.0, 2.0, 1.0, 1e-3]))
    features = torch.tensor([[1.0, 6.0, 3.0, 0.002]])
    torch.testing.assert_close(model.standardise(features), torch.tensor([[0.0, 2.0, 0.0, 2.0]]))
    model.set_statistics(torch.zeros(4), torch.zeros(4))
    assert torch.equal(model.feature_scale, torch.ones(4))


def test_statistics_are_saved() -> None:
    model, other = generator(), generator()
    model.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.feature_mean, torch.arange(10.0))
    assert torch.equal(other.feature_scale, torch.arange(10.0) + 1)


def test_the_condition_is_layer_normalised() -> None:
    z = generator().condition(3 * torch.randn(5, 6) + 1)
    torch.testing.assert_close(z.mean(1), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones(5), rtol=1e-3, atol=1e-3)


def test_rows_reach_the_head_in_repeat_major_order() -> None:
    model = generator()
    model.head = recorder = Recorder(4)  # type: ignore[assignment]
    targets, z = torch.randn(3, 10, generator=seeded(1)), conditions()
    rows = 2 * 3 * 3
    t = torch.randint(0, 30, (rows,), generator=seeded(2))
    noise = torch.randn(rows, 4, generator=seeded(3))
    keep = torch.arange(rows) % 4 != 1
    parts = model.loss_rows(targets, z, t, noise, keep)
    ((x, seen, condition, token),) = recorder.calls
    assert torch.equal(seen, t)
    padded = torch.cat([targets, torch.zeros(3, 2)], dim=1)
    for m in range(2):
        for i in range(3):
            for n in range(3):
                row = (m * 3 + i) * 3 + n
                clean = padded[i, 4 * n : 4 * n + 4]
                signal = float(model.schedule.alphas_cumprod[t[row]])
                expected = math.sqrt(signal) * clean + math.sqrt(1 - signal) * noise[row]
                torch.testing.assert_close(x[row], expected)
                assert torch.equal(condition[row], z[i] if keep[row] else torch.zeros(6))
                assert int(token[row]) == n
                # the recorder's zeros cost the clean token's mean square
                torch.testing.assert_close(parts.mse[row], clean.square().mean())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_rows_are_the_diffusion_loss_of_the_heads_output(prediction: Prediction, learned: bool) -> None:
    model = generator(8, prediction=prediction, learned_variance=learned)
    targets, z = torch.randn(3, 8, generator=seeded(1)), conditions()
    t = torch.randint(0, 30, (6,), generator=seeded(2))
    noise = torch.randn(6, 4, generator=seeded(3))
    parts = model.loss_rows(targets, z, t, noise)
    x0 = targets.reshape(6, 4)
    x_t = add_noise(x0, t, noise, cosine_schedule(30))
    output = model.head(x_t, t, z.repeat_interleave(2, 0), torch.arange(6) % 2)
    expected = diffusion_loss(output, x0, x_t, t, noise, cosine_schedule(30), prediction)
    torch.testing.assert_close(parts.mse, expected.mse)
    assert (parts.vlb is None) is not learned
    torch.testing.assert_close(parts.vlb, expected.vlb)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_mean_is_the_conditional_mean_of_a_linear_gaussian(prediction: Prediction) -> None:
    model, matrix = exact(prediction)
    mean, scale = torch.arange(8.0), torch.arange(8.0) / 4 + 1
    model.set_statistics(mean, scale)
    z = conditions()
    signal = float(model.schedule.alphas_cumprod[model.mean_time])
    # at x_t = 0 and an ε head's time step, where x_t is informative about x_0, the estimate shrinks towards 0
    shrunk = (1 - signal) / (signal * 0.5**2 + 1 - signal) if prediction == "epsilon" else 1.0
    torch.testing.assert_close(model.mean(z), shrunk * (z @ matrix) * scale + mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_mean_is_one_pass_from_one_noise_at_one_time(prediction: Prediction) -> None:
    model = generator(prediction=prediction)
    model.head = recorder = Recorder(4)  # type: ignore[assignment]
    z = conditions()
    model.mean(z)
    ((x, t, condition, token),) = recorder.calls
    assert t.tolist() == [model.mean_time] * 9
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0])
    if prediction == "epsilon":
        noise = torch.zeros(4)
    else:
        assert model.mean_time == 29
    assert torch.equal(x, noise.expand(9, 4))
    assert torch.equal(condition, z.repeat_interleave(3, 0)) and token.tolist() == [0, 1, 2] * 3


def test_the_mean_is_that_of_noise_even_if_the_head_is_wrong_at_zero() -> None:
    model, matrix = exact("sample")
    z, head = conditions(), model.head.denoise

    def wrong(x: Tensor, modulations: list[Tensor]) -> Tensor:
        # as heads become that are trained for long: right wherever noise is, and only there
        return head(x, modulations) * (x.square().mean(-1, keepdim=True) > 0.2)

    model.head.denoise = wrong  # type: ignore[method-assign]
    torch.testing.assert_close(model.mean(z), z @ matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_mean_does_not_amplify_what_the_head_gets_wrong(prediction: Prediction) -> None:
    model, _ = exact(prediction)
    z = conditions()
    right = model.mean(z)
    head = model.head.denoise

    def wrong(x: Tensor, modulations: list[Tensor]) -> Tensor:
        return head(x, modulations) + 0.01

    model.head.denoise = wrong  # type: ignore[method-assign]
    assert 0.001 < float((model.mean(z) - right).abs().max()) < 0.05


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_of_the_exact_denoiser_are_the_conditional_distribution(sampler: SamplerName) -> None:
    model, matrix = exact("sample", timesteps=200)
    model.set_statistics(torch.full((8,), 7.0), torch.full((8,), 2.0))
    z = conditions(2)
    samples = model.sample(z, steps=200, num_samples=2000, sampler=sampler, generator=seeded())
    expected = 2 * (z @ matrix) + 7
    torch.testing.assert_close(samples.mean(0), expected, rtol=0, atol=5 * 1.0 / math.sqrt(2000))
    torch.testing.assert_close(samples.std(0), torch.ones(2, 8), rtol=0, atol=0.1)
    torch.testing.assert_close(samples.mean(0), model.mean(z), rtol=0, atol=5 * 1.0 / math.sqrt(2000))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("learned", [False, True])
def test_shapes_of_samples_and_mean(sampler: SamplerName, guidance: float, learned: bool) -> None:
    model = generator(learned_variance=learned)
    samples = model.sample(
        conditions(), steps=4, guidance=guidance, num_samples=5, sampler=sampler, generator=seeded()
    )
    assert samples.shape == (5, 3, 10) and samples.dtype == torch.float32
    assert torch.isfinite(samples).all()
    assert (samples[0] - samples[1]).abs().max() > 1e-3
    assert model.mean(conditions()).shape == (3, 10)


def test_every_sample_has_its_images_condition() -> None:
    model, matrix = exact("sample", std=1e-4)
    z = conditions()
    samples = model.sample(z, steps=3, num_samples=4, generator=seeded())
    torch.testing.assert_close(samples, (z @ matrix).expand(4, 3, 8), rtol=0, atol=1e-2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_generator_reproduces_samples(sampler: SamplerName) -> None:
    model = generator()

    def run(seed: int) -> Tensor:
        return model.sample(conditions(), steps=5, num_samples=2, sampler=sampler, generator=seeded(seed))

    first = run(1)
    torch.manual_seed(123)
    assert torch.equal(run(1), first)
    assert not torch.allclose(run(2), first)


def test_at_temperature_zero_only_the_start_is_random() -> None:
    model, z = generator(8), conditions()
    random = seeded(5)
    out = model.sample(z, steps=6, temperature=0.0, generator=random)
    schedule = model.schedule.respace(6)
    x = torch.randn(6, 4, generator=seeded(5))
    denoise = model.denoiser(z, schedule)
    for step in reversed(range(6)):
        x = (
            float(schedule.posterior_mean_coef1[step]) * denoise(x, step).x0
            + float(schedule.posterior_mean_coef2[step]) * x
        )
    torch.testing.assert_close(out, x.reshape(1, 3, 8), rtol=1e-4, atol=1e-4)


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    with pytest.raises(UserError, match="expected 1 to 30, got 31"):
        generator().sample(conditions(), steps=31)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_guidance_is_linear_and_its_variance_the_conditional_branchs(
    prediction: Prediction, learned: bool
) -> None:
    model = generator(prediction=prediction, learned_variance=learned)
    schedule = model.schedule.respace(5)
    x, z = torch.randn(18, 4, generator=seeded(1)), conditions(3)

    def denoised(guidance: float, condition: Tensor = z) -> tuple[Tensor, Tensor | None]:
        return model.denoiser(condition, schedule, guidance)(x, 3)

    conditional, variance = denoised(1.0)
    unconditional, _ = denoised(1.0, torch.zeros_like(z))
    assert (conditional - unconditional).abs().max() > 1e-2
    for guidance in (0.0, 0.5, 2.0, 7.5):
        guided, guided_variance = denoised(guidance)
        torch.testing.assert_close(
            guided, unconditional + guidance * (conditional - unconditional), rtol=1e-4, atol=1e-4
        )
        assert (guided_variance is None) is not learned
        torch.testing.assert_close(guided_variance, variance)


def test_guidance_one_is_unguided_and_costs_one_branch() -> None:
    model, z = generator(), conditions()
    plain = model.sample(z, steps=3, generator=seeded())
    assert torch.equal(model.sample(z, steps=3, guidance=1.0, generator=seeded()), plain)
    near = model.sample(z, steps=3, guidance=1.0 + 1e-6, generator=seeded())
    torch.testing.assert_close(near, plain, rtol=1e-3, atol=1e-3)
    model.head = recorder = Recorder(4)  # type: ignore[assignment]
    model.sample(z, steps=3, guidance=1.0, generator=seeded())
    model.sample(z, steps=3, guidance=2.0, generator=seeded())
    assert [len(call[0]) for call in recorder.calls] == [9] * 3 + [18] * 3
    # with a condition, then without, otherwise equal
    x, _, condition, token = (part.unflatten(0, (2, 9)) for part in recorder.calls[-1])
    assert torch.equal(x[0], x[1]) and torch.equal(token[0], token[1])
    assert torch.equal(condition[0], z.repeat_interleave(3, 0)) and not condition[1].any()


def test_what_rows_have_in_common_is_computed_once() -> None:
    model = generator()
    model.head = recorder = Recorder(4)  # type: ignore[assignment]
    model.sample(conditions(), steps=2, guidance=2.0, num_samples=5, generator=seeded())
    # 3 images of 3 tokens, and the tokens without a condition, whatever the number of samples
    assert recorder.modulated == [9 + 3] * 2
    assert [len(call[0]) for call in recorder.calls] == [2 * 45] * 2
    model.mean(conditions())
    assert recorder.modulated[2:] == [9]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_denoiser_gives_what_the_head_says_of_every_row(guidance: float, learned: bool) -> None:
    model = generator(prediction="sample", learned_variance=learned)
    schedule, z = model.schedule.respace(5), conditions()
    x = torch.randn(2 * 3 * 3, 4, generator=seeded(1))
    found, _ = model.denoiser(z, schedule, guidance)(x, 2)
    t = torch.full((18,), int(schedule.timesteps[2]))
    rows, token = z.repeat_interleave(3, 0).repeat(2, 1), torch.arange(18) % 3
    expected = model.head(x, t, rows, token)[:, :4]
    if guidance != 1:
        nothing = model.head(x, t, torch.zeros_like(rows), token)[:, :4]
        expected = nothing + guidance * (expected - nothing)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_head_is_told_the_times_of_the_full_schedule() -> None:
    model = generator(timesteps=31)
    model.head = recorder = Recorder(4)  # type: ignore[assignment]
    model.sample(conditions(), steps=4, generator=seeded())
    assert [call[1].unique().tolist() for call in recorder.calls] == [[30], [20], [10], [0]]


def test_under_bf16_autocast_features_come_in_float32() -> None:
    model = generator(learned_variance=True)
    expected = model.mean(conditions())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model.condition(conditions())
        mean = model.mean(conditions())
        samples = model.sample(z, steps=3, guidance=2.0, generator=seeded())
        parts = model.loss_rows(torch.randn(3, 10), z, torch.arange(9), torch.randn(9, 4))
    assert mean.dtype == samples.dtype == parts.mse.dtype == torch.float32
    assert parts.vlb is not None and parts.vlb.dtype == torch.float32
    torch.testing.assert_close(mean, expected, rtol=0.1, atol=0.1)


def test_guidance_of_a_generator_without_dropout_is_refused() -> None:
    unguided = generator(condition_dropout=0.0)
    with pytest.raises(UserError, match=r"expected 1 .* got 2\.0\. Train with gendd\.condition_dropout"):
        unguided.sample(conditions(), steps=2, guidance=2.0)


def estimating(zeroed: bool = False, **changed: Any) -> FeatureGenerator:
    """A generator of residuals of the student's estimate (6), in tokens of 4, the last one padded."""
    torch.manual_seed(0)
    settings = {"token_width": 4, "head_width": 16, "head_depth": 1, "timesteps": 1000, "residual": True}
    settings |= {"prediction": "sample", "condition_dropout": 0.1, "zero_init": zeroed}
    made = FeatureGenerator(6, 6, GenDDConfig(**{**settings, **changed})).requires_grad_(False)
    made.set_statistics(torch.randn(6), torch.rand(6) + 0.5)
    return made


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_silent_head_leaves_the_students_estimate(sampler: SamplerName) -> None:
    model, features = estimating(zeroed=True), torch.randn(5, 6)
    z = model.condition(features)
    assert z.shape == (5, 12)
    torch.testing.assert_close(model.mean(z), features, rtol=1e-4, atol=1e-4)
    # x_0 ~ N(estimate, scale²): samples scatter around it
    samples = model.sample(z, steps=50, num_samples=4000, sampler=sampler, generator=seeded())
    torch.testing.assert_close(samples.mean(0), features, rtol=0, atol=0.12)
    spread = samples.std(0) / model.feature_scale
    torch.testing.assert_close(spread, torch.ones(5, 6), rtol=0, atol=0.12)


@pytest.mark.parametrize("learned", [False, True])
def test_a_difference_is_added_to_the_estimate_and_what_x_t_tells(learned: bool) -> None:
    model = estimating(learned_variance=learned)
    features, targets = torch.randn(3, 6), torch.randn(3, 6)
    t, noise = torch.randint(0, 1000, (12,)), torch.randn(12, 4)
    keep = torch.rand(12) < 0.7
    z = model.condition(features)
    rows = model.loss_rows(targets, z, t, noise, keep)
    padded = torch.zeros(3, 8)
    padded[:, :6] = model.standardise(features)
    estimate = padded.view(6, 4).repeat(2, 1) * keep.unsqueeze(-1)
    x0 = torch.zeros(3, 8)
    x0[:, :6] = targets
    x0 = x0.view(6, 4).repeat(2, 1)
    x_t = add_noise(x0, t, noise, model.schedule)
    token = torch.arange(2).repeat(6)
    condition = model.norm(features).repeat_interleave(2, 0).repeat(2, 1) * keep.unsqueeze(-1)
    signal = model.schedule.alphas_cumprod[t].float().unsqueeze(-1)
    said = model.head(x_t, t, condition, token)
    predicted = said[:, :4] + (1 - signal) * estimate + signal.sqrt() * x_t
    expected = diffusion_loss(torch.cat([predicted, said[:, 4:]], -1), x0, x_t, t, noise, model.schedule)
    torch.testing.assert_close(rows.mse, expected.mse, rtol=1e-4, atol=1e-5)
    assert (rows.vlb is None) is not learned
    if expected.vlb is not None:
        torch.testing.assert_close(rows.vlb, expected.vlb, rtol=1e-3, atol=1e-4)


def test_guidance_moves_away_from_what_is_said_without_an_estimate() -> None:
    model, features = estimating(), torch.randn(3, 6)
    schedule, z = model.schedule.respace(5), model.condition(features)
    x = torch.randn(2 * 3 * 2, 4, generator=seeded(1))

    def denoised(guidance: float, condition: Tensor) -> Tensor:
        return model.denoiser(condition, schedule, guidance)(x, 2).x0

    conditional, unconditional = denoised(1.0, z), denoised(1.0, torch.zeros_like(z))
    found = denoised(3.0, z)
    torch.testing.assert_close(found, unconditional + 3 * (conditional - unconditional), rtol=1e-4, atol=1e-4)


def test_the_estimate_is_told_of_the_loss() -> None:
    model, features = estimating(), torch.randn(3, 6, requires_grad=True)
    for parameter in model.parameters():
        parameter.zero_()
    rows = model.loss_rows(
        torch.randn(3, 6), model.condition(features), torch.full((6,), 999), torch.randn(6, 4)
    )
    rows.mse.mean().backward()
    assert features.grad is not None and features.grad.abs().min() > 0
