"""One order out of many: the one closest to all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["central_order", "disagreements"]


def central_order(orders: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return an order of the items 0 to count - 1 that few pairs of the given orders contradict.

    Starts from the Borda order (of equals, the lower item first) and moves single items for as long as that
    lowers the number of contradicted pairs, the best move each time. What comes out is a local optimum of
    Kemeny's rule: no single move betters it. Where majorities over all pairs agree with an order, it is that
    order.

    Args:
        orders: each some of the items, best first. Those it leaves out stand below the others, equal to
            each other.
        count: how many items there are.
    """
    votes = _votes(orders, count)
    margins = votes - votes.T  # (i, j): how many more put i before j than the other way round
    order = np.argsort(-margins.sum(axis=1), kind="stable")
    while True:
        ordered = margins[np.ix_(order, order)]
        gains = _gains(ordered)
        source, target = np.unravel_index(int(np.argmax(gains)), gains.shape)
        if gains[source, target] <= 0:
            return [int(item) for item in order]
        item = order[source]
        order = np.insert(np.delete(order, source), target, item)


def disagreements(order: Sequence[int], orders: Sequence[Sequence[int]]) -> int:
    """Count the pairs of all orders that an order has the other way round (Kendall's distance, summed)."""
    votes = _votes(orders, len(order))
    against = votes[np.ix_(order, order)].T
    return int(np.triu(against, 1).sum())


def _votes(orders: Sequence[Sequence[int]], count: int) -> npt.NDArray[np.int64]:
    votes = np.zeros((count, count), dtype=np.int64)
    for order in orders:
        below = set(range(count))
        for item in order:
            below.discard(item)
            votes[item, list(below)] += 1
    return votes


def _gains(ordered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Contradictions saved by moving the item in each place to each other place."""
    size = len(ordered)
    gains = np.zeros((size, size), dtype=np.int64)
    for place in range(size):
        # Moved up past those before it, it gains where they lose to it; moved down, where they win.
        gains[place, :place] = np.cumsum(ordered[place, :place][::-1])[::-1]
        gains[place, place + 1 :] = np.cumsum(ordered[place + 1 :, place])
    return gains
