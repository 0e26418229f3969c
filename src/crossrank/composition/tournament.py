"""Comparisons of pairs among the best few documents, after a reranker that scores one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.composition.members import as_given, numbered, rank_all, unscored
from crossrank.errors import InputError
from crossrank.models.pairwise import AllPairs, ComparisonPlan, Outcome, check_calls, check_plan, compare_many
from crossrank.models.requests import RankVerbs, Requests
from crossrank.models.reranker import Reranker, asked_once
from crossrank.progress import track
from crossrank.stages import check_reranker, placed, unused_name
from crossrank.types import Document, Ranking

__all__ = ["Judge", "Tournament"]


@runtime_checkable
class Judge(Protocol):
    """Says which of two documents is better for a query: a model, an endpoint, a person.

    Attributes:
        name: what hits carry as their stage.
    """

    @property
    def name(self) -> str:
        """What hits carry as their stage."""
        ...

    def prefer(self, comparisons: Sequence[tuple[str, str, str]]) -> npt.ArrayLike:
        """Return (n,) probabilities, from 0 to 1, that the first document is the more relevant one.

        Args:
            comparisons: (query, first document's text, second document's text) each.
        """
        ...


class Tournament(RankVerbs):
    """Has a judge compare the best few documents with one another.

    A first reranker orders all documents; the first `depth` of its order are compared in pairs, and the
    comparisons decide their order. The others follow as they were.

    A hit's score is what the comparisons add up to (see `crossrank.models.pairwise`); a document that was not
    compared scores 1 below the one before it. Scores of the first reranker are in `stage_scores`. A round of
    comparisons of many queries is one call of the judge. `rank` and `rank_many` raise InputError for more
    comparisons than `max_calls`, ModelOutputError for preferences that are no probabilities or a first
    reranker that does not return each document once, and what judge and first reranker raise.

    Safe to use from many threads if judge and first reranker are.

    Args:
        judge: compares two documents; see `Judge`.
        first: orders all documents before; None takes them in the order they come in, as from a search.
        depth: how many of the best are compared, at least 1.
        plan: which pairs are compared and what their answers add up to; see `crossrank.models.pairwise`.
            By default all pairs, in both orders: depth × (depth - 1) comparisons, which `calls` gives.
        max_calls: the most comparisons one ranking may take; None sets no limit.
        name: of this reranker; None takes the judge's.
        progress: a progress bar for long calls; None shows one on a terminal.

    Raises:
        InputError: something that is no judge or no reranker, or depth or max_calls below 1.

    Example:
        >>> class Longer:
        ...     name = "longer"
        ...     def prefer(self, comparisons):
        ...         return [float(len(first) > len(second)) for _, first, second in comparisons]
        >>> Tournament(Longer(), depth=2).rank("any", ["a", "bb", "cccc"]).document_ids
        ('1', '0', '2')
    """

    def __init__(
        self,
        judge: Judge,
        first: Reranker | None = None,
        *,
        depth: int = 10,
        plan: ComparisonPlan = AllPairs(),  # noqa: B008 (immutable)
        max_calls: int | None = None,
        name: str | None = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(judge, Judge):
            raise InputError(
                f"a judge has a name and the method prefer(comparisons), {type(judge).__name__} has not"
            )
        if first is not None:
            check_reranker(first)
        check_count(depth, "depth")
        check_plan(plan)
        if max_calls is not None:
            check_count(max_calls, "max_calls")
        self.judge = judge
        self.first = first
        self.depth = depth
        self.plan = plan
        self.max_calls = max_calls
        self.name = judge.name if name is None else name
        self._progress = progress

    @property
    def asked_once(self) -> bool:
        """See `crossrank.models.reranker.asked_once`."""
        return asked_once(self.judge, self.first)

    def calls(self, count: int) -> int:
        """Return the most comparisons that ranking `count` documents can take."""
        return self.plan.calls(min(count, self.depth))

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        sizes = [min(self.depth, len(each)) for each in requests.documents]
        for size in sizes:
            check_calls(self.plan.calls, size, self.max_calls)
        befores = self._before(requests)
        tops = [
            [texts[int(hit.document_id)] for hit in before.hits[:size]]
            for before, texts, size in zip(befores, requests.texts, sizes, strict=True)
        ]
        with track(sum(map(self.plan.calls, sizes)), "Comparing", progress=self._progress) as tracked:

            def prefer(asked: list[tuple[int, int, int]]) -> npt.ArrayLike:
                answers = self.judge.prefer(
                    [(requests.queries[number], tops[number][i], tops[number][j]) for number, i, j in asked]
                )
                tracked.advance(len(asked))
                return answers

            outcomes = compare_many(self.plan, sizes, prefer)
            tracked.advance((tracked.total or 0) - tracked.done)  # a plan may need fewer than it can
        return [
            self._ranking(before, outcome, documents, top_k)
            for before, outcome, documents in zip(befores, outcomes, requests.documents, strict=True)
        ]

    def _before(self, requests: Requests) -> list[Ranking]:
        """The order to start from, by position."""
        documents = [numbered(each) for each in requests.documents]
        if self.first is None:
            return [
                Ranking(query, tuple(unscored(asked)))
                for query, asked in zip(requests.queries, documents, strict=True)
            ]
        name = unused_name(self.first.name, [self.name])
        rankings = rank_all(self.first, requests.queries, documents)
        return [
            replace(
                placed(unscored(asked), ranking, name),
                notes=tuple(f"{name}: {note}" for note in ranking.notes),
            )
            for asked, ranking in zip(documents, rankings, strict=True)
        ]

    def _ranking(
        self, before: Ranking, outcome: Outcome, documents: Sequence[str | Document], top_k: int | None
    ) -> Ranking:
        hits = [before[place] for place in outcome.order.tolist()] + list(before.hits[len(outcome.order) :])
        scores = outcome.scores[outcome.order].astype(np.float32).tolist()
        last = scores[-1] if scores else 0.0
        scores += (np.float32(last) - np.arange(1, len(hits) - len(scores) + 1, dtype=np.float32)).tolist()
        return replace(
            before,
            hits=tuple(
                replace(
                    as_given(hit, documents, rank),
                    score=score,
                    stage=self.name,
                    probability=None,
                    stage_scores={**hit.stage_scores, self.name: score},
                )
                for rank, (hit, score) in enumerate(zip(hits[:top_k], scores[:top_k], strict=True), start=1)
            ),
        )

    def __repr__(self) -> str:
        return f"Tournament({self.judge.name!r}, depth={self.depth}, plan={self.plan!r})"
