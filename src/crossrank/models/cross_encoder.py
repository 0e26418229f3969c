"""Rerankers that read query and document together and give one score (or one for each label)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from crossrank.cache import ScoreCache
from crossrank.checks import check_count
from crossrank.errors import CheckpointError, InputError
from crossrank.models.calibration import (
    Calibration,
    differences,
    may_change_precision,
    read_calibration,
    sigmoid,
)
from crossrank.models.hub import resolve
from crossrank.models.pair_scorer import PairScorer, PairScores
from crossrank.models.pair_settings import LongQuery, PairSettings
from crossrank.models.requests import RankVerbs, Requests, check_pairs
from crossrank.models.stored_ids import stored_ids
from crossrank.models.word_similarity import WordSimilarity, WordSimilarityScorer
from crossrank.runtime.backends import Backend, Precision, open_backend
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Engine, SessionEngine, Source, open_engine
from crossrank.runtime.exits import Exits, exit_identity
from crossrank.runtime.limits import num_threads
from crossrank.runtime.settings import settings_digest
from crossrank.runtime.staged_engine import KeptStates, StagedEngine, StageEngine
from crossrank.runtime.tokenization import Tokenizer
from crossrank.runtime.windows import DEFAULT_OVERLAP, MEAN_TOP_K, LongDocuments
from crossrank.types import Document, Hit, Pair, Ranking

__all__ = ["Activation", "CrossEncoder"]

Activation = Literal["identity", "sigmoid", "softmax"]

_logger = logging.getLogger(__name__)


class CrossEncoder(RankVerbs):
    """A sequence classifier over pairs of query and document; safe to use from many threads at once.

    A pair's score depends on the pair alone: not on what else is scored with it, in which order, in what
    batches or with how many threads (float32: within 1e-5).

    A hit has the raw logit as score, its `probability` where the model has a `calibration`, the document's
    position as `index`, and how many document tokens the model did not read (`truncated_tokens`). For a
    document scored in windows, `span` is the winning window's characters in its text (`Document.full_text`).
    Equal scores keep the order that documents came in.

    An empty document gets the score that the model gives it, which means nothing and may be above those of
    real ones; a ranking call in which there are any logs one WARNING (logger
    "crossrank.models.cross_encoder") that says how many.

    `rank` and `rank_many` raise InputError where a model has several labels and no `label` to rank by, or for
    a query of characters alone that its tokenizer drops; QueryTooLongError for one longer than
    `max_query_length`; and ModelOutputError for NaN or infinity from the model.

    Args:
        model: None for the built-in model, the name of a built-in model, a local folder, or a hub name.
        revision: commit, tag or branch; for hub models only.
        precision: "float32", "int8" where the model has an int8 form that passed its parity gate, "bf16" with
            torch, or "auto" for the fastest form there is where it runs: on the CPU int8, unless float32 was
            found clearly faster (`crossrank tune`) and no calibration is bound to int8.
        backend: "onnx" (ONNX Runtime on the CPU), "torch" (for GPUs; extra "torch"), or "auto" for torch
            where there is a GPU that it can use. See `crossrank.runtime.backends`.
        device: of torch: "cpu", "cuda", "cuda:1", "mps"; None takes the first GPU, else the CPU.
        source: "weights" computes with the safetensors, "onnx" with the folder's own ONNX file, "auto" with
            the weights where there are any and crossrank knows the architecture, else with the file.
        max_length: tokens of a pair, special tokens included. Default: what the model's configs allow.
        max_query_length: tokens a query may take of them, its prompt included. Default: half of max_length.
            A document gets all that its query leaves.
        long_query: what to do with a longer query: "error", or "truncate" to cut its end.
        long_documents: what to do with a document longer than its share: "truncate", or score windows of it
            and take the best one's score ("max"), the first one's ("first"), or the mean of the best few
            ("mean_top_k"). See `crossrank.runtime.windows`.
        window_tokens: most tokens of a window, for the three ways that read windows; None (default) takes the
            document's whole share. A query that leaves less makes windows of what it leaves.
        window_overlap: part of a window that the next one repeats, for "max" and "mean_top_k".
        top_windows: how many windows "mean_top_k" takes.
        activation: what `activate` applies. Default: what the model's config says, else "identity". Scores
            are always raw logits.
        label: for models with several labels: the one to rank by, by name or position.
        exit_layer: score with the head after this layer and leave the layers behind it out: for folders with
            `exits.safetensors` (see `crossrank.runtime.exits`). 0 compares word embeddings before the first
            layer, for any folder that has them (see `crossrank.models.word_similarity`). None is the whole
            model.
        prompt: put before every query. Default: the model's own default prompt; "" for none.
        token_budget: tokens of one forward, padding included; on a GPU forwards are joined to larger ones.
            None takes what `crossrank tune` found to be the fastest here, else 1024.
        threads: batches that run at a time, 1 to 1024. Default: the cores this process may use. Of ONNX
            Runtime.
        cache: scores computed before; share one among models and processes.
        progress: a progress bar for long calls; None shows one on a terminal.

    Attributes:
        name: of the model; the stage of its hits. With an `exit_layer`, "@" and the layer follow it.
        folder: the local folder that holds it.
        activation: what `activate` applies.
        settings: how pairs are made, defaults filled in.
        calibration: gives hits their `probability`; None where the folder has none, or none that holds for
            the model as it was opened.
        why_uncalibrated: why there is none, in words; "" where there is one.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it cannot be opened as a cross-encoder.
        InputError: an option that cannot be used with this model, or would have no effect.
        MissingExtraError: torch is asked for and not installed.
        DeviceMemoryError: it does not fit the device.

    Example:
        >>> reranker = CrossEncoder()
        >>> ranking = reranker.rank("who wrote Hamlet", ["A hamlet is a village.", "Shakespeare's Hamlet"])
        >>> [hit.document_id for hit in ranking]
        ['1', '0']
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        precision: Precision = "auto",
        backend: Backend = "auto",
        device: str | None = None,
        source: Source = "auto",
        max_length: int | None = None,
        max_query_length: int | None = None,
        long_query: LongQuery = "error",
        long_documents: LongDocuments = "truncate",
        window_tokens: int | None = None,
        window_overlap: float = DEFAULT_OVERLAP,
        top_windows: int = MEAN_TOP_K,
        activation: Activation | None = None,
        label: str | int | None = None,
        exit_layer: int | None = None,
        prompt: str | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
        cache: ScoreCache | None = None,
        progress: bool | None = None,
    ) -> None:
        if token_budget is not None:
            check_count(token_budget, "token_budget")
        if cache is not None and not isinstance(cache, ScoreCache):
            raise InputError(f"cache must be a ScoreCache, not {type(cache).__name__}: ScoreCache(path)")
        folder = resolve(model, kind="cross-encoder", revision=revision, source=source)
        self.folder = folder
        checkpoint = Checkpoint.open(folder)
        self.name = model if isinstance(model, str) and model != str(folder) else folder.resolve().name
        self._checkpoint = checkpoint
        self.exit_layer = self._check_exit(exit_layer, source)
        if self.exit_layer is not None:
            self.name = f"{self.name}@{self.exit_layer}"
        self.labels = self._read_labels(checkpoint)
        self.activation: Activation | Literal["exp"] = _activation(activation, checkpoint)
        self._label = self._find_label(label)
        self._progress = progress
        tokenizer = self._open_tokenizer(checkpoint)
        self.settings = PairSettings.for_model(
            checkpoint,
            tokenizer,
            max_length=max_length,
            max_query_length=max_query_length,
            long_query=long_query,
            long_documents=long_documents,
            window_tokens=window_tokens,
            window_overlap=window_overlap,
            top_windows=top_windows,
            prompt=prompt,
        )
        self._backend: Backend = backend
        self._device = device
        self._engine: Engine | WordSimilarity = self._open_engine(checkpoint, precision, threads, source)
        self._tokenizer, self._cache = tokenizer, cache
        self._token_budget = self._engine.batch_tokens if token_budget is None else token_budget
        self._scorer = self._make_scorer()
        self._parts: dict[tuple[int, ...], StagedEngine] = {}
        self.calibration, self.why_uncalibrated = self._read_calibration(folder)

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers before the last that `exit_layer` can name."""
        return Exits(self._checkpoint).layers

    @property
    def num_layers(self) -> int:
        """How many layers the whole model has."""
        return self._checkpoint.num_layers or 0

    @property
    def label_position(self) -> int | None:
        """The position in `labels` of the one that `rank` goes by; None where one is still to be chosen."""
        return self._label

    @property
    def precision(self) -> str:
        """What the linear layers compute in: "float32", "int8" or "bf16"."""
        return self._engine.precision

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a score: model, tokenizer, precision, settings."""
        return settings_digest({"engine": self._engine.fingerprint, **asdict(self.settings)})

    @property
    def label(self) -> str | None:
        """The label this model ranks by; None where it has several and none was chosen."""
        return None if self._label is None else self.labels[self._label]

    @property
    def score_identity(self) -> dict[str, Any]:
        """What a pair's score depends on, by name: what a calibration is bound to.

        That is weights and precision, and the settings of `settings` but `long_query`, which decides whether
        there is a score and not which.
        """
        settings = asdict(self.settings)
        del settings["long_query"]
        return {"fingerprint": self._engine.fingerprint, "precision": self.precision, **settings}

    def score(self, pairs: Sequence[Pair | tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Score pairs.

        Args:
            pairs: (query, document) each; the document may be empty, the query as in `rank`.

        Returns:
            Raw logits, unbounded, higher is more relevant: float32 (n,) of a model with one label, else
            (n, labels) in the order of `labels`.

        Raises:
            InputError: something that is no pair of texts; names its position.
            QueryTooLongError: a query longer than `max_query_length`.
            ModelOutputError: NaN or infinity from the model.
        """
        pairs = check_pairs(pairs)
        logits = self._scorer.score(
            [query for query, _ in pairs],
            [(position, document) for position, (_, document) in enumerate(pairs)],
            name="pairs[{}]".format,
            query_name="the query of pairs[{}]".format,
            stored_ids={},
            progress=self._progress,
        ).logits
        return logits[:, 0] if len(self.labels) == 1 else logits

    def activate(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        """Apply this model's activation to logits.

        Args:
            logits: what `score` gives.

        Returns:
            An array of the same shape: the logits themselves for "identity"; float64 for "sigmoid" (in
            float32 it would make ties of high scores) and for "softmax", which is over the labels.
        """
        if self.activation == "identity":
            return logits
        if self.activation == "sigmoid":
            return sigmoid(logits)
        wide = np.asarray(logits, dtype=np.float64)
        powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

    def _read_labels(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return checkpoint.labels

    def _open_tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        return Tokenizer(checkpoint)

    def _open_engine(
        self, checkpoint: Checkpoint, precision: Precision, threads: int | None, source: Source
    ) -> Engine | WordSimilarity:
        if self.exit_layer is None:
            return open_backend(
                checkpoint,
                output="logits",
                backend=self._backend,
                device=self._device,
                precision=precision,
                threads=threads,
                source=source,
                may_change_precision=may_change_precision(self.folder),
            )
        if self._backend == "torch" or self._device is not None or precision == "bf16":
            raise InputError("exit_layer is of backend='onnx'; torch runs a model whole")
        if self.exit_layer == 0:
            return WordSimilarity(checkpoint, num_threads(threads))
        return open_engine(
            checkpoint,
            output=Exits(checkpoint).cut(self.exit_layer),
            precision=precision,
            threads=threads,
            identity=exit_identity(self.exit_layer),
            exits=True,
            may_change_precision=may_change_precision(self.folder),
        )

    def _make_scorer(self) -> PairScorer:
        options: dict[str, Any] = {
            "num_labels": len(self.labels),
            "max_positions": self._checkpoint.max_positions,
            "token_budget": self._token_budget,
            "fingerprint": lambda: self.fingerprint,
            "cache": self._cache,
        }
        if isinstance(self._engine, WordSimilarity):
            return WordSimilarityScorer(self._tokenizer, self._engine, self.settings, **options)
        return PairScorer(self._tokenizer, self._engine, self.settings, **options)

    def _check_exit(self, layer: int | None, source: Source) -> int | None:
        """The layer to cut after; None for the whole model."""
        if layer is None:
            return None
        if source == "onnx":
            raise InputError("exit_layer cuts the weights' own graph; an ONNX file is run whole")
        if _is_zero(layer):
            return 0
        exits = Exits(self._checkpoint)
        exits.check(layer)
        return None if layer == exits.num_layers else int(layer)

    def staged(self, layers: Sequence[int]) -> Callable[[], list[CrossEncoder]]:
        """Open this model in parts, each of which goes on from where the one before has left a pair.

        Args:
            layers: after which there are scores, ascending; `num_layers` is the whole model, and 0 compares
                word embeddings before all layers. The weights are opened once more, in all parts together;
                the same layers again open nothing.

        Returns:
            What gives, for one call, a cross-encoder for each layer: what one of them has computed for a pair
            is kept for the next until all are dropped. Their scores are those of `exit_layer`.

        Raises:
            InputError: a layer without a head, or layers that do not ascend.
            CheckpointError: heads that do not fit the model, or no such form of it in this precision.
            UnsupportedArchitectureError: a model that cannot be cut.
        """
        layers = list(layers)
        if not layers or any(later <= earlier for earlier, later in pairwise(layers)):
            raise InputError(f"layers must ascend, and be one at least, not {layers}")
        if self.exit_layer is not None:
            raise InputError(f"{self.name} is cut after layer {self.exit_layer}; open the whole model")
        if not isinstance(self._engine, SessionEngine):
            raise InputError(f"{self.name} runs on torch, which runs it whole; open it with backend='onnx'")
        threads = self._engine.threads * self._engine.run_threads
        before: list[CrossEncoder] = []
        if _is_zero(layers[0]):
            before = [self._stage(0, WordSimilarity(self._checkpoint, threads))]
            layers = layers[1:]
        if not layers:
            return lambda: list(before)
        parts = self._parts.get(tuple(layers))
        if parts is None:
            parts = self._parts[tuple(layers)] = StagedEngine(
                self._checkpoint, layers, precision=self._stored_precision, threads=threads
            )

        def begin() -> list[CrossEncoder]:
            kept = KeptStates()
            engines = [StageEngine(parts, stage, kept) for stage in range(len(layers))]
            after = [self._stage(layer, engine) for layer, engine in zip(layers, engines, strict=True)]
            return [*before, *after]

        return begin

    @property
    def _stored_precision(self) -> Literal["float32", "int8"]:
        return "int8" if self._engine.precision == "int8" else "float32"

    def _stage(self, layer: int, engine: Engine | WordSimilarity) -> CrossEncoder:
        """This model with another engine, which gives the scores after a layer."""
        stage = copy(self)
        stage.__dict__.pop("fingerprint", None)  # it is the engine's
        stage._engine = engine
        stage._scorer = stage._make_scorer()
        if layer != self.num_layers:
            stage.exit_layer, stage.name = layer, f"{self.name}@{layer}"
            stage.calibration = None
            stage.why_uncalibrated = f"{self.name} is calibrated, if at all, for its last layer"
        return stage

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        if self._label is None:
            raise InputError(
                f"{self.name} gives {len(self.labels)} scores ({', '.join(self.labels)}); ranking needs one: "
                "open it with label= the one to rank by, or use score()"
            )
        pairs = [(number, text) for number, texts in enumerate(requests.texts) for text in texts]
        starts = np.cumsum([0, *map(len, requests.texts)]).tolist()

        def name(position: int) -> str:
            number = pairs[position][0]
            return f"{requests.name_documents(number)}[{position - starts[number]}]"

        scores = self._scorer.score(
            requests.queries,
            pairs,
            name=name,
            query_name=requests.name_query,
            stored_ids=stored_ids(chain.from_iterable(requests.documents), self._tokenizer),
            progress=self._progress,
        )
        if num_empty := sum(not text or text.isspace() for _, text in pairs):
            _logger.warning("%d of %d documents are empty; their scores mean nothing", num_empty, len(pairs))
        return [
            Ranking(query, self._hits(requests.documents[number], scores, starts[number], top_k))
            for number, query in enumerate(requests.queries)
        ]

    def _hits(
        self, documents: Sequence[str | Document], scores: PairScores, start: int, top_k: int | None
    ) -> tuple[Hit, ...]:
        """The best hits of one query; `start` is where its documents begin in the scores."""
        rows = slice(start, start + len(documents))
        logits = scores.logits[rows, self._label]
        order = np.argsort(-logits, kind="stable")[:top_k]  # equal scores keep their order
        probabilities: list[float | None] = [None] * len(order)
        if self.calibration is not None:
            probabilities = self.calibration.probability(logits[order]).tolist()
        columns = zip(
            order.tolist(),
            logits[order].tolist(),
            probabilities,
            scores.truncated[rows][order].tolist(),
            scores.spans[rows, self._label][order].tolist(),
            strict=True,
        )
        return tuple(
            Hit(
                document_id=document.id if isinstance(document := documents[index], Document) else str(index),
                score=score,
                rank=rank,
                stage=self.name,
                index=index,
                document=document if isinstance(document, Document) else None,
                probability=probability,
                truncated_tokens=truncated,
                span=(span[0], span[1]) if span[0] >= 0 else None,
            )
            for rank, (index, score, probability, truncated, span) in enumerate(columns, start=1)
        )

    def _read_calibration(self, folder: Path) -> tuple[Calibration | None, str]:
        """The folder's calibration if it holds for this model as it is opened, and why not otherwise."""
        try:
            found = read_calibration(folder)
        except CheckpointError as error:  # it changes no score
            _logger.warning("%s: hits have no probability", error)
            return None, f"the calibration of {self.name} cannot be read: {error}"
        if found is None:
            return None, f"{self.name} has no calibration: make one with `crossrank calibrate`"
        if self.label is None:
            return None, f"{self.name} was opened without label= the one to rank by"
        other = differences(found, self.score_identity, self.label)
        if not other:
            return found, ""
        if self.exit_layer is not None:
            other = f"it is not for scores after layer {self.exit_layer}"
        reason = f"the calibration of {self.name} was made otherwise: {other}"
        _logger.info("%s; its hits have no probability", reason)
        return None, reason

    def _find_label(self, label: str | int | None) -> int | None:
        """The position of the label to rank by; None when there are several and none was chosen."""
        if label is None:
            return 0 if len(self.labels) == 1 else None
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.labels):
            return label
        raise InputError(f"{self.name} has no label {label!r}; its labels are {', '.join(self.labels)}")

    def __repr__(self) -> str:
        length = self.settings.max_length
        return f"{type(self).__name__}({self.name!r}, precision={self.precision!r}, max_length={length})"


def _is_zero(layer: Any) -> bool:
    return isinstance(layer, (int, np.integer)) and not isinstance(layer, bool) and layer == 0


def _activation(stated: Activation | None, checkpoint: Checkpoint) -> Activation:
    activation = stated or checkpoint.activation or "identity"
    for choice in get_args(Activation):
        if activation == choice:
            if choice == "softmax" and checkpoint.num_labels == 1:
                raise InputError("softmax over a single label is always 1; use activation='sigmoid'")
            return choice  # type: ignore[no-any-return]
    raise InputError(f"activation is {activation!r}; choose one of {', '.join(get_args(Activation))}")
