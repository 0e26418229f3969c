"""When graphs are captured and replayed: the bookkeeping, with a stand-in for what CUDA does of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crossrank.runtime.torch_backend import cuda_graphs  # noqa: E402
from crossrank.runtime.torch_backend.attention import TokenBatch  # noqa: E402
from crossrank.runtime.torch_backend.cuda_graphs import CudaGraphs  # noqa: E402
from crossrank.runtime.torch_backend.packing import Packed  # noqa: E402
from crossrank.runtime.torch_backend.shapes import LARGEST  # noqa: E402

CPU = torch.device("cpu")


class Recorded:
    """In place of a CUDA graph: computes again from the arrays it was captured with, into the same output."""

    recording: Recorded | None = None

    def __init__(self) -> None:
        self.again: Callable[[], Any] = lambda: None
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        self.again()


class Stream:
    def wait_stream(self, other: Stream) -> None: ...


@contextmanager
def capture(graph: Recorded, **options: Any) -> Iterator[None]:
    assert options["capture_error_mode"] == "thread_local"
    Recorded.recording = graph
    yield
    Recorded.recording = None


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)


class Sums:
    """A forward that gives each row the sum of its ids, and counts how often it is launched by itself."""

    def __init__(self) -> None:
        self.launches = 0
        self.shapes: list[int] = []

    def __call__(self, batch: TokenBatch) -> torch.Tensor:
        def compute() -> torch.Tensor:
            sums = torch.zeros(batch.num_rows)
            return sums.index_add(0, batch.rows.long(), batch.ids.float())[:, None]

        self.launches += 1
        self.shapes.append(len(batch.ids))
        output = compute()
        if Recorded.recording is not None:
            Recorded.recording.again = lambda: output.copy_(compute())
        return output


def packed(*rows: list[int]) -> Packed:
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    lengths = np.array(list(map(len, rows)), np.int32)
    return Packed(ids, np.zeros_like(ids), lengths, lengths, int(lengths.max()))


def test_a_shape_is_captured_when_it_comes_again_and_then_replayed() -> None:
    forward = Sums()
    graphs = CudaGraphs(forward, 512, CPU)
    assert graphs.run(packed([1, 2], [3])) is None
    assert forward.launches == 0
    # Of the same shape: what is captured reads the arrays of the call it is replayed for.
    for rows in (([1, 2], [3]), ([5], [6, 7], [8]), ([9] * 40,)):
        found = graphs.run(packed(*rows))
        assert found is not None
        assert found[:, 0].tolist() == [sum(row) for row in rows]
    assert forward.launches == 3  # two to warm up, one captured
    assert set(forward.shapes) == {256}
    [graph] = graphs._graphs.values()
    assert graph is not None
    assert graph.graph.replays == 4  # the first to check it


def test_large_batches_are_launched_by_themselves() -> None:
    graphs = CudaGraphs(Sums(), None, CPU)
    for _ in range(3):
        assert graphs.run(packed(*[[1] * 100] * (LARGEST // 100 + 1))) is None


def test_the_oldest_shapes_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST_GRAPHS", 2)
    graphs = CudaGraphs(Sums(), 512, CPU)
    small, middle, large = (packed(*[[1] * 60] * count) for count in (2, 6, 12))
    for batch in (small, small, middle, small, large):  # middle was used the longest ago
        graphs.run(batch)
    assert len(graphs._graphs) == 2
    assert graphs.run(small) is not None
    assert graphs.run(middle) is None


@pytest.mark.parametrize("how", ["refused", "wrong"])
def test_graphs_that_cannot_be_trusted_are_given_up(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = Sums()
    graphs = CudaGraphs(forward, 512, CPU)

    def unfaithful(batch: TokenBatch) -> torch.Tensor:
        if Recorded.recording is not None and how == "refused":
            raise RuntimeError("operation not permitted when stream is capturing")
        return forward(batch) + (1.0 if Recorded.recording is not None else 0.0)

    graphs._forward = unfaithful
    batch = packed([1, 2], [3])
    with caplog.at_level(logging.WARNING):
        assert [graphs.run(batch) for _ in range(4)] == [None] * 4
    assert caplog.text.count("CUDA graphs cannot be captured") == 1
    Recorded.recording = None


def test_memory_that_runs_out_while_capturing_is_the_callers_to_handle() -> None:
    graphs = CudaGraphs(Sums(), 512, CPU)
    batch = packed([1, 2], [3])
    graphs.run(batch)

    def full(_: TokenBatch) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate")

    graphs._forward = full
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(batch)
    assert not graphs._graphs  # what they held is free again
    graphs._forward = Sums()
    assert graphs.run(batch) is None
    assert graphs.run(batch) is not None
