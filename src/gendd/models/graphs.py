"""Passes of a network that never changes as CUDA graphs: one launch in the place of hundreds.

Launching the kernels of a small network one by one takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs")

# passes on images of one shape before they are captured: odd shapes come once an epoch
_AFTER = 3
# each keeps the memory of its pass
_MOST = 4


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor
    outputs: Any


class GraphedPasses:
    """Runs functions of images on a CUDA device from graphs; on others, as they are.

    A function is captured when images of a shape come for the third time, and stays as it is where it can't
    be captured. It must depend on nothing but the images and the values of tensors that stay where they are.

    Args:
        enabled: False: run everything as it is.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._captured: dict[Hashable, _Captured] = {}
        self._met: dict[Hashable, int] = {}
        self._refused = not enabled

    def clear(self) -> None:
        """Forget what was captured: tensors have moved."""
        self._captured.clear()
        self._met.clear()

    def __call__(self, name: str, function: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """What ``function``, known by its name, gives of the images: tensors, also in lists and tuples."""
        if images.device.type != "cuda" or self._refused or torch.cuda.is_current_stream_capturing():
            return function(images)
        key = (
            name,
            images.shape,
            images.stride(),
            images.dtype,
            images.device,
            torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None,
        )
        captured = self._captured.get(key)
        if captured is None:
            self._met[key] = self._met.get(key, 0) + 1
            if self._met[key] < _AFTER or len(self._captured) == _MOST:
                return function(images)
            try:
                captured = self._captured[key] = self._capture(function, images)
            except RuntimeError:  # what waits for the device, or fills its memory
                self._refused = True
                self.clear()
                return function(images)
        captured.images.copy_(images)
        captured.graph.replay()
        found: Outputs = _copied(captured.outputs)
        return found

    def _capture(self, function: Callable[[Tensor], Any], images: Tensor) -> _Captured:
        static = torch.empty_like(images).copy_(images)
        # libraries set themselves up in a pass that is not captured
        side = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            function(static)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._captured.values()), None)
        # other threads may allocate meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = function(static)
        return _Captured(graph, static, outputs)


def _copied(outputs: Any) -> Any:
    """Copies of tensors that the next replay overwrites."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_copied(each) for each in outputs)
    return outputs
