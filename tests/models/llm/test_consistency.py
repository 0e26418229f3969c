"""One order out of many, against trying all orders."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crossrank.models.llm.consistency import central_order, disagreements


def kendall(order, other):
    """Pairs that two orders have the other way round; what `other` leaves out is equal and last."""
    place = {item: at for at, item in enumerate(other)}
    last = len(order)
    return sum(
        place.get(order[i], last) > place.get(order[j], last)
        for i in range(len(order))
        for j in range(i + 1, len(order))
    )


ORDERS = st.integers(1, 5).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(
            st.tuples(st.permutations(range(count)), st.integers(0, count)).map(lambda cut: cut[0][: cut[1]]),
            max_size=6,
        ),
    )
)


@given(ORDERS)
def test_no_single_move_comes_closer_and_it_is_no_worse_than_borda(case):
    count, orders = case
    found = central_order(orders, count)
    assert sorted(found) == list(range(count))
    distance = sum(kendall(found, order) for order in orders)
    assert disagreements(found, orders) == distance
    for source in range(count):
        for target in range(count):
            moved = [item for item in found if item != found[source]]
            moved.insert(target, found[source])
            assert sum(kendall(moved, order) for order in orders) >= distance
    wins = np.zeros(count)
    for order in orders:
        for at, item in enumerate(order):
            wins[item] += count - 1 - at
            for below in set(range(count)) - set(order[: at + 1]):
                wins[below] -= 1
    borda = np.argsort(-wins, kind="stable").tolist()
    assert distance <= sum(kendall(borda, order) for order in orders)


@given(ORDERS)
def test_where_majorities_agree_with_an_order_it_is_that_one(case):
    count, orders = case
    best = min(permutations(range(count)), key=lambda order: disagreements(order, orders))
    votes = np.zeros((count, count))
    for order in orders:
        for at, item in enumerate(order):
            for below in set(range(count)) - set(order[: at + 1]):
                votes[item, below] += 1
    margins = votes - votes.T
    if all(margins[best[i], best[j]] > 0 for i in range(count) for j in range(i + 1, count)):
        assert tuple(central_order(orders, count)) == best


def test_without_votes_the_order_stays():
    assert central_order([], 4) == [0, 1, 2, 3]
    assert central_order([[], []], 3) == [0, 1, 2]
    assert central_order([[2]], 3) == [2, 0, 1]
