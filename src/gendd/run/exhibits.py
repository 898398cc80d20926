"""What a report shows of a run besides its metrics: training curves, features, examples.

Shapes: n images · D teacher feature.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gendd import report
from gendd.config import ReadoutChoice
from gendd.data import Data, ImageSet, eval_loader
from gendd.data.drawing import spread_rows
from gendd.evaluation import BATCH_SIZE
from gendd.models import Frozen
from gendd.student import Student

# logged metrics of a step, by name
Row = dict[str, float]

# if several were logged, the first one chose the checkpoint
_TOP1 = ("val/best", "val/mean", "val/linear")
_FEATURES = 1000
_EXAMPLES = 24


def curves(folder: Path, readout: ReadoutChoice = "mean") -> list[Row]:
    """Return the logged rows of a training across interruptions; of repeated steps the later one is kept.

    val/top1 is that of the readout that chose the checkpoint.
    """
    rows: dict[int, Row] = {}
    files = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda p: int(p.parent.name.split("_")[1]))
    for file in files:
        # a killed process may have left half a line
        lines = [line for line in file.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
        read = [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
        if read:
            first = min(int(row["step"]) for row in read)
            rows = {step: row for step, row in rows.items() if step < first}
        for row in read:
            row = {name.removesuffix("_step"): v for name, v in row.items() if not name.endswith("_epoch")}
            rows.setdefault(int(row["step"]), {}).update(row)
    curve = [rows[step] for step in sorted(rows)]
    for row in curve:
        for name in ("val/linear", "val/mean") if readout == "linear" else _TOP1:
            if name in row and "val/top1" not in row:
                row["val/top1"] = 100 * row[name]
        if "val/agreement" in row:
            row["val/agreement"] *= 100
    return curve


def picture_of(images: ImageSet, scored: int | None) -> Callable[[int], report.Array] | None:
    """Return a function from the index of a scored image to its pixels; None if some images were skipped."""
    if scored != len(images):
        return None

    def picture(index: int) -> report.Array:
        return _array(images.images([index])[0])

    return picture


def _array(pixels: torch.Tensor) -> report.Array:
    """Convert uint8 (C, H, W) to (H, W) or (H, W, 3)."""
    image: report.Array = pixels.permute(1, 2, 0).numpy()
    return image[..., 0] if image.shape[-1] == 1 else image


@torch.no_grad()
def features(
    student: Student, teacher: Frozen | None, images: ImageSet, device: torch.device, seed: int
) -> dict[str, Any]:
    """Return teacher features and one generated sample each, for the same images."""
    if student.generator is None or teacher is None:
        return {}
    generator = torch.Generator(device).manual_seed(seed)
    real, made, labels, left = [], [], [], _FEATURES
    for batch in eval_loader(images, BATCH_SIZE):
        batch = batch.to(device)
        real.append(teacher(batch.images)[0].float().cpu())
        made.append(student.generate(batch.images, num_samples=1, generator=generator)[0].cpu())
        if batch.labels is not None:
            labels.append(batch.labels.cpu())
        left -= len(batch.images)
        if left <= 0:
            break
    return {
        "teacher_features": torch.cat(real).numpy(),
        "generated_features": torch.cat(made).numpy(),
        "feature_labels": torch.cat(labels).numpy() if labels else None,
    }


@torch.no_grad()
def examples(student: Student, data: Data, device: torch.device, seed: int) -> list[report.Example]:
    if not student.readouts:
        return []
    names, told = student.class_names(), student.num_classes() == data.num_classes
    pixels, picked = data.test.readable(spread_rows(len(data.test), _EXAMPLES))
    features = student.features(pixels.to(device).float() / 255)
    logits = student.logits(features, generator=torch.Generator(device).manual_seed(seed))
    probabilities = logits.float().softmax(-1).cpu()
    shown = []
    for row, index in enumerate(picked.tolist()):
        best = int(probabilities[row].argmax())
        label = None
        if data.test.labels is not None and told:
            label = data.class_names[int(data.test.labels[index])]
        best_of = float(probabilities[row, best])
        shown.append(report.Example(_array(pixels[row]), label, names[best], best_of))
    return shown
