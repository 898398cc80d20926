"""Page of a report: title, cards and sections."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from gendd.config import registry
from gendd.report.comparison import Row, is_training, label, measure_of, method_of, own_row, rows
from gendd.report.content import ReportData
from gendd.report.drawing import DARK, LIGHT
from gendd.report.markup import document, part
from gendd.report.numbers import count, duration, megabytes, milliseconds, ratio, signed
from gendd.report.sections.confusion import confusion
from gendd.report.sections.costs import costs
from gendd.report.sections.examples import examples
from gendd.report.sections.features import features
from gendd.report.sections.mistakes import beside, hardest
from gendd.report.sections.reliability import reliability
from gendd.report.sections.settings import settings
from gendd.report.sections.tables import comparison, groups
from gendd.report.sections.training import losses, validation


def page(data: ReportData) -> str:
    """Return the whole report as HTML."""
    table, run, method = rows(data.metrics), data.metrics.get("run", {}), method_of(data.metrics)
    warnings = run.get("warnings")
    parts = (
        _verdict(data.metrics, table),
        _next(data.folder),
        part("cards", _cards(data.metrics, table)),
        part("warnings", warnings) if warnings else None,
        comparison(table, run),
        groups(table, run),
        costs(table),
        validation(data.curves),
        losses(data.curves.get(method, []), method),
        confusion(data.confusion, data.class_names),
        reliability(data.answers.get(method), method),
        hardest(data, method),
        beside(data, method),
        features(data),
        examples(data.examples),
        settings(data.metrics, data.config_yaml),
    )
    kind = "Training" if is_training(data.metrics) else "Distillation"
    dots = [(key, LIGHT.color(key), DARK.color(key)) for key in ("teacher", *registry.names())]
    return document(data.title, "report", f"{kind} report", _lead(data.metrics), dots, parts)


def _next(folder: str) -> Markup | None:
    """Return commands for using the student."""
    if not folder:
        return None
    run = shlex.quote(folder)
    commands = [
        (f"gendd predict {run} IMAGE…", "classify image files"),
        (f"gendd evaluate {run}", "score the saved student again"),
        (f"gendd export {run} --to onnx", "export a file that runs without PyTorch"),
    ]
    return part("commands", "Use the student", commands)


def _verdict(metrics: dict[str, Any], table: Sequence[Row]) -> Markup | None:
    """Summarise the result in plain words; None if there is nothing to compare the student with."""
    gains = metrics.get("gains") or {}
    own, rows_by_key = own_row(table), {row["key"]: row for row in table}
    if own["top1"] is None or not gains:
        return None
    parts = []
    for name, (points, low, high) in ((name, _interval(gains[name])) for name in gains if name != "teacher"):
        beaten = label(name) if name != "supervised" else "the same network trained on the labels alone"
        if low <= 0 <= high:
            parts.append(f"not measurably different from {beaten} on these test images ({signed(points)})")
        else:
            word = "better" if points > 0 else "worse"
            parts.append(f"{abs(points):.1f} points {word} than {beaten}")
    if "teacher" in gains:
        points = gains["teacher"]["points"]
        factor = ratio(rows_by_key["teacher"]["parameters"], own["parameters"])
        size = "" if factor is None or factor[1] != "fewer" else f", with {factor[0]} fewer parameters"
        side = f"{abs(points):.1f} points {'below' if points < 0 else 'above'} its teacher{size}"
        parts.append(side)
    share = f"The student classifies {own['top1']:.1f} % of the test images correctly"
    return part("verdict", f"{share}: {'; '.join(parts)}.")


def _interval(gain: dict[str, float]) -> tuple[float, float, float]:
    return gain["points"], gain["low"], gain["high"]


def _lead(metrics: dict[str, Any]) -> str:
    student, teacher, run = metrics["student"], metrics.get("teacher"), metrics.get("run", {})
    method = method_of(metrics)
    text = f"{student.get('name', 'The student')} ({count(student.get('parameters'))} parameters)"
    if teacher and registry.learns_from_teacher(method):
        text += f" distilled from {teacher['name']} ({count(teacher.get('parameters'))})"
        text += f" with {label(method)}"
    else:
        text += " trained"
    if run.get("train_images") is not None:
        text += f" on {run['train_images']:,} images"
        if run.get("labelled_images") is not None:
            text += f", {run['labelled_images']:,} of them labelled"
    return text + "."


class _Card(NamedTuple):
    name: str
    value: str
    unit: str
    detail: str
    own: bool = False


def _cards(metrics: dict[str, Any], table: Sequence[Row]) -> list[_Card]:
    """Return the student's key figures, compared with the other methods."""
    own = own_row(table)
    others = {row["key"]: row for row in table if row["key"] != own["key"]}
    measure = measure_of(own)
    if measure is None:
        cards = [_Card("Student", "–", "", "no labels to measure accuracy with", own=True)]
    else:
        subject = {"top1": "top-1", "knn": "20-NN"}.get(measure, measure)
        unit = "" if measure == "cosine" else "%"
        detail = f"{own['method']}, {own['network']}"
        whose = "Network" if is_training(metrics) else "Student"
        cards = [_Card(f"{whose}, {subject}", f"{own[measure]:.2f}", unit, detail, own=True)]
        for key, row in others.items():
            if row[measure] is not None:
                name = "Gap to the teacher" if key == "teacher" else f"Gain over {label(key)}"
                change = signed(own[measure] - row[measure])
                detail = f"{row['method']} {row[measure]:.2f} %"
                if measure == "top1" and key in (gains := metrics.get("gains") or {}):
                    _, low, high = _interval(gains[key])
                    detail += f"; 95 % interval {signed(low)} to {signed(high)}"
                cards.append(_Card(name, change, "points", detail))
    teacher = others.get("teacher", {})
    for name, column in (("Parameters", "parameters"), ("Multiply-adds", "multiply_adds")):
        factor = ratio(teacher.get(column), own[column])
        if factor is not None:
            cards.append(_Card(name, *factor, f"{count(own[column])}, teacher {count(teacher[column])}"))
    if measure != "agreement" and own["agreement"] is not None:
        cards.append(_Card("Agreement", f"{own['agreement']:.2f}", "%", "same class as the teacher"))
    if own["parameters"]:
        size = f"teacher {megabytes(teacher['parameters'])}" if teacher.get("parameters") else "of weights"
        cards.append(_Card("Size", megabytes(own["parameters"]), "", f"{size}, in 32-bit precision"))
    cards += _latency(own, metrics.get("run", {}))
    seconds, device = metrics["student"].get("train_seconds"), metrics.get("run", {}).get("device")
    if seconds is not None:
        loading = metrics["student"].get("loading_seconds") or 0.0
        told = [f"on {device}"] if device else []
        if seconds > 0 and loading >= 0.01 * seconds:
            told.append(f"{loading / seconds:.0%} of it spent waiting for images")
        cards.append(_Card("Training", duration(seconds), "", ", ".join(told)))
    return cards


def _latency(own: Row, run: dict[str, Any]) -> list[_Card]:
    """Return the latency per image, with the spread of the timed calls."""
    if own["latency_ms"] is None:
        return []
    batch, device = run.get("latency_batch"), run.get("device")
    told = "" if batch is None else f"per image, in batches of {batch}" + (f" on {device}" if device else "")
    if own["latency_quartiles_ms"]:
        low, high = map(milliseconds, own["latency_quartiles_ms"])
        told += f"; half of the calls {low} to {high}"
    return [_Card("Latency", milliseconds(own["latency_ms"]), "ms", told)]
