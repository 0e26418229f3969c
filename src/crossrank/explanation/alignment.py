"""MaxSim alignments: which token of the document each query token was most like."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.errors import ModelOutputError
from crossrank.explanation.result import Explanation, Link, Term, wordless
from crossrank.explanation.spans import Span, units
from crossrank.models.maxsim import Aligned

__all__ = ["Aligner", "explain_alignment"]


@runtime_checkable
class Aligner(Protocol):
    """A late-interaction reranker that shows its token similarities."""

    @property
    def name(self) -> str:
        """Of the model."""
        ...

    def alignments(self, query: str, document: str) -> Aligned:
        """Return the similarities of one pair's tokens."""
        ...


def explain_alignment(query: str, document: str, reranker: Aligner) -> Explanation:
    """Explain a late-interaction score: an exact account, since the score is a sum over query tokens.

    Each query token's largest similarity goes to its own word, to the document's word it was found in, and to
    the link of the two. What tokens have that stand for no characters (markers, query expansion) is added up
    in a note.

    Raises:
        ModelOutputError: similarities that do not fit the tokens.

    Source: Khattab and Zaharia 2020, arXiv:2004.12832, equation 3.
    """
    aligned = reranker.alignments(query, document)
    similarities = np.asarray(aligned.similarities, dtype=np.float64)
    if similarities.shape != (len(aligned.query_spans), len(aligned.document_spans)):
        raise ModelOutputError(
            f"{reranker.name} gave similarities of shape {similarities.shape} for "
            f"{len(aligned.query_spans)} query and {len(aligned.document_spans)} document tokens"
        )
    query_units, query_owners = units(query, np.asarray(aligned.query_spans).tolist())
    document_units, document_owners = units(document, np.asarray(aligned.document_spans).tolist())
    of_query, of_document = np.zeros(len(query_units)), np.zeros(len(document_units))
    met: dict[tuple[int, int], float] = {}
    unowned = 0.0
    score = 0.0
    if similarities.shape[1]:
        for row, best in enumerate(similarities.argmax(axis=1).tolist()):
            value = float(similarities[row, best])
            score += value
            i, j = query_owners[row], document_owners[best]
            if i < 0 or j < 0:
                unowned += value
            if i >= 0:
                of_query[i] += value
            if j >= 0:
                of_document[j] += value
            if i >= 0 and j >= 0:
                met[i, j] = met.get((i, j), 0.0) + value
    query_terms = _terms(query, query_units, of_query)
    document_terms = _terms(document, document_units, of_document)
    notes = wordless(query_terms, document, document_terms)
    if unowned:
        notes.append(f"{unowned:.4g} of the score is of tokens that stand for no characters")
    if aligned.cut:
        notes.append(f"the model did not read the last {aligned.cut} tokens of the document")
    return Explanation(
        query=query,
        document=document,
        model=reranker.name,
        method="alignment",
        score=score,
        query_terms=query_terms,
        document_terms=document_terms,
        links=tuple(
            Link(i, j, weight) for (i, j), weight in sorted(met.items(), key=lambda each: -abs(each[1]))
        ),
        calls=1,
        notes=tuple(notes),
    )


def _terms(text: str, found: list[Span], weights: npt.NDArray[np.float64]) -> tuple[Term, ...]:
    return tuple(
        Term(text[start:end], start, end, weight)
        for (start, end), weight in zip(found, weights.tolist(), strict=True)
    )
