"""The README of a student's folder: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendd.shots import in_words
from gendd.student import Student

_READOUTS = {
    "linear": "a linear classifier on the student's feature",
    "mean": "the teacher's classifier on the expected teacher feature, one pass of the head",
    "sample": "the teacher's classifier on the mean of sampled teacher features",
}


def write_card(path: Path, student: Student, metrics: dict[str, Any]) -> None:
    """Write the card of ``student`` with the figures of its run's ``metrics.json``."""
    run, own = metrics["run"], metrics["student"]
    teacher = metrics["teacher"]
    epochs = "1 epoch" if run["epochs"] == 1 else f"{run['epochs']} epochs"
    # a network that isn't known by name has to be given along with the folder
    made_in_python = student.backbone.name.startswith("module/")
    network = f", backbone={student.backbone.name.removeprefix('module/')}(…)" if made_in_python else ""
    size, channels = student.info.get("image_size"), student.backbone.in_channels
    lines = [
        "---",
        "library_name: gendd",
        "tags: [image-classification, knowledge-distillation, gendd]",
        "pipeline_tag: image-classification",
        "---",
        "",
        f"# {own['name']} trained on {student.info.get('data')}",
        "",
        _origin(student, teacher),
        "",
        "## Use",
        "",
        "```python",
        "import gendd",
        "",
        f'student = gendd.load("path/to/this/folder"{network})',
        f"logits = student(images)  # float images in [0, 1], (B, {channels}, {size}, {size})",
        "```",
        "",
        "## Figures",
        "",
        f"On {run['test_images']:,} {_tested(run)}. Multiply-adds and parameters are those in use.",
        "",
        "| readout | what it is | top-1 | top-5 | multiply-adds | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in own["readouts"].items():
        chosen = " (default)" if name == own["readout"] else ""
        lines.append(
            f"| {name}{chosen} | {_READOUTS[name]} | {_percent(figures['top1'])} "
            f"| {_percent(figures['top5'])} | {figures['multiply_adds']:,} | {figures['parameters']:,} |"
        )
    if teacher is not None:
        lines.append(
            f"| teacher | {teacher['name']} | {_percent(teacher['top1'])} | {_percent(teacher['top5'])} "
            f"| {teacher['multiply_adds']:,} | {teacher['parameters']:,} |"
        )
    groups = own["readouts"][own["readout"]].get("groups")
    if groups is not None:
        few, many = run["shot_thresholds"]
        lines += [
            "",
            f"Top-1 of the default readout by training images a class (many: more than {many}, few: less "
            f"than {few}), over all test images of a group: {in_words(groups).replace('   ', ', ')}.",
        ]
    lines += [
        "",
        "## Training",
        "",
        f"{run['train_images']:,} images, {epochs}, seed {run['seed']}, "
        f"{'with' if run['labels_used'] else 'without'} labels, {run['precision']} on {run['device']}, "
        f"{own['train_seconds']:.0f} s. gendd {run['versions']['gendd']}, torch {run['versions']['torch']}.",
        "",
        "## Limits",
        "",
        "The figures hold for images like those it was trained on. What the teacher gets wrong, the student "
        "learns too. The teacher's licence and that of the training images may bind this model: check both "
        "before you publish it.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _tested(run: dict[str, Any]) -> str:
    if run.get("tested_on") == "validation":
        return "validation images, by which the checkpoint was chosen too, as there were no test images"
    return "test images"


def _origin(student: Student, teacher: dict[str, Any] | None) -> str:
    method = student.info.get("method")
    if method == "linear_probe":
        return "A linear classifier trained on labels, on the frozen features of a trained network."
    if teacher is None or method == "supervised":
        return "Trained on labels alone."
    if method == "gendd":
        return (
            f"Distilled from {teacher['name']} by Generative Distribution Distillation (arXiv 2507.14503): "
            "the student's feature conditions a small diffusion head that generates the teacher's feature."
        )
    return f"Distilled from {teacher['name']} through its logits (method {method})."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
