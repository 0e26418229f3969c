"""How many documents go on from one stage to the next: a number, or a rule that looks at their scores.

Wherever a depth is asked for (`Searcher`, `Cascade`, `EarlyExit`), an int is the number of documents, best
first, and a rule decides anew for each query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import InputError

__all__ = ["Depth", "DepthRule", "Margin", "TimeBudget", "check_depth", "check_depths", "most_of"]

_MOST = 100


@runtime_checkable
class DepthRule(Protocol):
    """Decides for one query how many documents go on."""

    @property
    def most(self) -> int:
        """Documents that go on at most; what a first stage is asked for where there is one."""
        ...

    def __call__(self, scores: Sequence[float]) -> int:
        """Return how many of the best go on.

        Args:
            scores: the stage's, best first; at least one.
        """
        ...


Depth = int | DepthRule
"""How many documents a stage sees."""


@dataclass(frozen=True)
class Margin:
    """Those that score at most so much less than the k-th best: a clear winner's list is short.

    Args:
        below: how much less, in the unit of the stage's scores: for a cross-encoder in logits.
        top_k: which score it is measured from; up to there all go on.
        most: documents that go on at most.

    Raises:
        InputError: a number that is none, or out of range.
    """

    below: float
    top_k: int = 10
    most: int = _MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "below", as_number(self.below, "below", 0))
        check_count(self.top_k, "top_k")
        check_count(self.most, "most")
        if self.most < self.top_k:
            raise InputError(f"most is {self.most}; it must be at least top_k, which is {self.top_k}")

    @classmethod
    def calibrated(
        cls,
        early: Sequence[Sequence[float]],
        final: Sequence[Sequence[float]],
        *,
        top_k: int = 10,
        confidence: float = 0.9,
        most: int = _MOST,
    ) -> Margin:
        """Return the margin that keeps the whole top k of the final order with a stated confidence.

        Of each held-out query the margin is taken that would just have let all of its final top k go on; the
        result is a quantile of these, so that of new queries of the same kind a share of at least
        `confidence` loses none of their top k (split conformal prediction: Vovk et al. 2005), whatever the
        scores' distribution. `most` cuts nothing while it is no less than the candidates of a query.

        Args:
            early: of each held-out query, the scores of all its documents by the stage that decides.
            final: the same documents' scores by the last stage, in the same order.
            top_k: how many of the final order must be kept.
            confidence: share of queries, above 0 and below 1.
            most: see `Margin`.

        Raises:
            InputError: lists that do not fit one another, or fewer queries than this confidence needs.
        """
        check_count(top_k, "top_k")
        confidence = as_number(confidence, "confidence", 0, 1)
        if len(early) != len(final):
            raise InputError(
                f"early has {len(early)} lists of scores and final {len(final)}; one each a query"
            )
        needed = []
        for number, (first, last) in enumerate(zip(early, final, strict=True)):
            if len(first) != len(last):
                raise InputError(
                    f"early[{number}] has {len(first)} scores and final[{number}] {len(last)}; both must be "
                    "of the same documents"
                )
            needed.append(_needed(np.asarray(first, np.float64), np.asarray(last, np.float64), top_k))
        rank = math.ceil((len(needed) + 1) * confidence)
        if not 1 <= rank <= len(needed):
            raise InputError(
                f"a confidence of {confidence:g} needs more than {len(needed)} held-out queries"
                + (f": at least {math.ceil(confidence / (1 - confidence))}" if 0 < confidence < 1 else "")
            )
        # Up to a step that float32 scores do not know, so that rounding keeps nobody out.
        return cls(math.ceil(sorted(needed)[rank - 1] * 1e6) / 1e6, top_k=top_k, most=most)

    def __call__(self, scores: Sequence[float]) -> int:
        """See `DepthRule`."""
        if len(scores) <= self.top_k:
            return min(len(scores), self.most)
        least = scores[self.top_k - 1] - self.below
        return min(sum(score >= least for score in scores), self.most)


def _needed(early: npt.NDArray[np.float64], final: npt.NDArray[np.float64], top_k: int) -> float:
    """Return the margin that lets the final top k of one query go on."""
    if not len(final):
        return 0.0
    best = early[np.argsort(-final, kind="stable")[:top_k]]
    kth = np.sort(early)[::-1][: len(best)][-1]
    return max(float(kth - best.min()), 0.0)


@dataclass(frozen=True)
class TimeBudget:
    """As many as the stage has time for, from the best down, a few at a time.

    The first document's time is not known before, so it alone is risked. A note in the ranking says how many
    were scored where that is not all. A stage that compares documents with one another takes all of them.

    Args:
        ms: wall milliseconds that the stage may take for a query.
        most: documents that go on at most.

    Raises:
        InputError: a number that is none, or out of range.
    """

    ms: float
    most: int = _MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "ms", as_number(self.ms, "ms", 0))
        check_count(self.most, "most")

    def __call__(self, scores: Sequence[float]) -> int:
        """Return all that may be tried; the clock decides the rest."""
        return min(len(scores), self.most)


def check_depth(depth: Any, name: str = "the depth of a reranker") -> None:
    """Raise InputError unless this is a depth."""
    if not callable(depth):
        check_count(depth, name)
    elif not isinstance(depth, DepthRule):
        raise InputError(
            f"{name} must be a whole number of at least 1 or a rule such as Margin(2.0), not "
            f"{type(depth).__name__}, which has no `most`"
        )


def check_depths(depths: Sequence[Any]) -> None:
    """Raise InputError unless these are depths of stages one after another.

    Numbers may not grow: a later stage would mix documents that the one before has seen with others. Rules
    are asked about the documents that the stage before has seen, so they cannot.
    """
    last: int | None = None
    for depth in depths:
        check_depth(depth)
        if callable(depth):
            continue
        if last is not None and depth > last:
            raise InputError(
                f"depths of a cascade may not grow: {depth} comes after {last}, and would mix "
                "documents that the reranker before has seen with others"
            )
        last = depth


def most_of(depth: Depth) -> int:
    """Return how many documents a depth lets through at most."""
    return depth.most if isinstance(depth, DepthRule) else depth
