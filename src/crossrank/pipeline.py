"""Two-stage search: a first stage finds candidates, rerankers put the best of them on top."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from crossrank.abstention import probable
from crossrank.checks import as_number, as_strings, check_count
from crossrank.depths import Depth
from crossrank.errors import InputError
from crossrank.progress import track
from crossrank.retrieval.retriever import as_condition
from crossrank.stage_runner import StageRunner
from crossrank.stages import FUSION_STAGE, Search, candidates_of, fused, stages_of
from crossrank.types import Ranking, Run

if TYPE_CHECKING:
    from crossrank.models.reranker import Reranker
    from crossrank.retrieval.retriever import Filter, Retriever
    from crossrank.store.filters import FilterLike

__all__ = ["Searcher"]

_BLOCK_PAIRS = 4096  # pairs of many queries that are reranked together: full batches, bounded memory


class Searcher:
    """Finds candidates with a first stage and reranks the best of them.

    **Order and scores.** `rank` is what counts. A reranker orders the first `depth` documents of the
    order so far; the others keep their order below them. A hit's `score` is the score of the last
    stage that saw it, and its `stage` names that stage, so scores fall within a stage but can be of
    different scales between two: a document that was not reranked may have a higher score than one
    above it. `stage_scores` has all of a hit's scores by stage; `first_stage_rank` and
    `first_stage_score` say where it came from. Files and measures, which go by score alone, get
    scores that keep this order: see `crossrank.evaluation.trec.descending_scores`.

    **Failures.** A reranker that raises, or gives NaN or an order that cannot be used, is left out:
    the order so far stands, later rerankers still run, the ranking's status is "degraded" and a note
    has the error. An `InputError`, such as a query that is too long for the model, is the caller's to
    mend and is always raised; so is whatever the first stage or the fusion raises.

    Keeps no state between searches: safe to use from many threads if its stages are.

    Args:
        first_stage: a retriever, or an index: that is searched by words and vectors, or by words alone
            if it was opened without its bi-encoder. Hits must carry their documents if there is a
            reranker.
        reranker: None, one reranker, or a cascade of (reranker, depth) in the order they run; depths
            may not grow, and may be rules (`crossrank.depths`). Two rerankers of the same name get ":2",
            ":3" added to it as stages.
        depth: how many candidates a single reranker sees, at least 1; a cascade has its own depths.
        fuse: a formula such as `retrieval.fusion.RRF()` or `WeightedSum((1, 3))`: called with
            [first-stage ranking, last reranker's ranking] of the documents that reranker saw, and
            its order and scores are taken for these, as the stage "fusion".
        on_error: what a failing reranker does: "degrade" as above, or "raise".
        min_probability: hits below it are left out, and a note says how many; where none is left, that
            nothing answers the question. The last reranker must be calibrated: hits that it has not seen
            have no probability and are left out, too. If it failed, all hits stay, and a note says so.
        clock: seconds on a clock that never goes back; for timings and time budgets.

    Raises:
        InputError: something that is no retriever, index or reranker, a depth that is below 1 or grows
            along the cascade, or a `min_probability` out of its range or for a reranker that has no
            calibration.

    Example:
        >>> from crossrank.retrieval.bm25 import BM25
        >>> searcher = Searcher(BM25(["a red fox", "a blue whale"]))
        >>> searcher.search("whales").document_ids
        ('1',)
    """

    def __init__(
        self,
        first_stage: Retriever | Any,
        reranker: Reranker | Sequence[tuple[Reranker, Depth]] | None = None,
        *,
        depth: int = 100,
        fuse: Callable[[list[Ranking]], Ranking] | None = None,
        on_error: Literal["degrade", "raise"] = "degrade",
        min_probability: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_count(depth, "depth")
        if on_error not in ("degrade", "raise"):
            raise InputError(f'on_error must be "degrade" or "raise", not {on_error!r}')
        if fuse is not None and not callable(fuse):
            raise InputError(f"fuse must be a formula such as RRF(), not {fuse!r}")
        self.first_stage = _as_retriever(first_stage)
        self.stages = tuple(stages_of(reranker, depth, self.first_stage.name))
        if fuse is not None and not self.stages:
            raise InputError("fuse mixes first-stage and reranker scores; give a reranker too")
        self.fuse = fuse
        self.on_error = on_error
        self.min_probability = self._least_probability(min_probability)
        self._clock = clock
        self._runner = StageRunner(self.first_stage.name, on_error, clock)

    def search(
        self,
        query: str,
        top_k: int = 10,
        filter: FilterLike | Filter | None = None,
        budget_ms: float | None = None,
    ) -> Ranking:
        """Return the best documents for one query.

        Args:
            query: not empty.
            top_k: the most hits that come back, at least 1. Beyond the depth, they are in first-stage
                order.
            filter: only documents that it matches are found; see `crossrank.store.filters`.
            budget_ms: wall milliseconds for the whole search. The first stage always runs; each
                reranker then takes documents from the best down, a few at a time, while the next few
                can be expected to fit in what is left. Documents it has no time for stay below those
                it scored, and a note says how many it scored. A reranker without a `score` method,
                which compares documents with one another, takes all of its documents if any time
                is left. None sets no limit.

        Raises:
            InputError: a query, top_k, filter or budget that cannot be used.
        """
        _check_query(query)
        check_count(top_k)
        if budget_ms is not None:
            budget_ms = as_number(budget_ms, "budget_ms", 0)
        start = self._clock()
        condition = None if filter is None else as_condition(filter)
        searches = self._retrieve([query], [None], top_k, condition)
        for stage in self.stages:
            if budget_ms is None:
                self._runner.run(searches, stage)
            else:
                self._runner.run_within(searches[0], stage, start, budget_ms)
        return self._finish(searches[0], top_k)

    @overload
    def search_many(
        self,
        queries: Sequence[str],
        top_k: int = ...,
        filter: FilterLike | Filter | None = ...,
        budget_ms: float | None = ...,
        *,
        progress: bool | None = ...,
    ) -> list[Ranking]: ...
    @overload
    def search_many(
        self,
        queries: Mapping[str, str],
        top_k: int = ...,
        filter: FilterLike | Filter | None = ...,
        budget_ms: float | None = ...,
        *,
        progress: bool | None = ...,
    ) -> Run: ...
    def search_many(
        self,
        queries: Sequence[str] | Mapping[str, str],
        top_k: int = 10,
        filter: FilterLike | Filter | None = None,
        budget_ms: float | None = None,
        *,
        progress: bool | None = None,
    ) -> list[Ranking] | Run:
        """Return the best documents for many queries: the same as `search` for each, but faster.

        The pairs of many queries are reranked together, some thousands at a time. A ranking's
        `timings_ms` then are its share of that time, by the number of its documents.

        Args:
            queries: texts, or query id -> text.
            top_k: see `search`.
            filter: see `search`; the same for all.
            budget_ms: see `search`; for each query, which are then searched one by one.
            progress: True shows a bar, False none, None one for a long call on a terminal.

        Returns:
            One ranking per query in their order; for a mapping, a run by query id.

        Raises:
            InputError: see `search`; a bad query stops the call.
        """
        texts = as_strings(queries.values() if isinstance(queries, Mapping) else queries, "queries")
        ids: list[str | None] = list(queries) if isinstance(queries, Mapping) else [None] * len(texts)
        for position, text in enumerate(texts):
            _check_query(text, f"queries[{position if ids[position] is None else ids[position]!r}]")
        check_count(top_k)
        condition = None if filter is None else as_condition(filter)
        rankings: list[Ranking] = []
        size = 1 if budget_ms is not None else max(1, _BLOCK_PAIRS // self._num_candidates(top_k))
        with track(len(texts), "Searching", progress=progress) as tracked:
            for begin in range(0, len(texts), size):
                block, block_ids = texts[begin : begin + size], ids[begin : begin + size]
                if budget_ms is not None:
                    ranking = self.search(block[0], top_k, condition, budget_ms)
                    rankings.append(replace(ranking, query_id=block_ids[0]))
                else:
                    searches = self._retrieve(block, block_ids, top_k, condition)
                    for stage in self.stages:
                        self._runner.run(searches, stage)
                    rankings += [self._finish(search, top_k) for search in searches]
                tracked.advance(len(block))
        if isinstance(queries, Mapping):
            return Run(dict(zip(queries, rankings, strict=True)))
        return rankings

    def _num_candidates(self, top_k: int) -> int:
        return max([top_k, *(stage.most for stage in self.stages)])

    def _retrieve(
        self, queries: list[str], query_ids: Sequence[str | None], top_k: int, filter: Filter | None
    ) -> list[Search]:
        start = self._clock()
        rankings = self.first_stage.retrieve(queries, top_k=self._num_candidates(top_k), filter=filter)
        share_ms = (self._clock() - start) * 1000 / len(queries)
        return [
            Search(
                query=query,
                query_id=query_id,
                hits=candidates_of(ranking, self.first_stage.name),
                timings_ms={self.first_stage.name: share_ms},
                status=ranking.status,
                notes=list(ranking.notes),
            )
            for query, query_id, ranking in zip(queries, query_ids, rankings, strict=True)
        ]

    def _least_probability(self, stated: float | None) -> float | None:
        if stated is None:
            return None
        if not self.stages:
            raise InputError("min_probability is about a reranker's probabilities; give a reranker too")
        last = self.stages[-1].reranker
        if why := getattr(last, "why_uncalibrated", ""):
            raise InputError(f"min_probability needs probabilities, and {why}")
        return as_number(stated, "min_probability", 0, 1)

    def _keep_probable(self, search: Search) -> None:
        """Leave out what is not probable enough, unless the stage that should say so has failed."""
        if self.min_probability is None or not search.hits:
            return
        last = self.stages[-1].name
        if any(last in hit.stage_scores for hit in search.hits):
            seen = [
                hit if last in hit.stage_scores else replace(hit, probability=None) for hit in search.hits
            ]
            if all(hit.probability is None for hit in seen):
                raise InputError(
                    f"min_probability needs probabilities, and {last} gives none; use a calibrated reranker"
                )
        elif search.status == "ok":  # a time budget that let it see nothing
            seen = [replace(hit, probability=None) for hit in search.hits]
        else:
            search.notes.append(f"no hit was left out as improbable: {last} gave no probabilities")
            return
        search.hits, notes = probable(seen, self.min_probability)
        search.notes += notes

    def _finish(self, search: Search, top_k: int) -> Ranking:
        if self.fuse is not None and search.num_reranked:
            start = self._clock()
            top = search.hits[: search.num_reranked]
            search.hits[: search.num_reranked] = fused(self.fuse, search.query, top, self.first_stage.name)
            search.timings_ms[FUSION_STAGE] = (self._clock() - start) * 1000
        self._keep_probable(search)
        return Ranking(
            query=search.query,
            hits=tuple(replace(hit, rank=rank) for rank, hit in enumerate(search.hits[:top_k], start=1)),
            query_id=search.query_id,
            timings_ms=search.timings_ms,
            status=search.status,
            notes=tuple(search.notes),
        )


def _as_retriever(first_stage: Any) -> Retriever:
    if callable(getattr(first_stage, "retrieve", None)):
        return cast("Retriever", first_stage)
    if callable(getattr(first_stage, "search_text", None)):
        from crossrank.retrieval.from_index import index_retriever

        return index_retriever(first_stage)
    raise InputError(
        f"the first stage must be a retriever or an index, not {type(first_stage).__name__}; over a list "
        "of texts, BM25(texts) is one"
    )


def _check_query(query: str, name: str = "a query") -> None:
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"{name} must be a string that is not empty, not {query!r}")
