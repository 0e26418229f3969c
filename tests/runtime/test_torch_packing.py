"""Padded batches to packed ones and back, and the shapes they are filled up to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.torch_backend.packing import halves, joined, pack, unpack_rows, unpack_tokens
from crossrank.runtime.torch_backend.shapes import LARGEST, fill, shape_for

Batches = list[list[list[int]]]
BATCHES = st.lists(
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=9), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def padded(rows: list[list[int]], extra: int = 2) -> ModelInputs:
    ids = np.zeros((len(rows), max(map(len, rows)) + extra), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return ModelInputs(ids, mask, ids % 2)


@given(BATCHES)
def test_packing_keeps_every_token_and_no_padding(batches: Batches) -> None:
    packed = pack([padded(rows) for rows in batches])
    rows = [row for batch in batches for row in batch]
    assert packed.ids.tolist() == [token for row in rows for token in row]
    assert packed.types.tolist() == [token % 2 for row in rows for token in row]
    assert packed.lengths.tolist() == packed.attended.tolist() == list(map(len, rows))
    assert packed.longest == max(map(len, rows))
    for number, row in enumerate(rows):
        start, end = packed.starts[number : number + 2].tolist()
        assert packed.ids[start:end].tolist() == row
        assert packed.positions[start:end].tolist() == list(range(len(row)))
        assert set(packed.rows[start:end].tolist()) == {number}


@given(BATCHES, st.booleans())
def test_what_is_unpacked_lies_where_it_came_from(batches: Batches, with_padding: bool) -> None:
    inputs = [padded(rows) for rows in batches]
    packed = pack(inputs, with_padding=with_padding)
    vectors = np.stack([packed.ids, packed.types], axis=1).astype(np.float32)
    for batch, found in zip(inputs, unpack_tokens(vectors, inputs, with_padding=with_padding), strict=True):
        np.testing.assert_array_equal(found[..., 0], batch.input_ids)  # padding is 0 here
        np.testing.assert_array_equal(found[..., 1], batch.token_type_ids)
    of_rows = unpack_rows(packed.lengths[:, None].astype(np.float32), inputs)
    assert [len(each) for each in of_rows] == [len(rows) for rows in batches]


def test_padding_that_is_wanted_is_not_attended_to() -> None:
    packed = pack([padded([[5, 6, 7], [8]])], with_padding=True)
    assert packed.lengths.tolist() == [5, 5]
    assert packed.attended.tolist() == [3, 1]
    assert packed.ids.tolist() == [5, 6, 7, 0, 0, 8, 0, 0, 0, 0]


@given(BATCHES, st.integers(1, 60), st.booleans())
def test_joining_keeps_order_and_budget(batches: Batches, budget: int, one_length: bool) -> None:
    inputs = [padded(rows) for rows in batches]
    groups = list(joined(inputs, budget, one_length=one_length))
    assert [id(batch) for group in groups for batch in group] == list(map(id, inputs))
    for group in groups:
        assert len(group) == 1 or sum(batch.input_ids.size for batch in group) <= budget
        assert not one_length or len({batch.input_ids.shape[1] for batch in group}) == 1
    for group, following in itertools.pairwise(groups):
        size = sum(batch.input_ids.size for batch in [*group, following[0]])
        same = group[0].input_ids.shape[1] == following[0].input_ids.shape[1]
        assert size > budget or (one_length and not same)  # no group could have taken one more


def test_halves_of_a_group() -> None:
    three = [padded([[5]]), padded([[6], [7]]), padded([[8]])]
    parts = halves(three)
    assert parts is not None
    assert [list(map(id, part)) for part in parts] == [[id(three[0])], [id(three[1]), id(three[2])]]
    parts = halves([padded([[5], [6], [7]])])
    assert parts is not None
    assert [part[0].input_ids[:, 0].tolist() for part in parts] == [[5], [6, 7]]
    assert halves([padded([[5, 6]])]) is None


@given(st.integers(1, LARGEST), st.integers(1, 4000), st.integers(1, 512), st.sampled_from([None, 512, 600]))
def test_shapes_hold_their_batches_and_waste_little(
    tokens: int, rows: int, longest: int, limit: int | None
) -> None:
    rows, longest = min(rows, tokens), min(longest, tokens)
    shape = shape_for(tokens, rows, longest, limit)
    assert shape is not None
    assert tokens <= shape.tokens <= max(256, 1.25 * tokens)
    assert longest <= shape.longest <= max(64, 2 * longest)
    assert limit is None or shape.longest <= limit
    needed = rows + -(-(shape.tokens - tokens) // shape.longest)
    assert needed <= shape.rows <= max(8, 2 * needed)


def test_there_are_few_shapes_of_tokens() -> None:
    shapes = {shape_for(tokens, 10, 100, 512) for tokens in range(10, LARGEST + 1, 7)}
    sizes = sorted({shape.tokens for shape in shapes if shape is not None})
    assert sizes[:6] == [256, 320, 384, 448, 512, 640]
    assert sizes[-1] == LARGEST
    assert len(sizes) == 25
    assert shape_for(LARGEST + 1, 10, 100, 512) is None


@given(BATCHES)
def test_filling_up_adds_rows_behind_the_others(batches: Batches) -> None:
    packed = pack([padded(rows) for rows in batches])
    shape = shape_for(len(packed.ids), len(packed.lengths), packed.longest, 64)
    assert shape is not None
    filled = fill(packed, shape)
    count = len(packed.lengths)
    assert (len(filled.ids), len(filled.lengths), filled.longest) == shape
    assert filled.lengths[:count].tolist() == packed.lengths.tolist()
    assert filled.ids[: len(packed.ids)].tolist() == packed.ids.tolist()
    assert filled.lengths.sum() == shape.tokens
    assert filled.lengths.max() <= shape.longest
    assert filled.positions.max() < shape.longest


@pytest.mark.parametrize("longest", [1, 63, 64, 65, 500, 512])
def test_no_row_is_longer_than_the_model_takes(longest: int) -> None:
    shape = shape_for(600, 3, longest, 512)
    assert shape is not None
    assert longest <= shape.longest <= 512
