"""Long documents as overlapping windows of tokens, and the windows' scores as one score.

Source: Dai and Callan 2019, "Deeper Text Understanding for IR with Contextual Neural Language Modeling",
section 3 (the first and the best passage stand for the document: FirstP, MaxP).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError

__all__ = ["DEFAULT_OVERLAP", "MEAN_TOP_K", "LongDocuments", "aggregate", "check_policy", "windows"]

LongDocuments = Literal["truncate", "max", "first", "mean_top_k"]
"""What to do with a document longer than its share of the model's window.

- "truncate": the model reads the beginning; all of the document's share.
- "first": the score of the first window.
- "max": the score of the best window.
- "mean_top_k": the mean of the best `MEAN_TOP_K` windows' scores.
"""

DEFAULT_OVERLAP = 0.25
"""Part of a window that its successor repeats, so that a sentence on a border is whole in one of them."""

MEAN_TOP_K = 3


def check_policy(long_documents: str) -> None:
    """Refuse a policy that is none.

    Raises:
        InputError: names the policies there are.
    """
    if long_documents not in get_args(LongDocuments):
        raise InputError(
            f"long_documents is {long_documents!r}; choose one of {', '.join(get_args(LongDocuments))}"
        )


def windows(num_tokens: int, size: int, overlap: float = DEFAULT_OVERLAP) -> npt.NDArray[np.int64]:
    """Cover a document with windows.

    Every token is in a window; each window but the last starts `size * (1 - overlap)` tokens after the one
    before it, and the last one ends with the document (so it overlaps more, and is full).

    Args:
        num_tokens: tokens of the document; 0 gives one empty window.
        size: tokens of a window, at least 1.
        overlap: part of a window, 0 <= overlap < 1.

    Returns:
        int64 (windows, 2): [start, end) of each.

    Raises:
        InputError: a size below 1 or an overlap outside [0, 1).
    """
    if size < 1:
        raise InputError(f"a window of {size} tokens holds nothing; at least 1 is needed")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap is {overlap}; it must be at least 0 and below 1")
    if num_tokens <= size:
        return np.array([[0, num_tokens]], dtype=np.int64)
    stride = max(1, size - int(size * overlap))
    starts = np.append(np.arange(0, num_tokens - size, stride, dtype=np.int64), num_tokens - size)
    return np.stack([starts, starts + size], axis=1)


def aggregate(
    scores: npt.NDArray[np.float32], policy: LongDocuments, k: int = MEAN_TOP_K
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Make one score of the scores of a document's windows, for each label by itself.

    Args:
        scores: float32 (windows, labels), in the order of the windows.
        policy: see `LongDocuments`.
        k: how many windows "mean_top_k" takes; fewer where there are fewer.

    Returns:
        The document's scores, float32 (labels,), and the winning window of each label, int64 (labels,):
        the best one for "max" and "mean_top_k" (the earliest of equals), else 0.
    """
    if policy in ("truncate", "first"):
        return scores[0], np.zeros(scores.shape[1], dtype=np.int64)
    winners = scores.argmax(axis=0).astype(np.int64)
    if policy == "max":
        return scores.max(axis=0), winners
    best = np.sort(scores, axis=0)[::-1][:k]
    mean: npt.NDArray[np.float32] = best.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean, winners
