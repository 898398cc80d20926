"""Generative Distribution Distillation (arXiv 2507.14503).

Shapes: B images · d student feature · D teacher feature · K classes · R = M·B·N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gendd.config import GenDDConfig
from gendd.diffusion import LossRows, tokens
from gendd.diffusion.draws import beta
from gendd.errors import UserError, did_you_mean
from gendd.methods._diffusion import Draws, MeanLoss, mean_loss
from gendd.methods._labels import contracted_classes, known, taught_loss
from gendd.methods._maps import MapLosses, MapRegression
from gendd.methods._moments import Moments
from gendd.methods.base import Method, StepOutput
from gendd.models import Asked, Backbone, Compiled, Frozen, Stages
from gendd.student import Student
from gendd.student.generator import FeatureGenerator, head_width, repeats
from gendd.student.readout import fixed_classifier, nearest_mean_classifier

# default of λ
CONTRACTION = 0.3


class GenDD(Method):
    """The student's feature conditions a diffusion head that generates the teacher's feature.

    Args:
        backbone: The student network (B, C, H, W) -> feature (B, d), logits (B, K). Its classifier is
            the linear readout's probe (see ``label_weight`` for its gradient to the student). With
            ``projector`` the method's own :attr:`backbone` is a new one that shares this network.
        teacher: The network to distil; it may have no classifier. Its classes may differ from the
            student's, which are those of the labels if there are any.
        config: Settings; individual ones may also be given by name, ``GenDD(s, t, contraction=0.5)``.
        labels: True: labels will be given, so settings that don't fit them raise immediately. False:
            ignore labels even if given. None: use the labels of batches that have them.

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
    _compiled_rows: Compiled[..., LossRows] | None = None

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
        there = {entry.name for entry in dataclasses.fields(GenDDConfig)}
        for name in settings.keys() - there:
            raise UserError(f"Unknown GenDD setting {name!r}.{did_you_mean(name, there)}")
        config = dataclasses.replace(config or GenDDConfig(), **settings)
        super().__init__(backbone, teacher, config, labels=labels)
        assert self.teacher is not None
        self.maps: MapRegression | None = None
        if config.map_weight > 0 and backbone.has_map and self.teacher.has_map:
            # labels of other classes than the teacher's train the student's own feature
            usual = self._same_classes or not labels
            deployed = config.projector != 0 and (usual or config.projector is not None)
            self.maps = MapRegression(backbone, self.teacher, config.projector or None, deployed)
            backbone = self.backbone = self.maps.student
        hidden = 0 if self.maps is None else self.maps.hidden
        self.repeats = repeats(self.teacher.feature_dim, config)
        width = config.head_width or head_width(backbone, self.teacher.feature_dim, config)
        config = dataclasses.replace(config, repeats=self.repeats, head_width=width)
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
        """Whether the head outputs the residual to the student's estimate."""
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
        """Whether the class means classify generated features, as the teacher lacks a fitting classifier."""
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
        """Raise :class:`UserError` if labels don't fit the teacher's classes and the settings need that."""
        assert self.teacher is not None
        if self._same_classes:
            return
        config, classes, found = self.config, self.backbone.num_classes, self.teacher.num_classes
        came = f"one with {found}" if found else "one without a classifier"
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
    def asked_stages(self) -> Stages:
        """See :attr:`Method.asked_stages`."""
        return None if self.maps is None else self.maps.asked

    def compile_losses(self) -> None:
        """See :meth:`Method.compile_losses`."""
        self._compiled_rows = Compiled(self.generator.loss_rows, "diffusion loss")
        if self.maps is not None:
            self.maps.forward = Compiled(self.maps.forward, "map loss")  # type: ignore[method-assign]

    def rows(self, images: int) -> int:
        """See :meth:`Method.rows`."""
        return images * self.generator.num_tokens * self.repeats

    @torch.no_grad()
    def prepare(self, batches: Iterable[Any]) -> None:
        """Compute the teacher's statistics on training data: mean, scale and, if needed, class means.

        Args:
            batches: See :meth:`Method.prepare`; the first 10,000 images are used, or all for class means.

        Raises:
            UserError: there is no batch, or class means are needed and a class has no labelled image.
        """
        assert self.teacher is not None
        moments = Moments.of(
            self.teacher,
            batches,
            self.centres.device,
            classes=len(self.centres) if self._takes_means else 0,
            scatter=self._reads_means,
        )
        if self.config.standardise:
            self.generator.set_statistics(moments.mean.float(), moments.variance.sqrt().float())
        if self._takes_means:
            self._set_means(moments)
        if self.strength > 0 and len(self.centres) > 0:
            self._set_centres(moments)
        self.prepared.fill_(True)

    def _set_means(self, moments: Moments) -> None:
        """Set class means (K, D) in the standardised space of the diffusion."""
        means = moments.class_means.float().to(self.centres.device)
        self.centres.copy_(self.generator.standardise(means))
        if self._reads_means:
            self.class_means.copy_(self.centres)
            self.class_variance.fill_(
                moments.variance_between_means(self.generator.feature_scale.cpu().double())
            )

    def _set_centres(self, moments: Moments) -> None:
        """Set centres (K, D) in the standardised space; classifier rows are rescaled to act on it."""
        assert self.teacher is not None
        if not self._takes_means:
            weight = self.teacher.classifier.weight.float()
            self.centres.copy_(weight * self.generator.feature_scale if self.config.standardise else weight)
        if self.config.centre_scale == "match":
            # the mean of the classifier's rows does not affect its predictions
            self.centres.sub_(self.centres.mean(0))
            own = self.generator
            scale, centre = own.feature_scale.cpu().double(), own.feature_mean.cpu().double()
            square = ((moments.variance + (moments.mean - centre).square()) / scale.square()).sum()
            self.centres.mul_((float(square) / self.centres.square().sum(-1).mean()).sqrt())
        if self._reads_means:
            # generated features are contracted, so the class means are contracted in the same way
            self.class_means.lerp_(self.centres, self.strength)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Diffusion loss plus the probe's cross-entropy.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64, -1 if unknown, or (B, K) probabilities; None trains without labels (λ = 0).
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
        diffusion = self._diffuse(targets, self.generator.condition(feature), generator)
        parts = {"diffusion": diffusion.mse}
        if diffusion.vlb is not None:
            parts["vlb"] = diffusion.vlb
        loss = self.config.diffusion_weight * diffusion.loss
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
        """Student feature (B, d), teacher feature (B, D) and logits (B, K), and losses on feature maps."""
        assert self.teacher is not None
        if self.maps is None:
            teacher_feature, teacher_logits = self.teacher(images)
            return self.backbone.features(images), teacher_feature, teacher_logits, None
        asked = self.maps.asked
        teacher_feature, teacher_logits, teacher_map, teacher_stages = self.teacher.with_stages(images, asked)
        feature, found, stages = self.backbone.with_stages(images, asked)
        assert found is not None and teacher_map is not None
        dense = self.maps(feature, found, stages, teacher_feature, teacher_map, teacher_stages)
        return feature, teacher_feature, teacher_logits, dense

    def _for_probe(self, feature: Tensor, labels: Tensor | None) -> Tensor:
        """Feature for the linear readout; its gradient to the student is scaled by ``label_weight``."""
        weight, constant = self.config.label_weight, feature.detach()
        if weight is None:
            weight = 0.0 if self._same_classes else 1.0
        if weight == 0 or labels is None or self.config.probe in ("teacher", "none"):
            return constant
        return constant + weight * known(labels).unsqueeze(-1) * (feature - constant)

    def _is_prepared(self) -> bool:
        # cached outside the buffer, as reading that synchronises with the device
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
        return self._diffuse(targets, condition, generator, regularised=False).mse

    def targets(self, feature: Tensor, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Targets of the generator (B, D): the standardised teacher feature, contracted towards its class.

        Raises:
            UserError: the teacher's classes are not the student's, so that labels have no centre.
        """
        standard = self.generator.standardise(feature.float())
        if labels is None or self.strength == 0:
            return standard
        self._check_classes()
        probabilities = contracted_classes(labels, logits, self.centres.shape[0], self.config)
        return tokens.contract(standard, probabilities, self.centres, self.strength)

    def _probe_loss(self, logits: Tensor, labels: Tensor | None, teacher_logits: Tensor) -> Tensor | None:
        """Loss of the linear readout on the labels, or on the teacher's probabilities where unknown."""
        if self.config.probe == "none":
            return None
        return taught_loss(logits, None if self.config.probe == "teacher" else labels, teacher_logits)

    def _diffuse(
        self,
        targets: Tensor,
        condition: Tensor,
        generator: torch.Generator | None,
        *,
        regularised: bool = True,
    ) -> MeanLoss:
        config, device = self.config, targets.device
        if regularised and config.mixup > 0:
            weight = beta(config.mixup, generator, device)
            # a permutation that keeps to this process's images (see gendd.processes.share)
            permutation = torch.arange(len(targets) - 1, -1, -1, device=device)
            targets = tokens.mix(targets, weight, permutation)
            condition = tokens.mix(condition, weight.to(condition.dtype), permutation)
        rows = (self.repeats, targets.shape[0], self.generator.num_tokens)

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
        loss_rows = self._compiled_rows or self.generator.loss_rows
        return mean_loss(loss_rows, self.generator.head, targets, condition, Draws(t, noise, keep))

    def student(self) -> Student:
        """See :meth:`Method.student`."""
        # without labels the probe learns from the teacher's classes, if they are the student's
        linear = self.labels is not False or self._same_classes
        info = {"reader": "means"} if self._reads_means else {}
        return Student(self.backbone, self.generator, self._reader(), info=info, linear=linear)

    def _reader(self) -> nn.Linear | None:
        """Classifier of generated features: the class means or the teacher's classifier, if any."""
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
        return fixed_classifier(source.weight, source.bias, self.centres.device)

    def undecayed(self) -> Iterator[nn.Parameter]:
        """The parameters of the generator are exempt from weight decay."""
        return self.generator.parameters()
