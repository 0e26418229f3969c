"""Plans ask for what they say, and what they make of the answers is a ranking."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import InputError, ModelOutputError
from crossrank.models.pairwise import (
    AllPairs,
    Heap,
    Knockout,
    Quickselect,
    SampledPairs,
    SlidingWindow,
    aggregate,
    check_calls,
    compare,
    compare_many,
)

AGGREGATIONS = ("sum", "sum-log", "sym-sum", "sym-sum-log", "bradley-terry")
ADDING = [AllPairs(kind) for kind in AGGREGATIONS] + [SampledPairs(3, kind) for kind in AGGREGATIONS]
SORTING = [
    kind(k, both_orders=both)
    for kind in (SlidingWindow, Heap, Knockout, Quickselect)
    for k in (1, 3, 10, 100)
    for both in (True, False)
]
PLANS = [*ADDING, *SORTING, Quickselect(10, max_rounds=2)]
few = settings(max_examples=25, deadline=None)  # of many plans each
strengths = st.lists(st.integers(-20, 20), min_size=0, max_size=24)


class Oracle:
    """Prefers by strength, and keeps what it was asked."""

    def __init__(self, values, first_bonus=0.0):
        self.values, self.bonus, self.asked, self.rounds = values, first_bonus, [], 0

    def __call__(self, pairs):
        self.rounds += 1
        self.asked += pairs
        return [self.preference(i, j) for i, j in pairs]

    def preference(self, i, j):
        return 1 / (1 + math.exp(self.values[j] - self.values[i] - self.bonus))


def best_first(values):
    return sorted(range(len(values)), key=lambda i: -values[i])


@pytest.mark.parametrize("plan", PLANS, ids=repr)
@few
@given(values=strengths)
def test_a_ranking_has_every_item_once_within_the_calls_foretold(plan, values):
    oracle = Oracle(values)
    outcome = compare(plan, len(values), oracle)
    assert sorted(outcome.order.tolist()) == list(range(len(values)))
    assert outcome.calls == len(oracle.asked) <= plan.calls(len(values))
    assert len(set(oracle.asked)) == len(oracle.asked)
    assert all(i != j for i, j in oracle.asked)
    assert (np.diff(outcome.scores[outcome.order]) <= 0).all()


@pytest.mark.parametrize("plan", [AllPairs(kind) for kind in AGGREGATIONS], ids=repr)
@settings(deadline=None)
@given(values=st.lists(st.integers(-9, 9), unique=True, max_size=12))
def test_comparing_all_finds_the_order_of_a_consistent_judge(plan, values):
    oracle = Oracle(values)
    assert compare(plan, len(values), oracle).order.tolist() == best_first(values)
    assert len(oracle.asked) == plan.calls(len(values)) == len(values) * (len(values) - 1)
    assert oracle.rounds <= 1


@pytest.mark.parametrize("plan", SORTING, ids=repr)
@few
@given(values=strengths)
def test_sorting_settles_the_top_and_equals_keep_their_order(plan, values):
    top_k = plan.passes if isinstance(plan, SlidingWindow) else plan.top_k
    if isinstance(plan, Quickselect):  # its default number of rounds is not enough for the worst pivots
        plan = replace(plan, max_rounds=max(1, len(values)))
    # A judge that prefers what it is shown first is still right if asked both ways.
    bonus = 0.4 if plan.both_orders else 0.0
    outcome = compare(plan, len(values), Oracle(values, bonus))
    assert outcome.order.tolist()[:top_k] == best_first(values)[:top_k]


def test_items_below_the_settled_top_keep_their_order():
    values = [5, 1, 9, 3, 7, 2, 8]
    for plan in (Heap(2), Knockout(2)):
        assert compare(plan, 7, Oracle(values)).order.tolist() == [2, 6, 0, 1, 3, 4, 5]


def test_where_nothing_speaks_for_either_the_first_stage_stands():
    for plan in PLANS:
        even = compare(plan, 9, lambda pairs: [0.5] * len(pairs))
        assert even.order.tolist() == list(range(9)), plan
    for plan in SORTING:
        if plan.both_orders:  # a judge that always takes the first it is shown contradicts itself
            assert compare(plan, 9, lambda pairs: [0.9] * len(pairs)).order.tolist() == list(range(9)), plan


@given(
    values=st.lists(st.integers(-9, 9), min_size=1, max_size=20),
    per_item=st.integers(1, 30),
    seed=st.integers(0, 5),
)
def test_sampling_asks_about_all_equally_often_and_leaves_no_group_apart(values, per_item, seed):
    count = len(values)
    oracle = Oracle(values)
    plan = SampledPairs(per_item, seed=seed)
    compare(plan, count, oracle)
    each = min(per_item, count - 1)
    for place in (0, 1):
        asked = np.array([pair[place] for pair in oracle.asked], dtype=int)
        assert np.bincount(asked, minlength=count).tolist() == [each] * count
    reached = {0}
    for _ in range(count):
        reached |= {j for pair in oracle.asked for j in pair if reached & set(pair)}
    assert reached == set(range(count))


def test_formulas():
    pairs = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    p = dict(zip(pairs, (0.9, 0.2, 0.6, 0.3, 0.7, 0.5), strict=True))
    others = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    log = math.log
    expected = {
        "sum": [sum(p[i, j] for j in others[i]) for i in range(3)],
        "sum-log": [sum(log(p[i, j]) for j in others[i]) for i in range(3)],
        "sym-sum": [sum(p[i, j] + 1 - p[j, i] for j in others[i]) for i in range(3)],
        "sym-sum-log": [sum(log(p[i, j]) + log(1 - p[j, i]) for j in others[i]) for i in range(3)],
    }
    for kind, values in expected.items():
        np.testing.assert_allclose(aggregate(pairs, list(p.values()), 3, kind), values, rtol=1e-12)


def test_missing_pairs_are_scaled_up():
    # 0 was compared with one of three others, twice as its first; 3 was not compared at all.
    scores = aggregate([(0, 1), (1, 0), (1, 2)], [0.8, 0.3, 0.6], 4, "sym-sum")
    np.testing.assert_allclose(scores, [(0.8 + 0.7) * 3, (0.3 + 0.2 + 0.6) * 2, 0.4 * 6, 3.0])


def test_bradley_terry_is_the_maximum_of_its_likelihood():
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    p = rng.uniform(0.05, 0.95, len(pairs))

    def likelihood(scores):
        total = -np.log1p(np.exp(-scores)).sum() / 2 - np.log1p(np.exp(scores)).sum() / 2
        for (i, j), wins in zip(pairs, p, strict=True):
            total -= wins * np.log1p(np.exp(scores[j] - scores[i]))
            total -= (1 - wins) * np.log1p(np.exp(scores[i] - scores[j]))
        return total

    fitted = aggregate(pairs, p, 5, "bradley-terry")
    assert abs(fitted.sum()) < 1e-9
    best = max(likelihood(fitted + shift) for shift in np.linspace(-2, 2, 401))
    for i in range(5):
        for step in (-0.05, 0.05):
            moved = fitted + step * (np.arange(5) == i)
            assert max(likelihood(moved + shift) for shift in np.linspace(-2, 2, 401)) < best


def test_certain_answers_stay_finite():
    for kind in AGGREGATIONS:
        outcome = compare(AllPairs(kind), 4, lambda pairs: [float(i < j) for i, j in pairs])
        assert outcome.order.tolist() == [0, 1, 2, 3]
        assert np.isfinite(outcome.scores).all()


@given(values=st.lists(strengths, max_size=5))
def test_many_rankings_are_each_what_they_are_alone(values):
    for plan in (AllPairs(), Heap(3), Knockout(3), Quickselect(3), SlidingWindow(2)):
        oracles = [Oracle(row) for row in values]
        rounds = 0

        def prefer(asked, oracles=oracles):
            nonlocal rounds
            rounds += 1
            return [oracles[number].preference(i, j) for number, i, j in asked]

        together = compare_many(plan, [len(row) for row in values], prefer)
        alone = [compare(plan, len(row), oracle) for row, oracle in zip(values, oracles, strict=True)]
        assert [outcome.order.tolist() for outcome in together] == [o.order.tolist() for o in alone]
        assert rounds == max((oracle.rounds for oracle in oracles), default=0)


def test_the_first_round_of_a_tournament_is_one_batch():
    oracle = Oracle(list(range(16)))
    compare(Knockout(1), 16, oracle)
    assert (oracle.rounds, len(oracle.asked)) == (4, 30)


def test_fewer_calls_than_all_pairs():
    n = 50
    assert AllPairs().calls(n) == 2450
    assert SampledPairs(10).calls(n) == 500
    assert SlidingWindow(10).calls(n) == 2 * sum(range(40, 50))
    assert Knockout(10).calls(n) == 2 * (49 + 9 * 6)
    for plan in (Heap(10), Knockout(10), Quickselect(10)):
        assert plan.calls(n) < AllPairs().calls(n)


def test_a_cap_is_checked_beforehand():
    check_calls(AllPairs().calls, 50, None)
    check_calls(AllPairs().calls, 50, 2450)
    with pytest.raises(
        InputError, match=r"2,450 model calls, more than max_calls=2,449.*\(49 documents fit\)"
    ):
        check_calls(AllPairs().calls, 50, 2449)


@pytest.mark.parametrize("answers", [[0.5], [0.5, 1.5], [0.5, float("nan")], [-0.1, 0.5]])
def test_answers_that_are_no_preferences_are_refused(answers):
    with pytest.raises(ModelOutputError, match="preference"):
        compare(AllPairs(), 2, lambda pairs: answers)


def test_settings_are_checked():
    with pytest.raises(InputError, match="aggregation is 'max'; choose one of sum"):
        AllPairs("max")
    with pytest.raises(InputError, match="per_item"):
        SampledPairs(0)
    for plan in (Heap, Knockout, Quickselect, SlidingWindow):
        with pytest.raises(InputError, match="whole number"):
            plan(0)
