"""An index as a first stage: retrievers that search a store instead of a list in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TypeAlias

from crossrank.checks import as_strings
from crossrank.errors import IndexMismatchError, InputError
from crossrank.retrieval.fusion import RRF, Fusion
from crossrank.retrieval.hybrid import Hybrid
from crossrank.retrieval.retriever import Filter, Retriever
from crossrank.store.filters import FilterLike, as_filter
from crossrank.store.lance import Index
from crossrank.types import Ranking

__all__ = ["FirstStage", "IndexBM25", "IndexDense", "IndexLate", "index_retriever"]

FirstStage: TypeAlias = Literal["auto", "bm25", "dense", "hybrid", "late"]


class _IndexRetriever(ABC):
    """A first stage over an index."""

    index: Index

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | FilterLike | None = None
    ) -> list[Ranking]:
        """Return one ranking per query, in the order of the queries.

        Args:
            queries: the texts to search for.
            top_k: the most hits a ranking may have, at least 1.
            filter: only documents that it matches are found; a dict, a string, or a filter made of one.

        Raises:
            InputError: queries that are not a list of strings, or what the index's search raises it for.
        """
        return self._search(as_strings(queries, "queries"), top_k, _for_store(filter))

    @abstractmethod
    def _search(self, queries: list[str], top_k: int, filter: FilterLike | None) -> list[Ranking]:
        """Return one ranking per query."""


class IndexBM25(_IndexRetriever):
    """Text search in an index; see `Index.search_text` for the formula.

    Args:
        index: the index to search.
    """

    name = "bm25"

    def __init__(self, index: Index) -> None:
        self.index = index

    def _search(self, queries: list[str], top_k: int, filter: FilterLike | None) -> list[Ranking]:
        return self.index.search_text(queries, top_k, filter)


class IndexDense(_IndexRetriever):
    """Vector search in an index; see `Index.search_vector`.

    Args:
        index: the index to search, opened with its bi-encoder.

    Raises:
        IndexMismatchError: the index has no vectors, or was opened without its bi-encoder.
    """

    name = "dense"

    def __init__(self, index: Index) -> None:
        if index.bi_encoder is None:
            raise IndexMismatchError(
                f"{index.path}: vector search needs an index made with a bi-encoder and opened with it: "
                "Index.open(path, bi_encoder=...); text search needs none"
            )
        self.index = index

    def _search(self, queries: list[str], top_k: int, filter: FilterLike | None) -> list[Ranking]:
        return self.index.search_vector(queries, top_k, filter)


class IndexLate(_IndexRetriever):
    """Late interaction over all documents of an index; see `Index.search_late`.

    Args:
        index: the index to search, opened with its late-interaction model.

    Raises:
        IndexMismatchError: the index has no token vectors, or was opened without their model.
    """

    name = "late"

    def __init__(self, index: Index) -> None:
        index.needed_late_interaction("there is nothing to encode queries with")
        self.index = index

    def _search(self, queries: list[str], top_k: int, filter: FilterLike | None) -> list[Ranking]:
        return self.index.search_late(queries, top_k, filter)


def index_retriever(index: Index, kind: FirstStage = "auto", fusion: Fusion | None = None) -> Retriever:
    """Return a retriever over an index.

    Args:
        index: the index to search.
        kind: "bm25", "dense", "hybrid" (both), "late" (late interaction), or "auto": hybrid if the index
            was opened with a bi-encoder, else BM25.
        fusion: how a hybrid mixes the two rankings; None is RRF.

    Raises:
        InputError: another kind.
        IndexMismatchError: dense or hybrid, and no bi-encoder; late, and no late-interaction model.
    """
    if kind == "auto":
        kind = "bm25" if index.bi_encoder is None else "hybrid"
    if kind == "bm25":
        return IndexBM25(index)
    if kind == "dense":
        return IndexDense(index)
    if kind == "hybrid":
        return Hybrid([IndexBM25(index), IndexDense(index)], fusion=RRF() if fusion is None else fusion)
    if kind == "late":
        return IndexLate(index)
    raise InputError(f"a first stage must be one of auto, bm25, dense, hybrid, late, not {kind!r}")


def _for_store(filter: Filter | FilterLike | None) -> FilterLike | None:
    """Return the filter in a form that the store can compile to a query."""
    if filter is None or isinstance(filter, (str, dict)):
        return filter
    try:
        return as_filter(filter)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"an index cannot search with any object that has `matches`: {error}") from None
