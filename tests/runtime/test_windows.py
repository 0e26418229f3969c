"""Windows cover every token; aggregation is what its name says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.runtime.windows import aggregate, check_policy, windows


@given(st.integers(0, 3000), st.integers(1, 500), st.floats(0, 0.99))
def test_every_token_is_in_a_full_window(num_tokens, size, overlap):
    spans = windows(num_tokens, size, overlap)
    assert spans[0, 0] == 0
    assert spans[-1, 1] == num_tokens
    assert (spans[1:, 0] <= spans[:-1, 1]).all()  # nothing skipped
    assert (np.diff(spans[:, 0]) > 0).all()
    assert ((spans[:, 1] - spans[:, 0]) == min(size, num_tokens)).all()


@given(st.integers(1, 100), st.floats(0, 0.99))
def test_neighbours_overlap_at_least_as_asked(size, overlap):
    spans = windows(1000, size, overlap)
    assert (spans[:-1, 1] - spans[1:, 0] >= min(size - 1, int(size * overlap))).all()


def test_the_last_window_ends_with_the_document():
    assert windows(10, 4, 0.25).tolist() == [[0, 4], [3, 7], [6, 10]]
    assert windows(11, 4, 0.25).tolist() == [[0, 4], [3, 7], [6, 10], [7, 11]]
    assert windows(4, 4).tolist() == [[0, 4]]
    assert windows(0, 4).tolist() == [[0, 0]]


def test_aggregation_by_label():
    scores = np.array([[1, 9], [4, 2], [3, 5], [2, 1]], dtype=np.float32)
    best, winners = aggregate(scores, "max")
    assert (best.tolist(), winners.tolist()) == ([4, 9], [1, 0])
    first, winners = aggregate(scores, "first")
    assert (first.tolist(), winners.tolist()) == ([1, 9], [0, 0])
    mean, winners = aggregate(scores, "mean_top_k", k=2)
    assert (mean.tolist(), winners.tolist(), mean.dtype) == ([3.5, 7], [1, 0], np.float32)
    short, _ = aggregate(scores[:1], "mean_top_k", k=3)
    assert short.tolist() == [1, 9]


def test_bad_settings():
    with pytest.raises(InputError, match="mean_top_k"):
        check_policy("mean")
    with pytest.raises(InputError, match="window of 0"):
        windows(5, 0)
    with pytest.raises(InputError, match="overlap"):
        windows(5, 2, 1.0)
