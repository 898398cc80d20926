"""One step type for every method: a batch in; total loss, logits and named parts out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gendd.errors import UserError
from gendd.models import Asked, Backbone, Frozen
from gendd.processes import share
from gendd.student import Student


@dataclass
class StepOutput:
    """What a method computes on a batch.

    Attributes:
        loss: Scalar to minimise.
        logits: (B, K) of the student's classifier.
        parts: Named scalars the loss is made of, detached.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class NoSettings:
    """Nothing to set."""


class Method(nn.Module):
    """A student being trained, with the teacher (if any) beside it.

    A method is a subclass in a file of its own, which says all there is to know of it. The teacher follows
    the module from device to device, but is none of its submodules: it never is in a state dict, among the
    parameters, or in training mode.

    Args:
        backbone: The student network.
        teacher: The network to distil; None for a method without one.
        settings: Of the type :attr:`Settings`; None: its defaults.
        labels: Whether training sees labels; None: not known yet, each batch with what it has.

    Attributes:
        name: What configurations call it.
        label: What tables call it.
        origin: How it teaches, to be read after "Distilled from TEACHER".
        colors: Its colours on light and on dark pages.
        marker: The sign of its points, as matplotlib spells it.
        Settings: The dataclass of its settings; they are options by the method's name, ``--kd.temperature``.
        needs_labels: Whether it can't learn without labels.
        takes_unknown: Whether it also learns from the images whose label is unknown (-1), where others have
            one; else it is given those alone that have.
        may_see_labels: Whether it learns from labels where there are any.
        needs_teacher: Whether it has a teacher.
        needs_classes: Whether the teacher must have a classifier of the student's classes.
        needs_maps: Whether teacher and student must give maps (see :attr:`gendd.Backbone.has_map`).
        has_diffusion: Whether it has a :meth:`diffusion_loss`.
        part: Which part of a step's batch this process is given, of how many; see :meth:`draw`.

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
    takes_unknown: bool = False
    may_see_labels: bool = True
    part: tuple[int, int] = (0, 1)

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" in cls.__dict__ and "label" not in cls.__dict__:
            cls.label = cls.name

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
        """Raise :class:`UserError` where the teacher's classes are not the student's."""
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
        """What it is and needs, on one line."""
        needs = ["a teacher"] if cls.needs_teacher else []
        needs += ["its classifier of the student's classes"] if cls.needs_classes else []
        needs += ["maps"] if cls.needs_maps else []
        needs += ["labels"] if cls.needs_labels else []
        told = (cls.__doc__ or cls.label).strip().splitlines()[0].rstrip(".")
        return f"{told} (needs {', '.join(needs)})" if needs else told

    @classmethod
    def section(cls) -> str:
        """What the section of its settings is called in files and options."""
        return cls.name

    def labelled(self, labels: Tensor | None) -> Tensor:
        """The labels; raises :class:`UserError` where there are none."""
        if labels is None:
            raise UserError(f"{self.label}: expected labels, got none. Use a labelled set.")
        return labels

    @property
    def teacher(self) -> Frozen | None:
        """The frozen teacher."""
        return self._teacher[0]

    def ask(self, teacher: Frozen) -> None:
        """Put another form of the same teacher in its place."""
        self._teacher = (teacher,)

    def _apply(self, fn: Any, recurse: bool = True) -> Method:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    @property
    def asks(self) -> Asked:
        """What it asks the teacher of a training batch; what else it asks is answered too."""
        return "map" if self.needs_maps else "feature"

    @property
    def asked_stages(self) -> int | None:
        """How many maps of stages it reads where it asks for them, the last ones; None: all."""
        return None

    @abstractmethod
    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64, -1 where it is unknown, or (B, K) probabilities; None without labels.
            generator: Source of the method's own randomness, on the images' device.
        """

    def student(self) -> Student:
        """The trained student as it is deployed; shares its weights with this method.

        By default the student network and its classifier.
        """
        return Student(self.backbone)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, K) by every readout that costs one pass at most; what validation looks at."""
        student = self.student()
        features = student.features(images)
        return {name: student.logits(features, name) for name in student.readouts if name != "sample"}

    def diffusion_loss(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Mean diffusion loss of held-out images, a scalar; for a method with :attr:`has_diffusion`.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: As for :meth:`forward`.
            generator: Source of times and noise: from the same state, losses can be compared.
        """
        raise NotImplementedError(f"{type(self).__name__} diffuses nothing")

    def prepare(self, batches: Iterable[Any]) -> None:
        """Learn what has to be known of the training data before the first step; nothing by default.

        Args:
            batches: Of (images, labels) pairs or objects with these attributes; images (B, C, H, W) in
                [0, 1], labels (B,) or None. No more of them are taken than are needed.
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
        """Random numbers of a batch; in training those of its part where processes share a step's batch.

        They are drawn for the whole, so that the step is the same however many processes share it.

        Args:
            sample: ``torch.rand`` or ``torch.randn``.
            shape: Of what is returned.
            generator: Its state must be the same in all processes.
            device: Where.
            images: The dimension of the images.
        """
        rank, world_size = self.part if self.training else (0, 1)
        whole = list(shape)
        whole[images] *= world_size
        drawn = sample(whole, generator=generator, device=device)
        if world_size == 1:
            return drawn
        return drawn.index_select(images, share(whole[images], rank, world_size).to(device))

    def rows(self, images: int) -> int:
        """Rows of the loss for so many images: one each by default."""
        return images

    def undecayed(self) -> Iterator[nn.Parameter]:
        """Parameters that take no weight decay whatever their shape; none by default."""
        return iter(())
