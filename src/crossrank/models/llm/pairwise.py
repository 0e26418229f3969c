"""Pairwise ranking prompting: the model is shown two passages and says which is more relevant."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from crossrank.checks import check_count
from crossrank.models.llm.answers import Repairs, read_choice
from crossrank.models.llm.model import LanguageModel, Prompt
from crossrank.models.llm.prompts import LABELS, pairwise_prompt
from crossrank.models.llm.reranker import (
    DEFAULT_DOCUMENT_WORDS,
    Ordered,
    RoundsReranker,
    Scoring,
    reads_labels,
)
from crossrank.models.pairwise import ComparisonPlan, Heap

__all__ = ["PairwiseLLM"]

_LABEL_TOKENS = 8  # "Passage A." and what a model puts around it


class PairwiseLLM(RoundsReranker):
    """Orders documents by comparing two of them at a time.

    Models favour a place in the prompt, so every plan asks for both orders of a pair unless told otherwise;
    answers that contradict each other are a draw, which the document that came in first wins.

    Args:
        model: an `Endpoint` or a `CausalLM`.
        plan: which pairs are compared: `AllPairs`, `Heap`, `SlidingWindow` and others of
            `crossrank.models.pairwise`. Default: a heap for the first ten places.
        scoring: "generation" reads what the model writes, "log-probabilities" weighs the two labels; "auto"
            is the latter where the model gives them (a `CausalLM`).
        max_document_words: words of a document that are shown.
        max_answer_tokens: of a generated answer. A model that thinks first needs more.
        max_calls: refuses a ranking that can take more calls.
        name: stage of the hits; default: "pairwise:" and the model's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: an option that cannot be used.

    Source: PRP, Qin et al. 2024, arXiv:2306.17563.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        plan: ComparisonPlan | None = None,
        scoring: Scoring = "auto",
        max_document_words: int = DEFAULT_DOCUMENT_WORDS,
        max_answer_tokens: int = _LABEL_TOKENS,
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            model,
            name=name or f"pairwise:{model.name}",
            max_document_words=max_document_words,
            max_calls=max_calls,
            progress=progress,
        )
        check_count(max_answer_tokens, "max_answer_tokens")
        self.plan = Heap() if plan is None else plan
        self._max_tokens = max_answer_tokens
        self._reads_labels = reads_labels(scoring, model)

    def calls(self, count: int) -> int:
        """The most model calls a ranking of `count` documents can take, as the plan says."""
        return self.plan.calls(count)

    def _rounds(self, query: str, texts: list[str]) -> Generator[list[Prompt], list[Any], Ordered]:
        repairs = Repairs()
        rounds = self.plan.rounds(len(texts))
        try:
            pairs = next(rounds)
            while True:
                answers = yield [pairwise_prompt(query, texts[i], texts[j]) for i, j in pairs]
                preferences = []
                for answer in answers:
                    preference, wrong = self._read(answer)
                    preferences.append(preference)
                    repairs += wrong
                pairs = rounds.send(np.array(preferences, dtype=np.float64))
        except StopIteration as end:
            outcome = end.value
        return Ordered(outcome.order.tolist(), outcome.scores.tolist(), repairs)

    def _ask(self, prompts: list[Prompt], on_answer: Callable[[], None]) -> list[Any]:
        if self._reads_labels:
            return list(self.model.choose(prompts, LABELS[:2], on_answer=on_answer))
        return list(self.model.generate(prompts, max_tokens=self._max_tokens, on_answer=on_answer))

    def _read(self, answer: Any) -> tuple[float, Repairs]:
        """The preference for the first passage: by the labels' probabilities, or 1, 0, or ½ for no answer."""
        if self._reads_labels:
            return float(1 / (1 + np.exp(answer[1] - answer[0]))), Repairs(answers=1)
        choice = read_choice(answer, 2)
        return 0.5 if choice.index is None else float(choice.index == 0), choice.repairs
