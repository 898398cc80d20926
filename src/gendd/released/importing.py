"""Import a checkpoint of the released code as a run."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gendd.config import DataConfig, RunConfig, dump, to_dict
from gendd.errors import UserError
from gendd.files import write_json, write_text
from gendd.models import Backbone, build_model, count_parameters
from gendd.released.checkpoints import Released, read_released
from gendd.released.student import released_student
from gendd.student import Student

if TYPE_CHECKING:
    from gendd.data import Data
    from gendd.models import Frozen
    from gendd.run import Run
from gendd.released.student import released_config

# the settings that select the images; without any of them nothing is evaluated
_WHICH_IMAGES = {"name", "path", "test_path"}


def import_released(
    checkpoint: str | Path,
    student: str | Backbone,
    teacher: str,
    *,
    out: str | Path | None = None,
    teacher_weights: str | Path | None = None,
    data: str | dict[str, Any] | DataConfig | None = None,
    **settings: Any,
) -> Run:
    """Create a run folder from a checkpoint of the released code.

    The sizes of the head are those of the checkpoint's tensors; other settings of the method are taken from
    its options, else from the published ones. The folder can be evaluated, loaded and given as
    ``student.weights`` to start a training (stage 2 from a stage-1 checkpoint), but not resumed: the state of
    the optimiser is not imported. The released head predicts the noise, and at pure noise its errors are
    multiplied by thousands in x̂_0: use readout ``linear`` or ``sample`` for such a student, not ``mean``.

    Args:
        checkpoint: The checkpoint file.
        student: Name of the student network. A network of your own, as a :class:`gendd.Backbone`, can
            be evaluated here, but loading the folder again needs the name.
        teacher: Name of the teacher network.
        out: Output folder; None: a folder below ``runs/``.
        teacher_weights: Weights of the teacher, to add its scores and the agreement with it.
        data: The images to evaluate on. None, or a dictionary without ``name``, ``path`` and ``test_path``:
            no scores are computed, and ``image_size`` is the size of the images that the student takes (by
            default 32 for ``cifar/``, else what the network is built for, else 224).
        settings: Any other section of :class:`RunConfig` as a dictionary, and ``seed``;
            ``teacher={"pretrained": True}`` takes the teacher's weights from timm.

    Returns:
        The run, with accuracies only if ``data`` is given.

    Raises:
        UserError: not such a checkpoint, a network that doesn't fit it, data with other classes, or an
            existing output folder.
    """
    # imported here: training takes seconds to load and is not needed to read a checkpoint
    from gendd.run import Run

    released = read_released(checkpoint)
    folder = Path(out) if out is not None else Path("runs") / released.path.name.split(".")[0]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"Output folder {str(folder)!r} exists: give another --out.")
    weights = None if teacher_weights is None else str(teacher_weights)
    given = dict(settings, out=str(folder))
    given["teacher"] = {**settings.get("teacher", {}), "name": teacher, "weights": weights}
    if data is not None:
        given["data"] = _section(data)
    config = released_config(released, student.name if isinstance(student, Backbone) else student, given)
    imported = released_student(released, student, config)
    network = _teacher(released, config)
    images = _images(released, config) if _WHICH_IMAGES & set(given.get("data", {})) else None
    metrics = _metrics(released, imported, config, network, images)
    imported.info["teacher"] = config.teacher.name
    if images is not None:
        imported.info |= {
            "class_names": images.class_names,
            "image_size": images.image_size,
            "framing": images.test.framing,
            "data": images.name,
        }
    imported.save(folder / "student")
    write_text(folder / "config.yaml", dump(config))
    write_json(folder / "metrics.json", metrics)
    return Run(folder)


def _section(data: str | dict[str, Any] | DataConfig) -> dict[str, Any]:
    if isinstance(data, DataConfig):
        return to_dict(data)
    return {"name": data} if isinstance(data, str) else data


def _teacher(released: Released, config: RunConfig) -> Backbone | None:
    """Build the teacher and check that it fits the checkpoint; None if its weights are not given."""
    try:
        teacher = build_model(config.teacher, released.num_classes, released.in_channels)
    except UserError as error:
        raise UserError(f"Teacher: {error}") from error
    if teacher.feature_dim != released.feature_width:
        raise UserError(
            f"Teacher: expected a network of {released.feature_width} features, as the checkpoint's "
            f"classifier takes, got {config.teacher.name} of {teacher.feature_dim}; give the teacher it was "
            "trained with."
        )
    if config.teacher.weights is None and not config.teacher.pretrained:
        return None
    if not torch.allclose(teacher.classifier.weight, released.state["classifier.weight"], atol=1e-6):
        raise UserError(
            f"Teacher: expected the weights of {config.teacher.name} whose classifier the checkpoint holds, "
            "got others; give those it was trained with, or none."
        )
    return teacher


def _images(released: Released, config: RunConfig) -> Data:
    from gendd.data import load_data

    # streamed, as the training images are not used
    streamed = dataclasses.replace(config.data, in_memory=False)
    data = load_data(streamed, config.evaluation.images, trained=False)
    for kind, came, expected in (
        ("classes", data.num_classes, released.num_classes),
        ("channels", data.channels, released.in_channels),
    ):
        if came != expected:
            raise UserError(
                f"data: expected images of {expected} {kind}, as the checkpoint's, got {came} in "
                f"{data.name!r}; give the set it was trained on."
            )
    return data


def _metrics(
    released: Released, student: Student, config: RunConfig, teacher: Backbone | None, data: Data | None
) -> dict[str, Any]:
    """Content of ``metrics.json``: information about the checkpoint and, with ``data``, scores."""
    from gendd.models import Frozen
    from gendd.training import resolve_device

    device = resolve_device(config.training.device)
    sampler = to_dict(config.readout)
    sampler.pop("name")
    unknown = dict.fromkeys(("top1", "top5", "agreement", "parameters"))
    readouts: dict[str, Any] = {name: dict(unknown) for name in student.readouts}
    metrics: dict[str, Any] = {
        "run": {
            "method": config.method,
            "name": Path(config.out or "").name,
            "seed": config.seed,
            "imported": {"file": released.path.name, "stage": released.stage, "epoch": released.epoch},
            "versions": {"gendd": version("gendd"), "torch": torch.__version__},
        },
        "teacher": None,
        "student": {
            "name": config.student.name,
            "parameters": count_parameters(student.backbone),
            "readouts": readouts,
            "readout": student.readout,
        },
        "baselines": {},
    }
    if data is not None:
        frozen = None if teacher is None else Frozen(teacher.to(device))
        readouts |= _figures(student.to(device), config, frozen, data, device)
        metrics["run"] |= {"test_images": len(data.test), "device": str(device)}
        if frozen is not None:
            reader = Student(frozen.backbone).eval()
            own = _figures(reader, config, None, data, device)["linear"]
            own.pop("agreement")
            metrics["teacher"] = {"name": config.teacher.name, **own}
    if "sample" in readouts:
        readouts["sample"] |= sampler
    return metrics


def _figures(
    student: Student, config: RunConfig, teacher: Frozen | None, data: Data, device: torch.device
) -> dict[str, Any]:
    """Scores on the test images, and costs, by readout."""
    from gendd.deploy.costs import latency_images, readout_costs
    from gendd.evaluation import evaluate
    from gendd.training import shows_progress

    scores = evaluate(
        student,
        data.test,
        teacher=teacher,
        device=device,
        seed=config.seed,
        workers=config.data.workers,
        progress=shows_progress(config.training),
    )
    images = latency_images(data.test, device)
    return {
        name: {**score.as_dict(), **readout_costs(student, name, images)} for name, score in scores.items()
    }
