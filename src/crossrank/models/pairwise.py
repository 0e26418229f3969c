"""Rankings from preferences between two items: which pairs to compare, and what the answers add up to.

Nothing here knows what is compared or by which model. A plan works on the numbers 0 to n - 1, in the order
a first stage left them. It asks for preferences in rounds, each a list of ordered pairs, and what is known
after the last round is the ranking. The rounds of many rankings are put together (`compare_many`), so a
model gets full batches even from plans that ask for one pair at a time.

A preference for (i, j) is the probability that i is more relevant than j, when i is shown first. Models
favour a position, so (j, i) is another question; where both are asked, i wins if the preference for (i, j)
is higher than that for (j, i). Where nothing speaks for either, the one that came in first wins.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError, ModelOutputError

__all__ = [
    "Aggregation",
    "AllPairs",
    "ComparisonPlan",
    "Heap",
    "Knockout",
    "Outcome",
    "Quickselect",
    "Rounds",
    "SampledPairs",
    "SlidingWindow",
    "aggregate",
    "check_calls",
    "check_plan",
    "compare",
    "compare_many",
]

Aggregation = Literal["sum", "sum-log", "sym-sum", "sym-sum-log", "bradley-terry"]
Preferences = npt.NDArray[np.float64]
ItemPair = tuple[int, int]

_LEAST = 1e-12  # stands for a preference of 0 where its logarithm is taken
_TOLERANCE, _MAX_STEPS = 1e-10, 10_000  # of the Bradley-Terry fit


class Outcome(NamedTuple):
    """What a plan makes of n items.

    Attributes:
        order: int64 (n,), the items, best first.
        scores: float64 (n,), of each item, never rising along the order: the aggregated preferences, or, of
            plans that sort, how many items stand below it.
        calls: how many preferences were asked for.
    """

    order: npt.NDArray[np.int64]
    scores: Preferences
    calls: int


Rounds = Generator[list[ItemPair], Preferences, Outcome]
"""Yields the pairs of a round, is sent their preferences (float64, in their order), returns the outcome."""


class ComparisonPlan(Protocol):
    """Decides which items are compared."""

    def calls(self, count: int) -> int:
        """The most preferences that a ranking of `count` items can ask for."""
        ...

    def rounds(self, count: int) -> Rounds:
        """Rank the items 0 to count - 1; see `Rounds`. No round is empty."""
        ...


def compare(plan: ComparisonPlan, count: int, prefer: Callable[[list[ItemPair]], npt.ArrayLike]) -> Outcome:
    """Rank `count` items.

    Args:
        plan: which pairs to compare.
        count: how many items there are; 0 is an empty ranking.
        prefer: gives the preferences of a list of ordered pairs (i, j), numbers from 0 to 1.

    Raises:
        ModelOutputError: `prefer` gave something else.
    """
    return compare_many(plan, [count], lambda asked: prefer([(i, j) for _, i, j in asked]))[0]


def compare_many(
    plan: ComparisonPlan,
    counts: Sequence[int],
    prefer: Callable[[list[tuple[int, int, int]]], npt.ArrayLike],
) -> list[Outcome]:
    """Rank several sets of items, a round of all of them at a time.

    Args:
        plan: which pairs to compare, in each set.
        counts: how many items each set has.
        prefer: gives the preferences of a list of (number of the set, i, j), numbers from 0 to 1.

    Returns:
        One outcome for each set.

    Raises:
        ModelOutputError: `prefer` gave something else.
    """
    outcomes: dict[int, Outcome] = {}
    running: dict[int, tuple[Rounds, list[ItemPair]]] = {}

    def step(number: int, rounds: Rounds, answers: Preferences | None) -> None:
        try:
            # A generator's first step takes no answers.
            pairs = next(rounds) if answers is None else rounds.send(answers)
        except StopIteration as end:
            outcomes[number] = end.value
            running.pop(number, None)
        else:
            running[number] = rounds, pairs

    for number, count in enumerate(counts):
        step(number, plan.rounds(count), None)
    while running:
        asked = [(number, i, j) for number, (_, pairs) in running.items() for i, j in pairs]
        answers = _checked(prefer(asked), len(asked))
        start = 0
        for number, (rounds, pairs) in list(running.items()):
            step(number, rounds, answers[start : start + len(pairs)])
            start += len(pairs)
    return [outcomes[number] for number in range(len(counts))]


def check_plan(plan: object) -> None:
    """Refuse what is no plan of comparisons.

    Raises:
        InputError: says what it is.
    """
    if isinstance(plan, type) or not all(callable(getattr(plan, name, None)) for name in ("calls", "rounds")):
        raise InputError(
            f"plan must be one of crossrank.models.pairwise, such as Heap(top_k=10), not {plan!r:.80}"
        )


def check_calls(calls: Callable[[int], int], count: int, max_calls: int | None) -> None:
    """Refuse, before anything is asked, a ranking that can take more calls than are allowed.

    Args:
        calls: the most that ranking so many documents can take.
        count: how many there are.
        max_calls: as many as are allowed; None allows any number.

    Raises:
        InputError: says how many it can take, and for how many documents they would be few enough.
    """
    if max_calls is None or calls(count) <= max_calls:
        return
    fitting = next(fewer for fewer in range(count - 1, -1, -1) if calls(fewer) <= max_calls)
    raise InputError(
        f"ranking {count} documents can take {calls(count):,} model calls, more than "
        f"max_calls={max_calls:,}; lower depth ({fitting} documents fit), or raise max_calls"
    )


# --- plans that compare, and then add up --------------------------------------------------------------


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
    known = _checked(preferences, len(pairs))
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


# --- plans that sort: only the top is settled ---------------------------------------------------------


@dataclass(frozen=True)
class SlidingWindow:
    """Compares neighbours from the last to the first: each pass brings the best that is left to the top.

    After k passes the first k places are settled; the others keep the order they came in but for those that
    were overtaken. A ranking asks for one pair at a time.

    Args:
        passes: how often to go through the list.
        both_orders: whether a comparison asks for both orders of its pair: twice the calls.

    Source: PRP-Sliding-K, Qin et al. 2024, arXiv:2306.17563.
    """

    passes: int = 10
    both_orders: bool = True

    def __post_init__(self) -> None:
        check_count(self.passes, "passes")

    def calls(self, count: int) -> int:
        """As many as neighbours met; fewer where two meet again, which is not asked twice."""
        return _calls(sum(max(0, count - 1 - done) for done in range(self.passes)), count, self.both_orders)

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        referee = _Referee(self.both_orders)
        order = list(range(count))
        for done in range(min(self.passes, count - 1)):
            for place in range(count - 1, done, -1):
                above, below = order[place - 1], order[place]
                if (yield from referee.wins([(below, above)]))[0]:
                    order[place - 1 : place + 1] = below, above
        return referee.outcome(order)


@dataclass(frozen=True)
class Heap:
    """Takes the best `top_k` items off a heap, as heapsort does; the others follow in the order they came in.

    Args:
        top_k: places to settle.
        both_orders: whether a comparison asks for both orders of its pair: twice the calls.

    Source: PRP-Sorting, Qin et al. 2024, arXiv:2306.17563.
    """

    top_k: int = 10
    both_orders: bool = True

    def __post_init__(self) -> None:
        check_count(self.top_k)

    def calls(self, count: int) -> int:
        """At most two comparisons a level, for each item sifted down."""
        building = sum(_levels_below(place, count) for place in range(count // 2))
        taking = sum(_levels_below(0, count - taken) for taken in range(1, min(self.top_k, count)))
        return _calls(2 * (building + taking), count, self.both_orders)

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        referee = _Referee(self.both_orders)
        heap = list(range(count))
        for place in range(count // 2 - 1, -1, -1):
            yield from self._sift_down(heap, place, referee)
        top: list[int] = []
        while heap and len(top) < self.top_k:
            top.append(heap[0])
            last = heap.pop()
            if heap and len(top) < self.top_k:
                heap[0] = last
                yield from self._sift_down(heap, 0, referee)
        return referee.outcome(_then_rest(top, count))

    def _sift_down(
        self, heap: list[int], place: int, referee: _Referee
    ) -> Generator[list[ItemPair], Preferences, None]:
        while (child := 2 * place + 1) < len(heap):
            right = child + 1
            if right < len(heap) and (yield from referee.wins([(heap[right], heap[child])]))[0]:
                child = right
            if not (yield from referee.wins([(heap[child], heap[place])]))[0]:
                return
            heap[place], heap[child] = heap[child], heap[place]
            place = child


@dataclass(frozen=True)
class Knockout:
    """A knock-out tournament for the best item, replayed without each winner for the next, `top_k` times.

    Takes the fewest calls of the plans for a top: n - 1 comparisons, those of a level of the tournament in
    one round, and for each further place as many as there are levels. The others follow in the order they
    came in.

    Args:
        top_k: places to settle.
        both_orders: whether a comparison asks for both orders of its pair: twice the calls.
    """

    top_k: int = 10
    both_orders: bool = True

    def __post_init__(self) -> None:
        check_count(self.top_k)

    def calls(self, count: int) -> int:
        """At most count - 1 comparisons, and one a level for each further place."""
        if count < 2:
            return 0
        replays = (min(self.top_k, count) - 1) * (count - 1).bit_length()
        return _calls(count - 1 + replays, count, self.both_orders)

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        referee = _Referee(self.both_orders)
        left = list(range(count))
        top: list[int] = []
        size = 1 << max(0, count - 1).bit_length()
        while left and len(top) < self.top_k:
            # Whole levels are played anew: what was decided before is not asked again.
            level: list[int | None] = [item if item in left else None for item in range(size)]
            while len(level) > 1:
                met = [
                    (b, a)
                    for a, b in zip(level[::2], level[1::2], strict=True)
                    if a is not None and b is not None
                ]
                upsets = dict(zip(met, (yield from referee.wins(met)), strict=True))
                level = [
                    (a if b is None else b if a is None or upsets[b, a] else a)
                    for a, b in zip(level[::2], level[1::2], strict=True)
                ]
            assert level[0] is not None  # there was at least one left
            top.append(level[0])
            left.remove(level[0])
        return referee.outcome(_then_rest(top, count))


@dataclass(frozen=True)
class Quickselect:
    """Compares with a pivot, parts winners from losers, and goes on with the parts that reach the top.

    A round compares all open parts with their pivots, so there are few rounds, of many pairs each: the plan
    for a model that is fast in large batches. The pivot is the middle item of its part. Parts still open
    after the last round keep the order they came in, as do those below the top.

    Args:
        top_k: places to settle.
        both_orders: whether a comparison asks for both orders of its pair: twice the calls.
        max_rounds: after which to stop; None takes 2 ⌈log₂ n⌉, which is enough unless pivots are very bad.

    Source: Hoare 1961, algorithms 64 and 65; Quicksort for LLM rerankers, arXiv:2505.24643.
    """

    top_k: int = 10
    both_orders: bool = True
    max_rounds: int | None = None

    def __post_init__(self) -> None:
        check_count(self.top_k)
        if self.max_rounds is not None:
            check_count(self.max_rounds, "max_rounds")

    def calls(self, count: int) -> int:
        """Where every pivot is the worst that it can be; usually a small part of that."""
        rounds = self._rounds(count)
        return _calls(sum(max(0, count - 1 - done) for done in range(rounds)), count, self.both_orders)

    def rounds(self, count: int) -> Rounds:
        """Rank the items; see `ComparisonPlan.rounds`."""
        referee = _Referee(self.both_orders)
        parts = [list(range(count))]
        for _ in range(self._rounds(count)):
            pivots = self._pivots(parts)
            met = [
                (item, pivot)
                for part, pivot in zip(parts, pivots, strict=True)
                if pivot is not None
                for item in part
                if item != pivot
            ]
            if not met:
                break
            better = dict(zip(met, (yield from referee.wins(met)), strict=True))
            split: list[list[int]] = []
            for part, pivot in zip(parts, pivots, strict=True):
                if pivot is None:
                    split.append(part)
                    continue
                above = [item for item in part if item != pivot and better[item, pivot]]
                below = [item for item in part if item != pivot and not better[item, pivot]]
                split += [group for group in (above, [pivot], below) if group]
            parts = split
        return referee.outcome([item for part in parts for item in part])

    def _pivots(self, parts: list[list[int]]) -> list[int | None]:
        """The pivot of each part; None where a part is settled, or lies below the top."""
        pivots: list[int | None] = []
        start = 0
        for part in parts:
            pivots.append(part[len(part) // 2] if len(part) > 1 and start < self.top_k else None)
            start += len(part)
        return pivots

    def _rounds(self, count: int) -> int:
        return self.max_rounds or 2 * max(0, count - 1).bit_length()


class _Referee:
    """Decides who wins, and asks about no pair of items twice."""

    def __init__(self, both_orders: bool) -> None:
        self._both_orders = both_orders
        self._first_wins: dict[ItemPair, bool] = {}  # of (lower number, higher number)
        self._calls = 0

    def wins(self, pairs: list[ItemPair]) -> Generator[list[ItemPair], Preferences, list[bool]]:
        """Say for each pair whether its first item wins."""
        unknown = list(
            dict.fromkeys(pair for i, j in pairs if (pair := (min(i, j), max(i, j))) not in self._first_wins)
        )
        if unknown:
            asked = unknown + [(j, i) for i, j in unknown] if self._both_orders else unknown
            preferences = yield asked
            self._calls += len(asked)
            against = preferences[len(unknown) :] if self._both_orders else np.full(len(unknown), 0.5)
            decided = preferences[: len(unknown)] >= against  # the one that came in first wins what is even
            self._first_wins.update(zip(unknown, decided.tolist(), strict=True))
        return [self._first_wins[i, j] if i < j else not self._first_wins[j, i] for i, j in pairs]

    def outcome(self, order: Sequence[int]) -> Outcome:
        scores = np.empty(len(order))
        scores[list(order)] = np.arange(len(order) - 1, -1, -1)
        return Outcome(np.array(order, dtype=np.int64), scores, self._calls)


def _then_rest(top: list[int], count: int) -> list[int]:
    chosen = set(top)
    return top + [item for item in range(count) if item not in chosen]


def _calls(comparisons: int, count: int, both_orders: bool) -> int:
    """Calls for so many comparisons, of which none is made twice."""
    return min(comparisons, count * (count - 1) // 2) * (2 if both_orders else 1)


def _levels_below(place: int, size: int) -> int:
    """How far an item of a heap can be sifted down."""
    levels = 0
    while (place := 2 * place + 1) < size:
        levels += 1
    return levels


def _check_aggregation(aggregation: str) -> None:
    if aggregation not in get_args(Aggregation):
        raise InputError(f"aggregation is {aggregation!r}; choose one of {', '.join(get_args(Aggregation))}")


def _checked(preferences: Any, count: int) -> Preferences:
    known = np.asarray(preferences, dtype=np.float64)
    if known.shape != (count,):
        raise ModelOutputError(f"{count} pairs were asked about, but there are {known.shape} preferences")
    if not ((known >= 0) & (known <= 1)).all():
        bad = int(np.flatnonzero(~((known >= 0) & (known <= 1)))[0])
        raise ModelOutputError(f"a preference must be a number from 0 to 1, not {known[bad]} (pair {bad})")
    return known
