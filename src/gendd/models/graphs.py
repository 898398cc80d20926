"""Forward passes of a frozen network as CUDA graphs: one launch instead of hundreds.

Launching the kernels of a small network one by one takes longer than running them.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs")

# passes with one input shape before it is captured: odd shapes occur once per epoch
_AFTER = 3
# maximum number of graphs; each keeps the memory of its pass
_MOST = 4


@contextlib.contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> Iterator[None]:
    """Capture a graph.

    Args:
        graph: The graph.
        stream: A stream for captures that share their memory: when a graph is destroyed, PyTorch frees the
            libraries' workspaces of its stream.
        pool: Memory pool of an earlier graph whose outputs are copied before this one is replayed, or None.

    Raises:
        RuntimeError: what is captured synchronises with the device or exhausts its memory.
    """
    # a graph of gradients that waits for Python's collector would be part of the capture
    gc.collect()
    before = torch.cuda.current_stream()
    try:
        # other threads may allocate meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        # a failed capture stays on its own
        torch.cuda.set_stream(before)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    images: Tensor
    outputs: Any


class GraphedPasses:
    """Run functions of images as CUDA graphs; on other devices, call them directly.

    A function is captured when images of a shape are seen for the third time, and is called directly if it
    can't be captured. It must depend only on the images and on tensors that stay at the same address.

    Args:
        enabled: False: always call functions directly.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._captured: dict[Hashable, _Captured] = {}
        self._met: dict[Hashable, int] = {}
        self._stream: torch.cuda.Stream | None = None
        self._refused = not enabled

    def clear(self) -> None:
        """Drop all captured graphs, as tensors have moved."""
        self._captured.clear()
        self._met.clear()

    def __call__(self, name: str, function: Callable[[Tensor], Outputs], images: Tensor) -> Outputs:
        """Return ``function(images)``: tensors or nested lists of them; ``name`` identifies the function."""
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
            except RuntimeError:  # the function synchronises with the device or exhausts its memory
                self._refused = True
                self.clear()
                return function(images)
        captured.images.copy_(images)
        captured.graph.replay()
        found: Outputs = _copied(captured.outputs)
        return found

    def _capture(self, function: Callable[[Tensor], Any], images: Tensor) -> _Captured:
        static = torch.empty_like(images).copy_(images)
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        side = self._stream
        # libraries initialise in a warm-up pass that is not captured
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            function(static)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        pool = next((each.graph.pool() for each in self._captured.values()), None)
        with capturing(graph, side, pool):
            outputs = function(static)
        return _Captured(graph, static, outputs)


def _copied(outputs: Any) -> Any:
    """Copy output tensors, which the next replay overwrites."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_copied(each) for each in outputs)
    return outputs
