"""Scores before a cross-encoder's first layer: how alike the words of query and document are.

A document's score is the mean over the query's tokens of the largest cosine with any token of the document,
of the model's own word embeddings, without positions. Nothing is trained, and a table look-up is nearly all
there is to compute.

Source: Busolin et al. 2025, "Efficient Re-ranking with Cross-encoders via Early Exit", SIGIR,
doi:10.1145/3726302.3729962, whose filter compares the token embeddings before the first layer, too.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import UnsupportedArchitectureError
from crossrank.models.pair_scorer import PairScorer, Scores
from crossrank.models.pair_settings import PairSettings
from crossrank.progress import Track
from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.exits import exit_identity
from crossrank.runtime.tokenization import Tokenizer

__all__ = ["WordSimilarity", "WordSimilarityScorer"]

Ids = npt.NDArray[np.int32]

_TABLES = ("word_embeddings.weight", "tok_embeddings.weight")  # ModernBERT has the second


class WordSimilarity:
    """The word embeddings of a checkpoint, for comparing tokens.

    Args:
        checkpoint: its float32 weights are read, or where there are none its int8 ones.
        threads: of the model; the look-up itself takes one.

    Attributes:
        precision: always "float32".
        threads: see above.
        batch_tokens: see `crossrank.runtime.engine.Engine`; nothing is batched.

    Raises:
        UnsupportedArchitectureError: weights without a table of word embeddings.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        self._checkpoint = checkpoint
        self.precision = "float32"
        self.threads = threads
        self.batch_tokens = DEFAULT_TOKEN_BUDGET
        tensors = checkpoint.tensors()
        name = next((name for name in tensors if name.endswith(_TABLES)), None)
        if name is None:
            raise UnsupportedArchitectureError(
                f"{checkpoint.folder}: the weights have no table of word embeddings, so there are no scores "
                "before the first layer"
            )
        self._table = tensors[name]  # memory-mapped where it can be: few of the rows are read

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a score."""
        return hashlib.sha256(f"{self._checkpoint.fingerprint}{exit_identity(0)}".encode()).hexdigest()

    def score(self, query: Ids, documents: list[Ids]) -> npt.NDArray[np.float32]:
        """Compare a query with documents: float32 (documents,), cosines; -1 for a document without tokens.

        Args:
            query: token ids, without special tokens.
            documents: the same of each document.
        """
        scores = np.full(len(documents), -1, dtype=np.float32)
        filled = [row for row, document in enumerate(documents) if len(document)]
        if not filled or not len(query):
            return scores
        lengths = [len(documents[row]) for row in filled]
        different, places = np.unique(np.concatenate([documents[row] for row in filled]), return_inverse=True)
        cosines = self._directions(query) @ self._directions(different).T  # (query tokens, different tokens)
        starts = np.cumsum([0, *lengths[:-1]])
        best = np.maximum.reduceat(cosines[:, places], starts, axis=1)  # (query tokens, documents)
        # Added up row by row, so that a score does not depend on how many documents there are.
        scores[filled] = np.add.reduce(best, axis=0, dtype=np.float32) / np.float32(len(query))
        return scores

    def _directions(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        rows = np.asarray(self._table[ids], dtype=np.float32)
        lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        directions: npt.NDArray[np.float32] = rows / lengths
        return directions


class WordSimilarityScorer(PairScorer):
    """A `PairScorer` whose scores are word similarities; a model's labels all get the same.

    Args:
        tokenizer: see `PairScorer`, as the rest.
        similarity: compares tokens.
        settings: see `PairScorer`.
        options: other arguments of `PairScorer`.
    """

    def __init__(
        self, tokenizer: Tokenizer, similarity: WordSimilarity, settings: PairSettings, **options: Any
    ) -> None:
        super().__init__(tokenizer, similarity, settings, **options)  # type: ignore[arg-type]
        self._similarity = similarity

    def _run(self, inputs: list[tuple[Ids, Ids]], num_pairs: int, tracked: Track) -> Scores:
        of_query: dict[bytes, list[int]] = {}
        for row, (query, _) in enumerate(inputs):
            of_query.setdefault(query.tobytes(), []).append(row)
        scores = np.empty((len(inputs), self._num_labels), dtype=np.float32)
        done = 0
        for rows in of_query.values():
            query, documents = inputs[rows[0]][0], [inputs[row][1] for row in rows]
            scores[rows] = self._similarity.score(query, documents)[:, None]
            before, done = done, done + len(rows)
            tracked.advance(num_pairs * done // len(inputs) - num_pairs * before // len(inputs))
        return scores
