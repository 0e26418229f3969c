"""The few shapes that packed batches are filled up to, so that CUDA graphs can be captured for them.

Launching a small model's kernels one by one takes the host longer than the device takes to run them. A CUDA
graph launches all of them at once, but for arrays of one shape only. So a small batch is filled up: with
tokens, to one of a few sizes at most a quarter apart; with rows, to a power of two. What is added are rows of
their own, which nobody reads; a row without a token costs nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from crossrank.runtime.torch_backend.packing import Packed

__all__ = ["LARGEST", "Shape", "fill", "shape_for"]

LARGEST = 16_384
"""Tokens from which on launches hide behind the work: batches of more run as they are."""

_SMALLEST_TOKENS, _SMALLEST_ROWS, _SMALLEST_LENGTH = 256, 8, 64


class Shape(NamedTuple):
    """What a graph is captured for.

    Attributes:
        tokens: of the whole batch.
        rows: of the batch, those of no token included.
        longest: a bound of the rows' tokens.
    """

    tokens: int
    rows: int
    longest: int


def shape_for(num_tokens: int, num_rows: int, longest: int, limit: int | None) -> Shape | None:
    """Choose the shape that a batch is filled up to; None for one too large to need a graph.

    Args:
        num_tokens: of the batch.
        num_rows: of the batch.
        longest: tokens of its longest row.
        limit: the longest row that the model can take; None for no limit.
    """
    if num_tokens > LARGEST:
        return None
    tokens = _SMALLEST_TOKENS
    while tokens < num_tokens:  # 256, 320, 384, 448, 512, 640, ...: four steps an octave
        tokens += max(_SMALLEST_TOKENS, _power(tokens + 1) // 2) // 4
    length = max(_SMALLEST_LENGTH, _power(longest))
    if limit is not None:
        length = min(length, limit)
    added = -(-(tokens - num_tokens) // length)
    return Shape(tokens, max(_SMALLEST_ROWS, _power(num_rows + added)), length)


def fill(packed: Packed, shape: Shape) -> Packed:
    """Fill a batch up with rows of zeros' tokens, none longer than the shape's, then with empty rows."""
    missing = shape.tokens - len(packed.ids)
    added = np.zeros(shape.rows - len(packed.lengths), dtype=np.int32)
    whole, rest = divmod(missing, shape.longest)
    added[:whole] = shape.longest
    if rest:
        added[whole] = rest
    zeros = np.zeros(missing, dtype=np.int32)
    return Packed(
        np.concatenate([packed.ids, zeros]),
        np.concatenate([packed.types, zeros]),
        np.concatenate([packed.lengths, added]),
        np.concatenate([packed.attended, added]),
        shape.longest,
    )


def _power(count: int) -> int:
    """The least power of two that is not less."""
    return 1 << max(0, count - 1).bit_length()
