"""How far probabilities can be trusted, and how well scores tell relevant pairs from others."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_count
from crossrank.errors import InputError

__all__ = [
    "Bin",
    "Roc",
    "brier_score",
    "expected_calibration_error",
    "log_loss",
    "probability_figures",
    "reliability",
    "roc",
    "roc_auc",
]

Floats = npt.NDArray[np.float64]

_LEAST = 1e-15  # a probability of 0 or 1 that is wrong would cost infinitely much


class Bin(NamedTuple):
    """Pairs whose probabilities lie in [low, high) (the last bin has its end, too).

    Attributes:
        low: of the bin.
        high: of the bin.
        num_pairs: pairs in it.
        probability: mean of their probabilities; NaN where there are none.
        share: which part of them is relevant; NaN where there are none.
    """

    low: float
    high: float
    num_pairs: int
    probability: float
    share: float


class Roc(NamedTuple):
    """A receiver operating characteristic, from the highest score down.

    Attributes:
        scores: float64 (points,), falling; the first is infinite: nothing is taken.
        false_positive_rate: share of the irrelevant pairs that score at least that.
        true_positive_rate: share of the relevant pairs that score at least that.
    """

    scores: Floats
    false_positive_rate: Floats
    true_positive_rate: Floats


def reliability(probabilities: npt.ArrayLike, relevant: npt.ArrayLike, *, bins: int = 15) -> list[Bin]:
    """Sort pairs into bins of equal width, and say what was promised and what was found in each.

    Args:
        probabilities: (n,) from 0 to 1.
        relevant: (n,) of 0 and 1, or of False and True.
        bins: how many.

    Raises:
        InputError: arrays that do not fit one another, or other values.
    """
    check_count(bins, "bins")
    values, truth = _probabilities(probabilities, relevant)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        promised = np.bincount(place, values, bins) / counts
        found = np.bincount(place, truth, bins) / counts
    return [
        Bin(number / bins, (number + 1) / bins, int(counts[number]), float(promised[number]), float(share))
        for number, share in enumerate(found)
    ]


def expected_calibration_error(
    probabilities: npt.ArrayLike, relevant: npt.ArrayLike, *, bins: int = 15
) -> float:
    """Return the mean over pairs of |mean probability - share of relevant pairs| of their bin.

    Args:
        probabilities: (n,) from 0 to 1.
        relevant: (n,) of 0 and 1.
        bins: how many, of equal width.

    Raises:
        InputError: see `reliability`.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 2.
    """
    found = [each for each in reliability(probabilities, relevant, bins=bins) if each.num_pairs]
    total = sum(each.num_pairs for each in found)
    return sum(each.num_pairs * abs(each.probability - each.share) for each in found) / total


def brier_score(probabilities: npt.ArrayLike, relevant: npt.ArrayLike) -> float:
    """Return the mean squared difference of probability and outcome.

    Raises:
        InputError: see `reliability`.
    """
    values, truth = _probabilities(probabilities, relevant)
    return float(np.mean((values - truth) ** 2))


def log_loss(probabilities: npt.ArrayLike, relevant: npt.ArrayLike) -> float:
    """Return the mean of -log(probability given to what was the case), in nats.

    Raises:
        InputError: see `reliability`.
    """
    values, truth = _probabilities(probabilities, relevant)
    given = np.where(truth == 1, values, 1 - values)
    return float(-np.log(np.maximum(given, _LEAST)).mean())


def probability_figures(
    probabilities: npt.ArrayLike, relevant: npt.ArrayLike, *, bins: int = 15
) -> dict[str, float]:
    """Return "ece" (expected calibration error), "brier" and "log_loss".

    Raises:
        InputError: see `reliability`.
    """
    return {
        "ece": expected_calibration_error(probabilities, relevant, bins=bins),
        "brier": brier_score(probabilities, relevant),
        "log_loss": log_loss(probabilities, relevant),
    }


def roc(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> Roc:
    """Return the receiver operating characteristic, one point a distinct score.

    Args:
        scores: (n,) finite; higher is more relevant.
        relevant: (n,) of 0 and 1, both of them there.

    Raises:
        InputError: arrays that do not fit one another, other values, or one class alone.
    """
    values, truth = _both_classes(scores, relevant)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)  # the last of each score
    positives = np.cumsum(truth[order])[ends]
    return Roc(
        np.concatenate([[np.inf], values[order][ends]]),
        np.concatenate([[0], (ends + 1 - positives) / (len(truth) - truth.sum())]),
        np.concatenate([[0], positives / truth.sum()]),
    )


def roc_auc(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> float:
    """Return how often a relevant pair scores higher than an irrelevant one; a tie counts half.

    Args:
        scores: (n,) finite.
        relevant: (n,) of 0 and 1, both of them there.

    Raises:
        InputError: see `roc`.
    """
    curve = roc(scores, relevant)
    width = np.diff(curve.false_positive_rate)
    height = (curve.true_positive_rate[1:] + curve.true_positive_rate[:-1]) / 2
    return float(width @ height)


def _probabilities(probabilities: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Floats, Floats]:
    values, truth = _columns(probabilities, relevant, "probabilities")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError("probabilities must be from 0 to 1; for scores there is the sigmoid")
    return values, truth


def _both_classes(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Floats, Floats]:
    values, truth = _columns(scores, relevant, "scores")
    if not 0 < truth.sum() < len(truth):
        which = "relevant" if truth.all() else "irrelevant"
        raise InputError(f"all {len(truth)} pairs are {which}; give pairs of both kinds")
    return values, truth


def _columns(values: npt.ArrayLike, relevant: npt.ArrayLike, name: str) -> tuple[Floats, Floats]:
    first, truth = _column(values, name), _column(relevant, "relevant")
    if len(first) != len(truth) or not len(first):
        raise InputError(f"{name} and relevant must have one entry a pair, not {len(first)} and {len(truth)}")
    if not np.isfinite(first).all():
        raise InputError(f"{name} must be finite")
    if not ((truth == 0) | (truth == 1)).all():
        raise InputError("relevant must be 0 or 1 for each pair")
    return first, truth


def _column(values: Any, name: str) -> Floats:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}") from None
    if column.ndim != 1:
        raise InputError(f"{name} must be one column, not an array of shape {column.shape}")
    return column
