"""What a search hands from stage to stage: candidates, a reranker's order, a mix of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from crossrank.depths import Depth, DepthRule, check_depths, most_of
from crossrank.errors import InputError, ModelOutputError
from crossrank.types import Document, Hit, Ranking

if TYPE_CHECKING:
    from crossrank.models.reranker import Reranker

__all__ = [
    "FUSION_STAGE",
    "Search",
    "Stage",
    "candidates_of",
    "check_reranker",
    "documents_of",
    "fused",
    "next_chunk",
    "placed",
    "stages_of",
    "unused_name",
]

FUSION_STAGE = "fusion"
"""Name of the stage that mixes first-stage and reranker scores."""


@dataclass(frozen=True)
class Stage:
    """A reranker, the name its scores go by, and how many documents it sees."""

    name: str
    reranker: Reranker
    depth: Depth

    @property
    def most(self) -> int:
        """How many documents it sees at most."""
        return most_of(self.depth)


@dataclass
class Search:
    """One query on its way through the stages."""

    query: str
    query_id: str | None
    hits: list[Hit]  # best first; ranks are those of the first stage until the end
    timings_ms: dict[str, float]
    status: str
    notes: list[str]
    num_reranked: int = 0  # how many of the first hits have the latest reranker's score

    def candidates(self, depth: Depth) -> list[Hit]:
        """Return the first hits, as many as a stage of this depth sees.

        A rule decides over those that the latest stage has scored.
        """
        if not isinstance(depth, DepthRule):
            return self.hits[:depth]
        scored = self.hits[: self.num_reranked or len(self.hits)]
        return scored[: depth([hit.score for hit in scored])] if scored else []

    def take(self, stage: Stage, outcome: Ranking | Exception, num_candidates: int) -> None:
        """Put a stage's order on top, or note why there is none.

        Candidates that the order lacks follow it, in the order they had. What the stage's own ranking notes
        is noted here.
        """
        if isinstance(outcome, Exception):
            self.status = "degraded"
            reason = " ".join(f"{type(outcome).__name__}: {outcome}".split())
            self.notes.append(f"{stage.name} failed, the order before it stands: {reason}")
            return
        if len(outcome) < num_candidates:
            self.notes.append(f"{stage.name} returned {len(outcome)} of {num_candidates} candidates")
        if outcome.status != "ok":
            self.status = outcome.status
        self.notes += [f"{stage.name}: {note}" for note in outcome.notes]
        ordered = set(outcome.document_ids)
        self.hits = [*outcome, *(hit for hit in self.hits if hit.document_id not in ordered)]
        self.num_reranked = len(outcome)


def stages_of(
    reranker: Reranker | Sequence[tuple[Reranker, Depth]] | None, depth: Depth, first_stage_name: str
) -> Iterator[Stage]:
    """Yield the stages of one reranker or of a cascade, each with a name of its own.

    Raises:
        InputError: something that is no reranker, or a depth that is below 1 or grows.
    """
    if reranker is None:
        return
    cascade: Sequence[Any] = reranker if isinstance(reranker, (list, tuple)) else [(reranker, depth)]
    taken = [first_stage_name, FUSION_STAGE]
    depths: list[Depth] = []
    for entry in cascade:
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise InputError(f"a cascade is a list of (reranker, depth), not of {type(entry).__name__}")
        each, own_depth = entry
        check_reranker(each)
        depths.append(own_depth)
        check_depths(depths)
        taken.append(unused_name(each.name, taken))
        yield Stage(taken[-1], each, own_depth)


def check_reranker(reranker: Any) -> None:
    """Raise InputError unless this is a reranker: see `crossrank.models.reranker.Reranker`."""
    if not all(hasattr(reranker, attribute) for attribute in ("name", "rank", "rank_many")):
        raise InputError(
            f"a reranker has a name and the methods rank and rank_many, {type(reranker).__name__} has not; "
            "open a model with CrossEncoder(name)"
        )


def unused_name(name: str, taken: Sequence[str]) -> str:
    """Return the name, with ":2", ":3" added where it is taken."""
    unused, number = name, 1
    while unused in taken:
        number += 1
        unused = f"{name}:{number}"
    return unused


def candidates_of(ranking: Ranking, first_stage_name: str) -> list[Hit]:
    """Return the first stage's hits with their rank and score kept for good."""
    if len(set(ranking.document_ids)) != len(ranking):
        raise ModelOutputError(f"the first stage {first_stage_name} found a document twice for one query")
    return [
        replace(
            hit,
            first_stage_rank=rank,
            first_stage_score=hit.score,
            stage_scores={**hit.stage_scores, hit.stage: hit.score},
        )
        for rank, hit in enumerate(ranking, start=1)
    ]


def documents_of(candidates: Sequence[Hit], first_stage_name: str) -> list[Document]:
    """Return the candidates' documents.

    Raises:
        InputError: the first stage gave a hit without its document.
    """
    documents = []
    for hit in candidates:
        if hit.document is None:
            raise InputError(
                f"the first stage {first_stage_name} gave document {hit.document_id!r} without its text, "
                "which a reranker needs; use a retriever whose hits have their `document`"
            )
        documents.append(hit.document)
    return documents


def placed(candidates: Sequence[Hit], ranking: Ranking, stage_name: str) -> Ranking:
    """Return the candidates in a reranker's order, with its scores; fewer if it left some out.

    The scores of a reranker's own stages come along where no stage before has their name.

    Raises:
        ModelOutputError: no ranking at all, a document that was not asked about or comes twice, or a
            score that is not finite.
    """
    if not isinstance(ranking, Ranking):
        raise ModelOutputError(f"{stage_name} returned {type(ranking).__name__} where it must give a Ranking")
    waiting = {hit.document_id: hit for hit in candidates}
    order = []
    for hit in ranking:
        candidate = waiting.pop(hit.document_id, None)
        if candidate is None:
            raise ModelOutputError(
                f"{stage_name} returned document {hit.document_id!r}, which was not among its documents or "
                "came before"
            )
        score = float(hit.score)
        if not math.isfinite(score):
            raise ModelOutputError(f"{stage_name} gave document {hit.document_id!r} the score {score}")
        inner = {
            name: value
            for name, value in hit.stage_scores.items()
            if name not in candidate.stage_scores and not _is_own(name, stage_name)
        }
        order.append(
            replace(
                candidate,
                score=score,
                stage=stage_name,
                probability=hit.probability,
                stage_scores={**candidate.stage_scores, **inner, stage_name: score},
                truncated_tokens=hit.truncated_tokens,
                span=hit.span,
            )
        )
    return replace(ranking, hits=tuple(order))


def _is_own(name: str, stage_name: str) -> bool:
    """Whether a stage's scores go by a reranker's own name; see `unused_name`."""
    return stage_name == name or stage_name.startswith(f"{name}:")


def next_chunk(left_ms: float, ms_per_document: float | None, num_left: int) -> int:
    """Return how many documents to rerank next: none, or at least one.

    Half of what is expected to fit, so that a slow chunk overshoots little. The first document's time
    is not known; it alone is risked.
    """
    if left_ms <= 0:
        return 0
    if ms_per_document is None:
        return 1
    if ms_per_document * num_left * 2 <= left_ms:
        return num_left
    expected = left_ms / ms_per_document
    return 0 if expected < 1 else max(1, int(expected / 2))


def fused(
    fuse: Callable[[list[Ranking]], Ranking], query: str, hits: Sequence[Hit], first_stage_name: str
) -> list[Hit]:
    """Return reranked hits in the order that a formula makes of first-stage and reranker scores."""
    # every candidate has a first-stage rank and score; the types allow None for other hits
    by_first_stage = sorted(hits, key=lambda hit: hit.first_stage_rank or 0)
    first = [
        replace(hit, rank=rank, score=hit.first_stage_score or 0.0, stage=first_stage_name)
        for rank, hit in enumerate(by_first_stage, start=1)
    ]
    second = [replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]
    mixed = fuse([Ranking(query, tuple(first)), Ranking(query, tuple(second))])
    scores = {hit.document_id: float(hit.score) for hit in mixed}
    own = {hit.document_id: hit for hit in hits}
    if len(mixed) != len(own) or scores.keys() != own.keys():
        raise ModelOutputError("the fusion lost, added or repeated documents; it must keep each once")
    return [
        replace(
            own[document_id],
            score=score,
            stage=FUSION_STAGE,
            stage_scores={**own[document_id].stage_scores, FUSION_STAGE: score},
        )
        for document_id, score in scores.items()
    ]
