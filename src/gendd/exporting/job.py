"""What is exported, as every format takes it.

Shapes: B images · C channels · S side · K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from gendd.config import ReadoutName
from gendd.deploy import Deployed
from gendd.errors import UserError
from gendd.run import Run
from gendd.student import Student

# images float32 (B, C, S, S) in [0, 1] -> logits (B, K)
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One export.

    Args:
        student: On the CPU, its settings those of the sampler.
        deployed: The readout of it that is exported.
        run: Where it comes from; None for a student without its run.
        size: S, side of the images it takes.
        seed: Of the noise of readout ``sample``.
    """

    student: Student
    deployed: Deployed
    run: Run | None
    size: int
    seed: int

    @property
    def readout(self) -> ReadoutName:
        """Which readout is exported."""
        return self.deployed.readout

    @property
    def channels(self) -> int:
        """C."""
        return self.student.backbone.in_channels

    @property
    def classes(self) -> int:
        """K."""
        return self.student.num_classes(self.readout)

    @property
    def framing(self) -> float:
        """Part of the shorter side that is kept of images larger than S."""
        return float(self.student.info.get("framing", 1.0))

    def metadata(self) -> dict[str, str]:
        """What whoever runs the file has to know; of values that are no text the JSON."""
        shape = f"(B, {self.channels}, {self.size}, {self.size})"
        told = {
            "class_names": json.dumps(self.student.class_names(self.readout), ensure_ascii=False),
            "image_size": str(self.size),
            "channels": str(self.channels),
            "framing": str(self.framing),
            "readout": self.readout,
            "network": self.student.backbone.name,
            "input": f"images: float32 {shape} in [0, 1], {'RGB' if self.channels == 3 else 'gray'}; the "
            "model normalises them itself",
            "output": f"logits: float32 (B, {self.classes}); their softmax are the probabilities",
            "producer": f"gendd {version('gendd')}",
        }
        if self.readout == "sample":
            told["seed"] = str(self.seed)
        return told


def image_size(student: Student, folder: Path | None) -> int:
    """S of the images a student takes.

    Raises:
        UserError: its config.json doesn't tell.
    """
    size = student.info.get("image_size")
    if size is None and student.backbone.image_size is not None:
        size = student.backbone.image_size[0]
    if size is None:
        where = "the student" if folder is None else f"{folder}/config.json"
        raise UserError(
            f"Export: expected the side of the images in {where} (info.image_size), found none; set "
            'student.info["image_size"] and save the student.'
        )
    return int(size)
