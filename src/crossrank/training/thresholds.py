"""The score from which on pairs are taken as relevant, for a wanted precision or recall.

Samples are drawn over queries, not pairs: the pairs of one query stand or fall together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.calibration import Aim, Floats, ProbabilityMap, Threshold

__all__ = ["choose_threshold"]

Ints = npt.NDArray[np.int64]

_LEAST_TAKEN = 10  # pairs: a precision of the first few is chance
_CONFIDENCE = (2.5, 97.5)  # percentiles


def choose_threshold(
    scores: Floats,
    relevant: Floats,
    queries: Ints,
    folds: Sequence[Ints],
    fitted: ProbabilityMap,
    *,
    aim: Aim,
    wanted: float,
    resamples: int = 1000,
    seed: int = 0,
) -> Threshold | None:
    """Choose the score at which a wanted precision or recall is reached.

    For precision it is the lowest score where the pairs of that score or more have it (at least 10 of
    them), which keeps as many relevant pairs as can be; for recall the highest that has it.

    Args:
        scores: (n,) raw scores.
        relevant: (n,) of 0 and 1.
        queries: (n,) number of each pair's query, from 0.
        folds: rows of the pairs, parted so that no query is in two: for the held-out figure.
        fitted: gives the threshold as a probability.
        aim: "precision" or "recall".
        wanted: a share above 0, at most 1.
        resamples: samples for the intervals.
        seed: of the samples.

    Returns:
        The threshold; None where no score reaches a wanted precision.

    Raises:
        InputError: a number of samples that is none, or so few that no score of theirs reaches what is
            wanted, which leaves no interval.
    """
    check_count(resamples, "resamples")
    everything = np.ones(len(scores))
    choice = _Choice(scores, relevant, aim, wanted)
    score = choice(everything)
    if score is None:
        return None
    random = np.random.default_rng(seed)
    num_queries = int(queries.max()) + 1
    values: list[float] = []
    places: list[float] = []
    for _ in range(resamples):
        drawn = np.bincount(random.integers(num_queries, size=num_queries), minlength=num_queries)
        weights = drawn[queries].astype(np.float64)
        if not (weights @ relevant > 0):
            continue
        values.append(_measured(scores, relevant, weights, score)[0 if aim == "precision" else 1])
        place = choice(weights)
        if place is not None:
            places.append(place)
    if not places:
        raise InputError(
            f"the threshold for {aim} {wanted:g} has no interval: no score reaches it in any of the "
            f"{resamples:,} resamples; give more resamples, or more judged queries"
        )
    precision, recall = _measured(scores, relevant, everything, score)
    return Threshold(
        aim=aim,
        wanted=wanted,
        score=score,
        probability=float(fitted(score)),
        precision=precision,
        recall=recall,
        interval=_interval(values),
        score_interval=_interval(places),
        held_out=_held_out(scores, relevant, folds, choice, aim),
    )


class _Choice:
    """Chooses a score for an aim, again and again over the same pairs with other weights."""

    def __init__(self, scores: Floats, relevant: Floats, aim: Aim, wanted: float) -> None:
        self._order = np.argsort(-scores, kind="stable")
        falling = scores[self._order]
        self._ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # the last of each score
        self._scores = falling[self._ends]
        self._relevant = relevant[self._order]
        self._aim, self._wanted = aim, wanted

    def __call__(self, weights: Floats) -> float | None:
        ordered = weights[self._order]
        positives = np.cumsum(ordered * self._relevant)[self._ends]
        if self._aim == "recall":
            return float(self._scores[np.flatnonzero(positives >= self._wanted * positives[-1] - 1e-9)[0]])
        taken = np.cumsum(ordered)[self._ends]
        reached = np.flatnonzero((positives >= self._wanted * taken - 1e-9) & (taken >= _LEAST_TAKEN))
        return float(self._scores[reached[-1]]) if len(reached) else None


def _measured(scores: Floats, relevant: Floats, weights: Floats, score: float) -> tuple[float, float]:
    """Precision and recall of the pairs of that score or more; the precision of none is 1."""
    taken = scores >= score
    positives = float((weights * relevant)[taken].sum())
    count, relevant_count = float(weights[taken].sum()), float(weights @ relevant)
    return positives / count if count else 1.0, positives / relevant_count if relevant_count else 0.0


def _held_out(scores: Floats, relevant: Floats, folds: Sequence[Ints], choice: _Choice, aim: Aim) -> float:
    """The measure over all folds, each cut at a score chosen on the others."""
    taken = np.zeros(len(scores), dtype=bool)
    for fold in folds:
        rest = np.ones(len(scores))
        rest[fold] = 0
        place = choice(rest)
        if place is not None:
            taken[fold] = scores[fold] >= place
    positives = float(relevant[taken].sum())
    if aim == "recall":
        return positives / float(relevant.sum())
    return positives / float(taken.sum()) if taken.any() else 1.0


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, _CONFIDENCE)
    return float(low), float(high)
