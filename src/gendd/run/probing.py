"""The linear probe as a separate stage: refit readout ``linear`` of a finished run.

The new classifier is compared with the existing one on the validation images; the run's student, metrics,
model card and report are replaced only if the new one is better.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from gendd import report
from gendd.config import RunConfig, dump
from gendd.config.registry import learns_from_teacher
from gendd.data import Data, load_data
from gendd.deploy.costs import latency_images, readout_costs
from gendd.errors import UserError, nearest
from gendd.evaluation import Scores, evaluate, pick_readout
from gendd.evaluation.long_tail import shots_of
from gendd.evaluation.refit import SAID, Refit, Target, check_bias, refit_linear
from gendd.files import write_json
from gendd.messages import say
from gendd.report.model_card import fit_of, write_card
from gendd.run import exhibits
from gendd.run.output import warn_of_other_images
from gendd.run.probe_target import AskedTeacher, choose_targets, lay_out
from gendd.student import Student
from gendd.student.folders import RunFolder
from gendd.training import autocast_type, resolve_device

# validation images below which a probe warns that they may choose the wrong classifier
_FEW_IMAGES = 100
_FIGURES = ("top1", "top5", "agreement")
# validation metric by what the fit is judged by, as `readout: auto` names it
_METRICS = {"labels": "top1", "teacher": "agreement"}
_JUDGES = {"teacher": "the teacher", "mean": "readout mean"}


@dataclass(frozen=True)
class Probed:
    """Result of a probe.

    Attributes:
        refit: Result of the fit.
        before: ``top1``, ``top5`` and ``agreement`` of readout ``linear`` on the test images, in percent,
            before the probe; None for what was not measured.
        after: The same for the readout the run has now.
        seconds: Duration of the probe.
        tested_on: Which images were scored: ``test``, or ``validation`` if there are no test images.
    """

    refit: Refit
    before: dict[str, float | None]
    after: dict[str, float | None]
    seconds: float
    tested_on: str = "test"

    def as_dict(self) -> dict[str, Any]:
        """Return the refit's fields, ``before``, ``after``, ``tested_on`` and ``seconds``; JSON-ready."""
        rest = {"before": self.before, "after": self.after, "tested_on": self.tested_on}
        return {**dataclasses.asdict(self.refit), **rest, "seconds": self.seconds}

    def __str__(self) -> str:
        refit = self.refit
        judge = "top-1" if refit.judged_by == "labels" else f"agreement with {_JUDGES[refit.judged_by]}"
        lines = [_change(f"held-out {judge}", refit.trained, refit.refitted)]
        fitted = f"fitted to {SAID[refit.target]} of {refit.images:,} images, weight decay {refit.l2:g}"
        judged = f"{fitted}, judged on {refit.held_images:,}"
        judged += "".join(f"; a fit {other}" for other in refit.others)
        if refit.kept != "refitted":
            return "\n".join([*lines, f"new classifier not better, so the old one was kept: {judged}"])
        for name, title in (("top1", "top-1"), ("agreement", "agreement with the teacher")):
            if self.after[name] is not None:
                lines.append(_change(f"{self.tested_on} {title}", self.before[name], self.after[name]))
        lines.append(f"new classifier kept: {judged}")
        if refit.held_images < _FEW_IMAGES:
            lines.append(
                f"warning: {refit.held_images} images say little about which classifier is better; "
                "gendd distill with the run's options and --resume restores the old one"
            )
        return "\n".join(lines)


def _change(what: str, before: float | None, after: float | None) -> str:
    """Format a percentage before and after, and the difference."""
    was = "–" if before is None else f"{before:.2f} %"
    told = "–" if after is None else f"{after:.2f} %"
    by = "" if before is None or after is None else f"  ({after - before:+.2f})"
    return f"{what:38}{was:>8} → {told}{by}"


def probe_run(
    path: str | Path,
    target: Target | None = None,
    *,
    train_images: int | None = None,
    allow_labels: bool = False,
    device: str | None = None,
    backbone: nn.Module | None = None,
    teacher: nn.Module | None = None,
    progress: bool = False,
) -> Probed:
    """Refit the linear readout of a finished run's student; the better one on the validation images is kept.

    The student is frozen: its features of the training images, without augmentation, are computed once. The
    fit is a multinomial regression whose weight decay is chosen on the validation images (see
    :func:`gendd.refit.refit_linear`).

    Args:
        path: The run folder.
        target: ``labels``, or the probabilities of the ``teacher`` or of readout ``mean``. None: whichever is
            better on the validation images of the labels, if the run may train on them, and the teacher or,
            if it is not available, ``mean``.
        train_images: Maximum number of training images, evenly spread over the set; None: all.
        allow_labels: Allow a run trained without labels to be fitted to labels. Its metrics are then no
            longer those of a student without labels, and the model card says so.
        device: Where to compute; None: the run's configured device.
        backbone: The student's network, if it was built in Python.
        teacher: The teacher, if it was built in Python.
        progress: Show progress bars.

    Raises:
        UserError: no finished run there, its images or the target are not available, its student has no
            classifier of the target's classes, or its folder can't be written.
    """
    start = time.perf_counter()
    run = RunFolder.open(path)
    config = run.config
    _check_settings(target, train_images)
    place = resolve_device(config.training.device) if device is None else resolve_device(device, "--device")
    student = run.student(place, backbone)
    if not student.backbone.has_classifier:
        raise UserError(
            f"The run at {str(path)!r}: expected a student with a classifier, got {student.backbone.name} as "
            "an embedding network, which has none to fit."
        )
    check_bias(student, f"The run at {str(path)!r}")
    lay_out(student, config)
    with _staged(run.folder) as stage:
        data = _images(path, config)
        warn_of_other_images(run.folder, data)
        ask = AskedTeacher(config, data, place, teacher)
        targets, labels = choose_targets(target, config, data, student, ask, allow_labels)
        if target is None and ask.missing is not None and learns_from_teacher(config.method):
            say(f"fitted without the teacher: {ask.missing}")
        refit = refit_linear(
            student,
            ask() if "teacher" in targets or not labels else None,
            data,
            targets,
            labels=labels,
            device=place,
            workers=config.data.workers,
            limit=train_images,
            dtype=autocast_type(config.training.precision, place),
            progress=progress,
        )
        update = _Update(run, config, data, student, refit, place, progress)
        return update.write(stage, ask, start)


def _check_settings(target: str | None, train_images: int | None) -> None:
    known = get_args(Target)
    if target is not None and target not in known:
        raise UserError(
            f"--target: expected labels, teacher or mean, got {target!r}.{nearest(target, known)}"
        )
    if train_images is not None and train_images < 1:
        raise UserError(f"--train-images: expected a positive integer, got {train_images}.")


def _images(path: str | Path, config: RunConfig) -> Data:
    try:
        return load_data(config.data, config.evaluation.images)
    except UserError as error:
        raise UserError(
            f"The run at {str(path)!r}: expected its images where its config.yaml says; {error}"
        ) from error


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside the run's for the files that will replace its own."""
    stage = folder / "probe.tmp"
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
    except OSError as error:
        raise UserError(
            f"Expected a run's folder that can be written, got {str(folder)!r} ({error.strerror})."
        ) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass
class _Update:
    """A run and its student after a fit; writes the files that change."""

    run: RunFolder
    config: RunConfig
    data: Data
    student: Student
    refit: Refit
    device: torch.device
    progress: bool

    def write(self, stage: Path, ask: AskedTeacher, start: float) -> Probed:
        """Measure the new readout, write the changed files atomically and return the result."""
        metrics = self.run.metrics
        own = metrics["student"]
        entry = own["readouts"].get("linear", {})
        before = {name: entry.get(name) for name in _FIGURES}
        changed = self.refit.kept == "refitted"
        scores = self._measure(own, before, ask) if changed else None
        if changed and own["readout"] == "linear":
            # the other methods' predictions are no longer available
            metrics.pop("gains", None)
        after = {name: own["readouts"]["linear"].get(name) for name in _FIGURES}
        seconds = round(time.perf_counter() - start, 2)
        probed = Probed(self.refit, before, after, seconds, self.data.tested_on)
        last = own.get("probe", {})
        by = self._labels_seen_by(last)
        own["probe"] = {
            **probed.as_dict(),
            "labels_seen_by": by,
            # the classifier from training, however often the run is probed
            "trained_along": last.get("trained_along", before),
            # what the current readout was fitted to; None: it is the one from training
            "fit": self._fit(last),
        }
        if "labels_used" in metrics["run"]:
            metrics["run"]["labels_used"] = by is not None
        if scores is not None:
            self._stage(stage, metrics, scores)
        write_json(stage / "metrics.json", metrics)
        self._replace(stage)
        return probed

    def _measure(self, own: dict[str, Any], before: dict[str, Any], ask: AskedTeacher) -> Scores:
        """Score the new readout on the test images and update the student's metrics."""
        data, student = self._named(), self.student
        entry = own["readouts"].get("linear", {})
        # created now, or from a checkpoint imported without images
        fresh = "multiply_adds" not in entry
        teacher = ask() if fresh or before["agreement"] is not None else None
        if ask.missing is not None and before["agreement"] is not None:
            say(f"the agreement with the teacher is no longer known: {ask.missing}")
        scores = evaluate(
            student,
            data.test,
            readouts=("linear",),
            teacher=teacher,
            num_classes=data.num_classes,
            shots=shots_of(data, self.config.data),
            answered=True,
            device=self.device,
            workers=self.config.data.workers,
            progress=self.progress,
        )["linear"]
        costs = readout_costs(student, "linear", latency_images(data.test, self.device)) if fresh else {}
        own["readouts"]["linear"] = {**entry, **scores.as_dict(), **costs}
        self._pick(own)
        own["readout"] = student.readout
        return scores

    def _named(self) -> Data:
        """Return the data with the student's classes if it has none of its own."""
        data = self.data
        if data.class_names:
            return data
        return dataclasses.replace(data, class_names=self.student.class_names("linear"))

    def _fit(self, last: dict[str, Any]) -> dict[str, Any] | None:
        """Return target and number of images of the fit behind the current readout."""
        refit = self.refit
        if refit.kept == "refitted":
            return {"target": refit.target, "images": refit.images}
        return fit_of(last)

    def _pick(self, own: dict[str, Any]) -> None:
        """Redo the choice of ``readout.name: auto``, by the same metric as before."""
        pick, metric = own.get("readout_pick"), _METRICS.get(self.refit.judged_by)
        if pick is None:
            return
        if pick["metric"] != metric or self.data.val is None:
            by = (
                "by other images"
                if self.data.val is None
                else f"by {pick['metric']} of the validation images"
            )
            say(
                f"readout.name auto: not picked again, as it was picked {by}; the student still uses "
                f"{self.student.readout!r}"
            )
            return
        pick["percent"]["linear"] = self.refit.refitted
        found = {name: Scores(value, None, value, confusion=None) for name, value in pick["percent"].items()}
        again = pick_readout(found, pick["metric"])
        if again.name != self.student.readout:
            say(str(again))
            self.student.readout = again.name

    def _labels_seen_by(self, last: dict[str, Any]) -> str | None:
        """Return which part of the student has seen labels: its training, or the linear readout alone."""
        if self.config.data.labels and self.data.labelled:
            return "training"
        if self.refit.kept == "refitted":
            return "readout" if self.refit.target == "labels" else None
        seen: str | None = last.get("labels_seen_by")
        return seen

    def _stage(self, stage: Path, metrics: dict[str, Any], scores: Scores) -> None:
        """Write the student, and its model card and report if the run has them."""
        folder, student = self.run.folder, self.student
        student.save(stage / "student")
        if (folder / "student" / "README.md").is_file():
            write_card(stage / "student" / "README.md", student, metrics)
        if (folder / "report.html").is_file():
            data, shown = self._named(), student.readout == "linear"
            content = report.ReportData(
                title=folder.name,
                metrics=metrics,
                confusion=scores.confusion if shown else None,
                class_names=data.class_names,
                examples=exhibits.examples(student, data, self.device, self.config.seed) if shown else [],
                answers={self.config.method: scores.answers} if shown and scores.answers else {},
                picture=exhibits.picture_of(data.test, scores.images),
                folder=str(folder),
                config_yaml=dump(self.config),
            )
            report.update_report(content, folder / "report.html", stage / "report.html")

    def _replace(self, stage: Path) -> None:
        """Move the written files into the run folder, the metrics last."""
        files = sorted(path.relative_to(stage) for path in stage.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: file.name == "metrics.json"):
            (stage / file).replace(self.run.folder / file)
