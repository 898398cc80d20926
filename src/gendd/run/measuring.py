"""The metrics of a run as in ``metrics.json``: of the teacher, the student and the baselines."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gendd.config import ReadoutName, RunConfig, to_dict
from gendd.config.registry import label
from gendd.data import Data
from gendd.deploy.costs import OutputName, latency_images, readout_costs
from gendd.evaluation import Answers, Scores, evaluate
from gendd.evaluation.embedding import embedding_scores
from gendd.evaluation.long_tail import Shots, shots_of
from gendd.evaluation.paired import gain
from gendd.files import is_python_name
from gendd.models import Frozen, count_parameters, memory_format
from gendd.processes import is_first
from gendd.run.settings import sees_labels
from gendd.run.training import Trained
from gendd.student import Student
from gendd.training import FitResult, is_share, resolve_precision, shows_progress


def measure(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    results: dict[str, Trained],
    device: torch.device,
) -> tuple[dict[str, Any], Tensor | None, dict[str, Answers]]:
    """Measure everything that a run reports.

    Args:
        config: Configuration of the run.
        data: Data of the run.
        teacher: On the device; None if no method has one.
        results: Trained students, by method.
        device: Where to compute.

    Returns:
        All metrics, JSON-ready; the confusion matrix (K, K) of the student's chosen readout; and the
        predictions on the test images of the student and each other network of the table, by method.
    """
    images, shots = latency_images(data.test, device), shots_of(data, config.data)
    measuring = _Measuring(config, data, device, images, shots)
    main = results[config.method].student.to(device).eval()
    metrics: dict[str, Any] = {
        "run": measuring.circumstances(main),
        "teacher": None,
        "student": None,
        "baselines": {},
    }
    embedding: dict[str, Any] = {}
    if teacher is not None and (not teacher.has_classifier or teacher.num_classes != data.num_classes):
        embedding = embedding_scores(
            main, teacher, data.train, data.test, data.num_classes, device=device, workers=config.data.workers
        )
    answers: dict[str, Answers] = {}
    if teacher is not None:
        metrics["teacher"], said = measuring.teacher(teacher)
        answers |= {} if said is None else {"teacher": said}
        if embedding:
            metrics["teacher"]["embedding"] = embedding.pop("teacher")
    confusion = None
    for name, trained in results.items():
        student = trained.student.to(device).eval()
        scores = measuring.scores(student, teacher)
        if student.readouts and (said := scores[student.readout].answers) is not None:
            answers[name] = said
        if name != config.method:
            metrics["baselines"][name] = measuring.baseline(name, trained, scores)
            continue
        metrics["student"] = measuring.student(trained, scores, embedding)
        if main.readouts:
            confusion = scores[main.readout].confusion
            metrics["run"]["test_images"] = scores[main.readout].images
    metrics["gains"] = _gains(config.method, answers)
    # last, as unreadable streamed images are found during the measurements
    metrics["run"]["skipped"] = {each.part: len(each) for each in data.skipped}
    if shots is not None:
        metrics["run"]["shot_thresholds"] = [shots.few, shots.many]
    return metrics, confusion, answers


def _gains(method: str, answers: dict[str, Answers]) -> dict[str, dict[str, float]]:
    """Return the student's gain over each other row, by method."""
    own = answers[method].right if method in answers else None
    others = {name: said.right for name, said in answers.items() if name != method}
    return {
        name: gain(own, other)._asdict()
        for name, other in others.items()
        if own is not None and other is not None and len(own) == len(other)
    }


@dataclass(frozen=True)
class _Measuring:
    """Shared context of all measurements of a run.

    Attributes:
        config: Configuration of the run.
        data: Data of the run.
        device: Where to compute.
        images: A batch on the device to measure latency with.
        shots: Groups of classes by number of training images; None if classes are not grouped.
        told: The teacher's outputs on the test images, by batch.
    """

    config: RunConfig
    data: Data
    device: torch.device
    images: Tensor
    shots: Shots | None
    told: dict[int, Tensor] = field(default_factory=dict)

    def circumstances(self, student: Student) -> dict[str, Any]:
        """Return the conditions of the measurements: data, settings, device and versions."""
        config, data = self.config, self.data
        return {
            "method": config.method,
            "name": Path(config.out or "").name,
            "seed": config.seed,
            "train_images": len(data.train),
            **({"labelled_images": data.known_labels} if data.partly_labelled else {}),
            "val_images": 0 if data.val is None else len(data.val),
            "test_images": len(data.test),
            "evaluation_images": config.evaluation.images,
            "tested_on": data.tested_on,
            "labels_used": sees_labels(config, data),
            "epochs": config.training.epochs,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "precision": resolve_precision(config.training.precision, self.device),
            "latency_batch": len(self.images),
            "latency_memory_format": str(memory_format(student)).removeprefix("torch."),
            "versions": {
                "gendd": version("gendd"),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": version("lightning"),
            },
        }

    def scores(self, student: Student, teacher: Frozen | None = None) -> dict[ReadoutName, Scores]:
        """Return the test scores by readout; with a teacher, the agreement with it too."""
        return evaluate(
            student,
            self.data.test,
            teacher=teacher,
            told=self.told,
            shots=self.shots,
            num_classes=self.data.num_classes,
            device=self.device,
            answered=True,
            seed=self.config.seed,
            workers=self.config.data.workers,
            progress=shows_progress(self.config.training),
        )

    def teacher(self, teacher: Frozen) -> tuple[dict[str, Any], Answers | None]:
        """Return the teacher's metrics, and its predictions on the test images."""
        reader = Student(teacher.backbone).to(self.device).eval()
        scores = self.scores(reader)
        if reader.readouts:
            own = self._figures(reader, "linear", scores)
        else:
            own = {"top1": None, "top5": None, **readout_costs(reader, "feature", self.images)}
        own.pop("agreement", None)
        said = scores["linear"].answers if reader.readouts else None
        return {"name": self.config.teacher.name, **own}, said

    def baseline(self, name: str, trained: Trained, scores: dict[ReadoutName, Scores]) -> dict[str, Any]:
        """Return the metrics of a baseline, for its student's chosen readout."""
        figures = self._figures(trained.student, trained.student.readout, scores)
        return {
            "name": self.config.student.name,
            **({"label": label(name)} if is_python_name(name) else {}),
            **figures,
            **_fitted(trained.result),
        }

    def student(
        self, trained: Trained, scores: dict[ReadoutName, Scores], embedding: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the student's metrics for each readout, and ``embedding`` for its features."""
        student = trained.student
        readouts = {each: self._figures(student, each, scores) for each in student.readouts}
        if "sample" in readouts:
            sampler = to_dict(student.settings)
            sampler.pop("name")
            readouts["sample"].update(sampler)
        told: dict[str, Any] = {
            "name": self.config.student.name,
            "parameters": count_parameters(student.backbone),
            "readouts": readouts,
            "readout": student.readout if student.readouts else None,
            **_fitted(trained.result),
        }
        if trained.refit is not None:
            told["refit"] = dataclasses.asdict(trained.refit)
        if embedding:
            outputs: tuple[OutputName, ...] = ("feature", "generated")
            told["embedding"] = {
                each: {**embedding[each], **readout_costs(student, each, self.images)}
                for each in outputs
                if each in embedding
            }
        return told

    def _figures(
        self, student: Student, name: ReadoutName, scores: dict[ReadoutName, Scores]
    ) -> dict[str, Any]:
        # one process measures latency while the others wait
        costs = readout_costs(student, name, self.images) if is_first() else {}
        return {**scores[name].as_dict(), **costs}


def _fitted(result: FitResult) -> dict[str, Any]:
    """Return durations and validation result of a training."""
    return {
        "train_seconds": round(result.seconds, 2),
        "loading_seconds": round(result.waited, 2),
        "validation": _validation(result),
    }


def _validation(result: FitResult) -> dict[str, Any] | None:
    """Return the validation metric that chose the checkpoint; None without validation images."""
    if result.monitor is None or result.best is None:
        return None
    if not is_share(result.monitor):
        return {"metric": result.monitor, "loss": round(result.best, 5)}
    return {"metric": result.monitor, "percent": round(100 * result.best, 2)}
