"""Rankings from preferences between two items: which pairs to compare, and what the answers add up to.

Nothing here knows what is compared or by which model. A plan works on the numbers 0 to n - 1, in the order
a first stage left them. It asks for preferences in rounds, each a list of ordered pairs, and what is known
after the last round is the ranking. The rounds of many rankings are put together (`compare_many`), so a
model gets full batches even from plans that ask for one pair at a time.

A preference for (i, j) is the probability that i is more relevant than j, when i is shown first. Models
favour a position, so (j, i) is another question; where both are asked, i wins if the preference for (i, j)
is higher than that for (j, i). Where nothing speaks for either, the one that came in first wins.
"""

from crossrank.models.pairwise.aggregation import Aggregation, AllPairs, SampledPairs, aggregate
from crossrank.models.pairwise.plan import (
    ComparisonPlan,
    Outcome,
    Rounds,
    check_calls,
    check_plan,
    compare,
    compare_many,
)
from crossrank.models.pairwise.sorting import Heap, Knockout, Quickselect, SlidingWindow

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
