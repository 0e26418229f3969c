"""What a caller asks a language model to rank, checked and made ready; and the ranking that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crossrank.checks import as_list, check_count, check_text, check_texts
from crossrank.errors import InputError
from crossrank.models.llm.cleaning import cut_words, one_line
from crossrank.types import Document, Hit, Ranking

__all__ = ["Request", "check_prompt_query", "check_top_k", "ranking_of", "requests_of"]


@dataclass(frozen=True)
class Request:
    """One query and its documents.

    Attributes:
        query: as the caller gave it.
        documents: likewise.
        texts: their texts, whole.
    """

    query: str
    documents: tuple[str | Document, ...]
    texts: tuple[str, ...]

    def shown(self, clean: Callable[[str], str], max_words: int) -> tuple[list[str], tuple[str, ...]]:
        """Return the texts as a prompt shows them, and a note on what it leaves out.

        Args:
            clean: takes out what could be mistaken for the prompt's own marks.
            max_words: of each text.
        """
        cut = [cut_words(text, max_words) for text in self.texts]
        missing = [words for _, words in cut if words]
        notes: tuple[str, ...] = ()
        if missing:
            notes = (
                f"{len(missing)} of {len(cut)} documents were cut to {max_words} words "
                f"({sum(missing):,} words not read)",
            )
        return [clean(one_line(text)) for text, _ in cut], notes


def requests_of(queries: Any, documents: Any, *, single: bool = False) -> list[Request]:
    """Check queries and one list of documents for each.

    Args:
        queries: texts, not empty.
        documents: a list of texts or documents for each.
        single: whether there is but one query, for messages.

    Raises:
        InputError: says what cannot be used, and where.
    """
    queries, documents = as_list(queries, "queries"), as_list(documents, "documents")
    if len(queries) != len(documents):
        raise InputError(
            "rank_many needs a list of queries and one list of documents for each; got "
            f"{len(queries)} and {len(documents)}"
        )
    requests = []
    for number, (query, candidates) in enumerate(zip(queries, documents, strict=True)):
        check_prompt_query(query, "query" if single else f"queries[{number}]")
        name = "documents" if single else f"documents[{number}]"
        given = as_list(candidates, name)
        texts = [document.full_text if isinstance(document, Document) else document for document in given]
        check_texts(texts, name)
        requests.append(Request(query, tuple(given), tuple(texts)))
    return requests


def check_prompt_query(query: str, name: str) -> None:
    """Refuse a query that is no text, or empty."""
    check_text(query, name)
    if not query.strip():
        raise InputError(f"{name} is empty; there is nothing to be relevant to")


def check_top_k(top_k: int | None) -> None:
    """Refuse a top_k that is no number; None is all."""
    if top_k is not None:
        check_count(top_k)


def ranking_of(
    request: Request,
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
        request: what was ranked.
        order: every position of its documents once, best first.
        scores: of each document, by position.
        stage: name of the reranker.
        top_k: how many hits to keep; None keeps all.
        truncated: tokens of each document that were not read, by position.
        status: see `Ranking`.
        notes: see `Ranking`.
    """
    hits = []
    for rank, index in enumerate(list(order)[:top_k], start=1):
        document = request.documents[index]
        given = document if isinstance(document, Document) else None
        hits.append(
            Hit(
                document_id=str(index) if given is None else given.id,
                score=float(scores[index]),
                rank=rank,
                stage=stage,
                index=index,
                document=given,
                truncated_tokens=0 if truncated is None else int(truncated[index]),
            )
        )
    return Ranking(request.query, tuple(hits), status=status, notes=tuple(notes))
