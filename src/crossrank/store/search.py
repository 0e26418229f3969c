"""Queries against the table of an index, and the rankings they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_strings, check_count, check_texts
from crossrank.errors import require
from crossrank.models.maxsim import maxsim
from crossrank.store import upkeep
from crossrank.store.table import DocumentTable
from crossrank.store.tokens import StoredTokens
from crossrank.types import Hit, Ranking

__all__ = ["text_rankings", "token_rankings", "valid_strings", "vector_rankings"]

_TIE_MARGIN = 8  # rows fetched beyond top_k, to see whether the last score goes on behind the cut
_MOST_TIES = 10_000
_MOST_ROWS = 2**31  # the store takes no larger limit than 2^32


def valid_strings(values: Iterable[str], name: str) -> list[str]:
    """Return strings that have a UTF-8 form, called `name` in the message, or raise InputError."""
    strings = as_strings(values, name)
    check_texts(strings, name)
    return strings


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


def token_rankings(
    table: DocumentTable,
    stored: StoredTokens,
    *,
    texts: Sequence[str],
    vectors: Sequence[npt.NDArray[np.float32]],
    scale: Sequence[float],
    top_k: int,
    where: str | None,
) -> list[Ranking]:
    """Return one ranking by MaxSim per query, from a scan over all token vectors.

    Args:
        table: what to search.
        stored: its token vectors.
        texts: of the queries; for the rankings.
        vectors: of each query, (tokens, dimensions) float32.
        scale: what the sum over a query's tokens is multiplied by.
        top_k: the most hits a ranking may have.
        where: SQL condition that documents must meet.
    """
    best: list[list[tuple[float, str]]] = [[] for _ in texts]
    for block in stored.blocks(where):
        scores = maxsim(vectors, block.tokens, decode=stored.codec.decode)
        scores *= np.array(scale, dtype=np.float32)
        for column, found in zip(scores.T, best, strict=True):
            least = found[-1][0] if len(found) >= top_k else -np.inf
            near = np.flatnonzero(column >= least).tolist()  # equal ones too: ids decide
            found.extend((float(column[place]), block.ids[place]) for place in near)
            found.sort(reverse=True)
            del found[top_k:]
    names = list(dict.fromkeys(name for found in best for _, name in found))
    rows = table.rows_by_id(names, table.settings.hit_columns())
    return [
        _ranking(table, text, "late", [(score, rows[name]) for score, name in found if name in rows], top_k)
        for text, found in zip(texts, best, strict=True)
    ]


def _best_rows(
    table: DocumentTable, start: Callable[[], Any], score_column: str, top_k: int, where: str | None
) -> list[Mapping[str, Any]]:
    """Return the best rows: at least `top_k`, and all that share the score of the last one.

    Which of several rows with the same score the store returns is left to chance; with all of them
    at hand the ranking can break ties by id.
    """
    check_count(top_k)
    columns = [*table.settings.hit_columns(), score_column]
    top_k = min(int(top_k), _MOST_ROWS)
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
    best = sorted(scored, key=lambda pair: (pair[0], pair[1]["id"]), reverse=True)[:top_k]
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
