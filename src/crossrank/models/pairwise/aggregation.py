"""Plans that compare in one round and then add up, and what preferences add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.models.pairwise.plan import ItemPair, Outcome, Preferences, Rounds, as_preferences

__all__ = ["Aggregation", "AllPairs", "SampledPairs", "aggregate"]

Aggregation = Literal["sum", "sum-log", "sym-sum", "sym-sum-log", "bradley-terry"]

_LEAST = 1e-12  # stands for a preference of 0 where its logarithm is taken
_TOLERANCE, _MAX_STEPS = 1e-10, 10_000  # of the Bradley-Terry fit


@dataclass(frozen=True)
class AllPairs:
    """Compares every item with every other, in both orders: n (n - 1) calls, all in one round.

    Args:
        aggregation: see `aggregate`.

    Source: Pradeep et al. 2021, arXiv:2101.05667.
    """

    aggregation: Aggregation = "sym-sum"

    def __post_init__(self) -> None:
        _check_aggregation(self.aggregation)

    def calls(self, count: int) -> int:
        """Exactly count × (count - 1)."""
        return count * (count - 1)

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        return _aggregated(pairs, count, self.aggregation)


@dataclass(frozen=True)
class SampledPairs:
    """Compares every item with a few others: n × `per_item` calls, all in one round.

    Items are put in a circle, in an order drawn by the seed, and each is asked about, as the first, with the
    `per_item` ones that follow it. So each is the first and the second equally often, and no group of items
    is left without a comparison to the rest.

    Args:
        per_item: comparisons in which an item is the first; as many again have it as the second.
        aggregation: see `aggregate`.
        seed: of the circle.

    Source: sampling of duoT5's comparisons, Gienapp et al. 2022, arXiv:2207.04470.
    """

    per_item: int = 10
    aggregation: Aggregation = "sym-sum"
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.per_item, "per_item")
        _check_aggregation(self.aggregation)

    def calls(self, count: int) -> int:
        """Exactly count × per_item, or all pairs where these are fewer."""
        return count * min(self.per_item, max(0, count - 1))

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        circle = sorted(range(count), key=lambda i: blake2b(f"{self.seed} {i}".encode()).digest())
        pairs = [
            (circle[place], circle[(place + step) % count])
            for step in range(1, min(self.per_item, count - 1) + 1)
            for place in range(count)
        ]
        return _aggregated(pairs, count, self.aggregation)


def aggregate(
    pairs: Sequence[ItemPair], preferences: npt.ArrayLike, count: int, aggregation: Aggregation = "sym-sum"
) -> Preferences:
    """Scores of items from the preferences between them, p(i, j).

    "sum" is Σ_j p(i, j); "sum-log" Σ_j log p(i, j); "sym-sum" Σ_j (p(i, j) + 1 - p(j, i)); "sym-sum-log"
    Σ_j (log p(i, j) + log(1 - p(j, i))). Where pairs are missing the sum is that of the known ones, scaled up
    to all. "bradley-terry" is the logarithm of the strengths under which the preferences are likeliest, if i
    beats j with probability strength_i / (strength_i + strength_j); a preference counts as a part of a win,
    and half a win for and against an item of mean strength keeps strengths finite.

    Args:
        pairs: ordered pairs of items, each at most once.
        preferences: from 0 to 1, of each pair; in logarithms 0 counts as 1e-12.
        count: how many items there are.
        aggregation: how to add up.

    Returns:
        float64 (count,). An item without a comparison scores as one that is even with all.

    Source: Pradeep et al. 2021, arXiv:2101.05667, section 3.3; Bradley and Terry 1952, fitted as in
    Hunter 2004, "MM algorithms for generalized Bradley-Terry models".
    """
    _check_aggregation(aggregation)
    known = as_preferences(preferences, len(pairs))
    firsts, seconds = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    if aggregation == "bradley-terry":
        wins = np.zeros((count, count))
        np.add.at(wins, (firsts, seconds), known)
        np.add.at(wins, (seconds, firsts), 1 - known)
        return _bradley_terry(wins)
    if aggregation.endswith("log"):
        of_first, of_second = np.log(np.maximum(known, _LEAST)), np.log(np.maximum(1 - known, _LEAST))
        even = np.log(0.5)
    else:
        of_first, of_second, even = known, 1 - known, 0.5
    totals = np.bincount(firsts, of_first, count)
    terms = np.bincount(firsts, minlength=count)
    expected = count - 1
    if aggregation.startswith("sym"):
        totals += np.bincount(seconds, of_second, count)
        terms = terms + np.bincount(seconds, minlength=count)
        expected *= 2
    means = np.where(terms > 0, totals / np.maximum(terms, 1), even)
    return np.where(terms == expected, totals, means * expected)


def _aggregated(pairs: list[ItemPair], count: int, aggregation: Aggregation) -> Rounds:
    preferences = (yield pairs) if pairs else np.empty(0)
    scores = aggregate(pairs, preferences, count, aggregation)
    return Outcome(np.argsort(-scores, kind="stable"), scores, len(pairs))


def _bradley_terry(wins: Preferences) -> Preferences:
    """Log strengths from wins (n, n) of rows over columns, centred on 0."""
    games = wins + wins.T
    total = wins.sum(axis=1) + 0.5
    strengths = np.ones(len(wins))
    for _ in range(_MAX_STEPS):
        expected = (games / (strengths[:, None] + strengths)).sum(axis=1) + 1 / (strengths + 1)
        new = total / expected
        change = np.abs(np.log(new / strengths)).max(initial=0)
        strengths = new
        if change < _TOLERANCE:
            break
    logs = np.log(strengths)
    return logs - logs.mean() if len(logs) else logs


def _check_aggregation(aggregation: str) -> None:
    if aggregation not in get_args(Aggregation):
        raise InputError(f"aggregation is {aggregation!r}; choose one of {', '.join(get_args(Aggregation))}")
