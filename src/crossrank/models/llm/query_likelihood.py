"""Query likelihood: how well a document explains the query, by a local model's own probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.llm.local import CausalLM, Tail
from crossrank.models.llm.pointwise import PointwiseReranker, Scores

__all__ = ["QueryLikelihood"]


class QueryLikelihood(PointwiseReranker):
    """Scores a document by how likely a local model finds the query as a question about it.

    The score is the mean log-probability of the query's tokens after the document, 0 at the most. Needs no
    model trained for ranking, and no instruction to be obeyed.

    Args:
        model: a `CausalLM`; no server shows the log-probabilities of a prompt's tokens.
        before, after: what stands before a document, and between it and the query.
        max_document_tokens: of a document that are read.
        max_calls: refuses a call for more pairs, or a ranking of more documents.
        name: stage of the hits; default: "query-likelihood:" and the model's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: an option that cannot be used.

    Source: UPR, Sachan et al. 2022, arXiv:2204.07496.
    """

    def __init__(
        self,
        model: CausalLM,
        *,
        before: str = "Passage: ",
        after: str = "\nPlease write a question based on this passage.\nQuestion:",
        max_document_tokens: int = 512,
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(model, CausalLM):
            raise InputError(f"query likelihood needs a CausalLM, not {type(model).__name__}")
        super().__init__(
            model, name=name or f"query-likelihood:{model.name}", max_calls=max_calls, progress=progress
        )
        check_count(max_document_tokens, "max_document_tokens")
        self._model = model
        self._before = model.encode(before, special=True)
        if self._before and self._before[-1] == model.tokenizer.eos_token_id:
            self._before.pop()  # the text goes on
        self._after = model.encode(after)
        self._max_document_tokens = max_document_tokens

    def _score_queries(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        names: Sequence[str],
        on_score: Callable[[], None],
    ) -> list[Scores]:
        return [
            self._score_texts(query, documents, name, on_score)
            for query, documents, name in zip(queries, texts, names, strict=True)
        ]

    def _score_texts(
        self, query: str, texts: Sequence[str], name: str, on_score: Callable[[], None]
    ) -> Scores:
        model, question = self._model, self._model.encode(" " + self._model.defuse(query))
        room = self._max_document_tokens
        if model.context_tokens is not None:
            taken = len(self._before) + len(self._after) + len(question)
            room = min(room, model.context_tokens - taken)
            if room < 1:
                raise InputError(
                    f"{name} takes {len(question)} tokens; {model.name} has no room for a document"
                )
        documents = [model.encode(model.defuse(text)) for text in texts]
        rows = [
            # The last token predicts nothing that is asked for.
            Tail((self._before + ids[:room] + self._after + question)[:-1], len(question))
            for ids in documents
        ]
        values = np.empty(len(rows), dtype=np.float32)
        for number, logits in model.tails(rows, on_row=on_score):
            known: Any = logits.log_softmax(-1)
            values[number] = float(known[range(len(question)), question].mean())
        return Scores.cut(values, [max(0, len(ids) - room) for ids in documents])
