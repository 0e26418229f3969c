"""Queries against the table of an index, and the rankings they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError, require
from crossrank.store import upkeep
from crossrank.store.table import DocumentTable
from crossrank.types import Hit, Ranking

__all__ = ["check_query_vectors", "check_strings", "text_rankings", "vector_rankings"]

_TIE_MARGIN = 8  # rows fetched beyond top_k, to see whether the last score goes on behind the cut
_MOST_TIES = 10_000


def check_strings(values: Sequence[str], name: str) -> None:
    """Raise InputError unless `values`, called `name` in the message, is a list of valid strings."""
    if isinstance(values, (str, bytes)):
        raise InputError(f"{name} must be a list of strings, not a single {type(values).__name__}")
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{name}[{position}] must be a string, not {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name}[{position}] is not valid Unicode: {error.reason}, character {error.start}"
            ) from None


def check_query_vectors(vectors: npt.NDArray[np.float32], dimensions: int) -> npt.NDArray[np.float32]:
    """Return the vectors as (n, dimensions) float32, or raise InputError."""
    checked = np.asarray(vectors, dtype=np.float32)
    if checked.ndim != 2 or checked.shape[1] != dimensions:
        raise InputError(
            f"query vectors must have shape (n, {dimensions}), one row a query, not {checked.shape}"
        )
    if not np.isfinite(checked).all():
        raise InputError("query vectors must not contain NaN or infinity")
    return checked


def text_rankings(
    table: DocumentTable, queries: Sequence[str], top_k: int, where: str | None
) -> list[Ranking]:
    """Return one BM25 ranking per query.

    Args:
        table: what to search.
        queries: texts.
        top_k: the most hits a ranking may have.
        where: SQL condition that documents must meet.
    """
    match_query = require("lancedb.query", "search").MatchQuery

    def ranking(query: str) -> Ranking:
        def start() -> Any:
            # A MatchQuery takes every character as it is; a plain string may be read as a query language.
            return table.lance.search(match_query(query, "content"), query_type="fts")

        rows = _best_rows(table, start, "_score", top_k, where)
        return _ranking(table, query, "bm25", [(row["_score"], row) for row in rows], top_k)

    return [ranking(query) for query in queries]


def vector_rankings(
    table: DocumentTable,
    texts: Sequence[str],
    vectors: npt.NDArray[np.float32],
    top_k: int,
    where: str | None,
) -> list[Ranking]:
    """Return one ranking by inner product per query.

    Args:
        table: what to search.
        texts: of the queries; for the rankings.
        vectors: (len(texts), dimensions) float32.
        top_k: the most hits a ranking may have.
        where: SQL condition that documents must meet.
    """
    trained_rows = upkeep.vector_index_rows(table)

    def ranking(text: str, vector: npt.NDArray[np.float32]) -> Ranking:
        def start() -> Any:
            query = table.lance.search(vector, vector_column_name="vector").distance_type("dot")
            if trained_rows is not None:
                # No upper bound (0): with a narrow filter, partitions are looked at until top_k are found.
                query = query.minimum_nprobes(upkeep.num_probes(trained_rows)).maximum_nprobes(0)
            return query

        rows = _best_rows(table, start, "_distance", top_k, where)
        scored = [(float(np.float32(1.0 - row["_distance"])), row) for row in rows]  # 1 - (1 - inner product)
        return _ranking(table, text, "dense", scored, top_k)

    return [ranking(text, vector) for text, vector in zip(texts, vectors, strict=True)]


def _best_rows(
    table: DocumentTable, start: Callable[[], Any], score_column: str, top_k: int, where: str | None
) -> list[Mapping[str, Any]]:
    """Return the best rows: at least `top_k`, and all that share the score of the last one.

    Which of several rows with the same score the store returns is left to chance; with all of them
    at hand the ranking can break ties by id.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, not {top_k!r}")
    columns = [*table.settings.document_columns(), score_column]
    limit = top_k + _TIE_MARGIN
    while True:
        with table.errors():
            query = start().select(columns).limit(limit)
            rows: list[Mapping[str, Any]] = (
                query if where is None else query.where(where, prefilter=True)
            ).to_list()
        if len(rows) < limit or rows[-1][score_column] != rows[top_k - 1][score_column]:
            return rows
        if limit >= top_k + _MOST_TIES:
            return rows
        limit = min(4 * limit, top_k + _MOST_TIES)


def _ranking(
    table: DocumentTable,
    query: str,
    stage: str,
    scored: Sequence[tuple[float, Mapping[str, Any]]],
    top_k: int,
) -> Ranking:
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1]["id"]))[:top_k]
    hits = [
        Hit(
            document_id=row["id"],
            score=score,
            rank=rank,
            stage=stage,
            document=table.settings.document(row),
            stage_scores={stage: score},
        )
        for rank, (score, row) in enumerate(best, start=1)
    ]
    return Ranking(query, tuple(hits))
