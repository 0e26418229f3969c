"""What `rank` and `rank_many` are asked, checked in the same words whatever the reranker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from crossrank.checks import as_list, check_count, check_text, check_texts
from crossrank.errors import InputError
from crossrank.types import Document, Ranking

__all__ = ["RankVerbs", "Requests", "check_pairs", "check_query"]


class Requests(NamedTuple):
    """Queries with their documents, which can be used.

    Attributes:
        queries: valid texts, not empty.
        documents: one list for each query, as they were given.
        texts: what models read of them (`Document.full_text`).
        many: whether there can be several, which is how messages name them.
    """

    queries: list[str]
    documents: list[list[str | Document]]
    texts: list[list[str]]
    many: bool

    @classmethod
    def one(cls, query: Any, documents: Any, top_k: Any) -> Requests:
        """Check the arguments of `rank`.

        Raises:
            InputError: a query that is empty or no text, documents that are no list of texts, or a top_k
                that is no whole number of at least 1.
        """
        return cls._checked([query], [documents], top_k, many=False)

    @classmethod
    def several(cls, queries: Any, documents: Any, top_k: Any) -> Requests:
        """Check the arguments of `rank_many`.

        Raises:
            InputError: as `one`, and when there is not one list for each query.
        """
        queries, documents = as_list(queries, "queries"), as_list(documents, "documents")
        if len(queries) != len(documents):
            raise InputError(
                "rank_many needs a list of queries and one list of documents for each; got "
                f"{len(queries)} and {len(documents)}"
            )
        return cls._checked(queries, documents, top_k, many=True)

    @classmethod
    def _checked(cls, queries: list[Any], documents: list[Any], top_k: Any, *, many: bool) -> Requests:
        if top_k is not None:
            check_count(top_k)
        made = cls(queries, [], [], many)
        for number, (query, candidates) in enumerate(zip(queries, documents, strict=True)):
            check_query(query, made.name_query(number))
            name = made.name_documents(number)
            made.documents.append(as_list(candidates, name))
            made.texts.append(
                [each.full_text if isinstance(each, Document) else each for each in made.documents[-1]]
            )
            check_texts(made.texts[-1], name)
        return made

    def name_query(self, number: int) -> str:
        """Return what messages call a query."""
        return f"queries[{number}]" if self.many else "query"

    def name_documents(self, number: int) -> str:
        """Return what messages call the documents of a query."""
        return f"documents[{number}]" if self.many else "documents"


class RankVerbs(ABC):
    """The verbs of a reranker, which says itself how requests are ranked (`_rank`)."""

    def rank(self, query: str, documents: Sequence[str | Document], top_k: int | None = None) -> Ranking:
        """Order one query's documents, best first; what scores mean is said of the class.

        Args:
            query: not empty.
            documents: texts, or documents (title and text are read). A text's id is its position.
            top_k: how many hits to return; None returns all.

        Raises:
            InputError: an empty query, something that is no text, or a top_k that is no number. What else is
                raised is said of the class.
        """
        return self._rank(Requests.one(query, documents, top_k), top_k)[0]

    def rank_many(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str | Document]],
        top_k: int | None = None,
    ) -> list[Ranking]:
        """Order many queries' documents in one go, which is faster than one by one.

        Args:
            queries: each as for `rank`.
            documents: one list for each query.
            top_k: how many hits to return for each query; None returns all.

        Raises:
            InputError: as `rank`, and when there is not one list for each query.
        """
        return self._rank(Requests.several(queries, documents, top_k), top_k)

    @abstractmethod
    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        """Order the documents of each query."""


def check_query(query: Any, name: str) -> None:
    """Raise InputError unless `query`, called `name` in the message, is a valid text that is not empty."""
    check_text(query, name)
    if not query.strip():
        raise InputError(f"{name} is empty; there is nothing to be relevant to")


def check_pairs(pairs: Any) -> list[Any]:
    """Return pairs to score as a list.

    Raises:
        InputError: something that is no pair of texts, or an empty query; names its position.
    """
    pairs = as_list(pairs, "pairs")
    for position, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                f"pairs[{position}] must be a (query, document) pair, not {type(pair).__name__}"
                + (f" of {len(pair)}" if isinstance(pair, (tuple, list)) else "")
            )
        check_query(pair[0], f"the query of pairs[{position}]")
        check_text(pair[1], f"the document of pairs[{position}]")
    return list(pairs)
