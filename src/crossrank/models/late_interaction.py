"""Late interaction: a vector for each token, query and document compared by MaxSim."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list, check_count, check_texts
from crossrank.errors import CheckpointError, InputError, QueryTooLongError
from crossrank.models.hub import resolve
from crossrank.models.maxsim import Aligned, TokenVectors, maxsim
from crossrank.models.requests import RankVerbs, Requests, check_pairs
from crossrank.models.token_encoder import EncodedTexts, TokenEncoder, encoded_at_once
from crossrank.models.token_settings import TokenSettings, token_modules
from crossrank.progress import Track, track
from crossrank.runtime.backends import Backend, Precision, open_backend
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Source
from crossrank.runtime.settings import settings_digest
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document, Hit, Pair, Ranking

__all__ = ["DocumentVectors", "LateInteraction", "VectorSource", "Wanted"]

_logger = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """A document whose token vectors are needed.

    Attributes:
        text: what is read of it.
        document_id: its id; None for a text without one.
        name: what the caller calls it, for messages.
    """

    text: str
    document_id: str | None
    name: str


class DocumentVectors(NamedTuple):
    """Token vectors of n documents.

    Attributes:
        tokens: float32.
        cut: int32 (n,), tokens of each document that were not read.
    """

    tokens: TokenVectors
    cut: npt.NDArray[np.int32]


VectorSource = Callable[[Sequence[Wanted], Track], DocumentVectors]
"""Gives the vectors of a block of documents and advances the track by their number."""


class LateInteraction(RankVerbs):
    """Compares the vectors of a query's tokens with those of a document's; the score is their MaxSim.

    Opens the folders of PyLate, of ColBERT's own code (weights as safetensors), and of sentence-transformers'
    MultiVectorEncoder. Token vectors are theirs, to float32 rounding: markers, query expansion, tokens that
    do not count (punctuation), projections and normalisation are what the folder says.

    Query and document are read apart. So the documents' vectors can be made beforehand and kept, and what is
    left at query time is one short query to encode: see `Index.create(late_interaction=...)` and
    `crossrank.store.late_reranker`.

    A pair's score depends on the pair alone: not on what else is scored with it, in which order, in what
    batches or with how many threads (float32: within 1e-5). Memory does not grow with the documents of a
    call: they are encoded and compared by the block. Safe to use from many threads at once.

    A hit has the MaxSim as score, the document's position as `index`, and how many document tokens the model
    did not read (`truncated_tokens`). Equal scores keep the order that documents came in. A document that
    several queries have is encoded once. An empty one gets the score of its special tokens, which means
    nothing; a ranking call in which there are any logs one WARNING (logger
    "crossrank.models.late_interaction") that says how many.

    `rank` and `rank_many` raise InputError for a query of characters alone that the model's tokenizer drops,
    QueryTooLongError for one longer than `query_length`, and ModelOutputError for NaN or infinity from the
    model.

    Args:
        model: a folder, or a name on the Hugging Face hub; None is the built-in model.
        revision: commit, tag or branch; for hub models only.
        precision: "float32", "int8" where the model has an int8 form that passed its parity gate, "bf16" with
            torch, or "auto" for the fastest form there is where it runs.
        backend: "onnx" (ONNX Runtime on the CPU), "torch" (for GPUs; extra "torch"), or "auto" for torch
            where there is a GPU that it can use. See `crossrank.runtime.backends`.
        device: of torch: "cpu", "cuda", "cuda:1", "mps"; None takes the first GPU, else the CPU.
        source: "weights" computes with the safetensors, "onnx" with the folder's own ONNX file, "auto" with
            the weights where there are any and crossrank knows the architecture, else with the file.
        query_length: most tokens of a query, special tokens and marker included. Default: the folder's. A
            model that expands queries expands them to this.
        document_length: most tokens of a document; a longer one is cut at its end. Default: the folder's.
        long_query: what to do with a longer query: "error", or "truncate" to cut its end.
        token_budget: tokens of one forward, padding included; on a GPU forwards are joined to larger ones.
            None takes what `crossrank tune` found to be the fastest here, else 1024.
        threads: batches that run at a time, 1 to 1024. Default: the cores this process may use. Of ONNX
            Runtime.
        progress: a progress bar for long calls; None shows one on a terminal.

    Attributes:
        name: of the model; the stage of its hits.
        origin: what it was opened as: a folder or a name.
        settings: how texts are read, defaults filled in.
        dimensions: of a token's vector.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it is no late-interaction model, or cannot be opened as one.
        InputError: an option that cannot be used with this model.

    Source:
        Khattab and Zaharia 2020, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
        Interaction over BERT", arXiv:2004.12832.
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
        query_length: int | None = None,
        document_length: int | None = None,
        long_query: Literal["error", "truncate"] = "error",
        token_budget: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> None:
        if token_budget is not None:
            check_count(token_budget, "token_budget")
        if long_query not in ("error", "truncate"):
            raise InputError(f"long_query must be 'error' or 'truncate', not {long_query!r}")
        folder = resolve(model, kind="late-interaction", revision=revision, source=source)
        checkpoint = Checkpoint.open(folder)
        modules = token_modules(checkpoint)
        self.name = model if isinstance(model, str) and model != str(folder) else folder.resolve().name
        self.origin = self.name if model is None else str(model)
        tokenizer = Tokenizer(checkpoint)
        self.settings = TokenSettings.for_model(
            checkpoint, tokenizer, query_length=query_length, document_length=document_length
        )
        self._long_query = long_query
        self._progress = progress
        self._engine = open_backend(
            checkpoint,
            output="tokens",
            backend=backend,
            device=device,
            precision=precision,
            threads=threads,
            source=source,
            vectors_of_padding=self.settings.has_unattended_expansion,
        )
        self._encoder = TokenEncoder(
            tokenizer,
            self._engine,
            modules,
            max_positions=checkpoint.max_positions,
            token_budget=self._engine.batch_tokens if token_budget is None else token_budget,
            name=self.name,
        )
        try:
            probe = self._encoder.encode(["a"], replace(self.settings.document, name="probe"))
        except ValueError as error:  # numpy: shapes that do not fit
            if isinstance(error, (CheckpointError, InputError)):
                raise
            raise CheckpointError(
                f"{folder}: a projection does not fit the vectors it gets: {error}"
            ) from error
        self.dimensions = int(probe.tokens.vectors.shape[1])

    @property
    def precision(self) -> str:
        """What the linear layers compute in: "float32", "int8" or "bf16"."""
        return self._engine.precision

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a score: model, tokenizer, precision, settings."""
        return settings_digest({"engine": self._engine.fingerprint, **asdict(self.settings)})

    def encode_queries(self, texts: Sequence[str]) -> list[npt.NDArray[np.float32]]:
        """Return the token vectors of each query: (tokens, dimensions) float32, in their order.

        Args:
            texts: as `rank` takes them, but that they may be empty.

        Raises:
            InputError: a text that is not a string or has a lone surrogate; names its position.
            QueryTooLongError: a query longer than `query_length`, unless `long_query` says to cut it.
            ModelOutputError: the model gave NaN or infinity; names the text's position.
        """
        texts = as_list(texts, "queries")
        check_texts(texts, "queries")
        with track(len(texts), "Encoding queries", progress=self._progress) as tracked:
            return self._query_vectors(texts, "queries[{}]".format, tracked, may_be_empty=True)

    def encode_documents(self, texts: Sequence[str | Document]) -> list[npt.NDArray[np.float32]]:
        """Return the token vectors of each document: (tokens, dimensions) float32, in their order.

        A document that is longer than `document_length` is cut at its end; a call in which that happens logs
        one WARNING (logger "crossrank.models.late_interaction") that says how many were cut.

        Args:
            texts: strings, or documents, of which title and text are read (`Document.full_text`).

        Raises:
            InputError: a text that is not a string or has a lone surrogate; names its position.
            ModelOutputError: the model gave NaN or infinity; names the text's position.
        """
        return self.encode_documents_with_cuts(texts)[0]

    def encode_documents_with_cuts(
        self, texts: Sequence[str | Document]
    ) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.int32]]:
        """Return what `encode_documents` does, and int32 (n,): how many tokens of each were not read."""
        strings = [
            text.full_text if isinstance(text, Document) else text for text in as_list(texts, "documents")
        ]
        check_texts(strings, "documents")
        vectors: list[npt.NDArray[np.float32]] = []
        cut = np.zeros(len(strings), dtype=np.int32)
        form = self.settings.document
        with track(len(strings), "Encoding documents", progress=self._progress) as tracked:
            for block in encoded_at_once(strings):
                encoded = self._encoder.encode(
                    strings[block], form, tracked, partial(_document_name, block.start)
                )
                vectors += encoded.tokens.split()
                cut[block] = encoded.cut
        if cut.any():
            _logger.warning(
                "%d of %d documents have more than document_length=%d tokens and were cut at the end; the "
                "longest lost %d",
                np.count_nonzero(cut),
                len(strings),
                form.max_length,
                cut.max(),
            )
        return vectors, cut

    def score(self, pairs: Sequence[Pair | tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Score pairs.

        Args:
            pairs: (query, document) each; the document may be empty, the query as in `rank`.

        Returns:
            MaxSim, float32 (n,): the sum over the query's tokens (mean, for a model that says so) of the
            largest inner product with a token of the document. Higher is more relevant; scores of different
            queries cannot be compared.

        Raises:
            InputError: something that is no pair of texts; names its position.
            QueryTooLongError: a query longer than `query_length`.
            ModelOutputError: NaN or infinity from the model.
        """
        return self.score_with(pairs)

    def score_with(
        self, pairs: Sequence[Pair | tuple[str, str]], document_vectors: VectorSource | None = None
    ) -> npt.NDArray[np.float32]:
        """Score pairs with documents whose token vectors come from elsewhere.

        Args:
            pairs: as in `score`.
            document_vectors: as in `rank_with`.
        """
        pairs = check_pairs(pairs)
        queries = list(dict.fromkeys(query for query, _ in pairs))
        number_of = {query: number for number, query in enumerate(queries)}
        first_of = dict(reversed([(query, position) for position, (query, _) in enumerate(pairs)]))
        positions: list[list[int]] = [[] for _ in queries]
        for position, (query, _) in enumerate(pairs):
            positions[number_of[query]].append(position)
        wanted = [[Wanted(pairs[p][1], None, f"pairs[{p}]") for p in rows] for rows in positions]
        found = self._compare(
            queries,
            wanted,
            lambda number: f"the query of pairs[{first_of[queries[number]]}]",
            document_vectors or self.encode_wanted,
        )
        scores = np.empty(len(pairs), dtype=np.float32)
        for rows, (values, _) in zip(positions, found, strict=True):
            scores[rows] = values
        return scores

    def alignments(self, query: str, document: str) -> Aligned:
        """Return the similarities of a pair's tokens, which make its score, and where the tokens lie.

        Args:
            query: as in `rank`.
            document: text.

        Raises:
            InputError: texts that cannot be used.
            QueryTooLongError: a query longer than `query_length`.
            ModelOutputError: NaN or infinity from the model.
        """
        return self.alignments_with(query, document)

    def alignments_with(
        self, query: str, document: str, document_vectors: VectorSource | None = None
    ) -> Aligned:
        """Return the similarities of a pair's tokens, the document's vectors coming from elsewhere.

        Args:
            query: as in `rank`.
            document: text.
            document_vectors: as in `rank_with`.
        """
        check_pairs([(query, document)])
        with track(2, "Encoding a pair", progress=self._progress) as tracked:
            (of_query,) = self._query_vectors([query], lambda _: "the query", tracked)
            source = document_vectors or self.encode_wanted
            found = source([Wanted(document, None, "the document")], tracked)
        similarities = of_query @ found.tokens.split()[0].T
        return Aligned(
            self._encoder.spans(query, self.settings.query),
            self._encoder.spans(document, self.settings.document),
            similarities / len(of_query) if self.settings.is_mean else similarities,
            int(found.cut[0]),
        )

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        return self.rank_with(requests, top_k)

    def rank_with(
        self,
        requests: Requests,
        top_k: int | None,
        document_vectors: VectorSource | None = None,
        stage: str | None = None,
    ) -> list[Ranking]:
        """Order documents whose token vectors come from elsewhere, such as an index.

        Args:
            requests: checked queries and documents.
            top_k: how many hits to return for each query; None returns all.
            document_vectors: gives the vectors of documents; None encodes them.
            stage: of the hits; None is the model's name.
        """
        wanted = [
            [
                Wanted(
                    text,
                    document.id if isinstance(document, Document) else None,
                    f"{requests.name_documents(number)}[{place}]",
                )
                for place, (document, text) in enumerate(zip(documents, texts, strict=True))
            ]
            for number, (documents, texts) in enumerate(zip(requests.documents, requests.texts, strict=True))
        ]
        found = self._compare(
            requests.queries, wanted, requests.name_query, document_vectors or self.encode_wanted
        )
        texts = [text for each in requests.texts for text in each]
        if num_empty := sum(not text or text.isspace() for text in texts):
            _logger.warning("%d of %d documents are empty; their scores mean nothing", num_empty, len(texts))
        return [
            Ranking(query, _hits(documents, *columns, top_k, stage or self.name))
            for query, documents, columns in zip(requests.queries, requests.documents, found, strict=True)
        ]

    def _compare(
        self,
        queries: Sequence[str],
        wanted: Sequence[Sequence[Wanted]],
        query_name: Callable[[int], str],
        document_vectors: VectorSource,
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """Return scores and cut tokens of each query's documents."""
        unique: dict[str, int] = {}
        firsts: list[Wanted] = []
        columns: list[npt.NDArray[np.int64]] = []
        for documents in wanted:
            for each in documents:
                if each.text not in unique:
                    unique[each.text] = len(firsts)
                    firsts.append(each)
            columns.append(np.array([unique[each.text] for each in documents], dtype=np.int64))
        results = [
            (np.empty(len(column), dtype=np.float32), np.zeros(len(column), dtype=np.int32))
            for column in columns
        ]
        with track(len(queries) + len(firsts), "Scoring pairs", progress=self._progress) as tracked:
            vectors = self._query_vectors(queries, query_name, tracked)
            for block in encoded_at_once([each.text for each in firsts]):
                made = document_vectors(firsts[block], tracked)
                for query, column, (scores, cut) in zip(vectors, columns, results, strict=True):
                    places = np.flatnonzero((column >= block.start) & (column < block.stop))
                    if not places.size:
                        continue
                    rows, back = np.unique(column[places] - block.start, return_inverse=True)
                    values = maxsim([query], made.tokens.take(rows))[:, 0]
                    scores[places] = (values / len(query) if self.settings.is_mean else values)[back]
                    cut[places] = made.cut[rows][back]
        return results

    def encode_wanted(self, wanted: Sequence[Wanted], tracked: Track) -> DocumentVectors:
        """Encode a block of documents, and advance the track by their number."""
        form = self.settings.document
        encoded = self._encoder.encode(
            [each.text for each in wanted], form, tracked, lambda row: wanted[row].name
        )
        return DocumentVectors(encoded.tokens, encoded.cut)

    def _query_vectors(
        self,
        texts: Sequence[str],
        name: Callable[[int], str],
        tracked: Track,
        *,
        may_be_empty: bool = False,
    ) -> list[npt.NDArray[np.float32]]:
        vectors: list[npt.NDArray[np.float32]] = []
        for block in encoded_at_once(texts):
            encoded = self._encoder.encode(
                texts[block], self.settings.query, tracked, partial(_shifted, name, block.start)
            )
            self._check_queries(encoded, name, block.start, may_be_empty)
            vectors += encoded.tokens.split()
        return vectors

    def _check_queries(
        self, encoded: EncodedTexts, name: Callable[[int], str], first: int, may_be_empty: bool
    ) -> None:
        for row in np.flatnonzero(encoded.num_own == 0).tolist() if not may_be_empty else ():
            raise InputError(
                f"{name(first + row)} has no tokens: the model's tokenizer drops all its characters; "
                "there is nothing to be relevant to"
            )
        for row in np.flatnonzero(encoded.cut).tolist() if self._long_query == "error" else ():
            length = self.settings.query.max_length
            raise QueryTooLongError(
                f"{name(first + row)} has {encoded.cut[row]} tokens more than the {length} that a query may "
                f"take with its special tokens. Shorten it, open the model with a larger query_length, or "
                "allow cutting with long_query='truncate'"
            )

    def __repr__(self) -> str:
        return f"LateInteraction({self.name!r}, precision={self.precision!r}, dimensions={self.dimensions})"


def _hits(
    documents: Sequence[str | Document],
    scores: npt.NDArray[np.float32],
    cut: npt.NDArray[np.int32],
    top_k: int | None,
    stage: str,
) -> tuple[Hit, ...]:
    order = np.argsort(-scores, kind="stable")[:top_k]  # equal scores keep their order
    return tuple(
        Hit(
            document_id=document.id if isinstance(document := documents[index], Document) else str(index),
            score=score,
            rank=rank,
            stage=stage,
            index=index,
            document=document if isinstance(document, Document) else None,
            truncated_tokens=num_cut,
        )
        for rank, (index, score, num_cut) in enumerate(
            zip(order.tolist(), scores[order].tolist(), cut[order].tolist(), strict=True), start=1
        )
    )


def _document_name(start: int, row: int) -> str:
    return f"documents[{start + row}]"


def _shifted(name: Callable[[int], str], start: int, row: int) -> str:
    return name(start + row)
