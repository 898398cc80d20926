"""Diffusion over plain vectors: schedule, head, loss, samplers. Knows nothing of teachers or images."""

from gendd.diffusion.head import Head, time_embedding
from gendd.diffusion.loss import (
    LossRows,
    Prediction,
    add_noise,
    diffusion_loss,
    interpolated_log_variance,
    predicted_x0,
    prediction_target,
    variational_bound,
)
from gendd.diffusion.sampling import Denoised, Denoiser, ancestral, ddim, dpm_solver
from gendd.diffusion.schedule import Schedule, cosine_schedule

__all__ = [
    "Denoised",
    "Denoiser",
    "Head",
    "LossRows",
    "Prediction",
    "Schedule",
    "add_noise",
    "ancestral",
    "cosine_schedule",
    "ddim",
    "diffusion_loss",
    "dpm_solver",
    "interpolated_log_variance",
    "predicted_x0",
    "prediction_target",
    "time_embedding",
    "variational_bound",
]
