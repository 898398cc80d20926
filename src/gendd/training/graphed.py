"""Training steps as CUDA graphs: teacher, student, loss and gradients in one launch instead of thousands.

Launching the kernels of a small network one by one takes longer than running them.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gendd.errors import first_line
from gendd.messages import say
from gendd.methods import Method, StepOutput
from gendd.models import Frozen
from gendd.processes import world_size

# steps with one shape of input before it is captured: odd shapes occur once per epoch
_AFTER = 3
# maximum number of graphs; each keeps the memory of its step
_MOST = 2


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
        self._addresses: tuple[int, ...] = ()

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
        key = (autocast, _described(images), None if labels is None else _described(labels))
        step = self._captured.get(key)
        if step is None or self._moved():
            self._met[key] = self._met.get(key, 0) + 1
            if self._met[key] < _AFTER or len(self._captured) == _MOST:
                return self._as_it_is(images, labels, generator)
            step = self._capture(images, labels, generator, autocast)
            if step is None:
                return self(images, labels, generator=generator)
            self._captured[key] = step
        return step(images, labels, generator)

    def _moved(self) -> bool:
        """Whether tensors of the method have moved since the first capture; drops the graphs if so."""
        if not self._captured or self._addresses == _addresses(self.method):
            return False
        self._captured.clear()
        self._met.clear()
        return True

    def _as_it_is(self, images: Tensor, labels: Tensor | None, generator: torch.Generator) -> StepOutput:
        before = _drawn_on_cpu()
        out: StepOutput = self.method(images, labels, generator=generator)
        if _drawn_on_cpu() != before:
            self.enabled = False
        return out

    def _capture(
        self,
        images: Tensor,
        labels: Tensor | None,
        generator: torch.Generator,
        autocast: torch.dtype | None,
    ) -> _Step | None:
        pool = next((step.graph.pool() for step in self._captured.values()), None)
        try:
            step = _Step(self.method, images, labels, generator, autocast, pool)
        except RuntimeError as error:  # it synchronises with the device or exhausts its memory
            self.enabled = False
            self._captured.clear()
            say(f"{self.method.name}: steps run without CUDA graphs ({first_line(error)})")
            return None
        self._addresses = _addresses(self.method)
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
        pool: Any,
    ) -> None:
        self.images = torch.empty_like(images).copy_(images)
        self.labels = None if labels is None else labels.clone()
        self.generator = torch.Generator(images.device)
        self.generator.set_state(generator.get_state())
        self.parameters = [each for each in method.parameters() if each.requires_grad]
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(self.generator)
        # weights that autocast has converted outside the graph would not follow the optimiser
        torch.clear_autocast_cache()
        try:
            # other threads may allocate meanwhile
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                with torch.autocast("cuda", autocast, enabled=autocast is not None):
                    out = method(self.images, self.labels, generator=self.generator)
                self.values = torch.stack([each.float() for each in (out.loss.detach(), *out.parts.values())])
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


def _addresses(method: nn.Module) -> tuple[int, ...]:
    return tuple(each.data_ptr() for each in (*method.parameters(), *method.buffers()))


def _drawn_on_cpu() -> tuple[object, ...]:
    """State of the generators on the CPU."""
    _, keys, position, *_ = np.random.get_state()
    numbers = np.asarray(keys).tobytes(), position
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numbers
