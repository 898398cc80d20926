"""The configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gendd.config import registry
from gendd.config.checks import SEED, check, check_section
from gendd.config.data import DataConfig
from gendd.config.evaluation import EvaluationConfig
from gendd.config.method import GenDDConfig
from gendd.config.model import ModelConfig
from gendd.config.readout import ReadoutConfig
from gendd.config.training import TrainingConfig

# methods whose settings are a field of the run's configuration
_OWN_SECTIONS = {"gendd"}


@dataclass
class RunConfig:
    """Everything a run depends on; saved as ``config.yaml`` in its folder.

    Args:
        method: Method that trains the student: its name (``gendd methods`` lists them), or
            ``path/to/file.py:CLASS`` for your own.
        baselines: Methods trained as well, from the same seed, for the table and the report; as an option
            ``kd,kl`` or ``[kd,kl]``.
        teacher: The frozen network to distil. Without weights it is first trained on the labels with
            ``teacher_training``, and cached.
        student: The network to train.
        data: The images.
        gendd: Settings of method gendd.
        settings: Settings of other methods by name; in files and options each has its own section,
            ``kd.temperature``.
        training: Optimisation of the student.
        teacher_training: Optimisation of a teacher that comes without weights.
        readout: How logits are read from the finished student, and the sampler's settings.
        evaluation: Evaluation of the finished student.
        seed: Seed of all randomness: weights, order, augmentation, diffusion, sampling.
        out: Output folder; null: a folder below ``runs/``.
    """

    method: str = "gendd"
    baselines: list[str] = field(default_factory=list)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig("cifar/resnet20"))
    student: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    gendd: GenDDConfig = field(default_factory=GenDDConfig)
    settings: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    teacher_training: TrainingConfig = field(default_factory=TrainingConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        check_section(self, "", {"seed": SEED})
        registry.check_name("method", self.method)
        for name in self.baselines:
            registry.check_name("baselines", name)
        check(
            self.student.classes is None,
            "student.classes",
            "null, as the student's classes follow from the data and the teacher",
            self.student.classes,
        )
        check(
            self.data.labels or self.gendd.refit != "labels",
            "gendd.refit",
            "none, auto, teacher or mean where data.labels is false",
            self.gendd.refit,
        )
        check(
            self.method != "gendd" or self.readout.guidance == 1 or self.gendd.condition_dropout > 0,
            "readout.guidance",
            "1 where gendd.condition_dropout is 0 (dropout trains the unconditional branch)",
            self.readout.guidance,
        )
        check(
            self.readout.steps <= self.gendd.timesteps,
            "readout.steps",
            f"an integer up to gendd.timesteps, {self.gendd.timesteps:,}",
            self.readout.steps,
        )
        frozen = "{} (only the frozen teacher has another)"
        check(self.student.dtype == "fp32", "student.dtype", frozen.format("fp32"), self.student.dtype)
        check(not self.student.compile, "student.compile", frozen.format("false"), self.student.compile)
        check(self.student.classifier, "student.classifier", frozen.format("true"), self.student.classifier)

    def settings_of(self, method: str) -> Any:
        """Settings of a method; its defaults if none are set."""
        if method in _OWN_SECTIONS:
            return getattr(self, method)
        return self.settings.get(registry.section(method)) or registry.settings_type(method)()
