"""Mixup, CutMix and label smoothing of batches, with the same draws and pairs as timm.

Shapes: B images, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gendd.config import DataConfig
from gendd.data.draws import drawing_from


@dataclass(frozen=True)
class Mixing:
    """Mixes the images of a batch, and likewise their labels if there are any.

    A batch is mixed with itself in reverse order: with one weight m ~ Beta(α, α) (mixup, Zhang et al.
    2018: x ← m x + (1-m) x'), or in one box of area 1-m (CutMix, Yun et al. 2019; a box clipped at the
    border counts with its remaining area). The middle image of an odd batch is mixed with itself.

    Args:
        num_classes: K.
        mixup: α of mixup; 0 is off.
        cutmix: α of CutMix; 0 is off.
        prob: Probability of mixing a batch.
        switch_prob: Probability of using CutMix if both are on.
        label_smoothing: s in [0, 1): labels become (1-s) p + s/K before mixing.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.0

    @classmethod
    def from_config(cls, config: DataConfig, num_classes: int) -> Mixing:
        """Create from the configuration."""
        return cls(
            num_classes,
            config.mixup,
            config.cutmix,
            config.mixup_prob,
            config.mixup_switch_prob,
            config.label_smoothing,
        )

    def __call__(
        self, images: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Mix a batch; the inputs are not modified.

        Args:
            images: (B, C, H, W), floating point; any device.
            labels: (B,) int64, -1 for unknown labels, or (B, K) probabilities; None without labels.
            generator: Source of the draws, on the CPU.

        Returns:
            Images (B, C, H, W), and labels: None without labels, float32 (B, K) probabilities if anything is
            enabled, else unchanged. Rows sum to the share of the image whose label is known.
        """
        weight, box = self._draw(images.shape, generator)
        if box is not None:
            top, bottom, left, right = box
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
            images = mixed
        elif weight < 1:
            images = images * weight + images.flip(0) * (1 - weight)
        if labels is None or not (self.mixup or self.cutmix or self.label_smoothing):
            return images, labels
        labels = self._smooth(labels)
        return images, labels if weight == 1 else labels * weight + labels.flip(0) * (1 - weight)

    def _draw(
        self, shape: torch.Size, generator: torch.Generator
    ) -> tuple[float, tuple[int, int, int, int] | None]:
        """Draw the weight of the original images, and the box (top, bottom, left, right) to replace."""
        if not (self.mixup or self.cutmix):
            return 1.0, None
        with drawing_from(generator):
            if np.random.rand() >= self.prob:
                return 1.0, None
            cut = self.mixup == 0 or (self.cutmix > 0 and np.random.rand() < self.switch_prob)
            concentration = self.cutmix if cut else self.mixup
            weight = float(np.random.beta(concentration, concentration))
            if not cut:
                return weight, None
            from timm.data.mixup import cutmix_bbox_and_lam

            (top, bottom, left, right), weight = cutmix_bbox_and_lam(  # type: ignore[no-untyped-call]
                shape, weight
            )
        return float(weight), (int(top), int(bottom), int(left), int(right))

    def _smooth(self, labels: Tensor) -> Tensor:
        """(B,) or (B, K) labels -> (B, K) float32 probabilities."""
        if labels.ndim == 1:
            # not one_hot, which synchronises with the device to check the labels
            hard = torch.zeros((len(labels), self.num_classes), device=labels.device)
            known = (labels >= 0).float()[:, None]
            labels = hard.scatter_(1, labels.clamp(min=0)[:, None], known)
        probabilities = labels.float()
        if self.label_smoothing == 0:
            return probabilities
        shared = probabilities.sum(-1, keepdim=True) * (self.label_smoothing / self.num_classes)
        return probabilities * (1 - self.label_smoothing) + shared
