"""Training steps as CUDA graphs: teacher, student, loss and gradients in one launch instead of thousands.

Launching the kernels of a small network one by one takes longer than running them.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendd.errors import first_line
from gendd.messages import say
from gendd.methods import Method, StepOutput
from gendd.models import Frozen
from gendd.models.graphs import capturing
from gendd.processes import world_size

# steps with one shape of input before it is captured: odd shapes occur once per epoch
_AFTER = 3
# maximum number of graphs; each keeps the memory of its step
_MOST = 2
# fraction of the device's memory that must stay free: validation can't use what a graph keeps
_FREE = 0.15


class GraphedSteps:
    """Runs a method's training steps as CUDA graphs; on other devices, as they are.

    A step is captured when inputs of its shapes are seen for the third time. Steps run as they are if they
    can't be captured (they synchronise with the device or draw random numbers on the CPU), in fp16, in
    several processes, and for methods that are not :attr:`gendd.Method.replayable`.

    Args:
        method: The method. Its tensors must stay at their addresses while a graph is in use; graphs of
            tensors that have moved are dropped.
        enabled: False: run all steps as they are.
    """

    def __init__(self, method: Method, enabled: bool = True) -> None:
        self.method = method
        # other teachers look batches up on the CPU
        constant = method.teacher is None or type(method.teacher) is Frozen
        self.enabled = enabled and method.replayable and constant and world_size() == 1
        self._captured: dict[Hashable, _Step] = {}
        self._met: dict[Hashable, int] = {}
        self._stream: torch.cuda.Stream | None = None
        self._tensors: list[Tensor] = []
        self._places: list[tuple[int, bool]] = []

    def __call__(self, images: Tensor, labels: Tensor | None, *, generator: torch.Generator) -> StepOutput:
        """Return the method's output for a batch; its loss is ready for one backward pass.

        Args:
            images: (B, C, H, W).
            labels: As for :meth:`gendd.Method.forward`.
            generator: On the images' device.
        """
        if not self.enabled or images.device.type != "cuda" or not torch.is_grad_enabled():
            out: StepOutput = self.method(images, labels, generator=generator)
            return out
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        if autocast == torch.float16:
            # unscaled gradients would underflow
            self.enabled = False
            return self(images, labels, generator=generator)
        self._drop_if_moved()
        key = (autocast, _described(images), None if labels is None else _described(labels))
        step = self._captured.get(key)
        if step is None:
            self._met[key] = self._met.get(key, 0) + 1
            if self._met[key] < _AFTER or len(self._captured) == _MOST:
                # not the first step, where what is made once may wait
                return self._as_it_is(images, labels, generator, watched=self._met[key] == _AFTER - 1)
            step = self._capture(images, labels, generator, autocast)
            if step is None:
                return self(images, labels, generator=generator)
            self._captured[key] = step
        return step(images, labels, generator)

    def _drop_if_moved(self) -> None:
        """Drop the graphs if tensors of the method have moved since their capture."""
        if self._captured and _places(self._tensors) != self._places:
            self._captured.clear()
            self._met.clear()

    def _as_it_is(
        self, images: Tensor, labels: Tensor | None, generator: torch.Generator, *, watched: bool
    ) -> StepOutput:
        before = _drawn_on_cpu()
        with _waits(watched) as waits:
            out: StepOutput = self.method(images, labels, generator=generator)
        if any(waits):
            self._refuse("they synchronise with the device")
        elif _drawn_on_cpu() != before:
            self._refuse("they draw random numbers on the CPU")
        return out

    def _refuse(self, reason: str) -> None:
        self.enabled = False
        self._captured.clear()
        say(f"{self.method.name}: steps run without CUDA graphs: {reason}")

    def _capture(
        self,
        images: Tensor,
        labels: Tensor | None,
        generator: torch.Generator,
        autocast: torch.dtype | None,
    ) -> _Step | None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        pool = next((step.graph.pool() for step in self._captured.values()), None)
        try:
            step = _Step(self.method, images, labels, generator, autocast, self._stream, pool)
        except RuntimeError as error:  # it synchronises with the device or exhausts its memory
            self._refuse(first_line(error.__context__ or error))
            return None
        free, memory = torch.cuda.mem_get_info(images.device)
        if free < _FREE * memory:
            del step
            self._refuse(f"they would leave {free / 1e9:.1f} GB of the device's memory free")
            return None
        if not self._captured:
            modules = (self.method, self.method.teacher)
            found = [each for each in modules if each is not None]
            self._tensors = [tensor for each in found for tensor in (*each.parameters(), *each.buffers())]
            self._places = _places(self._tensors)
        return step


class _Step:
    """A captured step.

    Attributes:
        values: Loss and its parts, overwritten by the next step, as are the others.
        logits: (B, K).
        gradients: Of the loss, one per parameter; None where it doesn't depend on one.
    """

    def __init__(
        self,
        method: Method,
        images: Tensor,
        labels: Tensor | None,
        generator: torch.Generator,
        autocast: torch.dtype | None,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        self.images = torch.empty_like(images).copy_(images)
        self.labels = None if labels is None else labels.clone()
        self.generator = torch.Generator(images.device)
        self.generator.set_state(generator.get_state())
        self.parameters = [each for each in method.parameters() if each.requires_grad]
        self.graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            # later versions of PyTorch do without and deprecate it
            warnings.simplefilter("ignore")
            if hasattr(self.graph, "register_generator_state"):
                self.graph.register_generator_state(self.generator)
        # weights that autocast has converted outside the graph would not follow the optimiser
        torch.clear_autocast_cache()
        try:
            with capturing(self.graph, stream, pool):
                with torch.autocast("cuda", autocast, enabled=autocast is not None):
                    out = method(self.images, self.labels, generator=self.generator)
                # as a backward pass outside the caller's autocast
                with torch.autocast("cuda", enabled=False):
                    values = [each.float() for each in (out.loss.detach(), *out.parts.values())]
                    self.values = torch.stack(values)
                    self.logits = out.logits.detach()
                    self.gradients = torch.autograd.grad(out.loss, self.parameters, allow_unused=True)
        finally:
            torch.clear_autocast_cache()
        self.names = list(out.parts)

    def __call__(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> StepOutput:
        self.images.copy_(images)
        if labels is not None:
            assert self.labels is not None
            self.labels.copy_(labels)
        self.generator.set_state(generator.get_state())
        self.graph.replay()
        generator.set_state(self.generator.get_state())
        # copied, as the next step overwrites them
        loss, *parts = self.values.clone().unbind()
        loss = _Replayed.apply(loss, self.gradients, *self.parameters)
        return StepOutput(loss, self.logits.clone(), dict(zip(self.names, parts, strict=True)))


class _Replayed(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        known = [each for each in ctx.gradients if each is not None]
        # new tensors, which a parameter may keep
        scaled = iter(torch._foreach_mul(known, gradient))
        return None, None, *(None if each is None else next(scaled) for each in ctx.gradients)


def _described(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _places(tensors: list[Tensor]) -> list[tuple[int, bool]]:
    return [(each.data_ptr(), each.requires_grad) for each in tensors]


@contextlib.contextmanager
def _waits(watched: bool) -> Iterator[Iterable[str]]:
    """Yield the warnings, complete at the end, of synchronisations with the device, if watched."""
    if not watched:
        yield ()
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield (text for each in found if "called a synchronizing" in (text := str(each.message)))
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _drawn_on_cpu() -> tuple[object, ...]:
    """State of the generators on the CPU."""
    _, keys, position, *_ = np.random.get_state()
    numbers = np.asarray(keys).tobytes(), position
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numbers
