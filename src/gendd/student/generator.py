"""The conditional generator p(f | s): a student feature conditions the diffusion of a teacher feature.

Shapes: B images · d student feature · D teacher feature · N tokens · C token width · M repeats ·
S samples · R = M·B·N rows, repeat-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from gendd.config import GenDDConfig, SamplerName
from gendd.diffusion import (
    Denoised,
    Head,
    LossRows,
    Prediction,
    Schedule,
    add_noise,
    ancestral,
    cosine_schedule,
    ddim,
    diffusion_loss,
    dpm_solver,
    interpolated_log_variance,
    predicted_x0,
    tokens,
)
from gendd.errors import UserError, did_you_mean
from gendd.models import Backbone

HEAD_WIDTH = 128
# default rows per image in a step, and minimum repeats per token
_ROWS, _LEAST_REPEATS = 8, 2


def _token_count(feature_width: int, config: GenDDConfig) -> int:
    # a single token needs no padding
    return tokens.num_tokens(feature_width, min(config.token_width, feature_width))


def repeats(feature_width: int, config: GenDDConfig) -> int:
    """M: the value set, or enough that random times and noise add little variance to a step's gradient.

    Args:
        feature_width: D.
        config: The method's settings.
    """
    return config.repeats or max(_LEAST_REPEATS, -(-_ROWS // _token_count(feature_width, config)))


def head_width(backbone: Backbone, feature_width: int, config: GenDDConfig) -> int:
    """Default width of the head: 128, or a half, a quarter, … of it, so that it stays cheap.

    Cheap means at most a quarter of the student's multiply-adds for one pass, and at most the student's for
    the rows of one image in a training step.

    Args:
        backbone: The student.
        feature_width: D.
        config: The head's other settings.
    """
    count = _token_count(feature_width, config)
    allowed = backbone.noise_cost() / max(4, repeats(feature_width, config))
    # width x width layers per token: 3 for modulation and 2 others per block, 3 at the end
    layers, width = 5 * config.head_depth + 3, HEAD_WIDTH
    while width > 16 and backbone.feature_dim * width + count * layers * width**2 > allowed:
        width //= 2
    return width


class FeatureGenerator(nn.Module):
    """Generates teacher features (B, D) from student features (B, d).

    With ``config.residual`` the student feature is an estimate of the teacher's (d = D), and the head outputs
    a residual: x̂_0 = (1-ᾱ_t) ŝ + √ᾱ_t x_t + head(x_t, t, z) for the standardised estimate ŝ. Without the
    head that is E[x_0 | x_t] for x_0 ~ N(ŝ, 1). The condition is then (B, d + D): z and ŝ.

    ``feature_mean`` and ``feature_scale`` (D,) are the statistics that features are standardised with; the
    identity until :meth:`set_statistics`. ``mean_time`` is the time at which :meth:`mean` runs the head.

    Args:
        condition_width: d.
        feature_width: D.
        config: The method's settings; only those of the diffusion and the head are used.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, condition_width: int, feature_width: int, config: GenDDConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_width = condition_width
        self.feature_width = feature_width
        self.token_width = min(config.token_width, feature_width)
        self.num_tokens = _token_count(feature_width, config)
        self.prediction = config.prediction
        self.residual = bool(config.residual)
        # on the CPU even if the generator is built on the meta device
        with torch.device("cpu"):
            self.schedule: Schedule = cosine_schedule(config.timesteps)
        self.mean_time = len(self.schedule) - 1
        if config.prediction == "epsilon":
            # x̂_0 has σ / √ᾱ times the error of ε̂: thousands at T-1, here 3
            self.mean_time = self.schedule.nearest(0.1)
        self.norm = nn.LayerNorm(condition_width)
        self.head = Head(
            self.token_width,
            condition_width,
            self.num_tokens,
            config.head_width or HEAD_WIDTH,
            config.head_depth,
            self.token_width * (2 if config.learned_variance else 1),
            # the residual starts at zero
            config.zero_init or self.residual,
        )
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_scale", torch.ones(feature_width))

    def set_statistics(self, mean: Tensor, scale: Tensor) -> None:
        """Standardise features with ``mean`` and ``scale`` (D,); constant dimensions keep scale 1."""
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale)))

    def standardise(self, features: Tensor) -> Tensor:
        """Teacher features (…, D) -> standardised features, the space of the diffusion."""
        return (features - self.feature_mean) / self.feature_scale

    def restore(self, features: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        return features * self.feature_scale + self.feature_mean

    def condition(self, student_features: Tensor) -> Tensor:
        """z = LayerNorm(s); (B, d) -> (B, d), with ``residual`` (B, d + D)."""
        z: Tensor = self.norm(student_features)
        if not self.residual:
            return z
        return torch.cat([z, self.standardise(student_features).to(z.dtype)], dim=-1)

    def _parts(self, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        """Condition of the head (…, d), and the tokens (…, N, C) of the estimate if there is one."""
        if not self.residual:
            return condition, None
        z, estimate = torch.split(condition, [self.condition_width, self.feature_width], dim=-1)
        return z, tokens.split(estimate.float(), self.token_width)

    def loss_rows(
        self, targets: Tensor, condition: Tensor, t: Tensor, noise: Tensor, keep: Tensor | None = None
    ) -> LossRows:
        """Diffusion loss of every row.

        Args:
            targets: (B, D) standardised features.
            condition: From :meth:`condition`.
            t: (R,) int64; R = M·B·N determines M.
            noise: (R, C) standard normal.
            keep: (R,) bool, False where the condition is dropped; None keeps all.
        """
        images = targets.shape[0]
        repeats = t.shape[0] // (images * self.num_tokens)
        x0 = tokens.repeat_rows(tokens.split(targets.float(), self.token_width), repeats)
        x_t = add_noise(x0, t, noise, self.schedule)
        # values shared by the rows of an image or token are computed once
        grid = (repeats, images, self.num_tokens)
        z, estimate = self._parts(condition)
        z = z.unsqueeze(1)
        if keep is not None:
            z = z * keep.view(*grid, 1)
        position = torch.arange(self.num_tokens, device=t.device)
        output = self.head(x_t.view(*grid, -1), t.view(grid), z, position).flatten(0, 2)
        if estimate is not None:
            rows = tokens.repeat_rows(estimate, repeats)
            rows = rows if keep is None else rows * keep.unsqueeze(-1)
            output = completed(output.float(), x_t, t, rows, self.schedule)
        return diffusion_loss(output, x0, x_t, t, noise, self.schedule, self.prediction)

    @property
    def mean_input(self) -> Tensor:
        """The head's noisy token (C,) in :meth:`mean`: 1 and -1 in turn, which has the norm of noise.

        At T-1 any noise gives the same prediction, but not 0, which is unlike all noise: heads trained for
        long are wrong there. An ε head runs at earlier times, with 0.
        """
        # made on the device, as a copy to it would wait
        x = torch.arange(self.token_width, device=self.feature_mean.device, dtype=torch.float32)
        return torch.zeros_like(x) if self.prediction == "epsilon" else 1 - 2 * (x % 2)

    def mean(self, condition: Tensor) -> Tensor:
        """E[f | z], the head's x̂_0 in one pass; output of :meth:`condition` -> (B, D).

        The time is :attr:`mean_time`: T-1, where x_t carries no information; for an ε head, whose x̂_0 is
        ill-conditioned there, an earlier one (see :func:`gendd.student.readout.choose_mean_time`).
        """
        t = torch.full((1,), self.mean_time, device=condition.device)
        position = torch.arange(self.num_tokens, device=condition.device)
        z, tokenised = self._parts(condition)
        modulations = self.head.modulate(t, z.unsqueeze(1), position)
        # a single row for all: the blocks process it only once
        noise = self.mean_input.to(condition.dtype).view(1, 1, -1)
        output = self.head.denoise(noise, modulations)[..., : self.token_width].float()
        # without the share of x_t in the prediction, √ᾱ_t, which is 5e-5 for T 1,000
        x = torch.zeros_like(noise)
        if tokenised is not None:
            output = completed(output, x, t, tokenised, self.schedule)
        estimate = predicted_x0(output, x, t, self.schedule, self.prediction)
        return self.restore(tokens.merge(estimate, self.feature_width))

    def sample(
        self,
        condition: Tensor,
        *,
        steps: int = 10,
        guidance: float = 1.0,
        num_samples: int = 1,
        temperature: float = 1.0,
        eta: float = 0.0,
        sampler: SamplerName = "ddpm",
        generator: torch.Generator | None = None,
        start: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Generate teacher features.

        Args:
            condition: From :meth:`condition`.
            steps: Steps of the respaced schedule, 1 .. T.
            guidance: Scale of classifier-free guidance; 1 is none.
            num_samples: S.
            temperature: Factor on the noise of each ddpm step.
            eta: η of ddim; 0 is deterministic.
            sampler: ``ddpm``, ``ddim`` or ``dpm-solver``.
            generator: Source of all noise that is not given, on the condition's device.
            start: (S·B·N, C) standard normal x_T.
            step_noise: One draw (S·B·N, C) for every step but the last, for ``ddpm`` and ``ddim``.

        Returns:
            (S, B, D).

        Raises:
            UserError: guidance with a generator trained without condition dropout, an unknown sampler, or
                steps that are not an integer in 1 .. T.
        """
        if sampler not in get_args(SamplerName):
            raise UserError(
                f"Sampler: expected ddpm, ddim or dpm-solver, got {sampler!r}."
                + did_you_mean(str(sampler), get_args(SamplerName))
            )
        if guidance != 1 and self.config.condition_dropout == 0:
            raise UserError(
                f"Guidance: expected 1 for a generator trained without condition dropout, got {guidance}. "
                "Train with gendd.condition_dropout 0.2 to guide."
            )
        images = condition.shape[0]
        x = start
        if x is None:
            rows = num_samples * images * self.num_tokens
            x = torch.randn(
                rows, self.token_width, generator=generator, device=condition.device, dtype=torch.float32
            )
        schedule = self.schedule.respace(steps)
        denoise = self.denoiser(condition, schedule, guidance)
        if sampler == "ddpm":
            x = ancestral(
                denoise, x, schedule, temperature=temperature, step_noise=step_noise, generator=generator
            )
        elif sampler == "ddim":
            x = ddim(denoise, x, schedule, eta=eta, step_noise=step_noise, generator=generator)
        else:
            x = dpm_solver(denoise, x, schedule)
        grid = x.reshape(num_samples, images, self.num_tokens, self.token_width)
        merged = tokens.merge(grid, self.feature_width)
        return self.restore(merged)

    def denoiser(self, condition: Tensor, schedule: Schedule, guidance: float = 1.0) -> GuidedDenoiser:
        """The head as a denoiser for the samplers, for rows (S·B·N, C) of any S, given :meth:`condition`."""
        position = torch.arange(self.num_tokens, device=condition.device)
        z, estimate = self._parts(condition)
        return GuidedDenoiser(
            self.head, z.unsqueeze(1), position, schedule, guidance, self.prediction, estimate
        )


def completed(output: Tensor, x_t: Tensor, t: Tensor, estimate: Tensor, schedule: Schedule) -> Tensor:
    """x̂_0 of a head that outputs the residual to an estimate, see :class:`FeatureGenerator`.

    Args:
        output: (…, C) of the head, or (…, 2C) with the variance's interpolation in the second half.
        x_t: (…, C) noisy tokens.
        t: Steps of the schedule, with as many dimensions as the leading ones of ``x_t``, or (1,).
        estimate: (…, C) standardised.
        schedule: The schedule of ``t``.
    """
    channels = x_t.shape[-1]
    signal, noise = schedule.at("sqrt_alphas_cumprod", t), schedule.at("sqrt_one_minus_alphas_cumprod", t)
    x0 = output[..., :channels] + noise.square() * estimate + signal * x_t
    return x0 if output.shape[-1] == channels else torch.cat([x0, output[..., channels:]], dim=-1)


class GuidedDenoiser:
    """A head with a fixed condition, as a denoiser for the samplers: rows (S·B·N, C), sample-major.

    With guidance g the prediction is the unconditional one plus g times the difference from it to the
    conditional one; the variance is the conditional branch's (Ho & Salimans 2022; as published by GenDD).

    Two thirds of a pass compute the modulations by time, condition and position. They are the same for all
    S samples of an image, and without a condition for all images, so they are computed only that often.

    Args:
        head: The denoising network.
        condition: (B, 1, d), or (B, N, d) if it differs between the tokens of an image.
        position: (N,) int64 token positions.
        schedule: The schedule to sample with.
        guidance: g.
        prediction: What the head predicts.
        estimate: (B, N, C) standardised, if the head outputs the residual to it.
    """

    def __init__(
        self,
        head: Head,
        condition: Tensor,
        position: Tensor,
        schedule: Schedule,
        guidance: float,
        prediction: Prediction,
        estimate: Tensor | None = None,
    ) -> None:
        self.head, self.schedule, self.guidance, self.prediction = head, schedule, guidance, prediction
        self.images, self.position = condition.shape[0], position
        self.guided = guidance != 1.0
        self.condition = condition
        if self.guided:
            # append a zero condition for the unconditional branch
            self.condition = torch.cat([condition, torch.zeros_like(condition[:1])])
            if estimate is not None:
                estimate = torch.stack([estimate, torch.zeros_like(estimate)]).unsqueeze(1)
        self.estimate = estimate

    def __call__(self, x: Tensor, step: int) -> Denoised:
        """x (S·B·N, C) at a step of the schedule -> its x̂_0 and log-variance."""
        channels = x.shape[-1]
        # with no images the number of samples can't be inferred
        samples = -1 if self.images else 0
        grid = x.reshape(samples, self.images, len(self.position), channels)
        t = self.schedule.timesteps[step].reshape(1).to(x.device)
        modulations = self.head.modulate(t, self.condition, self.position)
        if self.guided:
            modulations = [self._branches(each) for each in modulations]
        output = self.head.denoise(grid, modulations).float()
        index = torch.full((1,), step, device=x.device)
        if self.estimate is not None:
            output = completed(output, grid, index, self.estimate, self.schedule)
        if self.guided:
            conditional, unconditional = output.flatten(1, 3)
            predicted, v = conditional[:, :channels], conditional[:, channels:]
            unconditional = unconditional[:, :channels]
            predicted = unconditional + self.guidance * (predicted - unconditional)
        else:
            output = output.flatten(0, 2)
            predicted, v = output[:, :channels], output[:, channels:]
        x0 = predicted_x0(predicted, x, index, self.schedule, self.prediction)
        if v.shape[-1] == 0:
            return Denoised(x0, None)
        return Denoised(x0, interpolated_log_variance(v, index, self.schedule))

    def _branches(self, modulation: Tensor) -> Tensor:
        """(B + 1, N, …) -> (2, 1, B, N, …): conditional and unconditional."""
        conditional, unconditional = modulation[: self.images], modulation[self.images :]
        return torch.stack([conditional, unconditional.expand_as(conditional)]).unsqueeze(1)
