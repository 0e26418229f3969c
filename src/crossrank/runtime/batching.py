"""Lengths to batches, so that a row's score depends on the row alone.

The padded length of a row is a function of its own length: that length itself, or, for engines that want many
rows in a batch, rounded up to a step. Only rows of equal padded length share a batch. So the arrays a model
sees for a row are the same whatever else is scored with it: no neighbour can add padding to it, and there is
nothing for a batch to change but the number of rows. Engines that skip padding take rows of any lengths: what
they compute for a row is the same whatever padding is behind it.

Batches are packed to a budget of tokens rather than to a number of rows. On a CPU small forwards (512 to
1024 tokens) are the fastest: they waste little padding and their activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError

__all__ = [
    "DEFAULT_TOKEN_BUDGET",
    "Batch",
    "Grouping",
    "padded_length",
    "padded_lengths",
    "plan",
    "text_blocks",
]

Grouping = Literal["exact", "steps", "mixed"]
"""Which rows share a batch: those of one length, those padded to one step, or neighbours by length."""

DEFAULT_TOKEN_BUDGET = 1024
"""Tokens of one forward, padding included."""


class Batch(NamedTuple):
    """Rows that run together.

    Attributes:
        rows: int64 (batch,), positions in the lengths the plan was made from, ascending.
        length: what every row is padded to.
    """

    rows: npt.NDArray[np.int64]
    length: int


def text_blocks(texts: Sequence[str], *, most_texts: int, most_characters: int) -> Iterator[slice]:
    """Cut a long call's texts into blocks whose tokens are in memory together.

    Args:
        texts: in their order.
        most_texts: of a block.
        most_characters: a block ends with the text that reaches so many.
    """
    start = 0
    while start < len(texts):
        stop, characters = start, 0
        while stop < min(len(texts), start + most_texts) and characters < most_characters:
            characters += len(texts[stop])
            stop += 1
        yield slice(start, stop)
        start = stop


def padded_lengths(lengths: npt.ArrayLike, limit: int | None = None) -> npt.NDArray[np.int64]:
    """Round each length up: to a multiple of 8 up to 128, of 16 up to 256, of 32 above.

    At most 7, 15 and 31 tokens of padding: about 4 % over lengths spread evenly up to 512, while a hundred
    passages of usual spread still fall into no more than some twenty groups.

    Args:
        lengths: integers (n,), at least 1 each.
        limit: the longest row the model can take (its position embeddings); padding stops there.

    Raises:
        InputError: a length is below 1 or above the limit.
    """
    wanted = _checked(lengths, limit)
    step = np.where(wanted <= 128, 8, np.where(wanted <= 256, 16, 32))
    padded: npt.NDArray[np.int64] = -(-wanted // step) * step
    return padded if limit is None else np.minimum(padded, limit)


def padded_length(length: int, limit: int | None = None) -> int:
    """Round one length up, as `padded_lengths` does."""
    return int(padded_lengths([length], limit)[0])


def plan(
    lengths: npt.ArrayLike,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    limit: int | None = None,
    parallel: int = 1,
    *,
    grouping: Grouping = "steps",
) -> list[Batch]:
    """Group rows into batches of at most `token_budget` tokens.

    Every row is in exactly one batch. Longest first, so that memory is at its highest at once and not at
    the end of a long call. A row longer than the budget is a batch of its own. Rows of one length are
    spread evenly over their batches (7 and 6 rather than 12 and 1), but where lengths are mixed: there the
    last batches are smaller, so that all that run at a time end together.

    Args:
        lengths: integers (n,), tokens of each row.
        token_budget: tokens of a batch, padding included; at least 1.
        limit: the longest row the model can take; padding stops there.
        parallel: batches that run at a time; few rows get smaller batches, so that each has its share.
        grouping: "exact" pads nothing, "steps" pads as `padded_lengths` does, "mixed" to the longest row of
            the batch.

    Raises:
        InputError: a budget below 1, or a length outside 1..limit.
    """
    if token_budget < 1:
        raise InputError(f"token_budget is {token_budget}; it must be at least 1")
    padded = padded_lengths(lengths, limit) if grouping == "steps" else _checked(lengths, limit)
    if grouping == "mixed":
        return _plan_mixed(padded, token_budget, parallel)
    token_budget = max(1, min(token_budget, -(-int(padded.sum()) // parallel)))
    order = np.argsort(-padded, kind="stable").astype(np.int64)
    changes = np.flatnonzero(np.diff(padded[order])) + 1
    batches = []
    for group in np.split(order, changes) if order.size else []:
        length = int(padded[group[0]])
        num_batches = -(-group.size // max(1, token_budget // length))
        bounds = np.arange(num_batches + 1) * group.size // num_batches
        batches += [
            Batch(group[start:stop], length)
            for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
    return batches


def _plan_mixed(lengths: npt.NDArray[np.int64], token_budget: int, parallel: int) -> list[Batch]:
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    left, start = int(lengths.sum()), 0
    batches = []
    while start < order.size:
        length = int(lengths[order[start]])
        wanted = min(token_budget, -(-left // (2 * parallel)))  # half of what is each one's share by now
        rows = np.sort(order[start : start + max(1, wanted // length)])
        batches.append(Batch(rows, length))
        left -= int(lengths[rows].sum())
        start += rows.size
    return batches


def _checked(lengths: npt.ArrayLike, limit: int | None) -> npt.NDArray[np.int64]:
    checked = np.asarray(lengths, dtype=np.int64)
    if checked.size and int(checked.min()) < 1:
        raise InputError(f"a row has {int(checked.min())} tokens; at least 1 is needed")
    if limit is not None and checked.size and int(checked.max()) > limit:
        raise InputError(f"a row has {int(checked.max())} tokens; the model takes at most {limit}")
    return checked
