"""A row's padded length is its own business, and plans cover every row within the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.runtime.batching import padded_length, padded_lengths, plan

LENGTHS = st.lists(st.integers(1, 600), max_size=300)


@given(st.integers(1, 10_000))
def test_padding_is_enough_and_little(length):
    padded = padded_length(length)
    assert 0 <= padded - length < (8 if length <= 128 else 16 if length <= 256 else 32)
    assert padded_length(padded) == padded


@given(st.integers(1, 512))
def test_padding_stops_at_the_models_limit(length):
    assert length <= padded_length(length, limit=512) <= 512
    assert padded_length(length, limit=length) == length


@given(LENGTHS, st.integers(1, 3000))
def test_every_row_once_within_the_budget(lengths, budget):
    batches = plan(np.array(lengths, dtype=np.int64), budget)
    rows = [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= budget
        for row in batch.rows.tolist():
            assert batch.length == padded_length(lengths[row])


@given(LENGTHS, st.integers(1, 3000), st.integers(1, 4))
def test_exact_batches_have_rows_of_one_length(lengths, budget, parallel):
    batches = plan(np.array(lengths, dtype=np.int64), budget, parallel=parallel, grouping="exact")
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.rows) == 1 or len(batch.rows) * batch.length <= budget
        assert {lengths[row] for row in batch.rows} == {batch.length}


@given(LENGTHS, st.integers(1, 3000), st.integers(1, 4))
def test_mixed_batches_have_neighbours_by_length_and_get_smaller(lengths, budget, parallel):
    batches = plan(lengths, budget, parallel=parallel, grouping="mixed")
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(lengths)))
    left = sum(lengths)
    shortest = max(lengths, default=0)
    for batch in batches:
        own = [lengths[row] for row in batch.rows.tolist()]
        assert list(batch.rows) == sorted(batch.rows)
        assert max(own) == batch.length <= shortest
        assert len(own) == 1 or len(own) * batch.length <= min(budget, -(-left // (2 * parallel)))
        shortest = min(own)
        left -= sum(own)


@given(LENGTHS, LENGTHS, st.integers(1, 3000))
def test_neighbours_do_not_change_a_rows_padding(lengths, others, budget):
    def padded_by_row(all_lengths):
        return {row: batch.length for batch in plan(all_lengths, budget) for row in batch.rows.tolist()}

    alone, together = padded_by_row(lengths), padded_by_row(lengths + others)
    assert all(together[row] == alone[row] for row in alone)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40), st.integers(1, 16))
def test_few_rows_are_shared_among_those_that_run_at_a_time(lengths, parallel):
    batches = plan(lengths, 10**6, parallel=parallel)
    share = -(-sum(padded_length(length) for length in lengths) // parallel)
    assert all(len(batch.rows) == 1 or len(batch.rows) * batch.length <= share for batch in batches)
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(lengths)))


def test_longest_first_even_and_deterministic():
    lengths = [8] * 13 + [120] * 5
    batches = plan(lengths, 96)
    assert [batch.length for batch in batches] == [120] * 5 + [8] * 2
    assert [len(batch.rows) for batch in batches[5:]] == [6, 7]
    again = plan(lengths, 96)
    assert all((one.rows == two.rows).all() for one, two in zip(batches, again, strict=True))


def test_a_hundred_thousand_rows():
    lengths = np.random.default_rng(0).integers(1, 513, 100_000)
    batches = plan(lengths, 1024)
    assert sum(len(batch.rows) for batch in batches) == 100_000
    padding = sum(len(batch.rows) * batch.length for batch in batches) / lengths.sum() - 1
    assert padding < 0.06


def test_nothing_to_do():
    assert plan([], 1024) == []
    assert padded_lengths([]).shape == (0,)


@pytest.mark.parametrize("lengths", [[0], [5, -1]])
def test_empty_rows_are_refused(lengths):
    with pytest.raises(InputError, match="at least 1"):
        plan(lengths, 1024)


def test_rows_over_the_limit_and_budgets_below_one_are_refused():
    for grouping in ("steps", "exact", "mixed"):
        with pytest.raises(InputError, match="at most 512"):
            plan([513], 1024, limit=512, grouping=grouping)
    with pytest.raises(InputError, match="token_budget"):
        plan([5], 0)
