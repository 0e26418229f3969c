"""The one call: a pair and a reranker to an explanation."""

from __future__ import annotations

from typing import Any, get_args

from crossrank.checks import check_text
from crossrank.errors import InputError
from crossrank.explanation.alignment import Aligner, explain_alignment
from crossrank.explanation.occlusion import Occlusion
from crossrank.explanation.result import Explanation, Method
from crossrank.models.requests import check_query
from crossrank.types import Document

__all__ = ["explain"]


def explain(
    query: str,
    document: str | Document,
    reranker: Any,
    *,
    method: Method | None = None,
    progress: bool | None = None,
) -> Explanation:
    """Show which terms of the query met which terms of the document.

    - "occlusion" leaves words out and looks at the score: for any reranker that scores pairs.
    - "integrated-gradients" shares the score out by derivatives: for a plain classifier or a T5 that scores
      pairs; needs the extra `torch`.
    - "alignment" shows which token of the document each query token found: for late interaction.

    The methods answer different questions, so their weights are not to be compared with one another. For
    their settings (words looked at, steps), and to explain many pairs with one model, use `Occlusion` and
    `IntegratedGradients` themselves. A reranker that compares documents has no score of a pair: explain its
    pointwise members.

    Args:
        query: not empty.
        document: a text, or a document (title and text are read).
        reranker: what gave the score.
        method: one of the above; None takes "alignment" where the reranker has alignments, else "occlusion".
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: texts that cannot be used, an unknown method, or one that the reranker does not allow.
        MissingExtraError: integrated gradients without torch.

    Example:
        >>> from crossrank import CrossEncoder
        >>> explanation = explain("who wrote Hamlet", "Shakespeare wrote it.", CrossEncoder())
        >>> max(explanation.document_terms, key=lambda term: term.weight).text
        'Shakespeare'
    """
    check_query(query, "query")
    text = document.full_text if isinstance(document, Document) else document
    check_text(text, "document")
    if method is None:
        method = "alignment" if isinstance(reranker, Aligner) else "occlusion"
    if method == "occlusion":
        return Occlusion().explain(query, text, reranker, progress)
    if method == "integrated-gradients":
        from crossrank.explanation.gradients import IntegratedGradients

        return IntegratedGradients(reranker).explain(query, text, progress)
    if method == "alignment":
        if not isinstance(reranker, Aligner):
            raise InputError(
                f"{getattr(reranker, 'name', type(reranker).__name__)} has no token similarities, "
                "which late-interaction models have; use method='occlusion'"
            )
        return explain_alignment(query, text, reranker)
    raise InputError(f"method is {method!r}; choose one of {', '.join(get_args(Method))}")
