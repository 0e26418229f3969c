"""MaxSim: how late-interaction models compare a query's token vectors with a document's.

A score is the sum over the query's vectors of the largest inner product with any vector of the document.
Source: Khattab and Zaharia 2020, "ColBERT", arXiv:2004.12832, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError

__all__ = ["Aligned", "TokenVectors", "document_blocks", "maxsim"]

Vectors = npt.NDArray[np.float32]

BLOCK_TOKENS = 4096
"""Document tokens compared at a time: with 32 query vectors the products take 0.5 MB, which a cache holds."""


_QUERY_TOKENS = 512  # and at most so many tokens of queries at a time


class TokenVectors(NamedTuple):
    """The token vectors of several texts, one text after another.

    Attributes:
        vectors: (tokens, dimensions), or rows that a codec decodes (see `token_codec`).
        lengths: int64 (texts,), how many of them each text has.
    """

    vectors: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[npt.NDArray[Any]], dimensions: int) -> TokenVectors:
        """Join the vectors of single texts, (tokens, dimensions) each."""
        lengths = np.array([len(each) for each in texts], dtype=np.int64)
        joined = np.concatenate(texts) if len(texts) else np.zeros((0, dimensions), np.float32)
        return cls(joined, lengths)

    def split(self) -> list[npt.NDArray[Any]]:
        """Return the vectors of each text, as views."""
        return np.split(self.vectors, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []

    def take(self, rows: npt.NDArray[np.int64]) -> TokenVectors:
        """Return those of some texts, in the order of `rows`."""
        if np.array_equal(rows, np.arange(len(self.lengths))):
            return self
        ends, lengths = np.cumsum(self.lengths)[rows].tolist(), self.lengths[rows].tolist()
        texts = [self.vectors[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        return TokenVectors.of(texts, self.vectors.shape[1])


class Aligned(NamedTuple):
    """Token by token similarities of a query and a document.

    Attributes:
        query_spans: int (m, 2), characters of each query token in the query; (0, 0) for one that stands for
            no characters, such as a marker or an expansion token.
        document_spans: int (n, 2), the same of the document's tokens.
        similarities: float (m, n), as they are added up: the score is the sum over query tokens of the
            largest in their row.
        cut: tokens of the document that were not read.
    """

    query_spans: npt.NDArray[np.integer[Any]]
    document_spans: npt.NDArray[np.integer[Any]]
    similarities: npt.NDArray[np.floating[Any]]
    cut: int = 0


def maxsim(
    queries: Sequence[Vectors],
    documents: TokenVectors,
    *,
    decode: Callable[[npt.NDArray[Any]], Vectors] | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> Vectors:
    """Return (documents, queries) float32: the score of each document for each query.

    Documents are taken by the block, so that what is held beside the arguments is one block's float32
    vectors and its products with the queries' vectors, however many documents there are.

    Exact: the sums of the naive formula over all products, to float32 rounding.

    Args:
        queries: of each query, (tokens, dimensions) float32; at least one token.
        documents: a document without vectors gets 0.
        decode: turns rows of `documents.vectors` into (rows, dimensions) float32; None where they are.
        block_tokens: most tokens of a block; a longer document is a block of its own.

    Raises:
        InputError: a query without vectors, or vectors of different dimensions.
    """
    check_count(block_tokens, "block_tokens")
    if any(query.ndim != 2 or not len(query) for query in queries):
        raise InputError("each query must be (tokens, dimensions) with at least one token")
    scores = np.zeros((len(documents.lengths), len(queries)), dtype=np.float32)
    if not queries:
        return scores
    dimensions = queries[0].shape[1]
    groups = list(document_blocks(np.array([len(query) for query in queries]), _QUERY_TOKENS))
    filled = np.flatnonzero(documents.lengths)  # reduceat has no empty segments
    ends = np.cumsum(documents.lengths)
    for first, last in document_blocks(documents.lengths[filled], block_tokens):
        rows = filled[first:last]
        start, end = ends[rows[0]] - documents.lengths[rows[0]], ends[rows[-1]]
        block = documents.vectors[start:end]
        decoded = np.asarray(block if decode is None else decode(block), dtype=np.float32)
        if decoded.shape[1] != dimensions:
            raise InputError(
                f"query vectors have {dimensions} dimensions, document vectors {decoded.shape[1]}; "
                "both must be of one model"
            )
        starts = ends[rows] - documents.lengths[rows] - start
        for first_query, last_query in groups:
            group = queries[first_query:last_query]
            products = decoded @ np.concatenate(group).T  # (tokens of the block, tokens of the queries)
            best = np.maximum.reduceat(products, starts, axis=0)
            sums = np.add.reduceat(best, np.cumsum([0, *map(len, group)])[:-1], axis=1)
            scores[rows, first_query:last_query] = sums
    return scores


def document_blocks(lengths: npt.NDArray[np.int64], block_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of runs of documents with at most so many tokens, or of a single longer one."""
    ends = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + block_tokens, side="right")))
        yield first, last
        first = last
