"""What every reranker offers, of whatever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from crossrank.types import Document, Ranking

__all__ = ["Reranker", "asked_once"]


@runtime_checkable
class Reranker(Protocol):
    """Puts a query's documents in order; callers need not know how.

    Attributes:
        name: what hits carry as their stage, and people read.
    """

    @property
    def name(self) -> str:
        """What hits carry as their stage, and people read."""
        ...

    def rank(self, query: str, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """Order one query's documents, best first.

        Args:
            query: not empty.
            documents: texts or documents; a text's id is its position. Equal scores keep this order.
            top_k: how many hits to return; None returns all.
        """
        ...

    def rank_many(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str | Document]],
        top_k: int | None = None,
    ) -> list[Ranking]:
        """Order many queries' documents in one go, which is faster than one by one.

        Args:
            queries: not empty each.
            documents: one list for each query.
            top_k: how many hits to return for each query; None returns all.

        Raises:
            InputError: there is not one list for each query. What `rank` raises comes out, too.
        """
        ...


def asked_once(*rerankers: object) -> bool:
    """Whether a call of one of these that failed must not be made again: it has cost money, or minutes.

    Rerankers made of large language models have an attribute `asked_once` that says so, and those made of
    such rerankers have it, too; any other may.
    """
    return any(getattr(each, "asked_once", False) for each in rerankers)
