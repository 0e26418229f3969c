"""A checkpoint as something that runs: token arrays in, logits or token vectors out."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET, Grouping
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.bert import NAMES, BertEncoder
from crossrank.runtime.encoders.deberta import DebertaEncoder
from crossrank.runtime.encoders.encoder import Encoder
from crossrank.runtime.encoders.heads import write_modules
from crossrank.runtime.encoders.modernbert import ModernBertEncoder
from crossrank.runtime.encoders.t5 import T5Encoder
from crossrank.runtime.graph import Graph, LinearForm
from crossrank.runtime.int8 import Int8Linear
from crossrank.runtime.limits import num_threads
from crossrank.runtime.native import library
from crossrank.runtime.processor import processor
from crossrank.runtime.sessions import new_session, open_file, session_options
from crossrank.runtime.stored_forms import stored_precision
from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.tuned import tuned_here
from crossrank.runtime.workers import Workers

__all__ = [
    "ARCHITECTURES",
    "Engine",
    "Further",
    "Head",
    "Output",
    "SessionEngine",
    "build_graph",
    "build_stored_graph",
    "check_batch",
    "engine_fingerprint",
    "open_engine",
    "open_session",
    "runs_own_file",
]

_Opened = tuple[onnxruntime.InferenceSession, object]

Head = Callable[[Graph, Mapping[str, Any], Encoder], str]
"""Writes an encoder, and what follows it: graph, config, encoder (not written yet) -> (batch, outputs).

`str` of it says in words what it gives: files are told apart by that.
"""

Further = Callable[[Graph, Encoder, str], None]
"""Writes more outputs behind the token vectors, (batch × length, hidden)."""

Output = Literal["logits", "tokens"] | Head
Precision = Literal["auto", "float32", "int8"]
Source = Literal["auto", "weights", "onnx"]

ARCHITECTURES: Mapping[str, Callable[[Graph, Mapping[str, Any]], Encoder]] = {
    "bert": partial(BertEncoder, architecture="bert"),
    "electra": partial(BertEncoder, architecture="electra"),
    "roberta": partial(BertEncoder, architecture="roberta"),
    "distilbert": partial(BertEncoder, architecture="distilbert"),
    "deberta-v2": DebertaEncoder,
    "modernbert": ModernBertEncoder,
    "t5": T5Encoder,
}
"""The architectures there is a graph for, as `Checkpoint.architecture` names them."""

_logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs batches; safe to call from many threads at once.

    Attributes:
        precision: what the linear layers compute in: "float32", "int8" or "bf16".
        threads: how many batches `run_all` runs at a time.
        grouping: which rows make the fastest batches; see `batching.plan`.
        batch_tokens: tokens of a batch, for callers that are told no other number.
    """

    precision: str
    threads: int
    grouping: Grouping
    batch_tokens: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides an output."""
        ...

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        token_type_ids: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Run one batch.

        Args:
            input_ids: (batch, length) int64, padded on the right.
            attention_mask: (batch, length) int64, 1 for tokens and 0 for padding.
            token_type_ids: (batch, length) int64; not read by models that have none.

        Returns:
            Logits (batch, labels) or token vectors (batch, length, hidden), float32; vectors of padding
            have no meaning.

        Raises:
            InputError: the arrays are empty, longer than the model's positions, or differ in shape.
        """
        ...

    def run_all(self, batches: Iterable[ModelInputs]) -> Iterator[npt.NDArray[np.float32]]:
        """Run batches, several at a time, and yield their outputs in order; see `run`.

        A few batches are taken ahead, so memory does not grow with their number.
        """
        ...


class SessionEngine:
    """An ONNX Runtime session that reads token arrays.

    A batch runs on one thread, and as many batches at a time as there are threads, whoever asks for them.
    So threads never wait for one another within a batch, and many callers together keep no more than these
    threads busy. Where it was measured that larger teams are faster, each batch has `run_threads`, and so
    many fewer run at a time.

    Args:
        opened: the session, and what to keep as long as it; it declares input_ids and, where it reads them,
            attention_mask and token_type_ids.
        output: name of the output to return.
        again: opens it once more, for a forked process.
        padded: opens the session for batches with padding, when the first of them comes; None where the
            other takes them.
        grouping: see `Engine`.
        checkpoint: where the session came from.
        threads: of all batches that run at a time.
        run_threads: of one batch, as the session was told.
        precision: see `Engine`.
        batch_tokens: see `Engine`.
        source: what else decides an output, for the fingerprint: SHA-256 (hex) of an ONNX file.
    """

    def __init__(
        self,
        opened: _Opened,
        output: str,
        checkpoint: Checkpoint,
        *,
        again: Callable[[], _Opened],
        threads: int,
        run_threads: int = 1,
        precision: str = "float32",
        batch_tokens: int = DEFAULT_TOKEN_BUDGET,
        source: Callable[[], str] = str,
        padded: Callable[[], _Opened] | None = None,
        grouping: Grouping = "exact",
    ) -> None:
        self.threads = threads // run_threads
        self.run_threads = run_threads
        self.precision = precision
        self.batch_tokens = batch_tokens
        self.grouping: Grouping = grouping
        self._workers = Workers(self.threads)
        self._session = _Session(again, has_threads=run_threads > 1, opened=opened)
        self._padded = None if padded is None else _Session(padded, has_threads=run_threads > 1)
        self._output = output
        self._checkpoint = checkpoint
        self._source = source
        self._uses_types = checkpoint.uses_token_types
        self._max_positions = checkpoint.max_positions
        self._inputs = frozenset(value.name for value in opened[0].get_inputs())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the checkpoint's files and the precision; computed when first asked for."""
        return engine_fingerprint(self._checkpoint, self.precision, self._source())

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        token_type_ids: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Run one batch; see `Engine.run`."""
        check_batch(input_ids, attention_mask, token_type_ids, self._max_positions)
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids if self._uses_types else np.zeros_like(token_type_ids),
        }
        session, inputs = self._session, self._inputs
        if self._padded is not None and not attention_mask.all():
            session, inputs = self._padded, inputs | {"attention_mask"}
        feed = {name: np.asarray(array, np.int64) for name, array in arrays.items() if name in inputs}
        result: npt.NDArray[np.float32] = session.get().run([self._output], feed)[0]
        return result.astype(np.float32, copy=False)

    def run_all(self, batches: Iterable[ModelInputs]) -> Iterator[npt.NDArray[np.float32]]:
        """Run batches; see `Engine.run_all`."""
        return self._workers.in_order(self.run, batches)


class _Session:
    """A session that is opened when it is first asked for, and anew in a forked process if it has threads.

    Without that, a forked process would have right scores from one thread.

    Args:
        opens: opens it, and what to keep as long as it.
        has_threads: whether its runs take threads of their own, which do not cross a fork.
        opened: what is open already.
    """

    def __init__(
        self, opens: Callable[[], _Opened], *, has_threads: bool, opened: _Opened | None = None
    ) -> None:
        self._opens = opens
        self._has_threads = has_threads
        self._of_process = None if opened is None else (os.getpid(), opened)
        self._left: list[_Opened] = []  # those of processes before: to close one waits for its threads
        self._opening = threading.Lock()

    def get(self) -> onnxruntime.InferenceSession:
        """The session of this process."""
        found = self._of_process
        if found is None or (self._has_threads and found[0] != os.getpid()):
            with self._opening:
                found = self._of_process  # another thread may have opened it meanwhile
                if found is None or (self._has_threads and found[0] != os.getpid()):
                    if found is not None:
                        self._left.append(found[1])
                    self._of_process = found = os.getpid(), self._opens()
        return found[1][0]


def engine_fingerprint(checkpoint: Checkpoint, precision: str, source: str = "") -> str:
    """Return SHA-256 (hex) of everything that decides an engine's output.

    Args:
        checkpoint: what runs.
        precision: what its linear layers compute in.
        source: what else there is to tell apart: a file, a head, the prompt around texts.
    """
    return hashlib.sha256(f"{checkpoint.fingerprint} {precision} {source}".encode()).hexdigest()


def check_batch(
    input_ids: npt.NDArray[np.int64],
    attention_mask: npt.NDArray[np.int64],
    token_type_ids: npt.NDArray[np.int64],
    max_positions: int | None,
) -> None:
    """Refuse a batch that no engine can run; see `Engine.run`.

    Raises:
        InputError: the arrays are empty, longer than `max_positions`, or differ in shape.
    """
    if not input_ids.shape == attention_mask.shape == token_type_ids.shape or input_ids.ndim != 2:
        raise InputError(
            "input_ids, attention_mask and token_type_ids must have one shape (batch, length), not "
            f"{input_ids.shape}, {attention_mask.shape} and {token_type_ids.shape}"
        )
    if not input_ids.size:
        raise InputError("an empty batch: there is nothing to run")
    if max_positions is not None and input_ids.shape[1] > max_positions:
        raise InputError(
            f"an input of {input_ids.shape[1]} tokens is longer than the model's {max_positions} positions; "
            "lower max_length"
        )


def open_engine(
    checkpoint: Checkpoint,
    *,
    output: Output,
    precision: Precision = "auto",
    threads: int | None = None,
    source: Source = "auto",
    identity: str = "",
    exits: bool = False,
    may_change_precision: bool = False,
    run_threads: int | None = None,
) -> Engine:
    """Open a checkpoint for running, in the way that was measured to be the fastest here where one was.

    Args:
        checkpoint: the opened folder.
        output: "logits" for a classifier's raw scores, "tokens" for the last layer's token vectors, or a
            head. A file gives what it was written for.
        precision: what linear layers compute in; "auto" takes int8 where it passed its parity gate, else
            float32, from float32 weights: those of an int8 file alone are computed with only when asked for.
        threads: batches that run at a time, at most `limits.MAX_THREADS`; None takes the cores this process
            may use.
        source: "weights" writes a graph from safetensors, "onnx" runs the folder's own ONNX file, "auto"
            takes the weights where crossrank has a graph for the architecture, else the file.
        identity: what else the fingerprint is to tell apart: a head, the prompt around texts.
        exits: whether the head is one at an earlier layer: see `stored_precision`.
        may_change_precision: whether "auto" takes float32 in place of int8 where `crossrank tune` found it
            clearly faster; not where something is bound to the precision, as an index's vectors are.
        run_threads: threads of one batch, at most `threads`; None takes what was measured, else 1.

    Raises:
        InputError: a precision, source or number of threads that is none.
        CheckpointError: the checkpoint cannot give this output or precision, or its tensors do not fit its
            config.
        UnsupportedArchitectureError: there is neither a graph for it nor an ONNX file.
    """
    for name, value, choices in (("precision", precision, Precision), ("source", source, Source)):
        if value not in get_args(choices):
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")
    threads = num_threads(threads)
    if run_threads is not None and not 1 <= run_threads <= threads:
        raise InputError(f"run_threads is {run_threads}; it must be from 1 to threads, {threads}")
    wants_file = runs_own_file(checkpoint, source)
    tuned = tuned_here(checkpoint, threads, of_file=wants_file) if run_threads is None else None
    if wants_file:
        in_file = tuned.run_threads if tuned else run_threads or 1
        file = open_file(checkpoint, output, precision, in_file)
        return SessionEngine(
            (file.session, None),
            file.output,
            checkpoint,
            again=lambda: (new_session(str(file.path), session_options(in_file)), None),
            threads=threads,
            run_threads=in_file,
            precision=file.precision,
            batch_tokens=tuned.token_budget if tuned else DEFAULT_TOKEN_BUDGET,
            source=lambda: f"{file.digest()}{identity}",
        )
    stored = stored_precision(checkpoint, precision, exits=exits)
    if stored == "int8" and precision == "auto":
        if tuned is None and run_threads is None:
            _say_what_int8_lacks()
        elif tuned is not None and tuned.precision == "float32" and may_change_precision:
            stored = "float32"
    if tuned is not None and tuned.precision != stored:  # measured for another precision
        tuned = None
    team = tuned.run_threads if tuned else run_threads or 1

    compiled = library()  # once: whatever is opened later has the same rounding

    def build(padded: bool) -> Graph:
        return build_stored_graph(checkpoint, output, stored, compiled, padded=padded)

    def open_graph(padded: bool) -> _Opened:
        return open_session(build(padded), team)

    graph = build(padded=stored == "int8" and compiled is not None and checkpoint.architecture in NAMES)
    skips_padding = graph.skips_padding
    if graph.padded and not skips_padding:
        graph = build(padded=False)
    return SessionEngine(
        open_session(graph, team),
        graph.output_names[0],
        checkpoint,
        again=lambda: open_graph(skips_padding),
        threads=threads,
        run_threads=team,
        precision=stored,
        batch_tokens=tuned.token_budget if tuned else DEFAULT_TOKEN_BUDGET,
        source=lambda: f"{checkpoint.int8_digest if stored == 'int8' else ''}{identity}",
        padded=None if skips_padding else lambda: open_graph(True),
        grouping="mixed" if skips_padding else "exact",
    )


def runs_own_file(checkpoint: Checkpoint, source: Source = "auto") -> bool:
    """Whether a folder's own ONNX file is run, and not a graph of its weights; see `open_engine`."""
    can_write = checkpoint.architecture in ARCHITECTURES and checkpoint.has_weights
    return source == "onnx" or (source == "auto" and not can_write and bool(checkpoint.onnx_files))


@cache
def _say_what_int8_lacks() -> None:
    """Say once where int8 may not pay: that is known of a processor without sums of 8-bit products."""
    if processor().sums_integers is False:
        _logger.info(
            "this processor (%s) has no instruction that sums 8-bit products, so that int8 may be no faster "
            "than float32; `crossrank tune` measures what is",
            processor().name,
        )


def build_stored_graph(
    checkpoint: Checkpoint,
    output: Output,
    precision: Literal["float32", "int8"],
    compiled: Path | None,
    *,
    padded: bool = True,
) -> Graph:
    """Write a checkpoint's graph from one of its forms; see `stored_precision` and `build_graph`.

    Args:
        checkpoint: see `build_graph`.
        output: see `build_graph`.
        precision: of the form.
        compiled: what `library` of native/ gives, or None for a graph of ONNX Runtime's own operators.
        padded: see `build_graph`.
    """
    if precision == "int8":
        form = Int8Linear(operators=compiled)
        return build_graph(checkpoint, output, form, checkpoint.int8_tensors(), padded=padded)
    return build_graph(checkpoint, output, padded=padded)


def build_graph(
    checkpoint: Checkpoint,
    output: Output,
    form: LinearForm | None = None,
    tensors: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    padded: bool = True,
    further: Further | None = None,
) -> Graph:
    """Write a checkpoint's graph.

    Args:
        checkpoint: the opened folder.
        output: "logits" gives (batch, labels), "tokens" (batch, length, hidden), a head (batch, outputs).
        form: how the encoder's linear layers are written; float32 by default. Heads are always float32.
        tensors: the weights in that form; the checkpoint's float32 ones by default.
        padded: whether batches may have padding; without, no attention mask is read and attention is faster.
        further: writes more outputs behind "tokens".

    Raises:
        CheckpointError: there are no weights, no trained head, or tensors do not fit the config.
        UnsupportedArchitectureError: there is no graph for the architecture or its settings.
    """
    if checkpoint.architecture not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder}: there is no graph for {checkpoint.architecture!r}; "
            f"there is one for {', '.join(ARCHITECTURES)}"
        )
    if not checkpoint.has_weights:
        raise CheckpointError(
            f"{checkpoint.transformer_folder} has no safetensors weights to write a graph from"
        )
    try:
        graph = Graph(checkpoint.tensors() if tensors is None else tensors, form, padded=padded)
        encoder = ARCHITECTURES[checkpoint.architecture](graph, checkpoint.config)
        if callable(output):
            logits = output(graph, checkpoint.config, encoder)
            graph.output(logits, "logits", ["batch", "outputs"])
        elif output == "tokens":
            flat = encoder.tokens()
            vectors = encoder.frame.deep(flat)
            graph.output(vectors, "last_hidden_state", ["batch", "length", encoder.hidden_size])
            if further is not None:
                further(graph, encoder, flat)
        else:
            num_labels = checkpoint.num_labels
            if checkpoint.is_modular_cross_encoder:
                logits = write_modules(graph, encoder, checkpoint.modules)
            else:
                logits = encoder.logits(num_labels)
            graph.output(logits, "logits", ["batch", num_labels])
    except CheckpointError as error:
        # The encoders know tensors and settings, not where they came from.
        raise type(error)(f"{checkpoint.transformer_folder}: {error}") from error
    return graph


def open_session(graph: Graph, threads: int = 1, profile: Path | None = None) -> _Opened:
    """Make an ONNX Runtime session of a graph.

    Args:
        graph: a finished graph.
        threads: threads of one run.
        profile: what the name of ONNX Runtime's profile begins with; None for no profile.

    Returns:
        The session, and an object to keep as long as it: the weights, which the session reads in place.
    """
    options = session_options(threads)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if graph.operators is not None:
        options.register_custom_ops_library(str(graph.operators))
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.weights.values()]
    options.add_external_initializers(list(graph.weights), values)
    model = graph.model().SerializeToString()
    return new_session(model, options), (values, graph.weights)
