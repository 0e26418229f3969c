"""Pairwise ranking prompting: the model is shown two passages and says which is more relevant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list, as_strings, check_count, check_texts
from crossrank.errors import InputError
from crossrank.models.calibration import sigmoid
from crossrank.models.llm.answers import Repairs, read_choice
from crossrank.models.llm.cleaning import one_line
from crossrank.models.llm.model import LanguageModel, Prompt
from crossrank.models.llm.prompts import LABELS, pairwise_prompt
from crossrank.models.llm.rankings import shown
from crossrank.models.llm.reranker import (
    DEFAULT_DOCUMENT_WORDS,
    Ordered,
    RoundsReranker,
    Scoring,
    reads_labels,
)
from crossrank.models.pairwise import ComparisonPlan, Heap, check_plan
from crossrank.models.requests import check_query
from crossrank.progress import track

__all__ = ["PairwiseLLM"]

_logger = logging.getLogger(__name__)

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
        self.plan: ComparisonPlan = Heap() if plan is None else plan
        check_plan(self.plan)
        self._max_tokens = max_answer_tokens
        self._reads_labels = reads_labels(scoring, model)

    def prefer(self, comparisons: Sequence[tuple[str, str, str]]) -> npt.NDArray[np.float64]:
        """Compare documents, each pair in the order it is given; so this is a judge for a `Tournament`.

        Args:
            comparisons: (query, first document's text, second document's text) each.

        Returns:
            float64 (n,): the probability that the first document is the more relevant one; 1 and 0 where the
            answer is generated, ½ where it decides nothing. A call with such answers logs one WARNING (logger
            "crossrank.models.llm.pairwise").

        Raises:
            InputError: something that is no comparison of texts; names its position.
            EndpointError: as `rank`.
            BudgetError: as `rank`.
        """
        prompts = []
        for position, comparison in enumerate(as_list(comparisons, "comparisons")):
            name = f"comparisons[{position}]"
            query, *texts = as_strings(comparison, name)
            if len(texts) != 2:
                raise InputError(
                    f"{name} must be (query, document, other document), not {1 + len(texts)} texts"
                )
            check_query(query, f"the query of {name}")
            check_texts(texts, f"the documents of {name}")
            passages, _ = shown(texts, self.model.clean, self.max_document_words)
            prompts.append(pairwise_prompt(self.model.clean(one_line(query)), *passages))
        with track(len(prompts), f"Asking {self.model.name}", progress=self._progress) as tracked:
            read = [self._read(answer) for answer in self._ask(prompts, tracked.advance)]
        if useless := sum(wrong.useless for _, wrong in read):
            _logger.warning("%d of %d comparisons got no answer that decides", useless, len(read))
        return np.array([preference for preference, _ in read], dtype=np.float64)

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
            return float(sigmoid(answer[0] - answer[1])), Repairs(answers=1)
        choice = read_choice(answer, 2)
        return 0.5 if choice.index is None else float(choice.index == 0), choice.repairs
