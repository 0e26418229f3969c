"""All pairs of n vectors, exactly, in blocks: the most similar ones, or all above a threshold.

10,000 vectors have 50 million pairs. A block of their products is looked at and let go, so memory is that of
a block and of the pairs that are kept, whatever n is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, as_vectors, check_count
from crossrank.progress import Track, track

__all__ = ["SimilarPairs", "blocks_above", "similar_pairs", "unit_vectors"]

Vectors = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_ROWS = 1024  # of a block of products
_COLUMNS = 4096  # 16 MB of them at a time


@dataclass(frozen=True, eq=False)
class SimilarPairs:
    """Pairs of rows, most similar first; equal ones by their first row, then their second.

    Attributes:
        first: int64 (pairs,), the smaller row of each.
        second: int64 (pairs,), the larger one.
        scores: float32 (pairs,), cosines.
        num_above: pairs at or above the threshold, kept or not.
    """

    first: Ints
    second: Ints
    scores: Vectors
    num_above: int

    def __len__(self) -> int:
        """Return how many pairs were kept."""
        return len(self.scores)


def unit_vectors(vectors: npt.ArrayLike) -> Vectors:
    """Return vectors with length 1, as a new array; a vector of zeros stays one, and is like none.

    Args:
        vectors: (n, dimensions) real numbers.

    Raises:
        InputError: another shape, or values that are not finite.
    """
    rows = as_vectors(vectors, "vectors")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def similar_pairs(
    vectors: npt.ArrayLike,
    *,
    threshold: float = -1.0,
    top_k: int = 100_000,
    progress: bool | None = None,
) -> SimilarPairs:
    """Find the most similar pairs among all n × (n - 1) / 2 of them.

    Exact: nothing is left out by a limit of neighbours a vector. The same vectors give the same pairs.

    Args:
        vectors: (n, dimensions); they need not have length 1.
        threshold: the least cosine.
        top_k: the most pairs that are kept, best first; `num_above` says how many there were.
        progress: see `crossrank.progress.track`.

    Raises:
        InputError: no vectors, or a setting out of its range.
    """
    threshold = as_number(threshold, "threshold", -1, 1)
    check_count(top_k)
    rows = unit_vectors(vectors)
    least = np.float32(threshold)
    kept: list[tuple[Ints, Ints, Vectors]] = []
    waiting = num_above = 0
    with track(len(rows), "Comparing", progress=progress) as tracked:
        for start, begin, products in _upper_blocks(rows, tracked):
            num_above += int(np.count_nonzero(products >= np.float32(threshold)))
            found = np.nonzero(products >= least)
            kept.append((found[0] + start, found[1] + begin, products[found]))
            waiting += len(kept[-1][2])
            if waiting > 2 * top_k:
                kept = [_best(kept, top_k)]
                waiting = top_k
                # No higher than the last one kept: an equal score may come from rows that are before its own.
                least = kept[0][2][-1]
    first, second, scores = _best(kept, top_k)
    return SimilarPairs(first, second, scores, num_above)


def blocks_above(rows: Vectors, threshold: float, tracked: Track) -> Iterator[tuple[Ints, Ints, Vectors]]:
    """Yield (row, other row, cosine) of all ordered pairs at or above a threshold, a row with itself too.

    Args:
        rows: (n, dimensions), each of length 1.
        threshold: the least cosine.
        tracked: advanced by rows.
    """
    least = np.float32(threshold)
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        found = []
        for begin in range(0, len(rows), _COLUMNS):
            products = _cosines(block, rows[begin : begin + _COLUMNS])
            above = np.nonzero(products >= least)
            found.append((above[0] + start, above[1] + begin, products[above]))
        tracked.advance(len(block))
        first, second, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(first, kind="stable")  # chunks of columns leave each row's neighbours apart
        yield first[order], second[order], scores[order]


def _cosines(block: Vectors, others: Vectors) -> Vectors:
    products: Vectors = block @ others.T
    np.clip(products, -1, 1, out=products)  # rounding can take the product of two equal vectors past 1
    return products


def _upper_blocks(rows: Vectors, tracked: Track) -> Iterator[tuple[int, int, Vectors]]:
    """Yield (first row, first column, products) of blocks that cover every pair of two rows once.

    Products that are no pair of an earlier and a later row are NaN, which is above no threshold.
    """
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        for begin in range(start, len(rows), _COLUMNS):
            products = _cosines(block, rows[begin : begin + _COLUMNS])
            if begin == start:
                products[np.tri(*products.shape, dtype=np.bool_)] = np.nan
            yield start, begin, products
        tracked.advance(len(block))


def _best(kept: list[tuple[Ints, Ints, Vectors]], top_k: int) -> tuple[Ints, Ints, Vectors]:
    """The first pairs in the order of score, first row, second row."""
    if not kept:
        nothing = np.empty(0, dtype=np.int64)
        return nothing, nothing, np.empty(0, dtype=np.float32)
    first, second, scores = (np.concatenate(column) for column in zip(*kept, strict=True))
    if len(scores) > top_k:
        last = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        enough = scores >= last  # those that tie with the last one, too: their rows decide
        first, second, scores = first[enough], second[enough], scores[enough]
    order = np.lexsort((second, first, -scores))[:top_k]
    return first[order], second[order], scores[order]
