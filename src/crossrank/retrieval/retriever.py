"""What a first stage is, and what all in-memory ones share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list
from crossrank.errors import InputError
from crossrank.store.filters import FilterLike, as_filter
from crossrank.types import Document, Hit, Ranking

__all__ = [
    "Filter",
    "Retriever",
    "as_condition",
    "as_documents",
    "best_rows",
    "matching",
    "ranking_of",
]


@runtime_checkable
class Filter(Protocol):
    """Decides by its metadata whether a document may be found."""

    def matches(self, document: Document) -> bool:
        """Return whether the document may be found."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """Finds the best documents for queries among documents it holds.

    Attributes:
        name: names this stage in hits; unique among the retrievers of a hybrid.
    """

    @property
    def name(self) -> str:
        """The name of this stage."""
        ...

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | None = None
    ) -> list[Ranking]:
        """Return one ranking per query, in the order of the queries.

        Args:
            queries: the texts to search for.
            top_k: the most hits a ranking may have, at least 1.
            filter: only documents that it matches are found.
        """
        ...


def as_documents(documents: Sequence[str | Document]) -> tuple[Document, ...]:
    """Return documents with ids: a string gets its position as id ("0", "1", ...).

    Raises:
        InputError: a single string, an element of another type, or an id that occurs twice.
    """
    if isinstance(documents, Document):
        raise InputError("documents must be a list, not a single Document; wrap it in a list")
    checked = []
    for position, document in enumerate(as_list(documents, "documents")):
        if isinstance(document, Document):
            checked.append(document)
        elif isinstance(document, str):
            checked.append(Document(id=str(position), text=document))
        else:
            raise InputError(
                f"documents[{position}] must be a string or a Document, not {type(document).__name__}"
            )
    first: dict[str, int] = {}
    for position, document in enumerate(checked):
        earlier = first.setdefault(document.id, position)
        if earlier != position:
            raise InputError(
                f"documents[{earlier}] and documents[{position}] have the same id {document.id!r}; "
                "give each document an id of its own"
            )
    return tuple(checked)


def matching(
    documents: Sequence[Document], filter: Filter | FilterLike | None
) -> npt.NDArray[np.bool_] | None:
    """Return (len(documents),) whether each may be found; None when all may.

    Raises:
        InputError: a filter that cannot be read.
    """
    if filter is None:
        return None
    condition = as_condition(filter)
    return np.fromiter((condition.matches(d) for d in documents), dtype=np.bool_, count=len(documents))


def as_condition(filter: Filter | FilterLike) -> Filter:
    """Return a filter of any form as one that can be asked about a document.

    Args:
        filter: a dict, a string, or an object with `matches`.

    Raises:
        InputError: none of these, or one that cannot be read.
    """
    return filter if isinstance(filter, Filter) else as_filter(filter)


def best_rows(scores: npt.NDArray[np.float32], top_k: int) -> npt.NDArray[np.int64]:
    """Return the rows of the `top_k` largest scores, best first; equal scores keep their order.

    Takes time linear in the number of scores, then sorts the winners alone.

    Args:
        scores: (n,) float32, no NaN.
        top_k: how many rows at most.
    """
    if scores.size > top_k:
        last = np.partition(scores, scores.size - top_k)[scores.size - top_k]
        above = np.flatnonzero(scores > last)
        level = np.flatnonzero(scores == last)[: top_k - above.size]
        rows = np.sort(np.concatenate([above, level]))
    else:
        rows = np.arange(scores.size)
    order = np.argsort(-scores[rows], kind="stable")
    return rows[order].astype(np.int64)


def ranking_of(
    query: str,
    documents: Sequence[Document],
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    stage: str,
) -> Ranking:
    """Return the ranking with the documents at `rows`, best first, with a score for each row."""
    hits = [
        Hit(
            document_id=documents[row].id,
            score=score,
            rank=rank,
            stage=stage,
            index=row,
            document=documents[row],
            stage_scores={stage: score},
        )
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True), start=1)
    ]
    return Ranking(query, tuple(hits))
