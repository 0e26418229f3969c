"""What the rerankers of a composition are handed, and what comes back from them.

A composition asks its members about one list of documents and has to bring their answers together. Ids cannot
be relied on for that, since a list may have a document twice; so members see documents whose ids are their
positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossrank.errors import InputError, ModelOutputError
from crossrank.models.requests import Requests
from crossrank.models.reranker import Reranker
from crossrank.types import Document, Hit, Ranking

__all__ = ["as_given", "judged_candidates", "numbered", "rank_all", "unscored"]


def numbered(documents: Sequence[str | Document]) -> list[Document]:
    """Return the documents with their positions as ids."""
    return [
        replace(each, id=str(position)) if isinstance(each, Document) else Document(str(position), each)
        for position, each in enumerate(documents)
    ]


def unscored(documents: Sequence[Document]) -> list[Hit]:
    """Return the documents as hits in their order, before any reranker saw them."""
    return [Hit(each.id, 0.0, rank, "", document=each) for rank, each in enumerate(documents, start=1)]


def rank_all(
    reranker: Reranker, queries: Sequence[str], documents: Sequence[Sequence[Document]]
) -> list[Ranking]:
    """Return one reranker's rankings of numbered documents.

    Raises:
        ModelOutputError: it lost, added or repeated documents.
    """
    rankings = reranker.rank_many(queries, documents)
    if not isinstance(rankings, Sequence) or len(rankings) != len(documents):
        raise ModelOutputError(
            f"{reranker.name} must give one ranking for each of {len(documents)} queries, "
            f"not {rankings!r:.100}"
        )
    for ranking, asked in zip(rankings, documents, strict=True):
        if sorted(ranking.document_ids) != sorted(document.id for document in asked):
            raise ModelOutputError(
                f"{reranker.name} lost, added or repeated documents: it was given {len(asked)} and returned "
                f"{len(ranking)}; it must return each once"
            )
    return list(rankings)


def judged_candidates(
    queries: Mapping[str, str], documents: Mapping[str, Sequence[Document]]
) -> tuple[list[str], list[list[Document]]]:
    """Return the texts of judged queries and their candidates, checked, to choose settings by.

    Raises:
        InputError: a query without candidates, candidates without ids, or with one id twice.
    """
    if missing := [query_id for query_id in queries if query_id not in documents]:
        raise InputError(f"there are no documents for query {missing[0]!r}")
    requests = Requests.several(queries.values(), [documents[query_id] for query_id in queries], None)
    candidates = []
    for query_id, given in zip(queries, requests.documents, strict=True):
        candidates.append([each for each in given if isinstance(each, Document)])
        if len(candidates[-1]) != len(given):
            raise InputError(f"the documents of query {query_id!r} must be Documents, whose ids are judged")
        if len({each.id for each in candidates[-1]}) != len(given):
            raise InputError(f"the documents of query {query_id!r} have one id twice")
    return [*requests.queries], candidates


def as_given(hit: Hit, documents: Sequence[str | Document], rank: int) -> Hit:
    """Return a hit on a document by its position as a hit on what the caller gave there."""
    index = int(hit.document_id)
    document = documents[index]
    return replace(
        hit,
        document_id=document.id if isinstance(document, Document) else str(index),
        rank=rank,
        index=index,
        document=document if isinstance(document, Document) else None,
    )
