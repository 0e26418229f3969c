"""A cross-encoder's second look: which pairs are read, both ways round, and which stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank import BiEncoder, CrossEncoder
from crossrank.errors import InputError
from crossrank.similarity.paraphrases import similar_pairs
from crossrank.similarity.verification import verify

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]
TEXTS = [" ".join(WORDS[(i * k) % 12] for k in range(1, 3 + i % 4)) for i in range(15)]


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    return CrossEncoder(GOLDEN / "bert", threads=1, activation="sigmoid")


@pytest.fixture(scope="module")
def pairs():
    return similar_pairs(BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1).encode_documents(TEXTS))


def values_of(model: CrossEncoder, pairs) -> np.ndarray:
    ends = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    there = model.activate(model.score([(TEXTS[a], TEXTS[b]) for a, b in ends]))
    back = model.activate(model.score([(TEXTS[b], TEXTS[a]) for a, b in ends]))
    return (there + back) / 2


def test_pairs_of_the_band_are_read_both_ways_and_stay_where_they_are_confirmed(model, pairs) -> None:
    low, high = np.quantile(pairs.scores, [0.3, 0.7]).tolist()
    values = values_of(model, pairs)
    inside = (pairs.scores >= np.float32(low)) & (pairs.scores < np.float32(high))
    least = float(np.median(values[inside]))
    found = verify(pairs, TEXTS, model, band=(low, high), least=least)
    stays = ~inside | (values >= least)
    assert found.pairs.first.tolist() == pairs.first[stays].tolist()
    assert found.pairs.second.tolist() == pairs.second[stays].tolist()
    assert found.num_borderline == found.num_verified == inside.sum()
    assert found.num_rejected == inside.sum() - (values[inside] >= least).sum() > 0
    np.testing.assert_allclose(found.values, np.where(inside, values, np.nan)[stays], atol=1e-6)


def test_the_number_of_pairs_that_are_read_is_capped(model, pairs) -> None:
    found = verify(pairs, TEXTS, model, band=(-1, 0.99), least=0.0, most=7)
    num_above = int((pairs.scores >= 0.99).sum())
    assert (found.num_verified, found.num_unread) == (7, len(pairs) - num_above - 7)
    assert found.pairs.scores.tolist() == pairs.scores[: num_above + 7].tolist()


def test_an_empty_band_reads_nothing(model, pairs) -> None:
    found = verify(pairs, TEXTS, model, band=(-1, -0.99))
    assert found.num_verified == 0
    assert len(found.pairs) == len(pairs)
    assert np.isnan(found.values).all()


def test_what_cannot_verify_is_refused(model, pairs) -> None:
    with pytest.raises(InputError, match=r"band is from 0.5 to 0.5"):
        verify(pairs, TEXTS, model, band=(0.5, 0.5))
    with pytest.raises(InputError, match="most"):
        verify(pairs, TEXTS, model, most=0)


def test_raw_scores_are_not_compared_with_a_probability(pairs) -> None:
    raw = CrossEncoder(GOLDEN / "bert", threads=1)
    with pytest.raises(
        InputError, match="bert has neither a calibration nor an activation: its values are raw"
    ):
        verify(pairs, TEXTS, raw)
    values = verify(pairs, TEXTS, raw, least=-1e9).values
    least = float(np.nanmedian(values))
    found = verify(pairs, TEXTS, raw, least=least)
    assert found.num_rejected == (values < least).sum() > 0
