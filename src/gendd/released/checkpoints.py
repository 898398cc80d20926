"""Checkpoints of the authors' released GenDD code: stage 1 or 2, CIFAR or ImageNet.

Their keys: ``model.*`` the student network, ``classifier.*`` the teacher's classifier; in stage 1 also
``proj.*``, the Linear layer from the student's to the teacher's feature (none where both are as wide); in
stage 2 ``cls_projector.0.*``, the LayerNorm of the condition, and ``diffloss.net.*``, the head. Buffers
(``cls_centers``, ``chunk_idx``) say nothing more.

Shapes: d student feature · D teacher feature · C token width · K classes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gendd.config import DataConfig, RunConfig, dump, from_dict, read_yaml, to_dict
from gendd.data.images import SMALL
from gendd.errors import UserError
from gendd.files import write_json, write_text
from gendd.models import Backbone, build_model, count_parameters, create_backbone
from gendd.models.weights import load_state, read_checkpoint
from gendd.recipes import recipe_path
from gendd.student import Student
from gendd.student.generator import FeatureGenerator

if TYPE_CHECKING:
    from gendd.data import Data
    from gendd.models import Frozen
    from gendd.run import Run

_HEAD_NAMES = {
    "final_layer.adaLN_modulation.1.": "final_modulation.",
    "time_embed.mlp.": "time.",
    "cond_embed.": "condition.",
    "pos_embed.": "position.",
    "input_proj.": "input.",
    "res_blocks.": "blocks.",
    ".in_ln.": ".norm.",
    ".adaLN_modulation.1.": ".modulation.",
    "final_layer.linear.": "final.",
}
_HEAD = "diffloss.net."
_NORM = "cls_projector.0."
# by stage, the tensors that tell the sizes and how many dimensions they have
_NEEDED = {
    1: {"classifier.weight": 2},
    2: {
        "classifier.weight": 2,
        f"{_NORM}weight": 1,
        f"{_HEAD}input_proj.weight": 2,
        f"{_HEAD}res_blocks.0.mlp.0.weight": 2,
        f"{_HEAD}final_layer.linear.weight": 2,
    },
}
# the released code's options, by the settings they are
_OPTIONS = {
    "smooth": ("gendd", "contraction"),
    "beta": ("gendd", "mixup"),
    "diffusion_batch_mul": ("gendd", "repeats"),
    "cond_drop_prob": ("gendd", "condition_dropout"),
    "epochs": ("training", "epochs"),
    "learning_rate": ("training", "lr"),
    "weight_decay": ("training", "weight_decay"),
    "lr_decay_epochs": ("training", "milestones"),
    "batch_size": ("data", "batch_size"),
}
# the normalisation of its CIFAR images; that of ImageNet is every network's own
_CIFAR_MEAN = [0.5071, 0.4867, 0.4408]
_CIFAR_STD = [0.2675, 0.2565, 0.2761]
# where its ImageNet settings differ from those of CIFAR
_IMAGENET = {"gendd": {"repeats": 10}, "training": {"beta2": [0.96, 0.999]}, "readout": {"steps": 64}}
# as it scores ImageNet: the middle 224 of 256 pixels; images as small as those of CIFAR are kept whole
_CIFAR_SIZE, _IMAGENET_SIZE, _IMAGENET_FRAMING = 32, 224, 0.875
# the settings that say which images; without any nothing is measured
_WHICH_IMAGES = {"name", "path", "test_path"}


def head_state(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A head's state dict in this package's names, from the released code's without ``diffloss.net.``."""
    renamed = {}
    for key, value in released.items():
        for old, new in _HEAD_NAMES.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def load_generator(generator: FeatureGenerator, state: Mapping[str, Tensor]) -> None:
    """Load head and LayerNorm of a released stage-2 state dict into a generator of its sizes.

    Raises:
        KeyError: the LayerNorm is not there.
        RuntimeError: keys or shapes of another head.
    """
    generator.head.load_state_dict(head_state(_below(state, _HEAD)))
    generator.norm.load_state_dict({key: state[_NORM + key] for key in ("weight", "bias")})


@dataclass(frozen=True)
class Released:
    """A checkpoint that was read; see :func:`read_released`.

    Attributes:
        path: Its file.
        state: Names to tensors, without ``module.``.
        options: The options its training was given, where they are in the file.
        epoch: Epochs it was trained for, where the file says so.
    """

    path: Path
    state: dict[str, Tensor]
    options: dict[str, Any]
    epoch: int | None

    @property
    def stage(self) -> int:
        """1 without a head, else 2."""
        return 2 if any(key.startswith(("diffloss.", "cls_projector.")) for key in self.state) else 1

    @cached_property
    def student(self) -> dict[str, Tensor]:
        """The state dict of the student network."""
        return _below(self.state, "model.")

    @property
    def num_classes(self) -> int:
        """K."""
        return self.state["classifier.weight"].shape[0]

    @property
    def feature_width(self) -> int:
        """D."""
        return self.state["classifier.weight"].shape[1]

    @property
    def in_channels(self) -> int:
        """Channels of the images: those of the first convolution."""
        return next((value.shape[1] for value in self.student.values() if value.dim() == 4), 3)

    def sizes(self) -> dict[str, Any]:
        """The settings of the head that its tensors tell; none in stage 1."""
        if self.stage == 1:
            return {}
        width, token_width = self.state[f"{_HEAD}input_proj.weight"].shape
        blocks = {key.split(".")[1] for key in _below(self.state, _HEAD) if key.startswith("res_blocks.")}
        return {
            "token_width": token_width,
            "head_width": width,
            "head_depth": len(blocks),
            "learned_variance": self.state[f"{_HEAD}final_layer.linear.weight"].shape[0] == 2 * token_width,
        }


def read_released(path: str | Path) -> Released:
    """Read a checkpoint of the released code.

    Args:
        path: The file its training wrote.

    Raises:
        UserError: no such file, it can't be read, or it is no such checkpoint.
    """
    state, beside = read_checkpoint(path)
    options, epoch = beside.get("opt"), beside.get("epoch")
    released = Released(
        Path(path),
        state,
        dict(vars(options)) if isinstance(options, argparse.Namespace) else {},
        epoch if isinstance(epoch, int) else None,
    )
    missing = [] if released.student else ["model.* (the student)"]
    needed = _NEEDED[released.stage].items()
    missing += [key for key, dims in needed if key not in state or state[key].dim() != dims]
    if missing:
        raise UserError(
            f"{path}: expected a checkpoint of the released GenDD code, got one without "
            f"{', '.join(missing)}; weights of a single network are given as --student.weights or "
            "--teacher.weights."
        )
    return released


def released_student(
    checkpoint: str | Path | Released, student: str | Backbone, config: RunConfig | None = None
) -> Student:
    """The student of a released checkpoint, in eval mode.

    Of stage 1 it is the backbone alone, whose classifier is then what stage 1 computes: the teacher's
    classifier of the projected feature, which is one Linear layer too.

    Args:
        checkpoint: The file, or what :func:`read_released` gave.
        student: The student network's name, or the network (its weights are overwritten).
        config: Its settings; by default the published ones, and what the checkpoint tells.

    Raises:
        UserError: not such a checkpoint, or of another student network.
    """
    released = checkpoint if isinstance(checkpoint, Released) else read_released(checkpoint)
    name = student.name if isinstance(student, Backbone) else student
    config = config or _config(released, name, {})
    if isinstance(student, Backbone):
        backbone = student
    else:
        backbone = create_backbone(
            name, released.num_classes, released.in_channels, config.student.mean, config.student.std
        )
    load_state(backbone, released.student, released.path)
    info: dict[str, Any] = {"method": config.method}
    size = config.data.image_size or _own_size(backbone, made_here=not isinstance(student, Backbone))
    if size is not None:
        info |= {"image_size": size, "framing": _IMAGENET_FRAMING if size > SMALL else 1.0}
    try:
        classifier = _teacher_classifier(released.state)
        if released.stage == 1:
            backbone.classifier = _folded(classifier, released.state)
            return Student(backbone, readout=config.readout, info=info).eval()
        generator = FeatureGenerator(backbone.feature_dim, released.feature_width, config.gendd)
        load_generator(generator, released.state)
    except (KeyError, RuntimeError) as error:
        reason = str(error) if isinstance(error, RuntimeError) else f"{error} is missing"
        raise UserError(
            f"{released.path}: expected a stage-{released.stage} checkpoint whose tensors fit together; "
            f"{' '.join(reason.split())[:300]}"
        ) from error
    classifier.requires_grad_(False)
    return Student(backbone, generator, classifier, config.readout, info).eval()


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
    """Make a run's folder of a checkpoint of the released code.

    The sizes of the head are those of the checkpoint's tensors, the method's other settings those its
    options tell, else the published ones. The folder can be evaluated, loaded and given as
    ``student.weights`` to start a training (from stage 1: stage 2), but not resumed: the state of the
    optimiser is left. The released head predicts the noise, and at pure noise its errors are multiplied by
    thousands in x̂_0: read such a student by ``linear`` or ``sample``, not by ``mean``.

    Args:
        checkpoint: The file.
        student: Name of the student network. A network of your own, as a :class:`gendd.Backbone`, can
            be evaluated here, but the folder is loaded again by its name.
        teacher: Name of the teacher network.
        out: Output folder; None: below ``runs/``.
        teacher_weights: The teacher's weights, which add its figures and the agreement with it.
        data: The images to evaluate on. None, or a dictionary without ``name``, ``path`` and ``test_path``:
            no figures are measured, and ``image_size`` is that of the images the student takes (by default
            32 for ``cifar/``, else what the network is built for, else 224).
        settings: Any other section of :class:`RunConfig` as a dictionary, and ``seed``;
            ``teacher={"pretrained": True}`` takes the teacher's weights from timm.

    Returns:
        The run, with accuracies only where ``data`` is given.

    Raises:
        UserError: not such a checkpoint, a network that doesn't fit it, data of other classes, or the
            folder exists.
    """
    # training is not needed to read a checkpoint, and takes seconds to load
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
    config = _config(released, student.name if isinstance(student, Backbone) else student, given)
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


def _own_size(backbone: Backbone, made_here: bool) -> int | None:
    """Side of the images a released student takes; None where a user's own network doesn't tell."""
    if backbone.name.startswith("cifar/"):
        return _CIFAR_SIZE
    if backbone.image_size is not None:
        return backbone.image_size[0]
    return _IMAGENET_SIZE if made_here else None


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _teacher_classifier(state: Mapping[str, Tensor]) -> nn.Linear:
    weight = state["classifier.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    bias = state.get("classifier.bias", torch.zeros(weight.shape[0]))
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


@torch.no_grad()
def _folded(classifier: nn.Linear, state: Mapping[str, Tensor]) -> nn.Linear:
    """The classifier (K, D) behind stage 1's projection (D, d), as one layer (K, d)."""
    if "proj.weight" not in state:
        return classifier
    weight, bias = state["proj.weight"].double(), state["proj.bias"].double()
    outer = classifier.weight.double()
    folded = nn.Linear(weight.shape[1], classifier.out_features)
    folded.weight.copy_(outer @ weight)
    folded.bias.copy_(outer @ bias + classifier.bias.double())
    return folded


def _config(released: Released, student: str, settings: Mapping[str, Any]) -> RunConfig:
    """The published settings, over them the checkpoint's options, the settings given, and its sizes."""
    cifar = student.startswith("cifar/")
    values = read_yaml(recipe_path("published"))
    _lay(values, {} if cifar else _IMAGENET)
    if released.stage == 1:
        values |= {"method": "supervised", "readout": {"name": "linear"}}
    sets = {10: "cifar10", 100: "cifar100"} if cifar else {}
    values["data"] = {"name": sets.get(released.num_classes, "folder"), "validation": 0.0}
    normalised = cifar and released.in_channels == len(_CIFAR_MEAN)
    values["student"] = {"mean": _CIFAR_MEAN, "std": _CIFAR_STD} if normalised else {}
    teacher = settings.get("teacher", {}).get("name", RunConfig().teacher.name)
    if teacher.startswith("cifar/"):
        values["teacher"] = dict(values["student"])
    for layer in (_trained_with(released.options), settings, {"student": {"name": student}}):
        _lay(values, layer)
    _lay(values, {"gendd": released.sizes()})
    if values["gendd"]["condition_dropout"] == 0 and "guidance" not in settings.get("readout", {}):
        values["readout"]["guidance"] = 1.0
    return from_dict(values, RunConfig)


def _trained_with(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the released code's options are."""
    found: dict[str, Any] = {"gendd": {}, "training": {}, "data": {}}
    for option, (section, key) in _OPTIONS.items():
        if option in options:
            found[section][key] = options[option]
    if "cos" in options:
        found["training"]["schedule"] = "cosine" if options["cos"] else "step"
    # one as long as the training is no error there
    if {"epochs", "warmup_epochs"} <= set(options) and options["warmup_epochs"] < options["epochs"]:
        found["training"]["warmup_epochs"] = options["warmup_epochs"]
    return found


def _lay(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Lay settings over others, section by section."""
    for key, value in layer.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value


def _teacher(released: Released, config: RunConfig) -> Backbone | None:
    """The teacher where its weights are given; it fits the checkpoint in either case."""
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

    # streamed, as the training images are not looked at
    data = load_data(dataclasses.replace(config.data, in_memory=False), config.evaluation.images)
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
    """What ``metrics.json`` says: what is known of the checkpoint and, of ``data``, its figures."""
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
    """Scores on the test images and costs, by readout."""
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
