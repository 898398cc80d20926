"""A finished run, as used from Python."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gendd.evaluation.refit import Target
from gendd.run.probing import Probed, probe_run
from gendd.student.folders import RunFolder


@dataclass(frozen=True)
class Run(RunFolder):
    """A finished run."""

    def probe(
        self,
        target: Target | None = None,
        *,
        train_images: int | None = None,
        allow_labels: bool = False,
        device: str | None = None,
        backbone: nn.Module | None = None,
        teacher: nn.Module | None = None,
        progress: bool = False,
    ) -> Probed:
        """Refit the linear readout of the student; see :func:`gendd.run.probing.probe_run`."""
        return probe_run(
            self.folder,
            target,
            train_images=train_images,
            allow_labels=allow_labels,
            device=device,
            backbone=backbone,
            teacher=teacher,
            progress=progress,
        )
