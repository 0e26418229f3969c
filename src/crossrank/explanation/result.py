"""What an explanation is, whatever method made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Explanation", "Link", "Method", "Term", "wordless"]

Method = Literal["occlusion", "integrated-gradients", "alignment"]


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a text, and how much it did for the score.

    Attributes:
        text: the characters themselves.
        start: where they begin in the text.
        end: where they end (one past the last).
        weight: what they added to the score (negative: took off), in the score's own unit.
    """

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Link:
    """A query term and a document term that met.

    Attributes:
        query_term: position in `Explanation.query_terms`.
        document_term: position in `Explanation.document_terms`.
        weight: what their meeting added to the score, beyond what each did alone.
    """

    query_term: int
    document_term: int
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which terms of a query and a document made the document's score.

    Attributes:
        query: the text.
        document: the text, as the model reads it (title and text).
        model: name of the reranker.
        method: what the weights are: see `crossrank.explanation.explain`.
        score: what the reranker gives the pair.
        query_terms: words of the query, in their order.
        document_terms: words of the document, in their order; of a long one those of its weightiest
            passages.
        links: pairs of terms, the weightiest first.
        passages: of a long document, what its passages did as wholes.
        baseline: the score that the weights start from, where the method has one.
        calls: how many pairs were scored, or how many times the model's gradient was taken.
        notes: what a reader should know, such as that the document was cut.
    """

    query: str
    document: str
    model: str
    method: Method
    score: float
    query_terms: tuple[Term, ...]
    document_terms: tuple[Term, ...]
    links: tuple[Link, ...] = ()
    passages: tuple[Term, ...] = ()
    baseline: float | None = None
    calls: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the whole as dicts, lists, strings and numbers, for JSON."""
        plain: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return plain

    def to_html(self) -> str:
        """Return a page of its own: no script, nothing fetched, every text escaped; light and dark."""
        from crossrank.explanation.page import page

        return page(self)

    def __rich__(self) -> RenderableType:
        from crossrank.explanation.terminal import rendered

        return rendered(self)


def wordless(query_terms: Sequence[Term], document: str, document_terms: Sequence[Term]) -> list[str]:
    """Return the notes on texts that have no terms, so that an explanation without any says why."""
    notes = []
    if not query_terms:
        notes.append("the query has no words, so none has a weight")
    if not document.strip():
        notes.append("the document is empty: the score is what the model gives the query alone")
    elif not document_terms:
        notes.append("the document has no words, so none has a weight")
    return notes
