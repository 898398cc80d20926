"""Base class of all methods: a training step takes a batch and returns the loss, logits and named parts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gendd.errors import UserError
from gendd.models import Asked, Backbone, Frozen, Stages
from gendd.processes import share
from gendd.student import Student


@dataclass
class StepOutput:
    """Outputs of a method for a batch.

    Attributes:
        loss: Scalar to minimise.
        logits: (B, K) of the student's classifier.
        parts: Named scalar terms of the loss, detached.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class NoSettings:
    """No settings."""


class Method(nn.Module):
    """Base class of a training method: the student being trained, and its teacher, if any.

    Each method is a subclass in a file of its own, which holds everything about it. The teacher moves
    between devices with the module but is not a submodule: it is never in the state dict, among the
    parameters, or in training mode.

    Args:
        backbone: The student network.
        teacher: The network to distil; None for a method without one.
        settings: Instance of :attr:`Settings`; None: its defaults.
        labels: Whether training sees labels; None: not known yet, each batch may have them or not.

    Attributes:
        name: Name in configurations.
        label: Name in tables.
        origin: How the method teaches, to follow "Distilled from TEACHER".
        colors: Plot colours on light and on dark pages.
        marker: Matplotlib marker.
        Settings: Dataclass of its settings, which are options under the method's name, ``--kd.temperature``.
        needs_labels: Whether it can't learn without labels.
        takes_unknown: Whether it also learns from images with unknown label (-1) in a partly labelled set;
            else it is given only the labelled images.
        may_see_labels: Whether it learns from labels if there are any.
        needs_teacher: Whether it has a teacher.
        needs_classes: Whether the teacher must have a classifier of the student's classes.
        needs_maps: Whether teacher and student must have feature maps (see :attr:`gendd.Backbone.has_map`).
        has_diffusion: Whether it has a :meth:`diffusion_loss`.
        replayable: Whether its steps differ only in their inputs, so that a recorded one can be replayed as a
            CUDA graph; a method whose Python code changes from step to step is not. By default, methods of
            this package are, and others are not.
        part: Index and number of the parts of a step's batch, if processes share it; see :meth:`draw`.

    Raises:
        UserError: teacher or student lack what the method needs.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    origin: ClassVar[str] = ""
    colors: ClassVar[tuple[str, str]] = ("#5b6675", "#9aa5b4")
    marker: ClassVar[str] = "o"
    Settings: ClassVar[type[Any]] = NoSettings
    needs_labels = True
    needs_teacher: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False
    needs_maps: ClassVar[bool] = False
    has_diffusion = False
    replayable: ClassVar[bool] = False
    takes_unknown: bool = False
    may_see_labels: bool = True
    part: tuple[int, int] = (0, 1)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" in cls.__dict__ and "label" not in cls.__dict__:
            cls.label = cls.name
        if "replayable" not in cls.__dict__:
            cls.replayable = cls.__module__.startswith("gendd.methods.")

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | Frozen | None = None,
        settings: Any = None,
        *,
        labels: bool | None = None,
    ) -> None:
        super().__init__()
        del labels
        self.backbone = backbone
        self.settings = self.Settings() if settings is None else settings
        if isinstance(teacher, Backbone):
            teacher = Frozen(teacher)
        self._teacher = (teacher,)
        if teacher is None:
            return
        if self.needs_classes:
            self._check_classifier(teacher)
        if self.needs_maps:
            for role, network in (("teacher", teacher), ("student", backbone)):
                if not network.has_map:
                    raise UserError(
                        f"{self.label}: expected a {role} that gives a map before its feature is pooled, "
                        "got one without; use method gendd, which learns from the feature too."
                    )

    def _check_classifier(self, teacher: Frozen) -> None:
        """Raise :class:`UserError` if the teacher's classes are not the student's."""
        if not teacher.has_classifier:
            raise UserError(
                f"{self.label}: expected a teacher with a classifier, got one that gives features only. "
                "Use method gendd, or another that needs no logits."
            )
        if teacher.num_classes != self.backbone.num_classes:
            way = ", or data.labels false" if not self.needs_labels else ""
            raise UserError(
                f"{self.label}: expected a teacher with the student's {self.backbone.num_classes} classes, "
                f"got one with {teacher.num_classes}. Use a teacher trained on these classes{way}."
            )

    @classmethod
    def summary(cls) -> str:
        """One-line description of the method and its requirements."""
        needs = ["a teacher"] if cls.needs_teacher else []
        needs += ["its classifier of the student's classes"] if cls.needs_classes else []
        needs += ["maps"] if cls.needs_maps else []
        needs += ["labels"] if cls.needs_labels else []
        told = (cls.__doc__ or cls.label).strip().splitlines()[0].rstrip(".")
        return f"{told} (needs {', '.join(needs)})" if needs else told

    @classmethod
    def section(cls) -> str:
        """Name of the section of its settings in files and options."""
        return cls.name

    def labelled(self, labels: Tensor | None) -> Tensor:
        """Return the labels; raises :class:`UserError` if there are none."""
        if labels is None:
            raise UserError(f"{self.label}: expected labels, got none. Use a labelled set.")
        return labels

    @property
    def teacher(self) -> Frozen | None:
        """The frozen teacher."""
        return self._teacher[0]

    def ask(self, teacher: Frozen) -> None:
        """Replace the teacher by another form of the same network, such as a cached or sharded one."""
        self._teacher = (teacher,)

    def _apply(self, fn: Any, recurse: bool = True) -> Method:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    @property
    def asks(self) -> Asked:
        """Teacher outputs that it uses for training batches; other outputs can be requested too."""
        return "map" if self.needs_maps else "feature"

    @property
    def asked_stages(self) -> Stages:
        """Stage maps that it uses, if it uses any, see :meth:`gendd.Backbone.with_stages`."""
        return None

    @abstractmethod
    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Compute the loss of a batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64, -1 if unknown, or (B, K) probabilities; None without labels.
            generator: Source of the method's own randomness, on the images' device.
        """

    def student(self) -> Student:
        """Return the student for deployment, which shares its weights with this method.

        By default it is the student network with its classifier.
        """
        return Student(self.backbone)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) of every readout that costs at most one pass; used for validation."""
        student = self.student()
        features = student.features(images)
        return {name: student.logits(features, name) for name in student.readouts if name != "sample"}

    def diffusion_loss(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean diffusion loss of held-out images, a scalar; for a method with :attr:`has_diffusion`.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: As for :meth:`forward`.
            generator: Source of times and noise; losses from the same state are comparable.
        """
        raise NotImplementedError(f"{type(self).__name__} has no diffusion loss")

    def prepare(self, batches: Iterable[Any]) -> None:
        """Collect statistics of the training data before the first step; does nothing by default.

        Args:
            batches: (images, labels) pairs or objects with these attributes; images (B, C, H, W) in
                [0, 1], labels (B,) or None. Only as many as needed are consumed.
        """

    def draw(
        self,
        sample: Callable[..., Tensor],
        shape: tuple[int, ...],
        generator: torch.Generator | None,
        device: torch.device,
        *,
        images: int = 0,
    ) -> Tensor:
        """Draw random numbers for a batch; in distributed training, this process's part of them.

        They are drawn for the whole batch of a step, so that the step does not depend on the number of
        processes that share it.

        Args:
            sample: ``torch.rand`` or ``torch.randn``.
            shape: Shape of the result.
            generator: Source of randomness, with the same state in all processes.
            device: Device of the result.
            images: Dimension of ``shape`` that indexes images.
        """
        rank, world_size = self.part if self.training else (0, 1)
        whole = list(shape)
        whole[images] *= world_size
        drawn = sample(whole, generator=generator, device=device)
        if world_size == 1:
            return drawn
        return drawn.index_select(images, share(whole[images], rank, world_size).to(device))

    def compile_losses(self) -> None:
        """Compile the losses of training steps; by default nothing is compiled."""

    def rows(self, images: int) -> int:
        """Number of rows of the loss for a number of images; by default one per image."""
        return images

    def undecayed(self) -> Iterator[nn.Parameter]:
        """Parameters exempt from weight decay whatever their shape; none by default."""
        return iter(())
