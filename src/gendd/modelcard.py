"""The README of a student's folder: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gendd.shots import in_words
from gendd.student import Student

_OUTPUTS = {
    "linear": "a linear classifier on the student's feature",
    "mean": "{reader} on the expected teacher feature, one pass of the head",
    "sample": "{reader} on the mean of sampled teacher features",
    "feature": "the student's own feature, {own} numbers",
    "generated": "the expected teacher feature, {generated} numbers",
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
    task = "image-classification" if student.readouts else "image-feature-extraction"
    output = "logits = student(images)" if student.readouts else "features = student.embed(images)"
    figures = ["top1", "top5"]
    if any(each["top1"] is None for each in own["readouts"].values()):
        figures = [name for name in ("top1", "agreement") if _measured(own["readouts"], name)] or ["top1"]
    lines = [
        "---",
        "library_name: gendd",
        f"tags: [{task}, knowledge-distillation, gendd]",
        f"pipeline_tag: {task}",
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
        f"{output}  # float images in [0, 1], (B, {channels}, {size}, {size})",
        "```",
        "",
        "## Figures",
        "",
        f"On {run['test_images']:,} {_tested(run)}. Multiply-adds and parameters are those in use.",
    ]
    entries = {
        f"{name}{' (default)' if name == own['readout'] else ''}": (_what(name, student), each)
        for name, each in own["readouts"].items()
    }
    if teacher is not None:
        entries["teacher"] = (teacher["name"], teacher)
    if own["readouts"]:
        lines += _table("readout", figures, entries)
    groups = own["readouts"].get(own["readout"], {}).get("groups")
    if groups is not None:
        few, many = run["shot_thresholds"]
        lines += [
            "",
            f"Top-1 of the default readout by training images a class (many: more than {many}, few: less "
            f"than {few}), over all test images of a group: {in_words(groups).replace('   ', ', ')}.",
        ]
    if embedding := own.get("embedding"):
        lines += [
            "",
            "Its features without a readout, beside the teacher's: accuracy of the 20 nearest training "
            "images and of a linear probe, and cosine with the teacher's feature (less its mean).",
        ]
        entries = {name: (_what(name, student), each) for name, each in embedding.items()}
        if teacher is not None and teacher.get("embedding"):
            entries["teacher"] = (teacher["name"], teacher | teacher["embedding"])
        lines += _table("feature", ["knn", "linear_probe", "cosine"], entries)
    lines += [
        "",
        "## Training",
        "",
        f"{run['train_images']:,} images, {epochs}, seed {run['seed']}, "
        f"{_labels(run, own)}, {run['precision']} on {run['device']}, "
        f"{own['train_seconds']:.0f} s. gendd {run['versions']['gendd']}, torch {run['versions']['torch']}.",
        *_probed(own),
        "",
        "## Limits",
        "",
        "The figures hold for images like those it was trained on. What the teacher gets wrong, the student "
        "learns too. The teacher's licence and that of the training images may bind this model: check both "
        "before you publish it.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _labels(run: dict[str, Any], own: dict[str, Any]) -> str:
    if own.get("probe", {}).get("labels_seen_by") == "readout":
        return "without labels but for the linear readout"
    return "with labels" if run["labels_used"] else "without labels"


_TARGETS = {
    "labels": "the labels",
    "teacher": "the teacher's predictions",
    "mean": "the predictions of readout mean",
}


def _probed(own: dict[str, Any]) -> list[str]:
    """Markdown lines of how the linear readout was fitted to the finished student, if it was."""
    probe = own.get("probe")
    if probe is None or probe["kept"] != "refitted":
        return []
    before = probe["trained_along"]["top1"]
    was = "" if before is None else f" (the one trained along had {_percent(before)} top-1)"
    return [
        "",
        f"The linear readout was fitted afterwards, to {_TARGETS[probe['target']]} of {probe['images']:,} "
        f"images{was}.",
    ]


_FIGURES = {
    "top1": "top-1",
    "top5": "top-5",
    "agreement": "agreement with the teacher",
    "knn": "20-NN",
    "linear_probe": "linear probe",
    "cosine": "cosine",
}


def _measured(readouts: dict[str, Any], name: str) -> bool:
    return any(each.get(name) is not None for each in readouts.values())


def _what(output: str, student: Student) -> str:
    """An output of the student in words."""
    generator = student.generator
    return _OUTPUTS[output].format(
        reader="the nearest class mean"
        if student.info.get("reader") == "means"
        else "the teacher's classifier",
        own=student.backbone.feature_dim,
        generated=None if generator is None else generator.feature_width,
    )


def _table(subject: str, figures: list[str], entries: dict[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """Markdown lines, a row an output with what it is, its figures and its costs."""
    titles = " | ".join(_FIGURES[name] for name in figures)
    lines = [
        "",
        f"| {subject} | what it is | {titles} | multiply-adds | parameters |",
        "|---" * (4 + len(figures)) + "|",
    ]
    for name, (what, entry) in entries.items():
        cells = " | ".join(
            _plain(entry.get(each)) if each == "cosine" else _percent(entry.get(each)) for each in figures
        )
        lines.append(f"| {name} | {what} | {cells} | {entry['multiply_adds']:,} | {entry['parameters']:,} |")
    return lines


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
