"""What the rerankers of a composition are handed, and what comes back from them.

A composition asks its members about one list of documents and has to bring their answers together. Ids cannot
be relied on for that, since a list may have a document twice; so members see documents whose ids are their
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossrank.errors import ModelOutputError
from crossrank.models.reranker import Reranker
from crossrank.types import Document, Hit, Ranking

__all__ = ["as_given", "numbered", "rank_all", "unscored"]


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
