"""What a plan of comparisons is, and how plans are run: the rounds of many rankings together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError, ModelOutputError

__all__ = [
    "ComparisonPlan",
    "ItemPair",
    "Outcome",
    "Preferences",
    "Rounds",
    "as_preferences",
    "check_calls",
    "check_plan",
    "compare",
    "compare_many",
]

Preferences = npt.NDArray[np.float64]
ItemPair = tuple[int, int]


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
        answers = as_preferences(prefer(asked), len(asked))
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


def as_preferences(preferences: Any, count: int) -> Preferences:
    """Return what was answered as float64 (count,).

    Raises:
        ModelOutputError: not `count` numbers from 0 to 1.
    """
    known = np.asarray(preferences, dtype=np.float64)
    if known.shape != (count,):
        raise ModelOutputError(f"{count} pairs were asked about, but there are {known.shape} preferences")
    if not ((known >= 0) & (known <= 1)).all():
        bad = int(np.flatnonzero(~((known >= 0) & (known <= 1)))[0])
        raise ModelOutputError(f"a preference must be a number from 0 to 1, not {known[bad]} (pair {bad})")
    return known
