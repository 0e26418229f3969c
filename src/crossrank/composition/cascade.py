"""Rerankers one after another, each over the best of the one before, as one reranker."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import get_args

from crossrank.checks import as_list
from crossrank.composition.members import as_given, numbered, rank_all, unscored
from crossrank.depths import Depth
from crossrank.errors import InputError
from crossrank.models.requests import RankVerbs, Requests
from crossrank.models.reranker import Reranker, asked_once
from crossrank.stage_runner import OnError, StageRunner
from crossrank.stages import Search, Stage, check_reranker, placed, stages_of
from crossrank.types import Ranking

__all__ = ["Cascade", "rank_in_stages"]


class Cascade(RankVerbs):
    """Orders all documents with one reranker, the best of them with the next, and so on.

    What `Searcher` does with `[(reranker, depth), ...]` over a first stage, for a list of documents at hand,
    and wherever a reranker is asked for: in an `Ensemble`, as a teacher, in an evaluation. Order and scores
    are as there: a hit's score and `stage` are those of the last reranker that saw it, so scores fall within
    a stage but can be of different scales between two. `stage_scores` has them all. Many
    queries are ranked in one call of each member. What members raise comes out too; a first one that does not
    return each document once is a ModelOutputError.

    Safe to use from many threads if its members are.

    Args:
        first: sees every document.
        then: (reranker, depth) in the order they run. A depth is a number of documents, which may not grow,
            or a rule that decides for each query: `Margin`, `TimeBudget` (see `crossrank.depths`).
        name: of this reranker.
        on_error: what a failing reranker after the first does: "raise", or "degrade", after which the order
            before it stands and the ranking says so (an `InputError` is raised all the same).
        clock: seconds on a clock that never goes back; for timings.

    Attributes:
        stages: the members with their names and depths.

    Raises:
        InputError: something that is no reranker, or a depth that is below 1 or grows.

    Example:
        >>> from crossrank import CrossEncoder
        >>> fast, thorough = CrossEncoder(max_length=64), CrossEncoder(long_documents="max")
        >>> cascade = Cascade(fast, [(thorough, 2)])
        >>> texts = ["A village.", "Hamlet is by Shakespeare.", "A hamlet is a village."]
        >>> [hit.stage for hit in cascade.rank("who wrote Hamlet", texts)]
        ['crossrank-mini:2', 'crossrank-mini:2', 'crossrank-mini']
    """

    def __init__(
        self,
        first: Reranker,
        then: Sequence[tuple[Reranker, Depth]],
        *,
        name: str = "cascade",
        on_error: OnError = "raise",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_reranker(first)
        if on_error not in get_args(OnError):
            raise InputError(f'on_error must be "degrade" or "raise", not {on_error!r}')
        self.name = name
        self.stages: tuple[Stage, ...] = tuple(
            stages_of([(first, sys.maxsize), *as_list(then, "then")], sys.maxsize, name)
        )
        self._runner = StageRunner(name, on_error, clock)
        self._clock = clock

    @property
    def asked_once(self) -> bool:
        """See `crossrank.models.reranker.asked_once`."""
        return asked_once(*(stage.reranker for stage in self.stages))

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        return rank_in_stages(self.stages, self._runner, self._clock, requests, top_k)

    def __repr__(self) -> str:
        then = ", ".join(f"{stage.name} of {stage.depth!r}" for stage in self.stages[1:])
        return f"Cascade({', then '.join(filter(None, (self.stages[0].name, then)))})"


def rank_in_stages(
    stages: Sequence[Stage],
    runner: StageRunner,
    clock: Callable[[], float],
    requests: Requests,
    top_k: int | None,
) -> list[Ranking]:
    """Order documents by the first stage, and the best of them by those after it.

    Args:
        stages: the first sees every document, whatever its depth.
        runner: of the others.
        clock: see `Cascade`.
        requests: checked.
        top_k: how many hits to return for each query; None returns all.
    """
    start = clock()
    first = stages[0]
    documents = [numbered(each) for each in requests.documents]
    rankings = rank_all(first.reranker, requests.queries, documents)
    elapsed_ms = (clock() - start) * 1000
    num_documents = max(1, sum(map(len, documents)))
    searches = [
        Search(
            query=query,
            query_id=None,
            hits=list(placed(unscored(asked), ranking, first.name)),
            timings_ms={first.name: elapsed_ms * len(asked) / num_documents},
            status=ranking.status,
            notes=[f"{first.name}: {note}" for note in ranking.notes],
        )
        for query, asked, ranking in zip(requests.queries, documents, rankings, strict=True)
    ]
    for stage in stages[1:]:
        runner.run(searches, stage)
    return [
        Ranking(
            search.query,
            tuple(as_given(hit, given, rank) for rank, hit in enumerate(search.hits[:top_k], start=1)),
            timings_ms=search.timings_ms,
            status=search.status,
            notes=tuple(search.notes),
        )
        for search, given in zip(searches, requests.documents, strict=True)
    ]
