"""The conditional generator p(f | s): a student feature conditions the diffusion of a teacher feature.

Shapes: B images · d student feature · D teacher feature · N tokens · C token width · M repeats ·
S samples · R = M·B·N rows, repeat-major.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gendd import tokens
from gendd.config import GenDDConfig
from gendd.diffusion import (
    Denoised,
    Head,
    LossRows,
    Schedule,
    add_noise,
    ancestral,
    cosine_schedule,
    ddim,
    diffusion_loss,
    interpolated_log_variance,
    predicted_x0,
)
from gendd.errors import UserError

SamplerName = Literal["ddpm", "ddim"]


class FeatureGenerator(nn.Module):
    """Generates teacher features (B, D) from student features (B, d).

    ``feature_mean`` and ``feature_scale`` (D,) are the statistics features are standardised with; the
    identity until :meth:`set_statistics`.

    Args:
        condition_width: d.
        feature_width: D.
        config: The method's settings; only those of the diffusion and the head matter here.
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, condition_width: int, feature_width: int, config: GenDDConfig) -> None:
        super().__init__()
        self.config = config
        self.condition_width = condition_width
        self.feature_width = feature_width
        self.token_width = config.token_width
        self.num_tokens = tokens.num_tokens(feature_width, config.token_width)
        self.prediction = config.prediction
        self.schedule: Schedule = cosine_schedule(config.timesteps)
        self.norm = nn.LayerNorm(condition_width)
        self.head = Head(
            config.token_width,
            condition_width,
            self.num_tokens,
            config.head_width,
            config.head_depth,
            config.token_width * (2 if config.learned_variance else 1),
            config.zero_init,
        )
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_scale", torch.ones(feature_width))

    def set_statistics(self, mean: Tensor, scale: Tensor) -> None:
        """Standardise features with ``mean`` and ``scale`` (D,); dimensions that never vary keep scale 1."""
        self.feature_mean.copy_(mean)
        self.feature_scale.copy_(torch.where(scale > 1e-6 * scale.max(), scale, torch.ones_like(scale)))

    def standardise(self, features: Tensor) -> Tensor:
        """Teacher features (…, D) in the space that is diffused."""
        return (features - self.feature_mean) / self.feature_scale

    def restore(self, features: Tensor) -> Tensor:
        """Inverse of :meth:`standardise`."""
        return features * self.feature_scale + self.feature_mean

    def condition(self, student_features: Tensor) -> Tensor:
        """z = LayerNorm(s); (B, d) -> (B, d)."""
        z: Tensor = self.norm(student_features)
        return z

    def loss_rows(
        self, targets: Tensor, condition: Tensor, t: Tensor, noise: Tensor, keep: Tensor | None = None
    ) -> LossRows:
        """Diffusion loss of every row.

        Args:
            targets: (B, D) standardised features.
            condition: (B, d) from :meth:`condition`.
            t: (R,) int64; R = M·B·N fixes M.
            noise: (R, C) standard normal.
            keep: (R,) bool, False where the condition is dropped; None keeps all.
        """
        images = targets.shape[0]
        repeats = t.shape[0] // (images * self.num_tokens)
        x0 = tokens.repeat_rows(tokens.split(targets.float(), self.token_width), repeats)
        z = tokens.repeat_rows(condition.unsqueeze(1).expand(-1, self.num_tokens, -1), repeats)
        if keep is not None:
            z = z * keep.unsqueeze(-1)
        token = tokens.token_index(images, self.num_tokens, repeats, t.device)
        x_t = add_noise(x0, t, noise, self.schedule)
        output = self.head(x_t, t, z, token)
        return diffusion_loss(output, x0, x_t, t, noise, self.schedule, self.prediction)

    def mean(self, condition: Tensor) -> Tensor:
        """E[f | z] in one pass, the head's x̂_0 at x_T = 0, t = T-1; (B, d) -> (B, D) teacher features."""
        images = condition.shape[0]
        rows = images * self.num_tokens
        x = condition.new_zeros(rows, self.token_width)
        t = torch.full((rows,), len(self.schedule) - 1, device=condition.device)
        z, token = self._rows(condition, 1)
        output = self.head(x, t, z, token)[:, : self.token_width].float()
        estimate = predicted_x0(output, x, t, self.schedule, self.prediction)
        return self.restore(self._merge(estimate, images))

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
    ) -> Tensor:
        """Generated teacher features.

        Args:
            condition: (B, d) from :meth:`condition`.
            steps: Steps of the respaced schedule, 1 .. T.
            guidance: Classifier-free guidance; 1 is none.
            num_samples: S.
            temperature: Factor on the step noise of ddpm.
            eta: η of ddim; 0 is deterministic.
            sampler: ``ddpm`` or ``ddim``.
            generator: Source of all noise, on the condition's device.

        Returns:
            (S, B, D).

        Raises:
            UserError: guidance is asked of a generator trained without condition dropout.
        """
        if guidance != 1 and self.config.condition_dropout == 0:
            raise UserError(
                f"Guidance: expected 1 for a generator trained without condition dropout, got {guidance}. "
                "Train with gendd.condition_dropout 0.2 to guide."
            )
        images = condition.shape[0]
        z, token = self._rows(condition, num_samples)
        x = torch.randn(
            z.shape[0], self.token_width, generator=generator, device=z.device, dtype=torch.float32
        )
        schedule = self.schedule.respace(steps)
        denoise = self.denoiser(z, token, schedule, guidance)
        if sampler == "ddpm":
            x = ancestral(denoise, x, schedule, temperature=temperature, generator=generator)
        else:
            x = ddim(denoise, x, schedule, eta=eta, generator=generator)
        features = self.restore(self._merge(x, num_samples * images))
        return features.reshape(num_samples, images, self.feature_width)

    def denoiser(
        self, condition: Tensor, token: Tensor, schedule: Schedule, guidance: float = 1.0
    ) -> GuidedDenoiser:
        """The head as a denoiser for the samplers; condition (R, d), token (R,)."""
        return GuidedDenoiser(self.head, condition, token, schedule, guidance, self.prediction)

    def _rows(self, condition: Tensor, repeats: int) -> tuple[Tensor, Tensor]:
        expanded = condition.unsqueeze(1).expand(-1, self.num_tokens, -1)
        token = tokens.token_index(condition.shape[0], self.num_tokens, repeats, condition.device)
        return tokens.repeat_rows(expanded, repeats), token

    def _merge(self, rows: Tensor, images: int) -> Tensor:
        return tokens.merge(rows.reshape(images, self.num_tokens, self.token_width), self.feature_width)


class GuidedDenoiser:
    """A head with its condition fixed, as the samplers want it.

    Guidance g moves the prediction from the unconditional to g times the conditional branch's
    distance; the variance is the conditional branch's (Ho & Salimans 2022; as published by GenDD).
    """

    def __init__(
        self,
        head: Head,
        condition: Tensor,
        token: Tensor,
        schedule: Schedule,
        guidance: float,
        prediction: Literal["sample", "epsilon", "v"],
    ) -> None:
        self.head, self.schedule, self.guidance, self.prediction = head, schedule, guidance, prediction
        self.guided = guidance != 1.0
        self.condition = torch.cat([condition, torch.zeros_like(condition)]) if self.guided else condition
        self.token = token.repeat(2) if self.guided else token

    def __call__(self, x: Tensor, step: int) -> Denoised:
        """x (R, C) at a step of the schedule -> its x̂_0 and log-variance."""
        time = int(self.schedule.timesteps[step])
        rows, channels = x.shape
        t = torch.full((self.condition.shape[0],), time, device=x.device)
        output = self.head(x.repeat(2, 1) if self.guided else x, t, self.condition, self.token).float()
        predicted, v = output[:rows, :channels], output[:rows, channels:]
        if self.guided:
            unconditional = output[rows:, :channels]
            predicted = unconditional + self.guidance * (predicted - unconditional)
        index = torch.full((rows,), step, device=x.device)
        x0 = predicted_x0(predicted, x, index, self.schedule, self.prediction)
        if v.shape[-1] == 0:
            return Denoised(x0, None)
        return Denoised(x0, interpolated_log_variance(v, index, self.schedule))
