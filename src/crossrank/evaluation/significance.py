"""How sure a mean is, and whether one run is better than another: bootstrap intervals, randomisation test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import InputError
from crossrank.evaluation.measures import Evaluation, parse_measure

__all__ = ["Comparison", "Interval", "compare", "mean_interval"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# Up to this many queries that differ, all 2 ** 16 ways to flip signs are tried.
_EXACT_UP_TO = 16
# Numbers drawn at a time: 16 MiB of them.
_BLOCK = 2**21
_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how far off it may be.

    Attributes:
        value: the mean over the queries.
        low: lower end of the interval.
        high: upper end.
        confidence: share of samples of queries whose interval holds the true mean.
    """

    value: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two runs differ by one measure over the same queries.

    Attributes:
        mean: of the first run.
        other_mean: of the second run.
        difference: mean of the first run's values less the second's, query by query.
        p_value: above 0, at most 1: how often a mean difference at least this far from 0, on either side,
            comes about when each query's two values are swapped by chance.
        exact: True if all ways to swap were tried, False if some were drawn.
        wins: queries where the first run has the larger value.
        ties: queries where both have the same value.
        losses: queries where the first run has the smaller value.
    """

    mean: Interval
    other_mean: Interval
    difference: Interval
    p_value: float
    exact: bool
    wins: int
    ties: int
    losses: int


def mean_interval(
    values: Evaluation | Mapping[str, float],
    measure: str | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of per-query values with its percentile bootstrap interval.

    The interval is read off the means of samples drawn with replacement from the queries. It says how
    the mean would vary over other queries of the same kind, and nothing about errors in judgements.
    With few queries it is somewhat too narrow. It is the percentile interval, not BCa, which corrects for
    skew but is not defined where all values are equal, as the differences of two like runs are.

    Args:
        values: an evaluation, or query id -> value.
        measure: which of an evaluation's measures, in any spelling; not used for a mapping.
        confidence: share from 0 to 1.
        resamples: how many samples are drawn.
        seed: of the draws; the same values and seed give the same interval in whatever order the
            queries come.

    Raises:
        InputError: fewer than 2 queries, a query id that is no string, a value that is no finite float32
            number, a measure that the evaluation lacks, a setting out of its range.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    found = _per_query(values, measure, "values")
    column = np.array([found[query_id] for query_id in sorted(found)])
    return _intervals([column], confidence, resamples, seed)[0]


def compare(
    values: Evaluation | Mapping[str, float],
    other: Evaluation | Mapping[str, float],
    measure: str | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs over the same queries by Fisher's randomisation test, two-sided.

    If it did not matter which run a value is from, each query's difference could as well have the other
    sign. The p-value is the share of ways to choose signs whose mean is at least as far from 0 as the one
    found. Up to 16 queries that differ, all ways are tried; beyond, `resamples` are drawn and the one
    found is counted among them, so that p is never below 1 / (resamples + 1). Intervals are those of
    `mean_interval`.

    Args:
        values: an evaluation, or query id -> value.
        other: the same for the run to compare with.
        measure: which of an evaluation's measures, in any spelling; not used for a mapping.
        confidence: of the intervals, a share from 0 to 1.
        resamples: how many samples are drawn for the intervals, and how many signs for the test.
        seed: of the draws.

    Raises:
        InputError: see `mean_interval`, or queries that only one of the two has, or evaluations with
            different relevance levels.

    Source:
        Smucker, Allan and Carterette 2007, "A Comparison of Statistical Significance Tests for
        Information Retrieval Evaluation", CIKM.
    """
    if isinstance(values, Evaluation) and isinstance(other, Evaluation):
        levels = values.relevance_level, other.relevance_level
        if levels[0] != levels[1]:
            raise InputError(f"values and other have relevance levels {levels[0]} and {levels[1]}; use one")
    found, others = _per_query(values, measure, "values"), _per_query(other, measure, "other")
    _check_same_queries(found, others)
    queries = sorted(found)
    first = np.array([found[query_id] for query_id in queries])
    second = np.array([others[query_id] for query_id in queries])
    differences = first - second
    mean, other_mean, difference = _intervals([first, second, differences], confidence, resamples, seed)
    p_value, exact = _randomisation_test(differences, resamples, seed)
    return Comparison(
        mean,
        other_mean,
        difference,
        p_value,
        exact,
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _per_query(values: Evaluation | Mapping[str, float], measure: str | None, name: str) -> dict[str, float]:
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise InputError(f"{name} must be an Evaluation or a mapping by query id, not {kind}")
    column: Mapping[str, float | None] = values
    if isinstance(values, Evaluation):
        listing = ", ".join(values.means)
        if measure is None:
            raise InputError(f"{name} is an Evaluation: say which measure, one of {listing}")
        canonical = measure if measure in values.means else str(parse_measure(measure))
        if canonical not in values.means:
            raise InputError(f"{name} has no {canonical}, only {listing}; evaluate with it first")
        column = {query_id: row.get(canonical) for query_id, row in values.per_query.items()}
    for query_id in column:
        if not isinstance(query_id, str):
            raise InputError(f"the query ids of {name} must be strings, not {query_id!r}")
    if len(column) < 2:
        raise InputError(f"{len(column)} queries say nothing about others; {name} must have at least 2")
    return {
        query_id: as_number(value, f"the value of query {query_id!r} in {name}", -_FLOAT32_MAX, _FLOAT32_MAX)
        for query_id, value in column.items()
    }


def _check_same_queries(found: Mapping[str, float], others: Mapping[str, float]) -> None:
    faults = []
    for name, only in (("values", found.keys() - others.keys()), ("other", others.keys() - found.keys())):
        if only:
            named = ", ".join(map(repr, sorted(only)[:_NUM_NAMED]))
            faults.append(f"{len(only)} only in {name} ({named}{', ...' * (len(only) > _NUM_NAMED)})")
    if faults:
        raise InputError(
            f"values and other have different queries, {' and '.join(faults)}; "
            "evaluate both runs against the same qrels"
        )


def _intervals(
    columns: list[npt.NDArray[np.float64]], confidence: float, resamples: int, seed: int
) -> list[Interval]:
    """Give the interval of each column's mean; every resample takes the same queries of all columns."""
    confidence = as_number(confidence, "confidence", 0, 1)
    check_count(resamples, "resamples")
    random = _generator(seed)
    num_queries = len(columns[0])
    means = np.empty((len(columns), resamples))
    step = max(1, _BLOCK // num_queries)
    for start in range(0, resamples, step):
        block = means[:, start : start + step]
        drawn = random.integers(num_queries, size=(block.shape[1], num_queries))
        for column, column_means in zip(columns, block, strict=True):
            column_means[:] = column[drawn].mean(axis=1)
    lows, highs = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    return [
        # summed as `evaluate` does, so that the value is the evaluation's own
        Interval(math.fsum(column) / num_queries, float(low), float(high), confidence)
        for column, low, high in zip(columns, lows, highs, strict=True)
    ]


def _randomisation_test(
    differences: npt.NDArray[np.float64], resamples: int, seed: int
) -> tuple[float, bool]:
    """Give the p-value, and whether it is exact."""
    # Without queries that tie, which no sign changes, and without signs, which make no difference here.
    sizes = np.abs(differences[differences != 0])
    total = sizes.sum()
    # Sums that are equal but for rounding count as equal.
    least = abs(math.fsum(differences)) - 1e-12 * total
    if len(sizes) <= _EXACT_UP_TO:
        ways = (np.arange(2 ** len(sizes))[:, None] >> np.arange(len(sizes))) & 1
        return float((np.abs(total - 2 * (ways @ sizes)) >= least).mean()), True
    random = _generator(seed)
    step = max(1, _BLOCK // len(sizes))
    count = 1  # the one found
    for start in range(0, resamples, step):
        flipped = random.integers(2, size=(min(step, resamples - start), len(sizes)), dtype=np.int8)
        count += int((np.abs(total - 2 * (flipped @ sizes)) >= least).sum())
    return count / (resamples + 1), False


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed must be a whole number of at least 0, not {seed!r}")
    return np.random.default_rng(seed)
