"""Checkpoints of the authors' released GenDD code: stage 1 or 2, CIFAR or ImageNet.

Their keys: ``model.*`` the student network, ``classifier.*`` the teacher's classifier; in stage 1 also
``proj.*``, the Linear layer from the student's to the teacher's feature (absent if both have the same
width); in stage 2 ``cls_projector.0.*``, the LayerNorm of the condition, and ``diffloss.net.*``, the head.
Buffers (``cls_centers``, ``chunk_idx``) hold no further information.

Shapes: d student feature · D teacher feature · C token width · K classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from gendd.errors import UserError
from gendd.models.weights import read_checkpoint
from gendd.student.generator import FeatureGenerator

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
# by stage, the tensors that determine the sizes, and their numbers of dimensions
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
# the released code's options and the corresponding settings
OPTIONS = {
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
# its normalisation of CIFAR images; for ImageNet it is each network's own
CIFAR_MEAN = [0.5071, 0.4867, 0.4408]
CIFAR_STD = [0.2675, 0.2565, 0.2761]


def head_state(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a head's state dict from the released code's names, without ``diffloss.net.``, to gendd's."""
    renamed = {}
    for key, value in released.items():
        for old, new in _HEAD_NAMES.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def load_generator(generator: FeatureGenerator, state: Mapping[str, Tensor]) -> None:
    """Load head and LayerNorm of a released stage-2 state dict into a generator of the same sizes.

    Raises:
        KeyError: the LayerNorm is missing.
        RuntimeError: keys or shapes are those of another head.
    """
    generator.head.load_state_dict(head_state(below(state, _HEAD)))
    generator.norm.load_state_dict({key: state[_NORM + key] for key in ("weight", "bias")})


@dataclass(frozen=True)
class Released:
    """A checkpoint of the released code; see :func:`read_released`.

    Attributes:
        path: Its file.
        state: Names to tensors, without ``module.``.
        options: Options of its training, if they are in the file.
        epoch: Number of epochs it was trained for, if it is in the file.
    """

    path: Path
    state: dict[str, Tensor]
    options: dict[str, Any]
    epoch: int | None

    @property
    def stage(self) -> int:
        """Stage of the training: 1 without a head, else 2."""
        return 2 if any(key.startswith(("diffloss.", "cls_projector.")) for key in self.state) else 1

    @cached_property
    def student(self) -> dict[str, Tensor]:
        """The state dict of the student network."""
        return below(self.state, "model.")

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
        """Channels of the images, those of the first convolution."""
        return next((value.shape[1] for value in self.student.values() if value.dim() == 4), 3)

    def sizes(self) -> dict[str, Any]:
        """Settings of the head, from the shapes of its tensors; empty in stage 1."""
        if self.stage == 1:
            return {}
        width, token_width = self.state[f"{_HEAD}input_proj.weight"].shape
        blocks = {key.split(".")[1] for key in below(self.state, _HEAD) if key.startswith("res_blocks.")}
        return {
            "token_width": token_width,
            "head_width": width,
            "head_depth": len(blocks),
            "learned_variance": self.state[f"{_HEAD}final_layer.linear.weight"].shape[0] == 2 * token_width,
        }


def read_released(path: str | Path) -> Released:
    """Read a checkpoint of the released code.

    Args:
        path: The checkpoint file.

    Raises:
        UserError: no such file, it can't be read, or it is not such a checkpoint.
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


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
