"""Plans that sort: the top is settled, in fewer comparisons than all pairs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from crossrank.checks import check_count
from crossrank.models.pairwise.plan import ItemPair, Outcome, Preferences, Rounds

__all__ = ["Heap", "Knockout", "Quickselect", "SlidingWindow"]


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
