"""Depths: numbers and rules, checked, and asked about what the stage before has scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.depths import Margin, TimeBudget, check_depths, most_of
from crossrank.errors import InputError

SCORES = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60).map(
    lambda scores: sorted(scores, reverse=True)
)


@given(SCORES, st.floats(0, 10), st.integers(1, 12), st.integers(0, 50))
def test_a_margin_lets_through_what_is_near_the_kth(scores, below, top_k, more):
    rule = Margin(below, top_k=top_k, most=top_k + more)
    count = rule(scores)
    assert min(len(scores), top_k) <= count <= min(len(scores), rule.most)
    kth = scores[min(top_k, len(scores)) - 1]
    assert all(score >= kth - rule.below for score in scores[:count])
    if count < min(len(scores), rule.most):
        assert scores[count] < kth - rule.below


def test_a_wider_margin_lets_more_through():
    scores = [5.0, 4.0, 3.0, 1.0, 0.5, -2.0]
    assert [Margin(below, top_k=2)(scores) for below in (0, 1, 3, 3.5, 100)] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Margin(-1), "below must be a number of at least 0"),
        (lambda: Margin(1, top_k=0), "top_k must be a whole number"),
        (lambda: Margin(1, top_k=20, most=10), "most is 10; it must be at least top_k, which is 20"),
        (lambda: TimeBudget("5"), "ms must be a number"),
        (lambda: TimeBudget(5, most=0), "most must be a whole number"),
        (lambda: check_depths([5, 10]), "depths of a cascade may not grow: 10 comes after 5"),
        (lambda: check_depths([5, Margin(1), 6]), "may not grow: 6 comes after 5"),
        (lambda: check_depths([0]), "whole number of at least 1"),
        (lambda: check_depths([True]), "whole number of at least 1"),
        (lambda: check_depths([max]), "a rule such as Margin"),
    ],
)
def test_what_is_no_depth_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_depths_that_may_follow_one_another():
    check_depths([Margin(1.0), np.int64(30), TimeBudget(20), 30, 5])
    assert [most_of(depth) for depth in (7, np.int64(8), Margin(1, most=40), TimeBudget(5))] == [
        7,
        8,
        40,
        100,
    ]


def held_out(seed: int, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Early scores, and final ones that agree with them more or less."""
    random = np.random.default_rng(seed)
    early = [random.normal(size=40).astype(np.float32) for _ in range(count)]
    return early, [each + random.normal(0, 0.6, 40).astype(np.float32) for each in early]


def lost(rule: Margin, early: np.ndarray, final: np.ndarray) -> bool:
    order = np.argsort(-early, kind="stable")
    kept = {*order[: rule(early[order].tolist())].tolist()}
    return not {*np.argsort(-final, kind="stable")[: rule.top_k].tolist()} <= kept


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_a_calibrated_margin_keeps_its_word_on_new_queries(confidence):
    rule = Margin.calibrated(*held_out(1, 400), top_k=5, confidence=confidence)
    early, final = held_out(2, 1000)
    share = 1 - np.mean([lost(rule, *each) for each in zip(early, final, strict=True)])
    assert share == pytest.approx(confidence, abs=0.06)
    assert np.mean([rule(sorted(each.tolist(), reverse=True)) for each in early]) < 40


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_most_confidence_keeps_all_that_was_held_out(seed, top_k):
    early, final = held_out(seed, 9)
    rule = Margin.calibrated(early, final, top_k=top_k, confidence=0.9)
    assert not any(lost(rule, *each) for each in zip(early, final, strict=True))


def test_what_cannot_be_calibrated_says_why():
    early, final = held_out(0, 12)
    with pytest.raises(
        InputError, match=r"confidence of 0.95 needs more than 12 held-out queries: at least 19"
    ):
        Margin.calibrated(early, final, confidence=0.95)
    with pytest.raises(InputError, match=r"early\[0\] has 40 scores and final\[0\] 3"):
        Margin.calibrated(early, [[1.0, 2.0, 3.0]] * 12)
    with pytest.raises(InputError, match="12 lists of scores and final 11"):
        Margin.calibrated(early, final[:-1])
    with pytest.raises(InputError, match="confidence must be a number between 0 and 1"):
        Margin.calibrated(early, final, confidence=1.5)
    assert Margin.calibrated([[1.0], []] * 5, [[3.0], []] * 5).below == 0.0
