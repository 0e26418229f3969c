"""What the rerankers that show a model several documents at a time have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.llm.answers import Repairs
from crossrank.models.llm.cleaning import one_line
from crossrank.models.llm.model import LanguageModel, Prompt
from crossrank.models.llm.rankings import ranking_of, shown
from crossrank.models.llm.rounds import run_together
from crossrank.models.pairwise import check_calls
from crossrank.models.requests import RankVerbs, Requests
from crossrank.progress import track
from crossrank.types import Document, Ranking

__all__ = ["DEFAULT_DOCUMENT_WORDS", "Ordered", "RoundsReranker", "Scoring", "reads_labels"]

DEFAULT_DOCUMENT_WORDS = 300
"""Words of a document that a prompt shows, as in RankGPT."""

Scoring = Literal["auto", "generation", "log-probabilities"]


@dataclass(frozen=True)
class Ordered:
    """What a ranking's rounds come to.

    Attributes:
        order: every position once, best first.
        scores: of each document, by position, never rising along the order.
        repairs: what was wrong with the answers.
    """

    order: Sequence[int]
    scores: Sequence[float]
    repairs: Repairs

    @classmethod
    def by_rank(cls, order: Sequence[int], repairs: Repairs) -> Ordered:
        """Score each document by how many stand below it."""
        scores = [0.0] * len(order)
        for below, index in enumerate(reversed(order)):
            scores[index] = float(below)
        return cls(order, scores, repairs)


class RoundsReranker(RankVerbs):
    """A reranker whose model is asked in rounds; made by its subclasses alone.

    Subclasses say how many calls a ranking takes (`calls`), which prompts its rounds have (`_rounds`), and
    how the model is asked (`_ask`).

    All documents come back once. Scores are good for the order within a ranking alone. `notes` say what was
    cut and what was repaired in the model's answers; `status` is "degraded" where answers decided nothing and
    the order before them stands. The calls of many queries go out together.

    `rank` and `rank_many` raise InputError for more calls than `max_calls` or a prompt that does not fit into
    the model's context, before the call; EndpointError for a server that fails for good; and BudgetError
    where the next call could go over the budget.
    """

    asked_once = True

    def __init__(
        self,
        model: LanguageModel,
        *,
        name: str,
        max_document_words: int,
        max_calls: int | None,
        progress: bool | None,
    ) -> None:
        check_count(max_document_words, "max_document_words")
        if max_calls is not None:
            check_count(max_calls, "max_calls")
        self.model = model
        self.name = name
        self.max_document_words = max_document_words
        self.max_calls = max_calls
        self._progress = progress

    def calls(self, count: int) -> int:
        """The most model calls that a ranking of `count` documents can take, retries not counted."""
        raise NotImplementedError

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        counts = [len(texts) for texts in requests.texts]
        for count in counts:
            check_calls(self.calls, count, self.max_calls)
        total = sum(map(self.calls, counts))
        with track(total, f"Asking {self.model.name}", progress=self._progress) as tracked:
            rankings = run_together(
                [self._ranking(*request, top_k) for request in zip(*requests[:3], strict=True)],
                lambda prompts: self._ask(prompts, tracked.advance),
            )
            tracked.advance(total - tracked.done)  # a sort may need fewer calls than it could
        return rankings

    def _ranking(
        self, query: str, documents: list[str | Document], texts: list[str], top_k: int | None
    ) -> Generator[list[Prompt], list[Any], Ranking]:
        passages, notes = shown(texts, self.model.clean, self.max_document_words)
        found = yield from self._rounds(self.model.clean(one_line(query)), passages)
        return ranking_of(
            query,
            documents,
            found.order,
            found.scores,
            stage=self.name,
            top_k=top_k,
            status="degraded" if found.repairs.useless else "ok",
            notes=(*notes, *found.repairs.notes()),
        )

    def _rounds(self, query: str, texts: list[str]) -> Generator[list[Prompt], list[Any], Ordered]:
        raise NotImplementedError

    def _ask(self, prompts: list[Prompt], on_answer: Callable[[], None]) -> list[Any]:
        raise NotImplementedError


def reads_labels(scoring: Scoring, model: LanguageModel) -> bool:
    """Say whether a choice is read from log-probabilities.

    Raises:
        InputError: no such way, or one that this model has not.
    """
    if scoring not in ("auto", "generation", "log-probabilities"):
        raise InputError(f"scoring is {scoring!r}; choose auto, generation or log-probabilities")
    if scoring == "log-probabilities" and not model.reads_choices:
        raise InputError(
            f"{model.name} does not give every label's log-probability; choose scoring='generation'"
        )
    return scoring != "generation" and model.reads_choices
