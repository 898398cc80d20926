"""The model card of a student: the README of its folder, in the Hugging Face Hub's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from gendd.config import ReadoutName, registry
from gendd.evaluation.long_tail import in_words
from gendd.files import is_python_name, write_text
from gendd.models import Backbone
from gendd.student.generator import FeatureGenerator

_OUTPUTS = {
    "linear": "a linear classifier on the student's feature",
    "mean": "{reader} on the expected teacher feature, one pass of the head",
    "sample": "{reader} on the mean of sampled teacher features",
    "feature": "the student's own feature, {own} numbers",
    "generated": "the expected teacher feature, {generated} numbers",
}


# licence identifiers of the Hub; any other licence is declared as "other"
_LICENSES = {
    "apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "ncsa",
    "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m", "afl-3.0",
    "artistic-2.0", "bsl-1.0", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "ecl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gpl", "gpl-2.0", "gpl-3.0",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "ms-pl", "ofl-1.1", "osl-3.0", "postgresql", "unlicense",
    "wtfpl", "unknown", "other",
}  # fmt: skip
# data sets that are on the Hub
_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
}
_NOT_STATED = "not stated"
_SHOWN = 20


class Described(Protocol):
    """What a card describes: a :class:`gendd.Student`, which imports this module."""

    backbone: Backbone
    generator: FeatureGenerator | None
    info: dict[str, Any]

    @property
    def readouts(self) -> tuple[ReadoutName, ...]: ...

    def class_names(self) -> list[str]: ...


def write_card(path: Path, student: Described, metrics: dict[str, Any]) -> None:
    """Write the card of ``student`` with the results in its run's ``metrics.json``."""
    write_text(path, card(student, metrics))


def card(student: Described, metrics: dict[str, Any] | None = None) -> str:
    """Return a student's card: description, usage, results, training, licences and limitations.

    Args:
        student: The student; much comes from its ``info``.
        metrics: Its run's ``metrics.json``; None leaves the results out.
    """
    teacher = None if metrics is None else metrics["teacher"]
    if metrics is None and student.info.get("teacher"):
        teacher = {"name": student.info["teacher"]}
    data = student.info.get("data")
    lines = [
        "---",
        _front_matter(student, metrics),
        "---",
        "",
        f"# {student.backbone.name}{f' trained on {data}' if data else ''}",
        "",
        _origin(student, teacher),
        "",
        *_use(student),
    ]
    if metrics is not None:
        lines += ["", *_figures(student, metrics)]
    lines += [
        "",
        *_training(student, metrics),
        "",
        *_licences(student, teacher),
        "",
        *_limits(student, metrics),
        "",
    ]
    return "\n".join(lines)


def _front_matter(student: Described, metrics: dict[str, Any] | None) -> str:
    """The card's metadata as YAML, with the default readout's accuracy where it was measured."""
    from huggingface_hub import EvalResult, ModelCardData

    info, task = student.info, _task(student)
    stated = str(info.get("license") or "unknown").lower()
    known = stated in _LICENSES
    data = _DATASETS.get(str(info.get("data")))
    own = {} if metrics is None else metrics["student"]
    top1 = own.get("readouts", {}).get(own.get("readout"), {}).get("top1")
    measured = None
    if metrics is not None and top1 is not None and info.get("data"):
        measured = EvalResult(
            task_type=task,
            dataset_type=data or str(info["data"]),
            dataset_name=str(info["data"]),
            dataset_split=metrics["run"].get("tested_on") or "test",
            metric_type="accuracy",
            metric_name="top-1 accuracy, %",
            metric_value=round(top1, 2),
        )
    distilled = ["knowledge-distillation"] if info.get("teacher", "") is not None else []
    front = ModelCardData(
        license=stated if known else "other",
        license_name=None if known else "-".join(stated.split()),
        library_name="gendd",
        pipeline_tag=task,
        tags=[task, *distilled, "gendd"],
        datasets=None if data is None else [data],
        base_model=info.get("base_model"),
        model_name=None if measured is None else student.backbone.name,
        eval_results=None if measured is None else [measured],
    )
    return str(front.to_yaml())


def _task(student: Described) -> str:
    return "image-classification" if student.readouts else "image-feature-extraction"


def _use(student: Described) -> list[str]:
    size, channels = student.info.get("image_size", "H"), student.backbone.in_channels
    output = "logits = student(images)" if student.readouts else "features = student.embed(images)"
    # a network that isn't known by name has to be given along with the folder
    name, network = student.backbone.name, ""
    if name.startswith("module/"):
        network = f", backbone={name.removeprefix('module/')}(…)"
    elif is_python_name(name):
        network = f", backbone={name.rpartition(':')[2]}(…)"
    shape = f"(B, {channels}, {size}, {size if size != 'H' else 'W'})"
    lines = [
        "## Use",
        "",
        "```python",
        "import gendd",
        "",
        f'student = gendd.load("path/to/this/folder"{network})  # or the id of its repository',
        f"{output}  # float images in [0, 1], {shape}",
        "```",
    ]
    names = student.class_names() if student.readouts else []
    if names and not all(name.isdigit() for name in names):
        shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        lines += ["", f"{len(names)} classes: {shown}."]
    return lines


def _figures(student: Described, metrics: dict[str, Any]) -> list[str]:
    run, own, teacher = metrics["run"], metrics["student"], metrics["teacher"]
    figures = ["top1", "top5"]
    if any(each["top1"] is None for each in own["readouts"].values()):
        figures = [name for name in ("top1", "agreement") if _measured(own["readouts"], name)] or ["top1"]
    lines = [
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
    return lines


def _training(student: Described, metrics: dict[str, Any] | None) -> list[str]:
    data = student.info.get("data") or _NOT_STATED
    if metrics is None:
        return ["## Training", "", f"Training data: {data}."]
    run, own = metrics["run"], metrics["student"]
    epochs = "1 epoch" if run["epochs"] == 1 else f"{run['epochs']} epochs"
    return [
        "## Training",
        "",
        f"Training data: {data}. {run['train_images']:,} images, {epochs}, seed {run['seed']}, "
        f"{_labels(run, own)}, {run['precision']} on {run['device']}, "
        f"{own['train_seconds']:.0f} s. gendd {run['versions']['gendd']}, torch {run['versions']['torch']}.",
        *_probed(own),
    ]


def _licences(student: Described, teacher: dict[str, Any] | None) -> list[str]:
    info = student.info
    lines = ["## Licences", "", f"- This model: {info.get('license') or _NOT_STATED}."]
    if teacher is not None:
        lines.append(f"- Its teacher {teacher['name']}: {info.get('teacher_license') or _NOT_STATED}.")
    if info.get("base_model") or info.get("base_license"):
        started = info.get("base_model") or "the weights it started from"
        lines.append(f"- Weights it started from, {started}: {info.get('base_license') or _NOT_STATED}.")
    lines.append(f"- Training images, {info.get('data') or 'of its run'}: see where they come from.")
    return lines


def _limits(student: Described, metrics: dict[str, Any] | None) -> list[str]:
    measured = (
        "Nothing was measured of images unlike those it was trained on"
        if metrics is None
        else "The figures hold for images like those it was trained on; nothing was measured of others"
    )
    learned = " What the teacher gets wrong, the student learns too." if student.info.get("teacher") else ""
    return [
        "## Limits",
        "",
        f"{measured}, nor of images of none of its classes.{learned} The licences of the teacher, of weights "
        "it started from and of the training images may bind this model: check them before you publish it.",
    ]


def _labels(run: dict[str, Any], own: dict[str, Any]) -> str:
    if own.get("probe", {}).get("labels_seen_by") == "readout":
        return "without labels but for the linear readout"
    if not run["labels_used"]:
        return "without labels"
    known = run.get("labelled_images")
    return "with labels" if known is None else f"with labels of {known:,}"


_TARGETS = {
    "labels": "the labels",
    "teacher": "the teacher's predictions",
    "mean": "the predictions of readout mean",
}


def fit_of(probe: dict[str, Any]) -> dict[str, Any] | None:
    """Return the target and number of images of the linear readout's refit after training, if any.

    Args:
        probe: ``student.probe`` of a run's metrics; empty if the run was not probed.
    """
    if "fit" in probe:
        fit: dict[str, Any] | None = probe["fit"]
        return fit
    # of runs before this entry existed
    return {key: probe[key] for key in ("target", "images")} if probe.get("kept") == "refitted" else None


def _probed(own: dict[str, Any]) -> list[str]:
    """Return Markdown lines on the refit of the linear readout, if any."""
    probe = own.get("probe", {})
    fit = fit_of(probe)
    if fit is None:
        return []
    before = probe["trained_along"]["top1"]
    was = "" if before is None else f" (the one trained along had {_percent(before)} top-1)"
    return [
        "",
        f"The linear readout was fitted afterwards, to {_TARGETS[fit['target']]} of {fit['images']:,} "
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


def _what(output: str, student: Described) -> str:
    """Describe an output of the student."""
    generator = student.generator
    return _OUTPUTS[output].format(
        reader="the nearest class mean"
        if student.info.get("reader") == "means"
        else "the teacher's classifier",
        own=student.backbone.feature_dim,
        generated=None if generator is None else generator.feature_width,
    )


def _table(subject: str, figures: list[str], entries: dict[str, tuple[str, dict[str, Any]]]) -> list[str]:
    """Return a Markdown table with one row per output: description, results and costs."""
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
    if run.get("tested_on") == "held-out":
        return "images held out of the training set, which has no test images of its own"
    return "test images"


def _origin(student: Described, teacher: dict[str, Any] | None) -> str:
    method = student.info.get("method")
    if method is None and teacher is None:
        generative = student.generator is not None
        return (
            "Distilled by Generative Distribution Distillation (arXiv 2507.14503)."
            if generative
            else ("A student saved by gendd, which does not tell how it was trained.")
        )
    if method == "linear_probe":
        return "A linear classifier trained on labels, on the frozen features of a trained network."
    if teacher is None or method is None or not registry.learns_from_teacher(method):
        return "Trained on labels alone."
    return f"Distilled from {teacher['name']} {registry.origin(method)} ({registry.label(method)})."


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} %"
