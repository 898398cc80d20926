"""The source of an export, in the form that every format takes.

Shapes: B images · C channels · S side · K classes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from gendd.config import ReadoutName
from gendd.data import Data, load_data
from gendd.deploy import Deployed
from gendd.deploy.hub import load
from gendd.errors import UntrustedCodeError, UserError
from gendd.student import Student
from gendd.student.folders import RunFolder

# images float32 (B, C, S, S) in [0, 1] -> logits (B, K)
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Source:
    """One readout of a student, to be exported.

    Args:
        student: On the CPU; its settings are the sampler's.
        deployed: The readout to export.
        run: The student's run; None for a student without one.
        size: S, side of the images it takes.
        seed: Seed of the noise of readout ``sample``.
        resampled: Whether the sampler's settings differ from those the run was scored with.
    """

    student: Student
    deployed: Deployed
    run: RunFolder | None
    size: int
    seed: int
    resampled: bool = False

    @property
    def readout(self) -> ReadoutName:
        """The exported readout."""
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
        """Fraction of the shorter side kept when cropping images larger than S."""
        return float(self.student.info.get("framing") or 1.0)

    @cached_property
    def data(self) -> Data | str:
        """Return the run's data, streamed; or a text that says why there is none the student can take."""
        if self.run is None:
            return "no run beside the student"
        try:
            data = load_data(dataclasses.replace(self.run.config.data, in_memory=False))
        except UntrustedCodeError:
            return "the run's are read by code that only --trust-code allows"
        except UserError as error:
            return f"the run's are not there: {str(error).rstrip('.')}"
        # the run of an imported checkpoint may name other data than it was trained on
        if (data.channels, data.image_size) != (self.channels, self.size):
            return "the run's are of another shape"
        return data

    def metadata(self) -> dict[str, str]:
        """Return what users of the file need to know; values that are not strings as JSON."""
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
            settings = self.student.settings
            told["seed"] = str(self.seed)
            told["sampler"] = f"{settings.sampler}, {settings.num_samples} × {settings.steps} steps"
            told["guidance"] = f"{settings.guidance:g}"
        return told


def opened(
    source: str | Path | RunFolder | Student, backbone: nn.Module | None
) -> tuple[RunFolder | None, Path | None, Student]:
    """Open what a user names (see ``export``): the run, the folder for exports, and the student."""
    if isinstance(source, Student):
        # a copy, so that the original's mode and settings stay unchanged
        return None, None, copy.deepcopy(source).cpu().eval()
    path = source.folder if isinstance(source, RunFolder) else source
    student, folder = load(path, backbone=backbone), Path(path)
    if not folder.is_dir():  # from the Hub
        return None, None, student
    whole = folder.resolve()
    if whole.name == "student" and _is_run(whole.parent):
        folder = whole.parent if folder.name != "student" else folder.parent
    return RunFolder(folder) if _is_run(folder) else None, folder, student


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "metrics.json").is_file()


def image_size(student: Student, folder: Path | None) -> int:
    """Return S of the images a student takes.

    Raises:
        UserError: its config.json doesn't contain it.
    """
    size = student.info.get("image_size")
    if size is None and student.backbone.image_size is not None:
        size = student.backbone.image_size[0]
    if size is None:
        where, remedy = "the student", 'set student.info["image_size"] and save the student'
        if folder is not None:
            inside = folder / "student" / "config.json"
            where = str(inside if inside.is_file() else folder / "config.json")
            remedy = 'add "image_size" to its "info", in pixels'
        raise UserError(
            f"Export: expected the side of the images in {where} (info.image_size), found none; {remedy}."
        )
    return int(size)
