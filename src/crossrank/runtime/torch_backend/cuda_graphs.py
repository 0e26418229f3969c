"""CUDA graphs of an encoder, one a shape (`shapes`), captured when a shape comes for the second time."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from crossrank.runtime.torch_backend.attention import TokenBatch
from crossrank.runtime.torch_backend.packing import Packed
from crossrank.runtime.torch_backend.shapes import Shape, fill, shape_for
from crossrank.runtime.torch_backend.transfer import stage, token_batch

__all__ = ["CudaGraphs"]

_MOST_GRAPHS = 48
_WARM_UPS = 2  # before a capture: libraries allocate workspaces and choose kernels in their first calls
_TOLERANCE = 0.02  # between a replay and single launches: the same kernels, which may choose other tiles

_logger = logging.getLogger(__name__)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    staged: torch.Tensor  # what the graph reads
    output: torch.Tensor  # what it writes


class CudaGraphs:
    """Replays an encoder; one caller at a time.

    Args:
        forward: what is captured: of a batch on the device, to (rows, ...).
        limit: the longest row that the model can take; None for no limit.
        device: where it runs; the caller has made it current.
    """

    def __init__(
        self, forward: Callable[[TokenBatch], torch.Tensor], limit: int | None, device: torch.device
    ) -> None:
        self._forward = forward
        self._limit = limit
        self._device = device
        self._graphs: OrderedDict[Shape, _Graph | None] = OrderedDict()  # None: seen once
        self._pool: Any = None  # torch has no public name for the type
        self._can_capture = True

    def run(self, packed: Packed) -> torch.Tensor | None:
        """Run a batch by a graph of its shape; None where there is none (yet).

        The result is to be copied, on the same stream, before the next call: the graphs share memory.
        """
        num_rows = len(packed.lengths)
        shape = shape_for(len(packed.ids), num_rows, packed.longest, self._limit)
        if shape is None or not self._can_capture:
            return None
        if shape not in self._graphs:
            self._graphs[shape] = None
            if len(self._graphs) > _MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return None
        self._graphs.move_to_end(shape)
        filled = fill(packed, shape)
        staged = stage(filled, pinned=self._device.type == "cuda")
        found = self._graphs[shape]
        if found is None:
            found = self._capture(filled, staged, num_rows)
            if found is None:
                return None
            self._graphs[shape] = found
        found.staged.copy_(staged, non_blocking=True)
        found.graph.replay()
        return found.output[:num_rows]

    def _capture(self, filled: Packed, staged: torch.Tensor, num_rows: int) -> _Graph | None:
        on_device = staged.to(self._device, non_blocking=True)
        batch = token_batch(on_device, filled)
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    wanted = self._forward(batch)
            torch.cuda.current_stream().wait_stream(stream)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # A batch knows what was derived of it; the graph is to derive it anew.
            batch = token_batch(on_device, filled)
            # Only this thread's calls belong to the graph: others may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = self._forward(batch)
            graph.replay()
            if not torch.allclose(output[:num_rows], wanted[:num_rows], rtol=_TOLERANCE, atol=_TOLERANCE):
                raise RuntimeError("a replay gives other numbers than the kernels by themselves")
        except torch.OutOfMemoryError:
            self._graphs.clear()
            raise
        except RuntimeError as error:
            self._can_capture = False
            self._graphs.clear()
            _logger.warning("CUDA graphs cannot be captured, kernels are launched one by one: %s", error)
            return None
        return _Graph(graph, on_device, output)
