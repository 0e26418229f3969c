"""A cross-encoder in parts: scores after some of its layers, and the layers left for the rows that go on.

Each part is a graph of its own. For the score after a layer only the first token is computed there, a sixth
of the layer's work; what all tokens were before it is kept, and who goes on begins with that layer. Most rows
do not go on, so that is less work than to compute the layer for all. The parts together hold the weights of
the layers with a head twice, and the others once. A row's scores are those of the model cut there, and of the
whole model, since its arrays have the same shapes and the same operations are done to them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET, Grouping
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import (
    Precision,
    build_stored_graph,
    engine_fingerprint,
    open_session,
)
from crossrank.runtime.exits import HIDDEN_IN, HIDDEN_OUT, Exits, exit_identity
from crossrank.runtime.limits import num_threads
from crossrank.runtime.native import library
from crossrank.runtime.stored_forms import stored_precision
from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.workers import Workers

__all__ = ["KeptStates", "StageEngine", "StagedEngine"]

Floats = npt.NDArray[np.float32]
_Part = tuple[tuple[onnxruntime.InferenceSession, object], tuple[str, ...]]

_KEPT_BYTES = 256 * 1024 * 1024
"""Hidden states that a call keeps at most; rows beyond are computed from their beginning again."""


class StagedEngine:
    """The parts of a model; safe to use from many threads at once.

    Args:
        checkpoint: with a head after each of the layers.
        layers: after which there are scores, ascending; the last layer may be the last of them.
        precision: see `engine.open_engine`.
        threads: see `engine.open_engine`.

    Attributes:
        layers: see above.
        precision: what the linear layers compute in.
        threads: how many batches run at a time.

    Raises:
        InputError: a layer without a head.
        CheckpointError: heads that do not fit the model, or no form of this precision.
        UnsupportedArchitectureError: a model that cannot be cut.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layers: Sequence[int],
        *,
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> None:
        exits = Exits(checkpoint)
        for layer in layers:
            exits.check(layer)
        self.layers = tuple(layers)
        self.threads = num_threads(threads)
        at_exits = any(layer != exits.num_layers for layer in layers)
        self.precision = stored_precision(checkpoint, precision, exits=at_exits)
        self._checkpoint = checkpoint
        self._num_layers = exits.num_layers
        self._workers = Workers(self.threads)
        self._library = library()
        self._starts = [0, *(layer - 1 for layer in layers[:-1])]
        # Graphs for rows without padding, which is what plans make; for others when they come.
        self._parts = self._open(padded=False)
        self._padded_parts: list[_Part] = []
        self._opening = threading.Lock()

    def _open(self, *, padded: bool) -> list[_Part]:
        parts = []
        exits = Exits(self._checkpoint)
        for start, stop in zip(self._starts, self.layers, strict=True):
            part = exits.part(start, stop)
            graph = build_stored_graph(self._checkpoint, part, self.precision, self._library, padded=padded)
            parts.append((open_session(graph), graph.output_names))
        return parts

    def _parts_for(self, inputs: ModelInputs) -> list[_Part]:
        if inputs.attention_mask.all():
            return self._parts
        with self._opening:
            if not self._padded_parts:
                self._padded_parts = self._open(padded=True)
        return self._padded_parts

    @property
    def workers(self) -> Workers:
        """The threads that all stages share."""
        return self._workers

    def fingerprint(self, stage: int) -> str:
        """SHA-256 (hex) of everything that decides a stage's scores: that of the model cut there."""
        layer = self.layers[stage]
        identity = "" if layer == self._num_layers else exit_identity(layer)
        form = self._checkpoint.int8_digest if self.precision == "int8" else ""
        return engine_fingerprint(self._checkpoint, self.precision, f"{form}{identity}")

    def run(
        self, inputs: ModelInputs, source: int, stage: int, states: Floats | None
    ) -> tuple[Floats, Floats | None]:
        """Run the parts after one stage up to another.

        Args:
            inputs: a padded batch.
            source: the stage that `states` are of; -1 begins with the token ids.
            stage: after `source`.
            states: (batch, length, hidden), or None.

        Returns:
            Logits (batch, labels), and the states to go on from: (batch, length, hidden), None where the next
            part begins with the token ids or there is none.
        """
        given: dict[str, Any] = {
            name: np.asarray(array, np.int64) for name, array in inputs._asdict().items()
        }
        if not self._checkpoint.uses_token_types:
            given["token_type_ids"] = np.zeros_like(given["token_type_ids"])
        opened = self._parts_for(inputs)
        parts = range(source + 1, stage + 1)
        # A part that begins with the token ids has no use for those before it.
        begin = max((part for part in parts if not self._starts[part]), default=parts[0])
        for part in parts[begin - parts[0] :]:
            (session, _), names = opened[part]
            if states is not None:
                given[HIDDEN_IN] = states
            declared = [value.name for value in session.get_inputs()]
            outputs = session.run(list(names), {name: given[name] for name in declared})
            found = dict(zip(names, outputs, strict=True))
            states = found.get(HIDDEN_OUT)
        return found["logits"], states


class StageEngine:
    """One stage of a `StagedEngine` within one call; see `engine.Engine`.

    Args:
        staged: the model in parts.
        stage: position among its layers.
        kept: the call's rows so far, which all its stages share.
    """

    def __init__(self, staged: StagedEngine, stage: int, kept: KeptStates) -> None:
        self._staged = staged
        self._stage = stage
        self._kept = kept
        self.precision: str = staged.precision
        self.grouping: Grouping = "exact"  # what is kept of a row is found by its arrays
        self.batch_tokens = DEFAULT_TOKEN_BUDGET
        self.threads = staged.threads

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides an output."""
        return self._staged.fingerprint(self._stage)

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        token_type_ids: npt.NDArray[np.int64],
    ) -> Floats:
        """Run one batch, each row from where the call has brought it; see `engine.Engine.run`."""
        inputs = ModelInputs(input_ids, attention_mask, token_type_ids)
        keys = [b"".join(array[row].tobytes() for array in inputs) for row in range(len(input_ids))]
        found = [self._kept.get(key, self._stage) for key in keys]
        sources = np.array([source for source, _ in found])
        logits: Floats | None = None
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            whole = len(rows) == len(keys)
            states = None if source < 0 else np.stack([found[row][1] for row in rows.tolist()])
            some = inputs if whole else ModelInputs(*(array[rows] for array in inputs))
            scores, reached = self._staged.run(some, source, self._stage, states)
            if logits is None:
                logits = np.empty((len(keys), scores.shape[1]), np.float32)
            logits[rows] = scores
            if reached is not None:
                for row, state in zip(rows.tolist(), reached, strict=True):
                    self._kept.keep(keys[row], self._stage, state)
        assert logits is not None  # a batch has rows
        return logits

    def run_all(self, batches: Iterable[ModelInputs]) -> Iterator[Floats]:
        """Run batches; see `engine.Engine.run_all`."""
        return self._staged.workers.in_order(self.run, batches)


class KeptStates:
    """How far the rows of one call have come, within a bound of memory.

    Args:
        most_bytes: of all states that are kept; states of rows beyond are not.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = _KEPT_BYTES if most_bytes is None else most_bytes
        self._states: dict[bytes, tuple[int, Floats]] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes, stage: int) -> tuple[int, Floats | None]:
        """Return the latest stage before this one that a row has been through, and its states; else -1."""
        source, states = self._states.get(key, (-1, None))
        return (source, states) if source < stage else (-1, None)

    def keep(self, key: bytes, stage: int, states: Floats) -> None:
        """Keep a row's states, (length, hidden), in place of those of an earlier stage."""
        with self._lock:
            # What is replaced may live on with the rest of its batch, so nothing is taken off.
            self._num_bytes += states.nbytes
            if self._num_bytes <= self._most_bytes:
                self._states[key] = stage, states
