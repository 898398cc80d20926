"""Page of a report: title, cards and sections."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from gendd.config import registry
from gendd.report.comparison import Row, is_training, label, measure_of, method_of, own_row, rows
from gendd.report.content import ReportData
from gendd.report.drawing import DARK, FONT, LIGHT
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
    sections = (
        _warnings(run.get("warnings") or []),
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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)} · GenDD report</title><style>\n{_css()}</style></head><body><main>"
        f'<p class="eyebrow">{kind} report</p><h1>{escape(data.title)}</h1>'
        f'<p class="lead">{escape(_lead(data.metrics))}</p>{_verdict(data.metrics, table)}'
        + _next(data.folder)
        + _cards(data.metrics, table)
        + "\n".join(filter(None, sections))
        + "</main></body></html>\n"
    )


def _warnings(lines: Sequence[str]) -> str:
    """Return the run's warnings in a box."""
    told = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{told}</ul></section>' if lines else ""


def _next(folder: str) -> str:
    """Return commands for using the student."""
    if not folder:
        return ""
    run = shlex.quote(folder)
    commands = {
        f"gendd predict {run} IMAGE…": "classify image files",
        f"gendd evaluate {run}": "score the saved student again",
        f"gendd export {run} --to onnx": "export a file that runs without PyTorch",
    }
    told = "".join(
        f"<div><code>{escape(words)}</code><span>{does}</span></div>" for words, does in commands.items()
    )
    return f'<section class="next"><h2>Use the student</h2>{told}</section>'


def _verdict(metrics: dict[str, Any], table: Sequence[Row]) -> str:
    """Summarise the result in plain words; "" if there is nothing to compare the student with."""
    gains = metrics.get("gains") or {}
    own, rows_by_key = own_row(table), {row["key"]: row for row in table}
    if own["top1"] is None or not gains:
        return ""
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
    return f'<p class="verdict">{escape(share + ": " + "; ".join(parts) + ".")}</p>'


def _interval(gain: dict[str, float]) -> tuple[float, float, float]:
    return gain["points"], gain["low"], gain["high"]


def _css() -> str:
    keys = ["teacher", *registry.names()]
    light = "".join(f".dot.{key}{{background:{LIGHT.color(key)}}}" for key in keys)
    dark = "".join(f".dot.{key}{{background:{DARK.color(key)}}}" for key in keys)
    dots = f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}"
    style = files("gendd.report").joinpath("page.css").read_text(encoding="utf-8")
    return style.replace("FONT", FONT).replace("DOTS", dots)


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


def _cards(metrics: dict[str, Any], table: Sequence[Row]) -> str:
    """Return the student's key figures, compared with the other methods."""
    own = own_row(table)
    others = {row["key"]: row for row in table if row["key"] != own["key"]}
    measure = measure_of(own)
    if measure is None:
        cards = [_card("Student", "–", "", "no labels to measure accuracy with", own=True)]
    else:
        subject = {"top1": "top-1", "knn": "20-NN"}.get(measure, measure)
        unit = "" if measure == "cosine" else "%"
        detail = f"{own['method']}, {own['network']}"
        whose = "Network" if is_training(metrics) else "Student"
        cards = [_card(f"{whose}, {subject}", f"{own[measure]:.2f}", unit, detail, own=True)]
        for key, row in others.items():
            if row[measure] is not None:
                name = "Gap to the teacher" if key == "teacher" else f"Gain over {label(key)}"
                change = signed(own[measure] - row[measure])
                detail = f"{row['method']} {row[measure]:.2f} %"
                if measure == "top1" and key in (gains := metrics.get("gains") or {}):
                    _, low, high = _interval(gains[key])
                    detail += f"; 95 % interval {signed(low)} to {signed(high)}"
                cards.append(_card(name, change, "points", detail))
    teacher = others.get("teacher", {})
    for name, column in (("Parameters", "parameters"), ("Multiply-adds", "multiply_adds")):
        factor = ratio(teacher.get(column), own[column])
        if factor is not None:
            cards.append(_card(name, *factor, f"{count(own[column])}, teacher {count(teacher[column])}"))
    if measure != "agreement" and own["agreement"] is not None:
        cards.append(_card("Agreement", f"{own['agreement']:.2f}", "%", "same class as the teacher"))
    if own["parameters"]:
        size = f"teacher {megabytes(teacher['parameters'])}" if teacher.get("parameters") else "of weights"
        cards.append(_card("Size", megabytes(own["parameters"]), "", f"{size}, in 32-bit precision"))
    cards += _latency(own, metrics.get("run", {}))
    seconds, device = metrics["student"].get("train_seconds"), metrics.get("run", {}).get("device")
    if seconds is not None:
        loading = metrics["student"].get("loading_seconds") or 0.0
        told = [f"on {device}"] if device else []
        if seconds > 0 and loading >= 0.01 * seconds:
            told.append(f"{loading / seconds:.0%} of it spent waiting for images")
        cards.append(_card("Training", duration(seconds), "", ", ".join(told)))
    return f'<div class="cards">{"".join(cards)}</div>'


def _latency(own: Row, run: dict[str, Any]) -> list[str]:
    """Return the latency per image, with the spread of the timed calls."""
    if own["latency_ms"] is None:
        return []
    batch, device = run.get("latency_batch"), run.get("device")
    told = "" if batch is None else f"per image, in batches of {batch}" + (f" on {device}" if device else "")
    if own["latency_quartiles_ms"]:
        low, high = map(milliseconds, own["latency_quartiles_ms"])
        told += f"; half of the calls {low} to {high}"
    return [_card("Latency", milliseconds(own["latency_ms"]), "ms", told)]


def _card(name: str, value: str, unit: str, detail: str, own: bool = False) -> str:
    return (
        f'<div class="card{" own" if own else ""}"><span class="name">{escape(name)}</span>'
        f"<b>{escape(value)} <small>{escape(unit)}</small></b><span>{escape(detail)}</span></div>"
    )
