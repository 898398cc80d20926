"""Generative Distribution Distillation (arXiv 2507.14503).

Shapes: B images · d student feature · D teacher feature · K classes · R = M·B·N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gendd.config import GenDDConfig
from gendd.diffusion import tokens
from gendd.errors import UserError, did_you_mean
from gendd.messages import following
from gendd.methods._labels import known, label_loss
from gendd.methods._maps import MapLosses, MapRegression
from gendd.methods.base import Method, StepOutput
from gendd.models import Asked, Backbone, Frozen
from gendd.student import Student
from gendd.student.generator import FeatureGenerator, head_width
from gendd.student.readout import nearest_mean_classifier

STATISTICS_IMAGES = 10_000
# λ where it is not set
CONTRACTION = 0.3


class GenDD(Method):
    """The student's feature conditions a diffusion head that generates the teacher's feature.

    Args:
        backbone: The student network (B, C, H, W) -> feature (B, d), logits (B, K). Its classifier is
            the linear readout's probe (see ``label_weight`` for what reaches the student). With
            ``projector`` the method's own :attr:`backbone` is another, which shares this one.
        teacher: The network to distil; it may have no classifier. Its classes may be others than the
            student's, which are those of the labels where there are any.
        config: Settings; single ones may be given by name instead, ``GenDD(s, t, contraction=0.5)``.
        labels: True: labels will be given, and what can't be learned from them is said at once. False:
            train without, whatever is given. None: each batch with what it has.

    Raises:
        UserError: a setting is unknown, out of range, or needs a teacher with the classes of the labels.
    """

    name = "gendd"
    label = "GenDD"
    origin = (
        "by Generative Distribution Distillation (arXiv 2507.14503): the student's feature conditions a "
        "small diffusion head that generates the teacher's feature"
    )
    colors = ("#0072b2", "#4fabe8")
    Settings = GenDDConfig
    needs_labels = False
    has_diffusion = True
    takes_unknown = True
    centres: Tensor
    prepared: Tensor
    class_means: Tensor
    class_variance: Tensor

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen,
        config: GenDDConfig | None = None,
        *,
        labels: bool | None = None,
        **settings: Any,
    ) -> None:
        for role, network in (("student", backbone), ("teacher", teacher)):
            if not isinstance(network, (Backbone, Frozen)):
                raise UserError(
                    f"GenDD: expected a gendd.Backbone as {role}, got {type(network).__name__}. "
                    "Build it with gendd.create_backbone(name, num_classes), or by gendd.wrap(module)."
                )
        known = {entry.name for entry in dataclasses.fields(GenDDConfig)}
        for name in settings:
            if name not in known:
                raise UserError(f"Unknown GenDD setting {name!r}.{did_you_mean(name, known)}")
        config = dataclasses.replace(config or GenDDConfig(), **settings)
        super().__init__(backbone, teacher, config, labels=labels)
        assert self.teacher is not None
        self.maps: MapRegression | None = None
        if config.map_weight > 0 and backbone.has_map and self.teacher.has_map:
            deployed = config.projector != 0
            self.maps = MapRegression(backbone, self.teacher, config.projector or None, deployed)
            backbone = self.backbone = self.maps.student
        hidden = 0 if self.maps is None else self.maps.hidden
        if config.head_width is None:
            width = head_width(backbone, self.teacher.feature_dim, config)
            config = dataclasses.replace(config, head_width=width)
        self.labels = labels
        config = dataclasses.replace(config, residual=self._estimates(config))
        strength = config.contraction
        if strength is None:
            strength = CONTRACTION if self._same_classes or config.centres == "means" else 0.0
        self.strength = strength
        self.config = config = dataclasses.replace(config, projector=hidden, contraction=strength)
        if labels:
            self._check_classes()
        self.generator = FeatureGenerator(backbone.feature_dim, teacher.feature_dim, self.config)
        centres = torch.zeros(self._centre_count, teacher.feature_dim)
        if len(centres) == teacher.num_classes > 0:
            centres = teacher.classifier.weight.detach().float().clone()
        self.register_buffer("centres", centres)
        if self._reads_means:
            self.register_buffer("class_means", torch.zeros_like(centres))
            self.register_buffer("class_variance", torch.ones(()))
        self.register_buffer("prepared", torch.tensor(not self._needs_statistics))

    def _estimates(self, config: GenDDConfig) -> bool:
        """Whether the head gives the difference to what the student estimates."""
        able = self.maps is not None and self.maps.hidden > 0 and config.prediction == "sample"
        if config.residual and not able:
            raise UserError(
                "gendd.residual true: expected a student with a projector (gendd.projector not 0, networks "
                "that give maps, gendd.map_weight above 0) and gendd.prediction sample."
            )
        if config.residual is not None:
            return config.residual
        assert self.teacher is not None
        return able and config.token_width < self.teacher.feature_dim

    @property
    def _same_classes(self) -> bool:
        assert self.teacher is not None
        return self.teacher.num_classes == self.backbone.num_classes

    @property
    def _reads_means(self) -> bool:
        """Whether generated features are read by the class means, for want of a classifier of the classes."""
        return self.config.centres == "means" and self.labels is not False and not self._same_classes

    @property
    def _takes_means(self) -> bool:
        contracts = self.strength > 0 and self.labels is not False
        return self.config.centres == "means" and (contracts or self._reads_means)

    @property
    def _centre_count(self) -> int:
        assert self.teacher is not None
        return self.backbone.num_classes if self._takes_means else self.teacher.num_classes

    def _check_classes(self) -> None:
        """Raise :class:`UserError` where labels are given that the teacher's classes don't fit."""
        assert self.teacher is not None
        if self._same_classes:
            return
        config, classes = self.config, self.backbone.num_classes
        came = (
            f"one with {self.teacher.num_classes}"
            if self.teacher.has_classifier
            else "one without a classifier"
        )
        expected = f"expected a teacher with the data's {classes} classes, got {came}."
        if self.strength > 0 and config.centres == "classifier":
            raise UserError(
                f"Contraction: {expected} Set gendd.centres means, gendd.contraction 0, or data.labels false."
            )
        if self.strength > 0 and config.alpha < 1:
            raise UserError(f"gendd.alpha {config.alpha}: {expected} Set gendd.alpha 1.")
        if config.probe == "teacher":
            raise UserError(f"gendd.probe 'teacher': {expected} Set gendd.probe labels.")

    @property
    def _needs_statistics(self) -> bool:
        config = self.config
        contracts = self.strength > 0
        return config.standardise or self._takes_means or (contracts and config.centre_scale == "match")

    @property
    def asks(self) -> Asked:
        """See :attr:`Method.asks`."""
        return "feature" if self.maps is None else "stages"

    @property
    def asked_stages(self) -> int | None:
        """See :attr:`Method.asked_stages`."""
        return None if self.maps is None else len(self.maps.stages)

    def rows(self, images: int) -> int:
        """See :meth:`Method.rows`."""
        return images * self.generator.num_tokens * self.config.repeats

    @torch.no_grad()
    def prepare(self, batches: Iterable[Any]) -> None:
        """Take the teacher's statistics from training data: mean, scale and, if asked for, class means.

        Args:
            batches: See :meth:`Method.prepare`; the first 10,000 images are taken, or all for class means.

        Raises:
            UserError: no batch, or class means are asked for and a class has no labelled image.
        """
        assert self.teacher is not None
        by_class = self._takes_means
        moments = _Moments(self.teacher.feature_dim, len(self.centres), scatter=self._reads_means)
        with following("statistics of the teacher", STATISTICS_IMAGES, "images") as steps:
            for batch in batches:
                images, labels = batch if isinstance(batch, (tuple, list)) else (batch.images, batch.labels)
                features = self.teacher(images.to(self.centres.device))[0]
                moments.add(features, labels if by_class else None)
                if moments.count >= STATISTICS_IMAGES and not by_class:
                    break
                # of a generator 0: not known
                there = length_hint(batches) * len(images)
                steps.total = there if by_class else min(STATISTICS_IMAGES, there or STATISTICS_IMAGES)
                steps.add(len(images))
        if moments.count == 0:
            raise UserError("GenDD statistics: expected at least one batch of training images, got none.")
        variance = moments.squares / moments.count
        if self.config.standardise:
            self.generator.set_statistics(moments.mean.float(), variance.sqrt().float())
        if by_class:
            self._set_means(moments)
        if self.strength > 0 and len(self.centres) > 0:
            self._set_centres(moments, variance)
        self.prepared.fill_(True)

    def _set_means(self, moments: _Moments) -> None:
        """Class means (K, D) in the space that is diffused; raises :class:`UserError` without one."""
        missing = (moments.class_counts == 0).nonzero().flatten().tolist()
        if missing:
            raise UserError(
                f"gendd.centres 'means': expected labelled images of all {len(moments.class_counts)} "
                f"classes, got none of {missing[:5]}. Use gendd.centres 'classifier'."
            )
        means = moments.class_means.float().to(self.centres.device)
        self.centres.copy_(self.generator.standardise(means))
        if self._reads_means:
            self.class_means.copy_(self.centres)
            self.class_variance.fill_(
                moments.variance_between_means(self.generator.feature_scale.cpu().double())
            )

    def _set_centres(self, moments: _Moments, variance: Tensor) -> None:
        """Centres (K, D) in the space that is diffused, where the classifier's rows act on unit features."""
        assert self.teacher is not None
        if not self._takes_means:
            weight = self.teacher.classifier.weight.float()
            self.centres.copy_(weight * self.generator.feature_scale if self.config.standardise else weight)
        if self.config.centre_scale == "match":
            # the classifier is blind to what its rows have in common
            self.centres.sub_(self.centres.mean(0))
            scale = self.generator.feature_scale.cpu().double()
            centre = self.generator.feature_mean.cpu().double()
            square = ((variance + (moments.mean - centre).square()) / scale.square()).sum()
            self.centres.mul_((float(square) / self.centres.square().sum(-1).mean()).sqrt())
        if self._reads_means:
            # what is generated is contracted: the mean of class c lies where its features' mean is moved to
            self.class_means.lerp_(self.centres, self.strength)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """The diffusion loss plus the probe's cross-entropy.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64, -1 where it is unknown, or (B, K) probabilities; None trains without labels
                (λ = 0).
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
        labels = None if self.labels is False else labels
        feature, teacher_feature, teacher_logits, dense = self._look(images)
        targets = self.targets(teacher_feature, teacher_logits, labels)
        rows = self._diffuse(targets, self.generator.condition(feature), generator)
        diffusion = rows.mse.mean()
        parts = {"diffusion": diffusion.detach()}
        loss = diffusion
        if rows.vlb is not None:
            vlb = rows.vlb.mean()
            loss = loss + vlb
            parts["vlb"] = vlb.detach()
        if self.config.diffusion_weight != 1:
            loss = self.config.diffusion_weight * loss
        if dense is not None:
            loss = loss + self.config.map_weight * dense.map
            parts["map"] = dense.map.detach()
            if dense.stages is not None and self.config.stage_weight > 0:
                loss = loss + self.config.stage_weight * dense.stages
                parts["stages"] = dense.stages.detach()
        logits = self.backbone.classifier(self._for_probe(feature, labels))
        probe = self._probe_loss(logits, labels, teacher_logits)
        if probe is not None:
            loss = loss + probe
            parts["probe"] = probe.detach()
        return StepOutput(loss, logits, parts)

    def _look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, MapLosses | None]:
        """Student feature (B, d), teacher feature (B, D) and logits (B, K), and the losses of their maps."""
        assert self.teacher is not None
        if self.maps is None:
            teacher_feature, teacher_logits = self.teacher(images)
            return self.backbone.features(images), teacher_feature, teacher_logits, None
        teacher_feature, teacher_logits, teacher_map, teacher_stages = self.teacher.with_stages(images)
        feature, found, stages = self.backbone.with_stages(images)
        assert found is not None and teacher_map is not None
        dense = self.maps(feature, found, stages, teacher_feature, teacher_map, teacher_stages)
        return feature, teacher_feature, teacher_logits, dense

    def _for_probe(self, feature: Tensor, labels: Tensor | None) -> Tensor:
        """The feature as the linear readout learns from it, and through it, by its weight, the student."""
        weight = self.config.label_weight
        if weight is None:
            weight = 0.0 if self._same_classes else 1.0
        constant = feature.detach()
        if weight == 0 or labels is None or self.config.probe in ("teacher", "none"):
            return constant
        return constant + weight * known(labels).unsqueeze(-1) * (feature - constant)

    def _is_prepared(self) -> bool:
        # remembered outside of the buffer: reading it waits for the device
        if not getattr(self, "_prepared", False):
            self._prepared = bool(self.prepared)
        return self._prepared

    @torch.no_grad()
    def diffusion_loss(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """See :meth:`Method.diffusion_loss`; without mixup and condition dropout."""
        assert self.teacher is not None
        feature, logits = self.teacher(images)
        targets = self.targets(feature, logits, None if self.labels is False else labels)
        condition = self.generator.condition(self.backbone.features(images))
        loss: Tensor = self._diffuse(targets, condition, generator, regularised=False).mse.mean()
        return loss

    def targets(self, feature: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """What is generated: the standardised teacher feature, contracted towards its class (B, D).

        Raises:
            UserError: the teacher's classes are not the student's, so that labels name no centre.
        """
        standard = self.generator.standardise(feature.float())
        if labels is None or self.strength == 0:
            return standard
        self._check_classes()
        probabilities = tokens.class_probabilities(labels, self.centres.shape[0])
        if self.config.alpha < 1:
            predicted = logits.float().softmax(-1)
            share = known(labels).unsqueeze(-1)
            probabilities = self.config.alpha * probabilities + (1 - self.config.alpha) * share * predicted
        return tokens.contract(standard, probabilities, self.centres, self.strength)

    def _probe_loss(self, logits: Tensor, labels: Tensor | None, teacher_logits: Tensor) -> Tensor | None:
        """What trains the linear readout: the labels; where they are unknown, the teacher's probabilities."""
        if self.config.probe == "none":
            return None
        seen = labels if self.config.probe != "teacher" else None
        said = teacher_logits.float().softmax(-1)
        if self.backbone.num_classes != said.shape[-1]:
            return None if seen is None else label_loss(logits, seen)
        if seen is None:
            return F.cross_entropy(logits.float(), said)
        unknown = 1 - known(seen).unsqueeze(-1)
        return label_loss(logits, seen) + F.cross_entropy(logits.float(), unknown * said)

    def _diffuse(
        self,
        targets: Tensor,
        condition: Tensor,
        generator: torch.Generator | None,
        *,
        regularised: bool = True,
    ) -> Any:
        config, device = self.config, targets.device
        if regularised and config.mixup > 0:
            weight = _beta(config.mixup, generator, device)
            # a permutation that keeps to this process's images (see gendd.processes.share)
            permutation = torch.arange(len(targets) - 1, -1, -1, device=device)
            targets = tokens.mix(targets, weight, permutation)
            condition = tokens.mix(condition, weight.to(condition.dtype), permutation)
        rows = (config.repeats, targets.shape[0], self.generator.num_tokens)

        def draw(sample: Callable[..., Tensor], *more: int) -> Tensor:
            return self.draw(sample, (*rows, *more), generator, device, images=1).flatten(0, 2)

        u = draw(torch.rand)
        if config.time_power != 1:
            u = 1 - (1 - u).pow(config.time_power)
        t = (u * config.timesteps).long().clamp(max=config.timesteps - 1)
        noise = draw(torch.randn, self.generator.token_width)
        keep = None
        if regularised and config.condition_dropout > 0:
            keep = draw(torch.rand) >= config.condition_dropout
        return self.generator.loss_rows(targets, condition, t, noise, keep)

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        # without labels the probe learns from the teacher's classes, if they are the student's
        linear = self.labels is not False or self._same_classes
        info = {"reader": "means"} if self._reads_means else {}
        return Student(self.backbone, self.generator, self._reader(), info=info, linear=linear)

    def _reader(self) -> nn.Linear | None:
        """What reads generated features: the class means or the teacher's classifier, if there are any."""
        assert self.teacher is not None
        if self._reads_means:
            return nearest_mean_classifier(
                self.class_means,
                self.generator.feature_mean,
                self.generator.feature_scale,
                float(self.class_variance),
            )
        if not self.teacher.has_classifier:
            return None
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
        return classifier.requires_grad_(False)

    def undecayed(self) -> Iterator[nn.Parameter]:
        """The head takes no weight decay."""
        return self.generator.parameters()


class _Moments:
    """Count, mean and summed squared deviations of features, and their sums by class; float64 on the CPU.

    Args:
        width: D.
        classes: K.
        scatter: Also take the (D, D) sum of products, for the variance within classes.
    """

    def __init__(self, width: int, classes: int, scatter: bool = False) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)
        self.class_sums = torch.zeros(classes, width, dtype=torch.float64)
        self.class_counts = torch.zeros(classes, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64) if scatter else None

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
            rows, labels = rows[labels >= 0], labels[labels >= 0]
            self.class_sums.index_add_(0, labels, rows)
            self.class_counts += torch.bincount(labels, minlength=len(self.class_counts))
            if self.products is not None:
                self.products.addmm_(rows.T, rows)

    @property
    def class_means(self) -> Tensor:
        """(K, D), of classes that all have images."""
        return self.class_sums / self.class_counts.unsqueeze(-1)

    def variance_between_means(self, scale: Tensor) -> float:
        """Variance within classes along the directions in which the class means differ.

        For a pair of Gaussian classes of covariance Σ whose means lie δ apart, the logits of the nearest mean
        are log-likelihood ratios at temperature δᵀΣδ / |δ|²; this is its mean over the classes' distances
        from their centre, weighted by |δ|². 1 where nothing varies.

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
