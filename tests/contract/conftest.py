"""What the conformance suite asks of a family: `family` runs over all of them, `reranker` is one of it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from families import Family, parameters

from crossrank.models.reranker import Reranker
from crossrank.types import Ranking


@pytest.fixture(params=parameters())
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(params=parameters(lambda family: family.pointwise))
def pointwise(request: pytest.FixtureRequest) -> Family:
    return request.param


@cache
def shared(family: Family) -> Reranker:
    """One model for all tests of a family: that it is not spoilt by them is part of what is tested."""
    return family.build(progress=False)


@pytest.fixture
def reranker(family: Family) -> Reranker:
    return shared(family)


@pytest.fixture
def scorer(pointwise: Family) -> Reranker:
    return shared(pointwise)


def scores_by_index(ranking: Ranking) -> np.ndarray:
    """Scores in the order of the documents."""
    scores = np.full(len(ranking), np.nan)
    for hit in ranking:
        scores[hit.index] = hit.score
    return scores


@pytest.fixture
def by_index():
    return scores_by_index


@pytest.fixture
def same():
    """Asserts that two rankings have the same order and the same scores but for a tolerance."""

    def check(one: Ranking, other: Ranking, tolerance: float) -> None:
        assert len(one) == len(other)
        np.testing.assert_allclose(one.scores, other.scores, rtol=tolerance, atol=tolerance)
        for left, right in zip(one, other, strict=True):
            if left.document_id != right.document_id:  # only where their scores are as good as equal
                assert left.score == pytest.approx(
                    next(hit.score for hit in other if hit.document_id == left.document_id),
                    rel=tolerance,
                    abs=tolerance,
                )

    return check
