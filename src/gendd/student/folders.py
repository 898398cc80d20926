"""Access to the folder of a finished run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from gendd.config import RunConfig, load_config
from gendd.errors import UserError, first_line
from gendd.files import check_run, read_text, user_path
from gendd.student.student import Student, load


@dataclass(frozen=True)
class RunFolder:
    """The folder of a finished run."""

    folder: Path

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open the run at ``path``.

        Raises:
            UserError: there is no run, or it has not finished.
        """
        folder = user_path(path)
        check_run(path)
        if not (folder / "metrics.json").is_file():
            raise UserError(
                f"The run at {str(path)!r} has not finished: expected metrics.json. "
                "Continue it with --resume."
            )
        _metrics(folder / "metrics.json")
        return cls(folder)

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration."""
        return load_config(self.folder / "config.yaml")

    @property
    def metrics(self) -> dict[str, Any]:
        """The run's results, the content of ``metrics.json``."""
        return _metrics(self.folder / "metrics.json")

    @property
    def report(self) -> Path:
        """Path of the run's HTML report."""
        return self.folder / "report.html"

    def student(self, device: str | torch.device = "cpu", backbone: nn.Module | None = None) -> Student:
        """Load the run's student, in eval mode; see :func:`gendd.load`."""
        return load(self.folder, device=device, backbone=backbone)


def _metrics(file: Path) -> dict[str, Any]:
    """Read the results of a run; raises :class:`UserError` if the file holds something else."""
    try:
        metrics = json.loads(read_text(file))
        sections = [metrics["run"], metrics["student"], *metrics["student"]["readouts"].values()]
        sections += [metrics["teacher"]] if metrics.get("teacher") is not None else []
    except (KeyError, TypeError, AttributeError):
        sections = [None]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{str(file)!r}: expected a readable JSON file ({first_line(error)}); restore it."
        ) from error
    if not all(isinstance(each, dict) for each in sections):
        raise UserError(f"{str(file)!r}: expected the figures of a run, got something else; restore it.")
    found: dict[str, Any] = metrics
    return found
