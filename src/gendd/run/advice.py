"""Warnings of a finished run, each with the option to try."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gendd.config import RunConfig
from gendd.config.registry import label, learns_from_teacher
from gendd.training import WAITS

FEW_STEPS = 500
# warn where one class takes more than this share of the predictions and has far fewer of the images
_NEARLY_ALL = 0.9
# warn where the cheaper readout linear is better by more than this many points
_APART = 1.0
# warn where readout linear is behind mean by at least this many points
_FAR_APART = 5.0
# trainings shorter than this many seconds get no warning about data loading
_LONG = 30.0


def advice(config: RunConfig, metrics: dict[str, Any], confusion: Tensor | None, steps: int) -> list[str]:
    """Return the warnings of a finished run, one line each; an empty list if there are none.

    Args:
        config: Configuration of the run.
        metrics: Metrics of the run.
        confusion: (K, K) confusion counts of the student's chosen readout, rows true classes, or None.
        steps: Optimiser steps the student was trained for.
    """
    lines = []
    images = f"on the {metrics['run'].get('tested_on', 'test')} images"
    if steps < FEW_STEPS:
        epochs = config.training.num_epochs(1)
        more = max(epochs + 1, round(epochs * FEW_STEPS * 2 / max(1, steps)))
        who = "student" if learns_from_teacher(config.method) else "network"
        lines.append(f"the {who} was trained for only {steps} steps; try --training.epochs {more}")
    if (waits := _waits(metrics["student"])) is not None:
        lines.append(waits)
    if confusion is not None and len(confusion) > 2 and int(confusion.sum()) > 0:
        predicted, true = confusion.sum(0).double(), confusion.sum(1).double()
        share = float(predicted.max() / predicted.sum())
        if share > _NEARLY_ALL and float(true.max() / true.sum()) < 0.5:
            rate = f"--training.lr {config.training.lr / 3:.2g}"
            lines.append(
                f"one class takes {100 * share:.0f} % of the predictions: the student has learned next to "
                f"nothing; try more epochs, or {rate}"
            )
    own, measure = own_figure(metrics["student"])
    # auto has already chosen on the validation images
    if own is not None and measure is not None and config.readout.name != "auto":
        linear = metrics["student"]["readouts"].get("linear", {}).get(measure)
        if linear is not None and linear > own + _APART:
            lines.append(
                f"readout linear, which costs least, is better {images} ({linear:.2f} against "
                f"{own:.2f} %); try --readout.name auto, which chooses on the validation images"
            )
    apart = _apart(metrics["student"], measure, images)
    if apart is not None:
        lines.append(apart)
    better = {}
    for name, figures in metrics["baselines"].items():
        value = figures.get(measure) if measure is not None else None
        if own is not None and value is not None and value > own:
            better[name] = value
    alone = better.pop("supervised", None)
    if alone is not None:
        weak = (metrics.get("teacher") or {}).get(measure)
        settings = config.gendd
        reach = config.method == "gendd" and not settings.label_weight
        reach = reach and settings.probe in ("auto", "labels")
        then = "distillation does not help here; use that network, in baselines/supervised, or try "
        if measure == "top1" and weak is not None and weak < alone and reach:
            refit = " --gendd.refit auto" if settings.refit == "none" else ""
            then = f"the teacher has only {weak:.2f} %; try --gendd.label_weight 1{refit}, or "
        lines.append(
            f"the student is below the same network trained on labels alone ({own:.2f} against {alone:.2f} % "
            f"{images}): {then}more epochs or another --training.lr"
        )
    if better:
        name = max(better, key=lambda each: better[each])
        assert own is not None
        lines.append(
            f"{label(name)}, a baseline of this run, is better {images} ({better[name]:.2f} against "
            f"{own:.2f} %); use its student, in baselines/{name}, or try more epochs or another --training.lr"
        )
    return lines


def _waits(student: dict[str, Any]) -> str | None:
    """Return a warning if training waited for data; None if it did not, or was short."""
    trained, loading = student.get("train_seconds") or 0.0, student.get("loading_seconds") or 0.0
    if trained < _LONG or loading <= WAITS * trained:
        return None
    return (
        f"{loading / trained:.0%} of the training time was spent waiting for images; give the loader more "
        "processes (--data.workers), keep images in memory (--data.in_memory true) or store them smaller: "
        "gendd profile shows what a step takes"
    )


def _apart(student: dict[str, Any], measure: str | None, images: str) -> str | None:
    """Return a warning if readout ``linear`` is far behind ``mean``, else None."""
    found = {name: student["readouts"].get(name, {}).get(measure) for name in ("linear", "mean")}
    if None in found.values() or found["mean"] < found["linear"] + _FAR_APART:
        return None
    return (
        f"readout linear is far behind readout mean ({found['linear']:.2f} against {found['mean']:.2f} % "
        f"{images}); use mean, or refit linear with gendd probe"
    )


def own_figure(student: dict[str, Any]) -> tuple[float | None, str | None]:
    """Return the score of the student's chosen readout and its metric, ``top1`` or ``agreement``, or None."""
    figures = student["readouts"].get(student.get("readout") or "", {})
    for measure in ("top1", "agreement"):
        if figures.get(measure) is not None:
            return float(figures[measure]), measure
    return None, None


def best_on_validation(metrics: dict[str, Any]) -> tuple[str, float] | None:
    """Return the method with the best validation score, and that score in percent; None if the methods can't
    be compared."""
    run, found = metrics["run"], {}
    for name, figures in {**metrics["baselines"], run["method"]: metrics["student"]}.items():
        chosen = figures.get("validation")
        if chosen is None or "percent" not in chosen:
            return None
        kind = "agreement" if chosen["metric"] == "val/agreement" else "top1"
        found[name] = (kind, float(chosen["percent"]))
    if len({kind for kind, _ in found.values()}) != 1:
        return None
    name = max(found, key=lambda each: (found[each][1], each == run["method"]))
    return name, found[name][1]
