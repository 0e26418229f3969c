"""Maps from scores to probabilities, fitted to judged pairs: temperature, Platt, isotonic.

Plain numpy: two numbers or a staircase need no trainer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.models.calibration import Floats, Method, ProbabilityMap, sigmoid

__all__ = ["METHODS", "fit_isotonic", "fit_map", "fit_platt", "fit_temperature"]

METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")

_STEPS = 100
_ENOUGH = 1e-10  # a step of this length changes no probability that anyone could see


def fit_map(method: Method, scores: npt.ArrayLike, relevant: npt.ArrayLike) -> ProbabilityMap:
    """Fit a map by one of `METHODS`.

    Args:
        method: its name.
        scores: (n,) raw scores.
        relevant: (n,) of 0 and 1, both of them there.

    Raises:
        InputError: no such method, one class alone, or relevant pairs that do not score higher.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    values = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(relevant, dtype=np.float64)
    if not 0 < truth.sum() < len(truth):
        raise InputError("a calibration needs relevant pairs and irrelevant ones")
    fit = {"temperature": fit_temperature, "platt": fit_platt, "isotonic": fit_isotonic}[method]
    return fit(values, truth)


def fit_temperature(scores: Floats, relevant: Floats) -> ProbabilityMap:
    """Fit sigmoid(score / temperature): the right one for logits that are over- or underconfident alone.

    It leaves score 0 at probability 0.5, so it cannot mend the level of scores that only rank.

    Source:
        Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    slope, _ = _logistic(scores, relevant, with_intercept=False)
    return ProbabilityMap("temperature", slope)


def fit_platt(scores: Floats, relevant: Floats) -> ProbabilityMap:
    """Fit sigmoid(slope × score + intercept), with Platt's targets in place of 0 and 1.

    The targets, (positives + 1) / (positives + 2) and 1 / (negatives + 2), keep the slope finite where one
    score parts the classes.

    Source:
        Platt 1999, "Probabilistic Outputs for Support Vector Machines"; Lin, Lin and Weng 2007, "A Note on
        Platt's Probabilistic Outputs for Support Vector Machines".
    """
    positives = relevant.sum()
    negatives = len(relevant) - positives
    targets = np.where(relevant == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, intercept = _logistic(scores, targets, with_intercept=True)
    return ProbabilityMap("platt", slope, intercept)


def fit_isotonic(scores: Floats, relevant: Floats) -> ProbabilityMap:
    """Fit the never falling map of least squared error, in straight lines between its steps.

    It follows any shape, and so needs more pairs than the other two: some thousand. Its ends are kept
    1 / (n + 2) off 0 and 1, since n pairs cannot show that something never happens.

    Source:
        Zadrozny and Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass Probability
        Estimates"; pool adjacent violators as in Barlow et al. 1972.
    """
    places, where = np.unique(scores, return_inverse=True)
    weights = np.bincount(where).astype(np.float64)
    means = np.bincount(where, relevant) / weights
    blocks: list[list[float]] = []  # mean, weight, distinct scores
    for mean, weight in zip(means.tolist(), weights.tolist(), strict=True):
        blocks.append([mean, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            last, before = blocks.pop(), blocks[-1]
            total = before[1] + last[1]
            before[:] = [(before[0] * before[1] + last[0] * last[1]) / total, total, before[2] + last[2]]
    least = 1 / (len(scores) + 2)
    knots: list[tuple[float, float]] = []
    start = 0
    for mean, _, count in blocks:
        value = min(max(mean, least), 1 - least)
        stop = start + int(count)
        knots += [(float(places[end]), value) for end in sorted({start, stop - 1})]
        start = stop
    return ProbabilityMap("isotonic", knots=tuple(knots))


def _logistic(scores: Floats, targets: Floats, *, with_intercept: bool) -> tuple[float, float]:
    """Slope and intercept of least log loss, by Newton's method with halved steps where one overshoots."""
    spread = float(scores.std()) or 1.0
    columns = np.stack([scores / spread, np.full_like(scores, float(with_intercept))], axis=1)
    weights = np.zeros(2)

    def loss(candidate: Floats) -> float:
        logits = columns @ candidate
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    now = loss(weights)
    for _ in range(_STEPS):
        values = sigmoid(columns @ weights)
        gradient = columns.T @ (values - targets)
        curvature = (columns * (values * (1 - values))[:, None]).T @ columns
        step = np.linalg.lstsq(curvature + 1e-12 * np.eye(2), gradient, rcond=None)[0]
        while loss(weights - step) > now and np.abs(step).max() > _ENOUGH:
            step /= 2
        weights, now = weights - step, loss(weights - step)
        if np.abs(step).max() <= _ENOUGH:
            break
    slope = float(weights[0]) / spread
    if not slope > 0:
        raise InputError(
            "relevant pairs do not score higher than irrelevant ones, so no probability can rise with the "
            "score; look whether labels are the wrong way round, or whether the model suits these pairs"
        )
    return slope, float(weights[1]) if with_intercept else 0.0
