"""Runs rerankers over searches: many together or one within a time budget, and outlives their failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

from crossrank.depths import TimeBudget
from crossrank.errors import BudgetError, EndpointError, InputError, ModelOutputError
from crossrank.models.reranker import asked_once
from crossrank.stages import Search, Stage, documents_of, next_chunk, placed
from crossrank.types import Ranking

__all__ = ["OnError", "StageRunner"]

OnError = Literal["degrade", "raise"]

_T = TypeVar("_T")


class StageRunner:
    """Hands the first documents of searches to a stage's reranker, and puts its order on top.

    Args:
        first_stage_name: where the documents are from, for messages.
        on_error: what a failing reranker does: "degrade" leaves the order so far and notes the error,
            "raise" lets it out. An `InputError` is always raised.
        clock: seconds on a clock that never goes back.
    """

    def __init__(self, first_stage_name: str, on_error: OnError, clock: Callable[[], float]) -> None:
        self._first_stage_name = first_stage_name
        self._on_error = on_error
        self._clock = clock

    def run(self, searches: Sequence[Search], stage: Stage) -> None:
        """Rerank the first documents of all searches together, or each within a stage's own budget."""
        if isinstance(stage.depth, TimeBudget):
            for search in searches:
                self.run_within(search, stage, self._clock(), stage.depth.ms)
            return
        start = self._clock()
        found = [(search, search.candidates(stage.depth)) for search in searches]
        asked = [(search, candidates) for search, candidates in found if candidates]
        if not asked:
            return
        documents = [documents_of(candidates, self._first_stage_name) for _, candidates in asked]

        def together() -> list[Ranking]:
            rankings = stage.reranker.rank_many([search.query for search, _ in asked], documents)
            if not isinstance(rankings, Sequence) or len(rankings) != len(asked):
                raise ModelOutputError(
                    f"{stage.name} must give one ranking for each of {len(asked)} queries, "
                    f"not {rankings!r:.100}"
                )
            return [
                placed(candidates, ranking, stage.name)
                for (_, candidates), ranking in zip(asked, rankings, strict=True)
            ]

        def alone(number: int) -> Ranking:
            search, candidates = asked[number]
            return placed(candidates, stage.reranker.rank(search.query, documents[number]), stage.name)

        pooled = self._attempt(together)
        outcomes: Sequence[Ranking | Exception]
        if not isinstance(pooled, Exception):
            outcomes = pooled
        elif (
            len(asked) == 1 or asked_once(stage.reranker) or isinstance(pooled, (EndpointError, BudgetError))
        ):
            outcomes = [pooled] * len(asked)
        else:  # one query's failure is not the others': each gets a try of its own
            outcomes = [self._attempt(partial(alone, number)) for number in range(len(asked))]
        elapsed_ms = (self._clock() - start) * 1000
        total = sum(len(candidates) for _, candidates in asked)
        for (search, candidates), outcome in zip(asked, outcomes, strict=True):
            search.timings_ms[stage.name] = elapsed_ms * len(candidates) / total
            search.take(stage, outcome, len(candidates))

    def run_within(self, search: Search, stage: Stage, start: float, budget_ms: float) -> None:
        """Rerank the first documents of one search, from the best down, while time is left."""
        begin = self._clock()
        if isinstance(stage.depth, TimeBudget):
            budget_ms = min(budget_ms, (begin - start) * 1000 + stage.depth.ms)
        candidates = search.candidates(stage.depth)
        documents = documents_of(candidates, self._first_stage_name)
        pointwise = callable(getattr(stage.reranker, "score", None))
        done = 0

        def while_time_is_left() -> Ranking:
            nonlocal done
            parts: list[Ranking] = []
            ms_per_document: float | None = None
            while done < len(candidates):
                before = self._clock()
                left_ms = budget_ms - (before - start) * 1000
                size = next_chunk(left_ms, ms_per_document, len(candidates) - done)
                if size == 0:
                    break
                if not pointwise:
                    size = len(candidates)  # scores of two calls could not be compared
                chunk = slice(done, done + size)
                ranking = stage.reranker.rank(search.query, documents[chunk])
                parts.append(placed(candidates[chunk], ranking, stage.name))
                done += size
                latest = (self._clock() - before) * 1000 / size
                ms_per_document = latest if ms_per_document is None else (ms_per_document + latest) / 2
            hits = [hit for part in parts for hit in part]
            return Ranking(
                search.query,
                tuple(sorted(hits, key=lambda hit: -hit.score) if pointwise else hits),
                status=next((part.status for part in parts if part.status != "ok"), "ok"),
                notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            )

        outcome = self._attempt(while_time_is_left)
        search.timings_ms[stage.name] = (self._clock() - begin) * 1000
        if not isinstance(outcome, Exception) and done < len(candidates):
            search.notes.append(
                f"{stage.name} scored {done} of {len(candidates)} candidates within the budget of "
                f"{budget_ms:g} ms"
            )
        if done or isinstance(outcome, Exception):
            search.take(stage, outcome, done)

    def _attempt(self, call: Callable[[], _T]) -> _T | Exception:
        """Return what the call returns, or the exception that "degrade" is to outlive."""
        try:
            return call()
        except InputError:
            raise  # the caller's to mend, whatever on_error says
        except Exception as error:
            if self._on_error == "raise":
                raise
            return error
