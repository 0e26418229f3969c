"""Formulas that make one ranking of several for the same query."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list, as_number, check_count
from crossrank.errors import InputError
from crossrank.types import Hit, Qrels, Ranking

__all__ = ["RRF", "Borda", "Fusion", "Metric", "Normalisation", "WeightedSum", "tune"]

Normalisation = Literal["min-max", "z-score", "dbsf", "none"]
Metric = Callable[[Mapping[str, Ranking], Qrels], float]


class Fusion(Protocol):
    """Makes one ranking of several for the same query."""

    def __call__(
        self,
        rankings: Sequence[Ranking],
        *,
        top_k: int | None = None,
        names: Sequence[str] | None = None,
        stage: str = "hybrid",
    ) -> Ranking:
        """Return the fused ranking.

        Each hit has the fused score, the score each ranking gave it in `stage_scores` (under the
        ranking's name; absent where the ranking lacks it), and the document if any ranking has it.
        Equal fused scores go by id, the largest first, as in trec_eval: what is shown is what is
        measured. So neither the score nor the place of a document depends on the order of the
        rankings, given that weights move with them.

        Args:
            rankings: at least one, all for the same query; none may have a document twice.
            top_k: how many hits to keep; None keeps every document of any ranking.
            names: of the rankings, all different; None takes the stage of their hits, with ":2", ":3"
                added to the second and third of the same stage.
            stage: the stage of the fused hits.

        Raises:
            InputError: what `Args` asks for is not so, or the weights are not one per ranking.
        """
        ...


_Parts = tuple[list[dict[str, float]], list[float]]
"""What each ranking adds to its documents' scores, by id, and what to those that it lacks."""


class _SumOfParts(ABC):
    """A formula whose scores are sums of what each ranking adds."""

    weights: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked_weights(self.weights))

    def __call__(
        self,
        rankings: Sequence[Ranking],
        *,
        top_k: int | None = None,
        names: Sequence[str] | None = None,
        stage: str = "hybrid",
    ) -> Ranking:
        """Return the fused ranking: see `Fusion`."""
        parts, missing = self._parts(rankings, _weights_for(self.weights, rankings))
        return _fused(rankings, parts, missing, top_k=top_k, names=names, stage=stage)

    @abstractmethod
    def _parts(self, rankings: Sequence[Ranking], weights: Sequence[float]) -> _Parts:
        """Return what each ranking adds."""


@dataclass(frozen=True)
class RRF(_SumOfParts):
    """Reciprocal rank fusion: the sum over rankings of weight / (k + rank), ranks from 1.

    A ranking that lacks a document adds 0. Scores play no part, so nothing has to be comparable.

    Args:
        k: how little the first ranks stand out, above 0; 60 is the paper's.
        weights: one per ranking, at least 0, not all 0; None gives each 1.

    Source:
        Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and
        individual Rank Learning Methods", SIGIR.

    Example:
        >>> bm25 = Ranking.from_hits("q", [Hit("a", 9.0, 1, "bm25"), Hit("b", 4.0, 2, "bm25")])
        >>> dense = Ranking.from_hits("q", [Hit("b", 0.8, 1, "dense")])
        >>> RRF()([bm25, dense]).document_ids
        ('b', 'a')
    """

    k: float = 60
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", as_number(self.k, "k", math.nextafter(0, 1)))
        super().__post_init__()

    def _parts(self, rankings: Sequence[Ranking], weights: Sequence[float]) -> _Parts:
        parts = [
            {hit.document_id: weight / (self.k + rank) for rank, hit in enumerate(ranking, start=1)}
            for weight, ranking in zip(weights, rankings, strict=True)
        ]
        return parts, [0.0] * len(parts)


@dataclass(frozen=True)
class Borda(_SumOfParts):
    """Borda count: the sum over rankings of weight × points, n for the first of n documents, 1 for the last.

    n is the number of documents in any of the rankings; those that a ranking lacks share the points it did
    not give out, evenly. Scores play no part.

    Args:
        weights: one per ranking, at least 0, not all 0; None gives each 1.

    Source:
        Aslam and Montague 2001, "Models for Metasearch", SIGIR (Borda-fuse).
    """

    weights: tuple[float, ...] | None = None

    def _parts(self, rankings: Sequence[Ranking], weights: Sequence[float]) -> _Parts:
        count = len({document_id for ranking in rankings for document_id in ranking.document_ids})
        parts = [
            {hit.document_id: weight * (count - place) for place, hit in enumerate(ranking)}
            for weight, ranking in zip(weights, rankings, strict=True)
        ]
        missing = [
            weight * (count - len(ranking) + 1) / 2 for weight, ranking in zip(weights, rankings, strict=True)
        ]
        return parts, missing


@dataclass(frozen=True)
class WeightedSum(_SumOfParts):
    """The sum over rankings of weight × normalised score.

    The scores s of one ranking become

    - "min-max": (s − min) / (max − min), from 0 to 1; 1 where all are equal;
    - "z-score": (s − mean) / standard deviation (population); 0 where all are equal;
    - "dbsf" (distribution-based score fusion): (s − low) / (high − low), with low and high the mean
      minus and plus 3 standard deviations (sample); 0.5 where all are equal. As in Qdrant, scores
      beyond 3 standard deviations go below 0 or above 1 and are not cut off;
    - "none": s itself.

    A document that a ranking lacks gets the smaller of 0 and the ranking's lowest normalised score:
    it is never ahead of one the ranking has.

    Args:
        weights: one per ranking, at least 0, not all 0; None gives each 1.
        normalisation: one of the above.

    Source:
        min-max: Fox and Shaw 1994, "Combination of Multiple Searches" (CombSUM). dbsf: Mazzeschi 2023,
        "Distribution-Based Score Fusion"; formula of qdrant/qdrant,
        lib/segment/src/common/score_fusion.rs.
    """

    weights: tuple[float, ...] | None = None
    normalisation: Normalisation = "min-max"

    def __post_init__(self) -> None:
        if self.normalisation not in get_args(Normalisation):
            raise InputError(
                f"normalisation must be one of {', '.join(get_args(Normalisation))}, "
                f"not {self.normalisation!r}"
            )
        super().__post_init__()

    def _parts(self, rankings: Sequence[Ranking], weights: Sequence[float]) -> _Parts:
        parts, missing = [], []
        for weight, ranking in zip(weights, rankings, strict=True):
            values = _normalised(np.array(ranking.scores, dtype=np.float64), self.normalisation)
            parts.append(dict(zip(ranking.document_ids, (weight * values).tolist(), strict=True)))
            missing.append(weight * float(values.min(initial=0.0)))
        return parts, missing


def tune(
    rankings_by_retriever: Mapping[str, Mapping[str, Ranking]],
    qrels: Qrels,
    measure: str | Metric = "nDCG@10",
    *,
    normalisation: Normalisation = "min-max",
    steps: int = 10,
) -> WeightedSum:
    """Return the weighted sum with the best weights on judged queries.

    Tries every way to share a total of 1 among the retrievers in parts of 1 / steps: 11 for two
    retrievers and 66 for three. Of equally good ones the most even wins. Use queries that are not
    measured on later: a dev split.

    Args:
        rankings_by_retriever: retriever name -> query id -> ranking; a query that a retriever lacks
            counts as one for which it found nothing. The weights come in the order of this mapping.
        qrels: judgements; only queries judged here are used.
        measure: name of a measure of `crossrank.evaluation`, or a function of a run (query id ->
            ranking) and the qrels that returns a number, more is better.
        normalisation: of the scores: see `WeightedSum`.
        steps: how fine the grid is, at least 1.

    Raises:
        InputError: fewer than two retrievers, steps below 1, or no judged query has a ranking.
    """
    if len(rankings_by_retriever) < 2:
        raise InputError(
            f"there are weights to choose for two retrievers or more, not {len(rankings_by_retriever)}"
        )
    check_count(steps, "steps")
    names = tuple(rankings_by_retriever)
    lists: dict[str, list[Ranking]] = {}
    for query_id in qrels:
        found = [run[query_id] for run in rankings_by_retriever.values() if query_id in run]
        if found:
            nothing = Ranking(found[0].query)
            lists[query_id] = [run.get(query_id, nothing) for run in rankings_by_retriever.values()]
    if not lists:
        raise InputError("no query of the qrels has a ranking; check that both use the same query ids")
    metric = _named_metric(measure) if isinstance(measure, str) else measure

    def quality(weights: tuple[float, ...]) -> tuple[float, float]:
        fusion = WeightedSum(weights, normalisation)
        value = metric({query_id: fusion(each, names=names) for query_id, each in lists.items()}, qrels)
        return value, -math.fsum(weight * weight for weight in weights)

    return WeightedSum(max(_shares(len(names), steps), key=quality), normalisation)


def _shares(parts: int, steps: int) -> Iterator[tuple[float, ...]]:
    """Yield every tuple of `parts` multiples of 1 / steps that add up to 1, the largest first part first."""
    for cuts in itertools.combinations_with_replacement(range(steps, -1, -1), parts - 1):
        bounds = (steps, *cuts, 0)
        yield tuple((high - low) / steps for high, low in itertools.pairwise(bounds))


def _named_metric(measure: str) -> Metric:
    # The one look down the layers: only here, where a measure is asked for by its name.
    from crossrank.evaluation.measures import evaluate

    return lambda run, qrels: evaluate(run, qrels, [measure])[measure]


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    values = tuple(as_number(weight, "each of the weights", 0) for weight in as_list(weights, "weights"))
    if not any(values):
        raise InputError(f"weights must not all be 0: {values}")
    return values


def _weights_for(weights: tuple[float, ...] | None, rankings: Sequence[Ranking]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"there are {len(weights)} weights for {len(rankings)} rankings; give one for each")
    return weights


def _normalised(scores: npt.NDArray[np.float64], how: Normalisation) -> npt.NDArray[np.float64]:
    if not np.isfinite(scores).all():
        raise InputError(
            "a ranking has a score that is not finite (NaN or infinity), which cannot be added to others"
        )
    if how == "none" or scores.size == 0:
        return scores
    if scores.min() == scores.max():
        return np.full_like(scores, {"min-max": 1.0, "z-score": 0.0, "dbsf": 0.5}[how])
    # Divided by the range first: the squares of very small or large scores would leave float64.
    scores = (scores - scores.min()) / (scores.max() - scores.min())
    centre, unit, shift = {
        "min-max": (0.0, 1.0, 0.0),
        "z-score": (scores.mean(), scores.std(), 0.0),
        "dbsf": (scores.mean(), 6 * scores.std(ddof=1), 0.5),  # the mean is half way from low to high
    }[how]
    return np.asarray((scores - centre) / unit + shift)


def _fused(
    rankings: Sequence[Ranking],
    parts: Sequence[dict[str, float]],
    missing: Sequence[float],
    *,
    top_k: int | None,
    names: Sequence[str] | None,
    stage: str,
) -> Ranking:
    """Return the ranking by the sum of what each ranking gives a document, or `missing` where it lacks it."""
    if not rankings:
        raise InputError("there is no ranking to fuse; give at least one")
    if top_k is not None:
        check_count(top_k)
    # A ranking read from a run file may not have the query's text.
    query = next((ranking.query for ranking in rankings if ranking.query), "")
    for ranking in rankings:
        if ranking.query not in (query, ""):
            raise InputError(
                f"only rankings for one query can be fused, not for {query!r} and {ranking.query!r}"
            )
    names = _names(rankings, names, stage)
    found: dict[str, list[tuple[str, Hit]]] = {}
    for name, ranking, part in zip(names, rankings, parts, strict=True):
        if len(part) != len(ranking):
            raise InputError(f"the ranking {name!r} has a document twice; a document can have one place only")
        for hit in ranking:
            found.setdefault(hit.document_id, []).append((name, hit))

    # fsum rounds once, whatever the order of the rankings.
    scores = {
        document_id: float(
            np.float32(math.fsum(map(dict.get, parts, itertools.repeat(document_id), missing)))
        )
        for document_id in found
    }
    order = sorted(found, key=lambda each: (scores[each], each), reverse=True)[:top_k]
    hits = []
    for rank, document_id in enumerate(order, start=1):
        sources = found[document_id]
        places = {hit.index for _, hit in sources if hit.index is not None}
        hits.append(
            Hit(
                document_id=document_id,
                score=scores[document_id],
                rank=rank,
                stage=stage,
                index=places.pop() if len(places) == 1 else None,
                document=next((hit.document for _, hit in sources if hit.document is not None), None),
                stage_scores={name: hit.score for name, hit in sources} | {stage: scores[document_id]},
            )
        )
    query_id = next((each.query_id for each in rankings if each.query_id is not None), None)
    return Ranking(query, tuple(hits), query_id=query_id)


def _names(rankings: Sequence[Ranking], names: Sequence[str] | None, stage: str) -> tuple[str, ...]:
    if names is not None:
        if len(names) != len(rankings) or len({*names, stage}) != len(names) + 1:
            raise InputError(
                f"names must be one per ranking, all different and none {stage!r}, not {list(names)} for "
                f"{len(rankings)} rankings"
            )
        return tuple(names)
    seen = [stage]  # so that a ranking of the fused stage's own name becomes its second
    unique = []
    for ranking in rankings:
        own = ranking[0].stage if len(ranking) else ""
        earlier = seen.count(own)
        seen.append(own)
        unique.append(f"{own}:{earlier + 1}" if earlier else own)
    return tuple(unique)
