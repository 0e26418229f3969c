"""The ranking that comes of an order, and what of the documents a prompt shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from crossrank.models.llm.cleaning import cut_words, one_line
from crossrank.types import Document, Hit, Ranking

__all__ = ["ranking_of", "shown"]


def shown(
    texts: Sequence[str], clean: Callable[[str], str], max_words: int
) -> tuple[list[str], tuple[str, ...]]:
    """Return texts as a prompt shows them, each on one line, and a note on what that leaves out.

    Args:
        texts: of documents.
        clean: takes out what could be mistaken for a control token.
        max_words: of each text.
    """
    cut = [cut_words(text, max_words) for text in texts]
    missing = [words for _, words in cut if words]
    notes: tuple[str, ...] = ()
    if missing:
        notes = (
            f"{len(missing)} of {len(cut)} documents were cut to {max_words} words "
            f"({sum(missing):,} words not read)",
        )
    return [clean(one_line(text)) for text, _ in cut], notes


def ranking_of(
    query: str,
    documents: Sequence[str | Document],
    order: Sequence[int],
    scores: Sequence[float],
    *,
    stage: str,
    top_k: int | None,
    truncated: Sequence[int] | None = None,
    status: str = "ok",
    notes: Sequence[str] = (),
) -> Ranking:
    """Make a ranking.

    Args:
        query: its text.
        documents: what was ranked.
        order: every position of the documents once, best first.
        scores: of each document, by position.
        stage: name of the reranker.
        top_k: how many hits to keep; None keeps all.
        truncated: tokens of each document that were not read, by position.
        status: see `Ranking`.
        notes: see `Ranking`.
    """
    hits = []
    for rank, index in enumerate(list(order)[:top_k], start=1):
        document = documents[index]
        given = document if isinstance(document, Document) else None
        hits.append(
            Hit(
                document_id=str(index) if given is None else given.id,
                score=float(np.float32(scores[index])),
                rank=rank,
                stage=stage,
                index=index,
                document=given,
                truncated_tokens=0 if truncated is None else int(truncated[index]),
            )
        )
    return Ranking(query, tuple(hits), status=status, notes=tuple(notes))
