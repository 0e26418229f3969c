"""A checkpoint's encoder run by torch: an `Engine` for GPUs, in bfloat16 or float32."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from crossrank.errors import DeviceMemoryError
from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET, Grouping
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import build_graph, check_batch, engine_fingerprint
from crossrank.runtime.modules import Module, PoolingMode
from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.torch_backend.attention import TokenBatch
from crossrank.runtime.torch_backend.bert import BertEncoder
from crossrank.runtime.torch_backend.capability import find_capability
from crossrank.runtime.torch_backend.cuda_graphs import CudaGraphs
from crossrank.runtime.torch_backend.deberta import DebertaEncoder
from crossrank.runtime.torch_backend.encoder import Encoder, OpenEncoder
from crossrank.runtime.torch_backend.heads import open_head, open_modules, pool
from crossrank.runtime.torch_backend.modernbert import ModernBertEncoder
from crossrank.runtime.torch_backend.packing import halves, joined, pack, unpack_rows, unpack_tokens
from crossrank.runtime.torch_backend.transfer import fetch, stage, token_batch
from crossrank.runtime.torch_backend.weights import Weights

__all__ = ["ENCODERS", "TorchEngine", "budget_for"]

Floats = npt.NDArray[np.float32]
Forward = Callable[[TokenBatch], torch.Tensor]

ENCODERS: Mapping[str, OpenEncoder] = {
    "bert": partial(BertEncoder, architecture="bert"),
    "electra": partial(BertEncoder, architecture="electra"),
    "roberta": partial(BertEncoder, architecture="roberta"),
    "distilbert": partial(BertEncoder, architecture="distilbert"),
    "deberta-v2": DebertaEncoder,
    "modernbert": ModernBertEncoder,
}
"""The architectures that torch runs here, as `Checkpoint.architecture` names them."""

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}

_LEAST_BUDGET, _LARGEST_BUDGET = 1024, 65_536  # tokens of a forward; more are no faster
_OTHER_BUDGET = 8192  # of devices that do not say how much memory is free
_PART_OF_MEMORY = 0.4  # of what is free when a model is opened: others want some, and so do graphs

_logger = logging.getLogger(__name__)


class TorchEngine:
    """An encoder with its weights on a device; see `crossrank.runtime.engine.Engine`.

    Batches are joined, without their padding, into packed ones of as many tokens as the device's memory
    allows, and each is run at once. On the CPU a batch is run as it comes. What depends on torch and the
    device is found out when a model is opened: the way of attention, whether graphs are used, the budget.

    Heads are computed in float32 whatever the encoder is in, so that close scores do not become ties.

    A row's output depends on the row alone; what is left is the order of additions, which matrix products
    choose by the number of tokens: float32 within 1e-5, bf16 in its last digits.

    Safe to use from many threads: they take turns.

    Args:
        checkpoint: the opened folder.
        output: "logits" or "tokens".
        device: where it runs; checked.
        precision: "float32" or "bf16".
        vectors_of_padding: whether vectors of tokens that are not attended to are wanted ("tokens" only), as
            unattended query expansion wants them.
        graphs: whether CUDA graphs may be used.

    Attributes:
        threads: 1: a device runs one batch at a time.
        callers: 2: one prepares its batches while the other's run.
        grouping: "steps": many rows make a batch.
        batch_tokens: see `crossrank.runtime.engine.Engine`; batches are joined here.
        precision: "float32" or "bf16".
        device: where it runs.
        token_budget: most tokens of a forward, padding included; None runs batches as they come.

    Raises:
        CheckpointError: the checkpoint cannot give this output, or its tensors do not fit its config.
        DeviceMemoryError: the weights do not fit the device.
    """

    threads = 1
    callers = 2
    grouping: Grouping = "steps"
    batch_tokens = DEFAULT_TOKEN_BUDGET

    def __init__(
        self,
        checkpoint: Checkpoint,
        output: Literal["logits", "tokens"],
        *,
        device: torch.device,
        precision: Literal["float32", "bf16"],
        vectors_of_padding: bool = False,
        graphs: bool = True,
    ) -> None:
        build_graph(checkpoint, output)  # for its checks of config, tensors and head
        self.precision: str = precision
        self.device = device
        self._checkpoint = checkpoint
        self._output = output
        self._uses_types = checkpoint.uses_token_types
        self._with_padding = vectors_of_padding
        self._lock = threading.Lock()
        self._projection: tuple[Sequence[Module], Callable[[torch.Tensor], torch.Tensor]]
        self._projection = (), open_modules((), device)
        dtype = DTYPES[precision]
        weights = Weights(checkpoint.tensors(), device, dtype)
        try:
            self._encoder: Encoder = ENCODERS[checkpoint.architecture](
                weights, checkpoint.config, find_capability(device, dtype)
            )
            self._forward: Forward = self._encoder.tokens
            if output == "logits":
                head = open_head(weights, checkpoint)
                self._forward = lambda batch: head(self._encoder, batch)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"the weights of {checkpoint.folder} do not fit the memory of {device}; free some of it, use "
                "another device, or precision='bf16', which takes half"
            ) from error
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream(device))  # the weights are copied on that one
        self.token_budget = self._find_budget(dtype)
        self._graphs: CudaGraphs | None = None
        if graphs and device.type == "cuda" and output == "logits" and self._encoder.ways == {"varlen"}:
            self._graphs = CudaGraphs(self._forward, checkpoint.max_positions, device)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the checkpoint's files and the precision; computed when first asked for.

        It is that of ONNX Runtime's engine for the same precision: the two differ in rounding alone.
        """
        return engine_fingerprint(self._checkpoint, self.precision)

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        token_type_ids: npt.NDArray[np.int64],
    ) -> Floats:
        """Run one batch; see `Engine.run`."""
        return next(self.run_all([ModelInputs(input_ids, attention_mask, token_type_ids)]))

    def run_all(self, batches: Iterable[ModelInputs]) -> Iterator[Floats]:
        """Run batches, several joined into one, and yield their outputs in order; see `Engine.run_all`."""
        unpack = partial(unpack_tokens, with_padding=self._with_padding)
        return self._run_all(batches, self._forward, unpack if self._output == "tokens" else unpack_rows)

    def run_pooled(
        self, batches: Iterable[ModelInputs], modes: Sequence[PoolingMode], skip: int
    ) -> Iterator[Floats]:
        """Run batches and pool their token vectors on the device, where they are.

        Args:
            batches: as `run_all` takes them.
            modes: see `crossrank.models.pooling.pool`, as what is computed.
            skip: see there.

        Yields:
            (batch, len(modes) × hidden) float32 for each batch, in order.
        """
        forward = partial(_run_and_pool, self._encoder, modes, skip)
        return self._run_all(batches, forward, unpack_rows)

    def run_projected(self, batches: Iterable[ModelInputs], modules: Sequence[Module]) -> Iterator[Floats]:
        """Run batches, and modules on each token's vector, on the device.

        Args:
            batches: as `run_all` takes them.
            modules: what makes a vector of a vector; opened when they are first seen.

        Yields:
            (batch, length, out) float32 for each batch, in order; those of padding have no meaning.
        """
        known, project = self._projection
        if known is not modules:
            project = open_modules(modules, self.device)
            self._projection = modules, project
        forward = partial(_run_and_project, self._encoder, project)
        return self._run_all(batches, forward, partial(unpack_tokens, with_padding=self._with_padding))

    def _run_all(
        self,
        batches: Iterable[ModelInputs],
        forward: Forward,
        unpack: Callable[[Floats, Sequence[ModelInputs]], list[Floats]],
    ) -> Iterator[Floats]:
        checked = map(self._check, batches)
        groups: Iterable[list[ModelInputs]] = ([batch] for batch in checked)
        if self.token_budget is not None:
            groups = joined(checked, self.token_budget, one_length="padded" in self._encoder.ways)
        waiting: deque[Callable[[], list[Floats]]] = deque()
        for group in groups:
            waiting.append(self._start(group, forward, unpack))
            if len(waiting) > 1:  # one runs while the next is prepared
                yield from waiting.popleft()()
        while waiting:
            yield from waiting.popleft()()

    def _start(
        self,
        group: list[ModelInputs],
        forward: Forward,
        unpack: Callable[[Floats, Sequence[ModelInputs]], list[Floats]],
    ) -> Callable[[], list[Floats]]:
        """Start a group; what is returned waits for it and gives an output for each of its batches."""
        try:
            values = self._launch(group, forward)
        except torch.OutOfMemoryError as error:
            parts = halves(group)
            self._make_room(group, error, can_go_on=parts is not None)
            assert parts is not None  # else there was an error
            starts = [self._start(part, forward, unpack) for part in parts]

            def wait() -> list[Floats]:
                outputs = [output for start in starts for output in start()]
                return outputs if len(group) > 1 else [np.concatenate(outputs)]

            return wait
        return lambda: unpack(values(), group)

    def _launch(self, group: list[ModelInputs], forward: Forward) -> Callable[[], Floats]:
        packed = pack(group, with_padding=self._with_padding)
        on_cuda = self.device.type == "cuda"
        # Its own stream keeps batches in order whatever streams the callers use.
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with self._lock, torch.no_grad(), stream:
            output = None
            if self._graphs is not None and forward is self._forward:
                output = self._graphs.run(packed)
            if output is None:
                staged = stage(packed, pinned=on_cuda).to(self.device, non_blocking=True)
                output = forward(token_batch(staged, packed))
            return fetch(output)

    def _make_room(self, group: Sequence[ModelInputs], error: Exception, *, can_go_on: bool) -> None:
        """Lower the budget after a group that did not fit the memory, or give up."""
        size = sum(batch.input_ids.size for batch in group)
        if not can_go_on:
            raise DeviceMemoryError(
                f"{self.device} has too little memory for a single input of {size} tokens; free some of it, "
                "open the model with a smaller max_length, or use another device"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.token_budget = max(1, size // 2)
        _logger.warning(
            "%s is out of memory at %d tokens a batch; going on with %d", self.device, size, self.token_budget
        )

    def _check(self, batch: ModelInputs) -> ModelInputs:
        check_batch(*batch, self._checkpoint.max_positions)
        if self._uses_types:
            return batch
        return batch._replace(token_type_ids=np.zeros_like(batch.token_type_ids))

    def _find_budget(self, dtype: torch.dtype) -> int | None:
        if self.device.type == "cpu":
            return None
        if self.device.type != "cuda":
            return _OTHER_BUDGET
        free_bytes, _ = torch.cuda.mem_get_info(self.device)
        return budget_for(
            free_bytes, self._encoder, dtype.itemsize, longest=self._checkpoint.max_positions or 512
        )


def budget_for(free_bytes: int, encoder: Encoder, item_bytes: int, *, longest: int) -> int:
    """How many tokens to run at once.

    Args:
        free_bytes: of the device, with the weights on it.
        encoder: whose activations they must hold.
        item_bytes: of a number.
        longest: the longest row that the model can take.
    """
    # What lives at once at the widest place of a layer, with some room; and vectors in float32 at the end.
    bytes_per_token = item_bytes * (12 * encoder.hidden_size + 4 * encoder.inner_size)
    bytes_per_token += 8 * encoder.hidden_size
    if "padded" in encoder.ways:  # scores of a token with all of its row, and masks
        bytes_per_token += 6 * item_bytes * encoder.num_heads * longest
    tokens = int(free_bytes * _PART_OF_MEMORY) // bytes_per_token
    return max(_LEAST_BUDGET, min(_LARGEST_BUDGET, tokens))


def _run_and_project(
    encoder: Encoder, project: Callable[[torch.Tensor], torch.Tensor], batch: TokenBatch
) -> torch.Tensor:
    return project(encoder.tokens(batch).float())


def _run_and_pool(
    encoder: Encoder, modes: Sequence[PoolingMode], skip: int, batch: TokenBatch
) -> torch.Tensor:
    if tuple(modes) == ("cls",) and not skip:
        return encoder.first(batch)
    return pool(encoder.tokens(batch), batch, modes, skip)
