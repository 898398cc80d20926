"""Section ``gendd``: the settings of Generative Distribution Distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gendd.config.checks import (
    INTEGER,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INTEGER,
    UNIT,
    Rule,
    at_most,
    check_section,
    or_null,
)

Prediction = Literal["sample", "epsilon", "v"]


_RULES = {
    "contraction": or_null(UNIT),
    "alpha": UNIT,
    "time_power": POSITIVE,
    "mixup": NON_NEGATIVE,
    "condition_dropout": Rule(lambda value: 0 <= value < 1, "a probability in [0, 1)"),
    "token_width": POSITIVE_INTEGER,
    "repeats": or_null(POSITIVE_INTEGER),
    "head_depth": at_most(100, POSITIVE_INTEGER),
    "head_width": or_null(at_most(65_536, POSITIVE_INTEGER)),
    "projector": or_null(at_most(65_536, INTEGER)),
    **dict.fromkeys(("map_weight", "stage_weight", "diffusion_weight"), NON_NEGATIVE),
    "label_weight": or_null(NON_NEGATIVE),
    "timesteps": Rule(lambda value: 2 <= value <= 1_000_000, "an integer of 2 to 1,000,000"),
}


@dataclass
class GenDDConfig:
    """Settings of GenDD. Symbols as in the paper: s student feature, f teacher feature, z condition.

    Args:
        contraction: Strength λ of the contraction f ← (1-λ) f + λ c_y, in [0, 1]. Without labels it is 0.
            Null: 0.3, or 0 if there are no centres for the labels' classes (the teacher has other classes
            and ``centres`` is not ``means``).
        contract: Which images' features are contracted: ``all``, as published, or ``errors``: each in
            proportion to the distance between its label and the teacher's probabilities, 1 minus the
            probability of the label. Only applies if the teacher has the labels' classes.
        alpha: Weight of the label against the teacher's own prediction in the contraction's class
            probabilities, in [0, 1].
        centres: Class centres c_y: ``classifier`` (row y of the teacher's classifier, as published) or
            ``means`` (mean teacher feature of class y over the training images). If the teacher has no
            classifier, or one for other classes than the data's, the means also classify generated features.
        centre_scale: ``none`` uses the centres as they are; ``match`` scales them so that their
            mean squared norm equals that of the teacher's features.
        mixup: β of the feature mixup's Beta(β, β); 0 is off.
        token_width: Token width τ, at most the teacher's feature width; if it does not divide that width, the
            last token is padded.
        repeats: M, training rows per token and step, each with its own t and noise. Null: as many as give 8
            rows per image, at least 2.
        condition_dropout: Probability that a row's condition is zeroed, in [0, 1). Needed for guided
            sampling; it costs the student the same fraction of its gradient.
        prediction: What the head predicts: ``sample`` (x0), ``epsilon`` or ``v``.
        learned_variance: Also predict the variance (the VLB term), as published.
        standardise: Centre and scale the teacher's feature per dimension.
        time_power: p in t = T (1 - (1-u)^p) with u uniform: 1 is uniform; larger values sample more times
            near pure noise, where only the condition tells the head what to generate.
        head_width: Width of the head; null: 128, or less if one pass of the head would cost more than a
            quarter of the student's multiply-adds, or the rows of a training step more than the student.
        head_depth: Residual blocks of the head.
        zero_init: Initialise the head's modulations and output layer at zero, as published; the student
            gets no gradient until they have grown.
        timesteps: T, length of the diffusion schedule.
        probe: Training target of the linear readout: ``labels``, ``teacher`` (the teacher's
            predictions), ``none``, or ``auto``: labels if training may use them, else the teacher.
        map_weight: Weight of the regression from the student's last feature map to the teacher's, at every
            position. 0: learn from the pooled feature alone, as published. Networks without maps always do.
        stage_weight: Weight of the regression of the teacher's finer feature maps, those of the two stages
            before the last.
        projector: Hidden channels of the convolutional projector from the student's last feature map to the
            teacher's. It is part of the student: the student's feature, which conditions the head, is the
            mean of the projected map. 0: use a projector in training only. Null: half the teacher's width,
            or less if it would cost more than a quarter of the student's multiply-adds; 0 if training uses
            labels of other classes than the teacher's, which then train the student's own feature.
        residual: Generate the difference between the teacher's feature and the projected student's estimate
            of it. Null: if the feature is split into tokens, there is a projector and ``prediction`` is
            ``sample``.
        diffusion_weight: Weight of the diffusion loss.
        label_weight: Weight with which the linear readout's cross-entropy also trains the student itself, if
            training uses labels; null: 1 if the teacher does not have the labels' classes, else 0. In long
            trainings with correct labels 0.3 can be better.
        refit: Fit the linear readout again after training, to ``labels``, the ``teacher``'s
            probabilities or those of readout ``mean`` on the unaugmented training images, or with ``auto``
            to the labels, if training may use them, and to the teacher, or to ``mean`` if the teacher has
            other classes. The readout that is best on the validation images is kept, be it the one trained
            with the student. ``none``: no fit.
    """

    contraction: float | None = None
    contract: Literal["errors", "all"] = "errors"
    alpha: float = 1.0
    centres: Literal["classifier", "means"] = "classifier"
    centre_scale: Literal["none", "match"] = "none"
    mixup: float = 0.0
    token_width: int = 64
    repeats: int | None = None
    condition_dropout: float = 0.0
    prediction: Prediction = "sample"
    learned_variance: bool = False
    standardise: bool = True
    time_power: float = 2.0
    head_width: int | None = None
    head_depth: int = 3
    zero_init: bool = False
    timesteps: int = 1000
    map_weight: float = 1.0
    stage_weight: float = 4.0
    projector: int | None = None
    residual: bool | None = None
    diffusion_weight: float = 1.0
    label_weight: float | None = None
    probe: Literal["auto", "labels", "teacher", "none"] = "auto"
    refit: Literal["none", "auto", "labels", "teacher", "mean"] = "none"

    def __post_init__(self) -> None:
        check_section(self, "gendd.", _RULES)
