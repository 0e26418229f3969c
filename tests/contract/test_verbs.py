"""Every family: what its verbs give, in which shape and order, and that it does not depend on the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from families import cross_encoder

from crossrank.composition.ensemble import Ensemble
from crossrank.explanation.explain import explain
from crossrank.models.reranker import Reranker
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.types import Document, Hit, Ranking

QUERY = "what is the water of the river"
QUERIES = [QUERY, "old city", "where is the blue bird"]
TEXTS = [
    "the water of the river is blue",
    "a cat and a dog",
    "old old old city",
    "the mountain " * 12,
    "bird",
    "where is the light of the new city in the water and how old is the dog",
    "new light in the old city",
]
DOCUMENTS = [
    Document("r", TEXTS[0], title="river"),
    Document("c", TEXTS[1], metadata={"year": 2000}),
    Document("o", TEXTS[2]),
    Document("m", TEXTS[3], title="the old mountain"),
]


def test_it_is_a_reranker_with_a_name(reranker):
    assert isinstance(reranker, Reranker)
    assert isinstance(reranker.name, str)
    assert reranker.name


def test_a_ranking_has_every_text_once_with_ranks_from_1(reranker):
    ranking = reranker.rank(QUERY, TEXTS)
    assert isinstance(ranking, Ranking)
    assert ranking.query == QUERY
    assert ranking.status == "ok"
    assert [hit.rank for hit in ranking] == list(range(1, len(TEXTS) + 1))
    assert sorted(hit.index for hit in ranking) == list(range(len(TEXTS)))
    for hit in ranking:
        assert isinstance(hit, Hit)
        assert type(hit.score) is float
        assert math.isfinite(hit.score)
        assert np.float32(hit.score) == hit.score, "scores are float32 values"
        assert type(hit.index) is int
        assert hit.document_id == str(hit.index)
        assert hit.document is None
        assert hit.stage


def test_hits_carry_the_documents_they_were_given(reranker):
    ranking = reranker.rank(QUERY, DOCUMENTS)
    assert sorted(ranking.document_ids) == sorted(document.id for document in DOCUMENTS)
    for hit in ranking:
        assert hit.document is DOCUMENTS[hit.index]
        assert hit.document_id == DOCUMENTS[hit.index].id


def test_title_and_text_are_read(family, reranker):
    texts = reranker.rank(QUERY, [document.full_text for document in DOCUMENTS])
    ranking = reranker.rank(QUERY, DOCUMENTS)
    assert [hit.index for hit in ranking] == [hit.index for hit in texts]
    np.testing.assert_allclose(ranking.scores, texts.scores, rtol=family.tolerance, atol=family.tolerance)


def test_scores_fall_with_ranks(family, reranker):
    if not family.one_scale:
        pytest.skip("scores of several stages are of several scales")
    ranking = reranker.rank(QUERY, TEXTS)
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_the_same_call_gives_the_same_bits(family, reranker):
    first = reranker.rank(QUERY, TEXTS)
    assert reranker.rank(QUERY, TEXTS).hits == first.hits
    assert family.build(progress=False).rank(QUERY, TEXTS).hits == first.hits


def test_rank_many_is_rank_one_by_one(family, reranker, same):
    documents = [TEXTS, [], TEXTS[2:5], TEXTS[::-1], TEXTS[:1]]
    queries = [QUERIES[0], QUERIES[1], QUERIES[1], QUERIES[2], QUERIES[0]]
    together = reranker.rank_many(queries, documents)
    assert isinstance(together, list)
    assert [ranking.query for ranking in together] == queries
    for query, texts, ranking in zip(queries, documents, together, strict=True):
        same(ranking, reranker.rank(query, texts), family.tolerance)


def test_rank_many_takes_a_top_k(reranker):
    rankings = reranker.rank_many(QUERIES, [TEXTS] * 3, top_k=2)
    assert [len(ranking) for ranking in rankings] == [2, 2, 2]


@pytest.mark.parametrize("top_k", [1, 3, np.int64(2), len(TEXTS), 100])
def test_top_k_keeps_the_first_hits(family, reranker, same, top_k):
    whole = reranker.rank(QUERY, TEXTS)
    best = reranker.rank(QUERY, TEXTS, top_k=top_k)
    assert len(best) == min(top_k, len(TEXTS))
    same(best, Ranking(QUERY, whole.hits[:top_k]), family.tolerance)


def test_score_is_there_for_pointwise_families_alone(family, reranker):
    assert callable(getattr(reranker, "score", None)) is family.pointwise


# --- pointwise families ---------------------------------------------------------------------------------


def test_score_is_an_array_in_the_order_of_the_pairs(scorer):
    if len(getattr(scorer, "labels", [""])) > 1:
        pytest.skip("a row of scores for each label")
    scores = scorer.score([(QUERY, text) for text in TEXTS])
    assert scores.dtype == np.float32
    assert scores.shape == (len(TEXTS),)
    assert np.isfinite(scores).all()
    assert scorer.score([]).shape == (0,)
    assert scorer.score([]).dtype == np.float32


def test_rank_goes_by_score(pointwise, scorer, by_index):
    if len(getattr(scorer, "labels", [""])) > 1:
        pytest.skip("a row of scores for each label")
    scores = scorer.score([(QUERY, text) for text in TEXTS])
    ranked = by_index(scorer.rank(QUERY, TEXTS))
    np.testing.assert_allclose(ranked, scores, rtol=pointwise.tolerance, atol=pointwise.tolerance)


def test_a_score_does_not_depend_on_its_neighbours(pointwise, scorer, by_index):
    whole = by_index(scorer.rank(QUERY, TEXTS))
    alone = [scorer.rank(QUERY, [text])[0].score for text in TEXTS]
    turned = by_index(scorer.rank(QUERY, TEXTS[::-1]))[::-1]
    crowded = by_index(scorer.rank(QUERY, [*TEXTS, *["the dog and the cat " * 15] * 9]))[: len(TEXTS)]
    for other in (alone, turned, crowded):
        np.testing.assert_allclose(other, whole, rtol=pointwise.tolerance, atol=pointwise.tolerance)


def test_equal_texts_get_equal_scores_and_keep_their_order(scorer):
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[0]]
    ranking = scorer.rank(QUERY, texts)
    indices = [hit.index for hit in ranking]
    assert [index for index in indices if index in (0, 2, 4)] == [0, 2, 4]
    assert [index for index in indices if index in (1, 3)] == [1, 3]
    assert len(set(ranking.scores)) <= 2
    assert [hit.index for hit in scorer.rank(QUERY, [TEXTS[3]] * 5)] == [0, 1, 2, 3, 4]


def test_a_score_can_be_explained(pointwise, scorer):
    explanation = explain(QUERY, TEXTS[0], scorer, progress=False)
    (hit,) = scorer.rank(QUERY, [TEXTS[0]])
    assert explanation.score == pytest.approx(hit.score, rel=pointwise.tolerance, abs=pointwise.tolerance)
    assert explanation.method in ("occlusion", "alignment")
    for terms, text in ((explanation.query_terms, QUERY), (explanation.document_terms, TEXTS[0])):
        assert terms
        places = [text[: term.start].count(" ") for term in terms]  # some models compare no stop words
        assert places == sorted(set(places))
        assert [term.text for term in terms] == [text.split()[place] for place in places]
        assert all(math.isfinite(term.weight) for term in terms)


# --- what is built from rerankers ------------------------------------------------------------------------


WORDS = "the old water bird dog"  # each text has one of them


def first_stage() -> BM25:
    return BM25([Document(f"d{number}", text) for number, text in enumerate(TEXTS)], language=None)


def test_it_is_a_second_stage(family, reranker, same):
    first = first_stage()
    found = Searcher(first, reranker, on_error="raise").search(WORDS, top_k=5)
    assert found.status == "ok"
    candidates = [hit.document for hit in first.retrieve([WORDS])[0]]
    assert len(candidates) == len(TEXTS)
    same(found, reranker.rank(WORDS, candidates, top_k=5), family.tolerance)
    assert all(reranker.name in hit.stage_scores for hit in found)


def test_it_is_a_stage_of_a_cascade(reranker):
    first = first_stage()
    before = Searcher(first).search(WORDS, top_k=7).document_ids
    found = Searcher(first, [(reranker, 5), (reranker, 2)], on_error="raise").search(WORDS, top_k=7)
    assert found.status == "ok"
    assert sorted(found.document_ids[:5]) == sorted(before[:5])
    assert found.document_ids[5:] == before[5:]
    assert found[0].stage.endswith(":2")


def test_it_is_a_member_of_an_ensemble(family, reranker):
    ensemble = Ensemble([reranker, cross_encoder("bert")(progress=False)], "rrf")
    fused = ensemble.rank(QUERY, TEXTS)
    assert sorted(hit.index for hit in fused) == list(range(len(TEXTS)))
    own = reranker.rank(QUERY, TEXTS)
    by_member = sorted(fused, key=lambda hit: -hit.stage_scores[ensemble.member_names[0]])
    if family.one_scale:
        told = [hit.stage_scores[ensemble.member_names[0]] for hit in by_member]
        np.testing.assert_allclose(told, own.scores, rtol=family.tolerance, atol=family.tolerance)
    else:  # brought to one scale, in the member's own order
        assert [hit.index for hit in by_member] == [hit.index for hit in own]
