"""Statistics of the teacher's features."""

from __future__ import annotations

from collections.abc import Iterable
from operator import length_hint
from typing import Any

import torch
from torch import Tensor

from gendd.errors import UserError
from gendd.messages import following
from gendd.models import Frozen

STATISTICS_IMAGES = 10_000


class Moments:
    """Count, mean and summed squared deviations of features, and their sums per class; float64 on the CPU.

    Args:
        width: D.
        classes: K.
        scatter: Also accumulate the (D, D) sum of outer products, for the variance within classes.
    """

    def __init__(self, width: int, classes: int, scatter: bool = False) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.class_sums = torch.zeros(classes, width, dtype=torch.float64)
        self.class_counts = torch.zeros(classes, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64) if scatter else None

    @classmethod
    def of(
        cls,
        teacher: Frozen,
        batches: Iterable[Any],
        device: torch.device,
        *,
        classes: int = 0,
        scatter: bool = False,
    ) -> Moments:
        """Compute the moments of the first 10,000 images, or of all with ``classes``.

        Args:
            teacher: Computes the features.
            batches: See :meth:`Method.prepare`.
            device: Device of the teacher.
            classes: K if sums per class are also needed, else 0.
            scatter: See the class.

        Raises:
            UserError: there is no batch.
        """
        moments = cls(teacher.feature_dim, classes, scatter)
        with following("statistics of the teacher", STATISTICS_IMAGES, "images") as steps:
            for batch in batches:
                images, labels = batch if isinstance(batch, (tuple, list)) else (batch.images, batch.labels)
                moments.add(teacher(images.to(device))[0], labels if classes else None)
                if moments.count >= STATISTICS_IMAGES and not classes:
                    break
                # 0 for a generator: unknown
                there = length_hint(batches) * len(images)
                steps.total = there if classes else min(STATISTICS_IMAGES, there or STATISTICS_IMAGES)
                steps.add(len(images))
        if moments.count == 0:
            raise UserError("GenDD statistics: expected at least one batch of training images, got none.")
        return moments

    def add(self, features: Tensor, labels: Tensor | None) -> None:
        """Add features (B, D), also per class if labels (B,) are given (Chan et al. 1983)."""
        rows = features.cpu().double()
        count = self.count + len(rows)
        mean = rows.mean(0)
        distance = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + distance.square() * (self.count * len(rows) / count)
        self.mean += distance * (len(rows) / count)
        self.count = count
        if labels is not None and labels.ndim == 1:
            labels = labels.cpu()
            rows, labels = rows[labels >= 0], labels[labels >= 0]
            self.class_sums.index_add_(0, labels, rows)
            self.class_counts += torch.bincount(labels, minlength=len(self.class_counts))
            if self.products is not None:
                self.products.addmm_(rows.T, rows)

    @property
    def variance(self) -> Tensor:
        """Variance (D,) of the images added so far."""
        return self.squares / self.count

    @property
    def class_means(self) -> Tensor:
        """Class means (K, D); raises :class:`UserError` if a class has no labelled image."""
        missing = (self.class_counts == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(
                f"gendd.centres 'means': expected labelled images of all {len(self.class_counts)} "
                f"classes, got none of {missing[:5]}. Use gendd.centres 'classifier'."
            )
        return self.class_sums / self.class_counts.unsqueeze(-1)

    def variance_between_means(self, scale: Tensor) -> float:
        """Variance within classes along the directions in which the class means differ.

        For two Gaussian classes of covariance Σ whose means differ by δ, the nearest-mean logits are
        log-likelihood ratios at temperature δᵀΣδ / |δ|²; this is its mean over the classes' differences from
        their centre, weighted by |δ|². 1 if nothing varies.

        Args:
            scale: (D,) that features are divided by.
        """
        assert self.products is not None
        means = self.class_means
        within = self.products - (means.T * self.class_counts) @ means
        distances = (means - means.mean(0)) / scale
        rays = distances / scale
        spread = float(((rays @ within) * rays).sum() / self.class_counts.sum())
        square = float(distances.square().sum())
        return spread / square if spread > 1e-9 * square > 0 else 1.0
