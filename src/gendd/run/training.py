"""Train one method of a run, and choose its student's readout afterwards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from gendd.config import RunConfig
from gendd.data import Data
from gendd.evaluation import ReadoutPick, evaluate, pick_readout
from gendd.evaluation.embedding import collect_features
from gendd.evaluation.refit import Refit, best_targets, refit_linear, targets_of
from gendd.messages import say
from gendd.methods import Method, Pretraining, build_method
from gendd.models import Backbone, Frozen
from gendd.processes import first_then_all, from_first, same_state
from gendd.run.networks import student_network
from gendd.run.settings import refit_target, sees_labels
from gendd.run.view_cache import cached_teacher, open_cache
from gendd.student import Student
from gendd.student.readout import choose_mean_time
from gendd.training import (
    CachedTeacher,
    FitResult,
    LightningMethod,
    derive_seed,
    fit,
    placed,
    resolve_device,
    shows_progress,
)


@dataclass(frozen=True)
class Trained:
    """A student and its training result; ``refit`` is set if its linear readout was refitted."""

    student: Student
    result: FitResult
    refit: Refit | None = None


def train(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    place: Path,
    resume: bool,
    given: nn.Module | None = None,
) -> Trained:
    """Train the student by ``config.method``.

    Args:
        config: Configuration of the run, with this method.
        data: Data of the run.
        teacher: On the device; None for a method without one.
        place: Folder for logs and checkpoints.
        resume: Resume from the checkpoint there.
        given: The student, if it was built in Python.
    """
    seen = sees_labels(config, data)
    asked = teacher
    if teacher is not None and config.training.cache_teacher:
        asked = cached_teacher(config, data, teacher)
    torch.manual_seed(derive_seed(config.seed, "student"))
    backbone = first_then_all(lambda: student_network(config, data, teacher, given))
    if config.method == "gendd" and config.training.stage1_epochs > 0:
        assert teacher is not None
        _pretrain(backbone, teacher, config, data, place / "stage1", resume)
    torch.manual_seed(derive_seed(config.seed, "method"))
    method = _built(config, backbone, asked, data)
    if isinstance(method.teacher, CachedTeacher):
        open_cache(method.teacher, config, data, method)
    result = fit(
        method,
        data,
        config.training,
        config.data,
        seed=config.seed,
        folder=place,
        readout=config.readout.name,
        resume=resume,
        title=config.method,
    )
    student = method.student()
    _settle_mean_time(student, config, data, teacher)
    target = refit_target(config)
    if target is None or teacher is None:
        return Trained(_shared(student), result)
    labels = seen and method.may_see_labels
    refit = refit_linear(
        student.eval(),
        teacher,
        data,
        best_targets(targets_of(student, teacher, labels)) if target == "auto" else target,
        labels=labels,
        device=resolve_device(config.training.device),
        workers=config.data.workers,
        progress=shows_progress(config.training),
    )
    say(str(refit))
    return Trained(_shared(student), result, refit)


def _built(config: RunConfig, backbone: Backbone, teacher: Frozen | None, data: Data) -> Method:
    """Build the method; one that trains on labelled images alone bypasses the teacher cache."""
    seen = sees_labels(config, data)
    method = build_method(config, backbone, teacher, seen)
    if isinstance(teacher, CachedTeacher) and seen and data.partly_labelled and not method.takes_unknown:
        method.ask(teacher.source)
    return method


def untrained(
    config: RunConfig,
    data: Data,
    teacher: Frozen | None,
    device: torch.device,
    given: nn.Module | None = None,
) -> LightningMethod:
    """Return a method on the device at the start of training, before feature statistics are collected."""
    torch.manual_seed(derive_seed(config.seed, "student"))
    backbone = student_network(config, data, teacher, given)
    method = _built(config, backbone, teacher, data)
    channels_last = placed(method, config.training, device)
    training, readout = config.training, config.readout.name
    module = LightningMethod(method, data, training, config.data, config.seed, channels_last, readout)
    return module.to(device)


def _shared(student: Student) -> Student:
    """Give all processes the first one's student, as theirs may differ by rounding."""
    same_state(student)
    if student.generator is not None:
        generator = student.generator
        generator.mean_time = from_first(lambda: generator.mean_time)
    return student


def _pretrain(
    backbone: Backbone, teacher: Frozen, config: RunConfig, data: Data, folder: Path, resume: bool
) -> None:
    """Train stage 1: the backbone alone, without the head."""
    # milestones and warmup are meant for stage 2
    stage1 = dataclasses.replace(
        config.training,
        epochs=config.training.stage1_epochs,
        lr=config.training.stage1_lr,
        schedule="cosine",
        milestones=[],
        warmup_epochs=None,
        stage1_epochs=0,
        # only the teacher's classifier is used
        cache_teacher=0,
    )
    fit(
        Pretraining(backbone, teacher),
        data,
        stage1,
        config.data,
        seed=derive_seed(config.seed, "stage1"),
        folder=folder,
        resume=resume,
        title="stage 1",
    )


def _settle_mean_time(student: Student, config: RunConfig, data: Data, teacher: Frozen | None) -> None:
    """Choose the ε head's time step on the validation images, if there are any and a readout uses it."""
    generator, classifier = student.generator, student.classifier
    if generator is None or classifier is None or teacher is None or data.val is None:
        return
    if generator.prediction == "epsilon":
        device = resolve_device(config.training.device)
        held = collect_features(
            student.to(device).eval(), teacher, data.val, device=device, workers=config.data.workers
        )
        assert held.teacher is not None
        share = choose_mean_time(generator, classifier, held.own.to(device), held.teacher.to(device))
        say(
            f"readout mean: the noise-predicting head is evaluated at t = {generator.mean_time}, where it "
            f"agrees with the teacher on {100 * share:.2f} % of validation images"
        )


def settle_readout(
    student: Student, config: RunConfig, data: Data, teacher: Frozen | None, device: torch.device
) -> ReadoutPick | None:
    """Set the student's readout: the configured one, or what ``auto`` picks; report and return the pick."""
    name, pick = config.readout.name, None
    student.settings = dataclasses.replace(config.readout, name="linear")
    if name == "auto":
        name = "mean" if "mean" in student.readouts else "linear"
    one_pass = tuple(each for each in student.readouts if each != "sample")
    if config.readout.name == "auto" and len(one_pass) > 1 and data.val is not None:
        scores = evaluate(
            student.to(device).eval(),
            data.val,
            readouts=one_pass,
            teacher=teacher,
            num_classes=data.num_classes,
            device=device,
            seed=config.seed,
            workers=config.data.workers,
            progress=shows_progress(config.training),
        )
        # top-1 is missing without labels, or if a readout predicts the teacher's classes
        seen = sees_labels(config, data) and any(score.top1 is not None for score in scores.values())
        metric: Literal["top1", "agreement"] = "top1" if seen else "agreement"
        if any(getattr(score, metric) is not None for score in scores.values()):
            pick = pick_readout(scores, metric)
            say(str(pick))
            name = pick.name
    if name in student.readouts:
        # after training with labels the readout has to predict the data's classes, not the teacher's
        other = sees_labels(config, data) and student.num_classes(name) != data.num_classes
        if other and "linear" in student.readouts:
            theirs = f"the teacher's {student.num_classes(name)} classes"
            say(f"using readout linear, as readout {name} predicts {theirs}")
            name = "linear"
        student.readout = name
    return pick
