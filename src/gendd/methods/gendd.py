"""Generative Distribution Distillation (arXiv 2507.14503).

Shapes: B images · d student feature · D teacher feature · K classes · R = M·B·N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd import tokens
from gendd.config import GenDDConfig
from gendd.errors import UserError, did_you_mean
from gendd.generator import FeatureGenerator
from gendd.methods.base import Method, StepOutput
from gendd.models import Backbone, Frozen
from gendd.student import Student

STATISTICS_IMAGES = 10_000


class GenDD(Method):
    """The student's feature conditions a diffusion head that generates the teacher's feature.

    Args:
        backbone: The student network (B, C, H, W) -> feature (B, d), logits (B, K). Its classifier is
            the linear readout's probe: it learns from the detached feature and sends no gradient back.
        teacher: The network to distil.
        config: Settings; single ones may be given by name instead, ``GenDD(s, t, contraction=0.5)``.

    Raises:
        UserError: a setting is unknown, or out of range.
    """

    centres: Tensor
    prepared: Tensor

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        config: GenDDConfig | None = None,
        **settings: Any,
    ) -> None:
        for role, network in (("student", backbone), ("teacher", teacher)):
            if not isinstance(network, (Backbone, Frozen)):
                raise UserError(
                    f"GenDD: expected a gendd.Backbone as {role}, got {type(network).__name__}. "
                    "Build it with gendd.create_backbone(name, num_classes), or by gendd.wrap(module)."
                )
        super().__init__(backbone, teacher)
        known = {entry.name for entry in dataclasses.fields(GenDDConfig)}
        for name in settings:
            if name not in known:
                raise UserError(f"Unknown GenDD setting {name!r}.{did_you_mean(name, known)}")
        self.config = dataclasses.replace(config or GenDDConfig(), **settings)
        self.needs_labels = False
        self.generator = FeatureGenerator(backbone.feature_dim, teacher.feature_dim, self.config)
        self.register_buffer("centres", teacher.classifier.weight.detach().float().clone())
        self.register_buffer("prepared", torch.tensor(not self._needs_statistics))

    @property
    def _needs_statistics(self) -> bool:
        config = self.config
        contracts = config.contraction > 0
        return config.standardise or (
            contracts and (config.centres == "means" or config.centre_scale == "match")
        )

    @torch.no_grad()
    def prepare(self, batches: Iterable[Any]) -> None:
        """Take the teacher's statistics from training data: mean, scale and, if asked for, class means.

        Args:
            batches: See :meth:`Method.prepare`; the first 10,000 images are taken, or all for class means.

        Raises:
            UserError: no batch, or class means are asked for and a class has no labelled image.
        """
        assert self.teacher is not None
        classes = self.teacher.num_classes
        by_class = self.config.contraction > 0 and self.config.centres == "means"
        moments = _Moments(self.teacher.feature_dim, classes)
        for batch in batches:
            images, labels = batch if isinstance(batch, (tuple, list)) else (batch.images, batch.labels)
            features = self.teacher(images.to(self.centres.device))[0]
            moments.add(features, labels if by_class else None)
            if moments.count >= STATISTICS_IMAGES and not by_class:
                break
        if moments.count == 0:
            raise UserError("GenDD statistics: expected at least one batch of training images, got none.")
        variance = moments.squares / moments.count
        if self.config.standardise:
            self.generator.set_statistics(moments.mean.float(), variance.sqrt().float())
        if self.config.contraction > 0:
            self._set_centres(moments, variance)
        self.prepared.fill_(True)

    def _set_centres(self, moments: _Moments, variance: Tensor) -> None:
        """Centres (K, D) in the space that is diffused, where the classifier's rows act on unit features."""
        assert self.teacher is not None
        if self.config.centres == "means":
            missing = (moments.class_counts == 0).nonzero().flatten().tolist()
            if missing:
                raise UserError(
                    f"gendd.centres 'means': expected labelled images of all {len(moments.class_counts)} "
                    f"classes, got none of {missing[:5]}. Use gendd.centres 'classifier'."
                )
            means = (moments.class_sums / moments.class_counts.unsqueeze(-1)).float()
            self.centres.copy_(self.generator.standardise(means.to(self.centres.device)))
        else:
            weight = self.teacher.classifier.weight.float()
            self.centres.copy_(weight * self.generator.feature_scale if self.config.standardise else weight)
        if self.config.centre_scale == "match":
            # the classifier is blind to what its rows have in common
            self.centres.sub_(self.centres.mean(0))
            scale = self.generator.feature_scale.cpu().double()
            centre = self.generator.feature_mean.cpu().double()
            square = ((variance + (moments.mean - centre).square()) / scale.square()).sum()
            self.centres.mul_((float(square) / self.centres.square().sum(-1).mean()).sqrt())

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """The diffusion loss plus the probe's cross-entropy.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64 or (B, K) probabilities; None trains without labels (λ = 0).
            generator: Source of times, noise, mixup and dropout, on the images' device.

        Raises:
            UserError: :meth:`prepare` has not been called and the settings need it.
        """
        assert self.teacher is not None
        if not self._is_prepared():
            raise UserError(
                "GenDD: expected the teacher's statistics, which these settings need. "
                "Call prepare(batches) with some training batches first."
            )
        teacher_feature, teacher_logits = self.teacher(images)
        feature = self.backbone.features(images)
        logits = self.backbone.classifier(feature.detach())
        targets = self.targets(teacher_feature, teacher_logits, labels)
        rows = self._diffuse(targets, self.generator.condition(feature), generator)
        diffusion = rows.mse.mean()
        parts = {"diffusion": diffusion.detach()}
        loss = diffusion
        if rows.vlb is not None:
            vlb = rows.vlb.mean()
            loss = loss + vlb
            parts["vlb"] = vlb.detach()
        probe_target = self._probe_target(labels, teacher_logits)
        if probe_target is not None:
            probe = F.cross_entropy(logits.float(), probe_target)
            loss = loss + probe
            parts["probe"] = probe.detach()
        return StepOutput(loss, logits, parts)

    def _is_prepared(self) -> bool:
        # remembered outside of the buffer: reading it waits for the device
        if not getattr(self, "_prepared", False):
            self._prepared = bool(self.prepared)
        return self._prepared

    def targets(self, feature: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """What is generated: the standardised teacher feature, contracted towards its class (B, D).

        Raises:
            UserError: the teacher's classes are not the student's, so that labels name no centre.
        """
        standard = self.generator.standardise(feature.float())
        if labels is None or self.config.contraction == 0:
            return standard
        if self.centres.shape[0] != self.backbone.num_classes:
            raise UserError(
                f"Contraction: expected a teacher with the data's {self.backbone.num_classes} classes, "
                f"got one with {self.centres.shape[0]}. Set gendd.contraction 0, or train without labels."
            )
        probabilities = tokens.class_probabilities(labels, self.centres.shape[0])
        if self.config.alpha < 1:
            predicted = logits.float().softmax(-1)
            probabilities = self.config.alpha * probabilities + (1 - self.config.alpha) * predicted
        return tokens.contract(standard, probabilities, self.centres, self.config.contraction)

    def _probe_target(self, labels: Tensor | None, teacher_logits: Tensor) -> Tensor | None:
        probe = self.config.probe
        if probe == "none":
            return None
        if labels is not None and probe != "teacher":
            return labels
        if self.backbone.num_classes != teacher_logits.shape[-1]:
            return None
        return teacher_logits.float().softmax(-1)

    def _diffuse(self, targets: Tensor, condition: Tensor, generator: torch.Generator | None) -> Any:
        config, device = self.config, targets.device
        images = targets.shape[0]
        if config.mixup > 0:
            weight = _beta(config.mixup, generator, device)
            permutation = torch.randperm(images, generator=generator, device=device)
            targets = tokens.mix(targets, weight, permutation)
            condition = tokens.mix(condition, weight.to(condition.dtype), permutation)
        rows = images * self.generator.num_tokens * config.repeats
        u = torch.rand(rows, generator=generator, device=device)
        if config.time_power != 1:
            u = 1 - (1 - u).pow(config.time_power)
        t = (u * config.timesteps).long().clamp(max=config.timesteps - 1)
        noise = torch.randn(rows, config.token_width, generator=generator, device=device)
        keep = None
        if config.condition_dropout > 0:
            keep = torch.rand(rows, generator=generator, device=device) >= config.condition_dropout
        return self.generator.loss_rows(targets, condition, t, noise, keep)

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        assert self.teacher is not None
        source = self.teacher.classifier
        classifier: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, source.in_features, source.out_features, device=self.centres.device
        )
        with torch.no_grad():
            classifier.weight.copy_(source.weight)
            if source.bias is None:
                classifier.bias.zero_()
            else:
                classifier.bias.copy_(source.bias)
        return Student(self.backbone, self.generator, classifier.requires_grad_(False))

    def undecayed(self) -> Iterator[nn.Parameter]:
        """The head takes no weight decay."""
        return self.generator.parameters()


class _Moments:
    """Count, mean and summed squared deviations of features, and their sums by class; float64 on the CPU."""

    def __init__(self, width: int, classes: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.class_sums = torch.zeros(classes, width, dtype=torch.float64)
        self.class_counts = torch.zeros(classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor | None) -> None:
        """Add features (B, D), by class too where labels (B,) are given (Chan et al. 1983)."""
        rows = features.cpu().double()
        count = self.count + len(rows)
        mean = rows.mean(0)
        distance = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + distance.square() * (self.count * len(rows) / count)
        self.mean += distance * (len(rows) / count)
        self.count = count
        if labels is not None and labels.ndim == 1:
            labels = labels.cpu()
            self.class_sums.index_add_(0, labels, rows)
            self.class_counts += torch.bincount(labels, minlength=len(self.class_counts))


def _beta(concentration: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """One draw of Beta(β, β): x / (x + y) with x and y ~ Gamma(β) (Marsaglia & Tsang 2000)."""
    x, y = _gamma(concentration, generator, device), _gamma(concentration, generator, device)
    return x / (x + y)


def _gamma(shape: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    if shape < 1:
        u = torch.rand((), generator=generator, device=device)
        return _gamma(shape + 1, generator, device) * u.clamp(min=1e-30).pow(1 / shape)
    d = shape - 1 / 3
    c = (9 * d) ** -0.5
    # a fixed number of proposals, of which at least 95 % are accepted each, keeps the device unwaited for
    x = torch.randn(16, generator=generator, device=device)
    u = torch.rand(16, generator=generator, device=device)
    v = (1 + c * x) ** 3
    accepted = (v > 0) & (u.log() < 0.5 * x**2 + d - d * v + d * v.clamp(min=1e-30).log())
    # index_select: an index on the device would be waited for
    first = accepted.to(torch.int64).argmax().reshape(1)
    drawn: Tensor = (d * v.clamp(min=1e-30)).index_select(0, first).squeeze(0)
    return drawn
