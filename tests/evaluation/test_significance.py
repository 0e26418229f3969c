"""Intervals and the randomisation test: small cases counted out, and what must hold for any values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.evaluation import significance as module
from crossrank.evaluation.measures import Evaluation
from crossrank.evaluation.significance import Interval, compare, mean_interval


def by_query(values) -> dict[str, float]:
    return {f"q{position:04}": value for position, value in enumerate(values)}


def evaluation(*, relevance_level: int = 1, **measures: list[float]) -> Evaluation:
    """An evaluation over q0000, q0001, ...: MRR=[...] for each measure."""
    columns = {name.replace("_at_", "@"): by_query(values) for name, values in measures.items()}
    queries = next(iter(columns.values()))
    return Evaluation(
        means={name: math.fsum(column.values()) / len(column) for name, column in columns.items()},
        per_query={query: {name: column[query] for name, column in columns.items()} for query in queries},
        relevance_level=relevance_level,
    )


# Multiples of 1/64, whose sums are exact: ways to flip signs tie without rounding.
VALUES = st.integers(0, 64).map(lambda number: number / 64)


@st.composite
def paired(draw, most: int = 30):
    pairs = draw(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=most))
    first, second = zip(*pairs, strict=True)
    return by_query(first), by_query(second)


# ------------------------------------------------------------------------------------ p-values


def test_p_values_counted_by_hand() -> None:
    zeros = by_query([0.0] * 4)
    # all differences 1: of 16 sums only +4 and -4 are as far out
    assert compare(by_query([1.0] * 4), zeros).p_value == 2 / 16
    # differences 3, 2, 1, -1 sum to 5: as far out are ±(3 2 1 1) = 7, ±(3 2 -1 1) and ±(3 2 1 -1) = 5
    result = compare(by_query([3.0, 2.0, 1.0, 0.0]), by_query([0.0, 0.0, 0.0, 1.0]))
    assert result.p_value == 6 / 16
    assert result.exact
    assert (result.wins, result.ties, result.losses) == (3, 0, 1)
    assert result.difference.value == 5 / 4


@settings(max_examples=50, deadline=None)
@given(paired(most=8))
def test_the_exact_p_value_is_what_trying_every_sign_gives(pair) -> None:
    first, second = pair
    differences = [first[query] - second[query] for query in first]
    sums = [
        sum(sign * difference for sign, difference in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(abs(each) >= abs(sum(differences)) for each in sums) / len(sums)
    result = compare(first, second, resamples=10)
    assert result.p_value == pytest.approx(expected, abs=1e-12)
    assert result.exact


def test_equal_sums_count_whatever_their_rounding() -> None:
    # 0.1 + 0.2 is not 0.3 in binary; all sums of size 0.6 and 0 are as far out as 0
    first, second = by_query([0.1, 0.2, 0.0]), by_query([0.0, 0.0, 0.3])
    assert compare(first, second).p_value == 1
    # the sum 0.6 has two signs of eight
    assert compare(by_query([0.1, 0.2, 0.3]), by_query([0.0] * 3)).p_value == 2 / 8


def test_drawn_signs_come_close_to_all_signs(monkeypatch) -> None:
    random = np.random.default_rng(3)
    first, second = by_query(random.uniform(0.05, 1.05, 14)), by_query(random.uniform(0, 1, 14))
    exact = compare(first, second)
    monkeypatch.setattr(module, "_EXACT_UP_TO", 0)
    drawn = compare(first, second)
    assert (exact.exact, drawn.exact) == (True, False)
    # three standard errors of a share of 10,000
    assert drawn.p_value == pytest.approx(exact.p_value, abs=3 * math.sqrt(0.25 / 10_000))
    assert 0.01 < exact.p_value < 0.99


def test_queries_that_tie_do_not_change_the_p_value() -> None:
    first, second = [0.9, 0.4, 0.7, 0.2], [0.1, 0.5, 0.3, 0.0]
    result = compare(by_query(first + [0.5] * 40), by_query(second + [0.5] * 40))
    assert result.p_value == compare(by_query(first), by_query(second)).p_value
    assert (result.wins, result.ties, result.losses, result.exact) == (3, 40, 1, True)


def test_a_drawn_p_value_is_never_zero() -> None:
    result = compare(by_query([1.0] * 50), by_query([0.0] * 50), resamples=999)
    assert result.p_value == 1 / 1000
    assert not result.exact


@settings(max_examples=50, deadline=None)
@given(paired(), st.integers(0, 5))
def test_what_holds_for_any_two_runs(pair, seed: int) -> None:
    first, second = pair
    result = compare(first, second, resamples=200, seed=seed)
    assert result == compare(first, second, resamples=200, seed=seed)
    assert 0 < result.p_value <= 1
    assert result.wins + result.ties + result.losses == len(first)
    assert result.mean == mean_interval(first, resamples=200, seed=seed)
    assert result.other_mean == mean_interval(second, resamples=200, seed=seed)
    assert result.difference.value == pytest.approx(result.mean.value - result.other_mean.value)
    turned = compare(second, first, resamples=200, seed=seed)
    assert turned.p_value == result.p_value
    assert (turned.wins, turned.ties, turned.losses) == (result.losses, result.ties, result.wins)
    assert turned.mean == result.other_mean
    ends = (-turned.difference.high, -turned.difference.low)
    assert ends == pytest.approx((result.difference.low, result.difference.high), abs=1e-12)


@pytest.mark.parametrize("number", [2, 16, 17, 40])
def test_a_run_does_not_differ_from_itself(number: int) -> None:
    values = by_query(np.random.default_rng(number).uniform(size=number))
    result = compare(values, dict(values))
    assert result.p_value == 1
    assert (result.wins, result.ties, result.losses) == (0, number, 0)
    assert result.difference == Interval(0.0, 0.0, 0.0, 0.95)


# ------------------------------------------------------------------------------------ intervals


def test_the_interval_of_two_queries_is_counted_by_hand() -> None:
    # resamples of (0, 1) have means 0, 1/2, 1/2, 1 equally often: a quarter below, a quarter above
    values = by_query([0.0, 1.0])
    assert mean_interval(values) == Interval(0.5, 0.0, 1.0, 0.95)
    assert mean_interval(values, confidence=0.4) == Interval(0.5, 0.5, 0.5, 0.4)


def test_the_interval_has_the_percentiles_of_all_resamples() -> None:
    values = [0.0, 0.1, 0.3, 0.35, 0.9]
    means = [math.fsum(drawn) / 5 for drawn in itertools.product(values, repeat=5)]  # all 3,125
    low, high = np.quantile(means, [0.05, 0.95])
    found = mean_interval(by_query(values), confidence=0.9, resamples=40_000)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.011)


def test_many_queries_have_the_interval_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(1).beta(2, 3, 2000)
    found = mean_interval(by_query(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=0.002)


@settings(max_examples=50, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=40), st.integers(0, 5), st.randoms(use_true_random=False))
def test_what_holds_for_any_values(values: list[float], seed: int, random) -> None:
    column = by_query(values)
    found = mean_interval(column, resamples=200, seed=seed)
    assert min(values) - 1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= max(values) + 1e-12
    assert found.value == pytest.approx(sum(values) / len(values))
    shuffled = list(column.items())
    random.shuffle(shuffled)
    assert mean_interval(dict(shuffled), resamples=200, seed=seed) == found
    narrower = mean_interval(column, resamples=200, seed=seed, confidence=0.5)
    assert found.low <= narrower.low <= narrower.high <= found.high


def test_another_seed_draws_anew() -> None:
    first, second = by_query([0.1, 0.4, 0.6, 0.7] * 5), by_query([0.3, 0.2, 0.5, 0.6] * 5)
    assert mean_interval(first, seed=1) != mean_interval(first, seed=2)
    assert compare(first, second, seed=1).p_value != compare(first, second, seed=2).p_value


def test_blocks_do_not_change_the_result(monkeypatch) -> None:
    random = np.random.default_rng(3)
    first, second = by_query(random.uniform(size=30)), by_query(random.uniform(size=30))
    whole = compare(first, second, resamples=500)
    monkeypatch.setattr(module, "_BLOCK", 70)
    in_blocks = compare(first, second, resamples=500)
    assert in_blocks.mean == whole.mean
    # the draws of signs are other ones
    assert in_blocks.p_value == pytest.approx(whole.p_value, abs=0.1)
    assert (in_blocks.p_value * 501) == pytest.approx(round(in_blocks.p_value * 501))


# ------------------------------------------------------------------------------------ evaluations


def test_evaluations_are_compared_by_a_measure_in_any_spelling() -> None:
    first = evaluation(nDCG_at_10=[0.5, 0.25, 1.0], MRR=[1.0, 0.5, 1.0])
    second = evaluation(nDCG_at_10=[0.25, 0.25, 0.5], MRR=[1.0, 1.0, 1.0])
    result = compare(first, second, "ndcg_cut_10")
    assert result == compare(by_query([0.5, 0.25, 1.0]), by_query([0.25, 0.25, 0.5]))
    assert result.mean.value == first["nDCG@10"]
    assert compare(first, second, "MRR").losses == 1
    assert mean_interval(first, "recip_rank") == mean_interval(by_query([1.0, 0.5, 1.0]))
    # against figures that are from somewhere else
    assert compare(first, by_query([1.0, 1.0, 1.0]), "MRR") == compare(first, second, "MRR")


# ------------------------------------------------------------------------------------ bad input


def test_queries_that_only_one_has_are_named() -> None:
    first = by_query([0.1, 0.2])
    with pytest.raises(InputError, match=r"1 only in values \('q0001'\) and 2 only in other \('x', 'y'\); "):
        compare(first, {"q0000": 0.1, "x": 0.2, "y": 0.3})
    with pytest.raises(InputError, match=r"6 only in other \('q0002', 'q0003', 'q0004', \.\.\.\); "):
        compare(first, by_query([0.1] * 8))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, None, "0.5", True])
def test_a_value_that_is_no_number_is_named(value) -> None:
    good, bad = by_query([0.1, 0.2]), by_query([0.1, value])
    with pytest.raises(InputError, match="the value of query 'q0001' in values must be a number"):
        mean_interval(bad)
    with pytest.raises(InputError, match="the value of query 'q0001' in other must be a number"):
        compare(good, bad)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_fewer_than_two_queries_are_refused(values: list[float]) -> None:
    column, message = by_query(values), f"{len(values)} queries say nothing about others"
    with pytest.raises(InputError, match=message):
        mean_interval(column)
    with pytest.raises(InputError, match=message):
        compare(column, column)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        ("accuracy", "there is no measure 'accuracy'"),
        ("nDCG", "values has no nDCG, only MRR, MAP"),
        (None, "say which measure, one of MRR, MAP"),
    ],
)
def test_a_measure_that_an_evaluation_lacks(measure, message: str) -> None:
    found = evaluation(MRR=[0.5, 1.0], MAP=[0.1, 0.2])
    with pytest.raises(InputError, match=message):
        mean_interval(found, measure)
    with pytest.raises(InputError, match=message):
        compare(found, found, measure)


def test_evaluations_with_different_relevance_levels_are_refused() -> None:
    with pytest.raises(InputError, match="relevance levels 1 and 2"):
        compare(evaluation(MRR=[0.5, 1.0]), evaluation(relevance_level=2, MRR=[0.5, 1.0]), "MRR")


@pytest.mark.parametrize("values", [[0.1, 0.2], 0.5, None, {1: 0.5, 2: 0.1}])
def test_what_is_no_mapping_by_query_id_is_refused(values) -> None:
    with pytest.raises(InputError, match=r"must be an Evaluation or a mapping|must be strings, not 1"):
        mean_interval(values)


@pytest.mark.parametrize(
    "setting",
    [
        *({"confidence": value} for value in (95, -0.1, math.nan, "0.95")),
        *({"resamples": value} for value in (0, 1.5, True)),
        *({"seed": value} for value in (-1, 1.5, True, None)),
    ],
)
def test_settings_out_of_their_range(setting: dict) -> None:
    values = by_query([0.1, 0.2])
    with pytest.raises(InputError, match=next(iter(setting))):
        mean_interval(values, **setting)
    with pytest.raises(InputError, match=next(iter(setting))):
        compare(values, values, **setting)
