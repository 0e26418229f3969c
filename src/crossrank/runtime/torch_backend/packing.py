"""Padded batches to one packed batch: the rows of all of them end to end, without their padding.

Linear layers, norms and activations see each token by itself, so they need no padding at all; attention is
told where rows begin. Everything here is NumPy: it is what the host does while the device runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.runtime.tokenization import ModelInputs

__all__ = ["Packed", "halves", "joined", "pack", "unpack_rows", "unpack_tokens"]

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Packed(NamedTuple):
    """Rows end to end.

    Attributes:
        ids: (tokens,) int32.
        types: (tokens,) int32.
        lengths: (rows,) int32, tokens of each row.
        attended: (rows,) int32: how many of them, from the first, are attended to. All, but where vectors of
            padding are wanted.
        longest: tokens of the longest row, or a bound of it.
    """

    ids: Ints
    types: Ints
    lengths: Ints
    attended: Ints
    longest: int

    @property
    def starts(self) -> Ints:
        """Where each row begins, and the end: (rows + 1,) int32."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @property
    def rows(self) -> Ints:
        """The row of each token, (tokens,) int32."""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @property
    def positions(self) -> Ints:
        """The place of each token in its row, (tokens,) int32."""
        places = np.arange(len(self.ids), dtype=np.int32)
        return places - np.repeat(self.starts[:-1], self.lengths)


def pack(batches: Sequence[ModelInputs], *, with_padding: bool = False) -> Packed:
    """Join padded batches.

    Args:
        batches: at least one; padding is on the right.
        with_padding: keep padding as tokens that attend and are not attended to.
    """
    masks = [batch.attention_mask.astype(bool) for batch in batches]
    attended = np.concatenate([mask.sum(axis=1) for mask in masks]).astype(np.int32)
    lengths = attended
    if with_padding:
        masks = [np.ones_like(mask) for mask in masks]
        lengths = np.concatenate([mask.sum(axis=1) for mask in masks]).astype(np.int32)
    ids = np.concatenate([batch.input_ids[mask] for batch, mask in zip(batches, masks, strict=True)])
    types = np.concatenate([batch.token_type_ids[mask] for batch, mask in zip(batches, masks, strict=True)])
    return Packed(ids.astype(np.int32), types.astype(np.int32), lengths, attended, int(lengths.max()))


def unpack_rows(values: Floats, batches: Sequence[ModelInputs]) -> list[Floats]:
    """Cut what was computed of each row, (rows, ...), into the batches' parts."""
    bounds = np.cumsum([len(batch.input_ids) for batch in batches])[:-1]
    return np.split(values, bounds)


def unpack_tokens(
    vectors: Floats, batches: Sequence[ModelInputs], *, with_padding: bool = False
) -> list[Floats]:
    """Put vectors (tokens, hidden) back into (batch, length, hidden) each; those of padding are zeros.

    Args:
        vectors: of the tokens that `pack` made of the batches.
        batches: as `pack` got them.
        with_padding: as `pack` got it.
    """
    unpacked = []
    start = 0
    for batch in batches:
        mask = batch.attention_mask.astype(bool)
        if with_padding:
            mask = np.ones_like(mask)
        stop = start + int(mask.sum())
        padded = np.zeros((*mask.shape, vectors.shape[1]), dtype=np.float32)
        padded[mask] = vectors[start:stop]
        unpacked.append(padded)
        start = stop
    return unpacked


def joined(
    batches: Iterable[ModelInputs], token_budget: int, *, one_length: bool
) -> Iterator[list[ModelInputs]]:
    """Group batches, in their order, into as many tokens as fit one forward.

    Args:
        batches: taken as they are needed.
        token_budget: most tokens of a group, padding included; a batch that has more is a group of its own.
        one_length: whether a group may have batches of one padded length only.
    """
    group: list[ModelInputs] = []
    tokens = 0
    for batch in batches:
        size = batch.input_ids.size
        other = bool(group) and group[0].input_ids.shape[1] != batch.input_ids.shape[1]
        if group and (tokens + size > token_budget or (one_length and other)):
            yield group
            group, tokens = [], 0
        group.append(batch)
        tokens += size
    if group:
        yield group


def halves(group: Sequence[ModelInputs]) -> tuple[list[ModelInputs], list[ModelInputs]] | None:
    """Cut a group in two, between batches or else between rows; None for a single row."""
    if len(group) > 1:
        middle = len(group) // 2
        return list(group[:middle]), list(group[middle:])
    rows = len(group[0].input_ids)
    if rows == 1:
        return None
    first, second = (
        ModelInputs(*(array[part] for array in group[0]))
        for part in (slice(rows // 2), slice(rows // 2, None))
    )
    return [first], [second]
