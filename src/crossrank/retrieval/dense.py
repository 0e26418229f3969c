"""Exact vector search over a list of documents in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_strings, as_vectors, check_count
from crossrank.errors import ModelOutputError
from crossrank.retrieval.retriever import (
    Filter,
    as_documents,
    best_rows,
    matching,
    ranking_of,
)
from crossrank.store.filters import FilterLike
from crossrank.types import Document, Ranking

__all__ = ["Dense", "Encoder"]

_BLOCK_SCORES = 1 << 22  # scores held at a time, 16 MB in float32
_BLOCK_ROWS = 1 << 12  # rows rescored at a time


class Encoder(Protocol):
    """Gives queries and documents vectors whose inner product says how well they match."""

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (len(texts), dim) float32."""
        ...

    def encode_documents(self, texts: Sequence[str | Document]) -> npt.NDArray[np.float32]:
        """Return (len(texts), dim) float32."""
        ...


class Dense:
    """Ranks documents by the inner product of their vector with the query's.

    Every document is compared: the hits are the true nearest ones. A matrix product picks the
    candidates in float32; those that could be among the best within its rounding error get their
    score from a float64 product of their own, rounded to float32. So a document's score does not
    depend on the other queries and documents of the call, and equal vectors have equal scores.

    Memory is that of the document vectors plus a bounded block of scores. Safe to use from many
    threads if the bi-encoder is.

    Args:
        documents: texts, or documents with ids; a text gets its position as id.
        bi_encoder: encodes the documents now and the queries later.
        name: of this stage in hits.

    Raises:
        InputError: documents that are not texts or Documents, or two with the same id.
        ModelOutputError: vectors of another shape than (documents, dim), or with NaN or infinity.
    """

    def __init__(
        self, documents: Sequence[str | Document], bi_encoder: Encoder, *, name: str = "dense"
    ) -> None:
        self.name = name
        self.documents = as_documents(documents)
        self.bi_encoder = bi_encoder
        self._vectors = _checked(bi_encoder.encode_documents(self.documents), len(self.documents))
        self._has_text = np.array([bool(each.full_text.strip()) for each in self.documents], dtype=np.bool_)
        norms = np.sqrt(np.einsum("ij,ij->i", self._vectors, self._vectors))
        self._longest = float(norms.max(initial=0.0))

    def __len__(self) -> int:
        return len(self.documents)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """Return (len(documents),) float32: each document's inner product with the query."""
        return self._exact(self._encode([query])[0], np.arange(len(self.documents)))

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | FilterLike | None = None
    ) -> list[Ranking]:
        """Return one ranking per query, in the order of the queries.

        Every ranking has `top_k` hits if that many documents may be found, however poor the last
        ones are. A document without text is never found: its vector says nothing. Equal scores keep
        the order of the documents.

        Args:
            queries: the texts to search for.
            top_k: the most hits a ranking may have, at least 1.
            filter: only documents that it matches are found; a dict or a string (see
                `crossrank.store.filters`), or an object with `matches`.

        Raises:
            InputError: queries that are not a list of strings, top_k below 1, or a filter that cannot be
                read.
            ModelOutputError: a query vector with NaN or infinity, or of another size than the
                documents' vectors.
        """
        texts = as_strings(queries, "queries")
        check_count(top_k)
        allowed = matching(self.documents, filter)
        if not texts or not self.documents:
            return [Ranking(query) for query in texts]
        rows = np.flatnonzero(self._has_text if allowed is None else self._has_text & allowed)
        query_vectors = self._encode(texts)
        step = max(1, _BLOCK_SCORES // len(self.documents))
        rankings = []
        for start in range(0, len(texts), step):
            block = query_vectors[start : start + step]
            for query, vector, rough in zip(
                texts[start : start + step], block, block @ self._vectors.T, strict=True
            ):
                near = rows[self._could_be_best(vector, rough[rows], top_k)]
                scores = self._exact(vector, near)
                best = best_rows(scores, top_k)
                rankings.append(ranking_of(query, self.documents, near[best], scores[best], self.name))
        return rankings

    def _encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = _checked(self.bi_encoder.encode_queries(queries), len(queries))
        if self.documents and vectors.shape[1] != self._vectors.shape[1]:
            raise ModelOutputError(
                f"query vectors have {vectors.shape[1]} dimensions and document vectors "
                f"{self._vectors.shape[1]}; encode both with the same bi-encoder"
            )
        return vectors

    def _could_be_best(
        self, vector: npt.NDArray[np.float32], rough: npt.NDArray[np.float32], top_k: int
    ) -> npt.NDArray[np.int64]:
        """Return the positions, ascending, whose exact score can be among the `top_k` best."""
        if rough.size <= top_k:
            return np.arange(rough.size)
        last = float(np.partition(rough, rough.size - top_k)[rough.size - top_k])
        # A float32 inner product is within n · u · |x| · |y| of the true one (Higham 2002, sec. 3.1),
        # u = 2^-24; twice that between two of them, and as much again for the last roundings.
        error = vector.size * 2.0**-24 * float(np.linalg.norm(vector)) * self._longest
        return np.flatnonzero(rough >= last - 4 * error)

    def _exact(self, vector: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return (len(rows),) float32 scores, each a function of the two vectors alone."""
        scores = np.empty(len(rows), dtype=np.float32)
        wide = vector.astype(np.float64)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = self._vectors[rows[start : start + _BLOCK_ROWS]]
            scores[start : start + _BLOCK_ROWS] = (block * wide).sum(axis=1)
        return scores


def _checked(vectors: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    return as_vectors(vectors, "the bi-encoder's vectors", rows=count, error=ModelOutputError)
