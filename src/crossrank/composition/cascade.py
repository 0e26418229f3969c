"""Rerankers one after another, each over the best of the one before, as one reranker."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from crossrank.checks import as_list, as_number
from crossrank.composition.members import as_given, judged_candidates, numbered, rank_all, unscored
from crossrank.depths import Depth
from crossrank.errors import InputError
from crossrank.evaluation.measures import Measure, evaluate
from crossrank.models.requests import RankVerbs, Requests
from crossrank.models.reranker import Reranker, asked_once
from crossrank.stage_runner import OnError, StageRunner
from crossrank.stages import Search, Stage, check_reranker, placed, stages_of
from crossrank.types import Document, Qrels, Ranking

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
        curve: of one that was `tuned`, depth -> mean of the measure on its judged queries; else empty.

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
        self.curve: Mapping[int, float] = {}
        self.stages: tuple[Stage, ...] = tuple(
            stages_of([(first, sys.maxsize), *as_list(then, "then")], sys.maxsize, name)
        )
        self._runner = StageRunner(name, on_error, clock)
        self._clock = clock

    @classmethod
    def tuned(
        cls,
        rerankers: Sequence[Reranker],
        queries: Mapping[str, str],
        documents: Mapping[str, Sequence[Document]],
        qrels: Qrels,
        measure: str | Measure = "nDCG@10",
        *,
        within: float = 0.003,
        name: str = "cascade",
    ) -> Cascade:
        """Return the cascade of two whose depth is the least that loses next to nothing on judged queries.

        That is the smallest depth from which on none has a mean more than `within` below that of the second
        reranker alone. `curve` has the mean at every depth: look at what is lost and saved. On other queries
        the loss may be another; with few judged queries it is mostly chance.

        Args:
            rerankers: two; the second sees the best of what the first has ordered. Here, each orders all
                candidates once.
            queries: query id -> text.
            documents: query id -> candidates, with ids that the judgements know.
            qrels: judgements. Use queries that are not measured on later: a dev split.
            measure: whose mean is looked at.
            within: what the mean may lose, at least 0.
            name: of the cascade.

        Raises:
            InputError: other than two rerankers, a query without candidates, candidates with one id twice, no
                judged query, or `within` below 0.
        """
        within = as_number(within, "within", 0)
        rerankers = as_list(rerankers, "rerankers")
        if len(rerankers) != 2:
            raise InputError(f"give two rerankers, the fast one first, not {len(rerankers)}")
        for each in rerankers:
            check_reranker(each)
        texts, candidates = judged_candidates(queries, documents)
        first, then = (rank_all(each, texts, candidates) for each in rerankers)
        scores = [{hit.document_id: hit.score for hit in ranking} for ranking in then]
        curve: dict[int, float] = {}
        for depth in range(1, max(map(len, candidates), default=0) + 1):
            run = {
                query_id: _in_stages(one, other, depth)
                for query_id, one, other in zip(queries, first, scores, strict=True)
            }
            [curve[depth]] = evaluate(run, qrels, [measure]).means.values()
        wanted = curve.get(len(curve), 0.0) - within
        least = max((depth for depth, mean in curve.items() if mean < wanted), default=0) + 1
        cascade = cls(rerankers[0], [(rerankers[1], least)], name=name)
        cascade.curve = curve
        return cascade

    @property
    def asked_once(self) -> bool:
        """See `crossrank.models.reranker.asked_once`."""
        return asked_once(*(stage.reranker for stage in self.stages))

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        return rank_in_stages(self.stages, self._runner, self._clock, requests, top_k)

    def __repr__(self) -> str:
        then = ", ".join(f"{stage.name} of {stage.depth!r}" for stage in self.stages[1:])
        return f"Cascade({', then '.join(filter(None, (self.stages[0].name, then)))})"


def _in_stages(first: Ranking, scores: Mapping[str, float], depth: int) -> dict[str, float]:
    """Document id -> a score that falls with its rank, where the best `depth` are ordered by `scores`."""
    ids = first.document_ids
    order = [*sorted(ids[:depth], key=lambda document_id: -scores[document_id]), *ids[depth:]]
    return {document_id: float(-rank) for rank, document_id in enumerate(order)}


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
