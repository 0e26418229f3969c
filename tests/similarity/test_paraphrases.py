"""All pairs of vectors: against sentence-transformers, against every pair by hand, ties, thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.similarity import paraphrases
from crossrank.similarity.paraphrases import similar_pairs, unit_vectors


def drawn(n: int = 300, dimensions: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimensions)).astype(np.float32)


def all_pairs(vectors: np.ndarray) -> list[tuple[float, int, int]]:
    """Every pair, best first, equal ones by their rows."""
    units = unit_vectors(vectors)
    scores = np.clip(units @ units.T, -1, 1)
    pairs = [(float(scores[i, j]), i, j) for i in range(len(units)) for j in range(i + 1, len(units))]
    return sorted(pairs, key=lambda each: (-each[0], each[1], each[2]))


def as_rows(found) -> list[tuple[int, int]]:
    return list(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paraphrases, "_ROWS", 7)
    monkeypatch.setattr(paraphrases, "_COLUMNS", 20)


@pytest.mark.parametrize("top_k", [10, 500, 100_000])
def test_pairs_are_those_of_sentence_transformers(top_k: int) -> None:
    retrieval = pytest.importorskip("sentence_transformers.util")
    torch = pytest.importorskip("torch")
    vectors = drawn()
    expected = retrieval.paraphrase_mining_embeddings(
        torch.from_numpy(vectors), max_pairs=top_k, top_k=len(vectors)
    )
    found = similar_pairs(vectors, top_k=top_k)
    assert len(found) == len(expected) == min(top_k, 300 * 299 // 2)
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=1e-6)
    differ = set(as_rows(found)) ^ {(i, j) for _, i, j in expected}
    assert len(differ) <= 2  # the last place may be a tie within rounding


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("top_k", [1, 40, 2000])
def test_blocks_leave_no_pair_out_and_name_none_twice(top_k: int) -> None:
    # Whole numbers: products are exact, and many are equal.
    vectors = np.random.default_rng(1).integers(-1, 2, size=(60, 4)).astype(np.float32)
    vectors = vectors[np.abs(vectors).sum(axis=1) == 4]  # of length 2, so exact as units, too
    vectors = np.concatenate([vectors] * 5)
    expected = all_pairs(vectors)
    found = similar_pairs(vectors, top_k=top_k)
    assert as_rows(found) == [(i, j) for _, i, j in expected[:top_k]]
    assert found.num_above == len(expected)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 1.0])
def test_all_pairs_above_a_threshold_are_counted_and_kept(threshold: float) -> None:
    vectors = np.concatenate([drawn(60), drawn(10)])  # ten rows twice
    expected = [each for each in all_pairs(vectors) if each[0] >= np.float32(threshold)]
    found = similar_pairs(vectors, threshold=threshold)
    assert found.num_above == len(found) == pytest.approx(len(expected), abs=3 if threshold == 1 else 0)
    assert similar_pairs(vectors, threshold=threshold, top_k=3).num_above == found.num_above
    assert (np.diff(found.scores) <= 0).all()
    assert (found.first < found.second).all()


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(1, 50), st.integers(0, 5))
def test_fewer_pairs_are_the_first_of_more(n: int, top_k: int, seed: int) -> None:
    vectors = drawn(n, 4, seed)
    few, more = similar_pairs(vectors, top_k=top_k), similar_pairs(vectors)
    assert as_rows(few) == as_rows(more)[:top_k]


def test_lengths_do_not_matter_and_zeros_are_like_nothing() -> None:
    vectors = drawn(20)
    scaled = vectors * np.arange(1, 21)[:, None]
    np.testing.assert_allclose(similar_pairs(scaled).scores, similar_pairs(vectors).scores, atol=1e-6)
    assert similar_pairs([[0, 0], [1, 0]]).scores.tolist() == [0.0]


def test_the_callers_vectors_stay_as_they_are() -> None:
    vectors = drawn(10)
    before = vectors.copy()
    similar_pairs(vectors)
    np.testing.assert_array_equal(vectors, before)


def test_one_vector_has_no_pair() -> None:
    assert len(similar_pairs([[1.0, 0.0]])) == 0


@pytest.mark.parametrize(
    ("vectors", "options", "match"),
    [
        ([[1.0], [float("nan")]], {}, "NaN"),
        (["a", "b"], {}, "vectors"),
        ([[1.0]], {"threshold": 2}, "threshold must be a number between -1 and 1"),
        ([[1.0]], {"top_k": 0}, "top_k"),
    ],
)
def test_what_cannot_be_compared_is_refused(vectors, options, match: str) -> None:
    with pytest.raises(InputError, match=match):
        similar_pairs(vectors, **options)
