"""Ensemble: what it makes of its members' scores and ranks, which are written out here."""

from __future__ import annotations

import numpy as np
import pytest
from members import DOCUMENTS, Losing, PointwiseTable, Table

from crossrank.composition.cascade import Cascade
from crossrank.composition.ensemble import Ensemble
from crossrank.errors import InputError, ModelOutputError
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.fusion import RRF, WeightedSum
from crossrank.types import Document

FIRST = Table("first", {"a": 1.0, "b": 2.0, "c": 3.0, "d": -2.0})
SECOND = Table("second", {"a": 100.0, "b": -100.0, "c": 0.0, "d": -200.0})


def z_scores(values):
    values = np.array(values, dtype=np.float64)
    return (values - values.mean()) / values.std()


def by_id(ranking):
    return {hit.document_id: hit.score for hit in ranking}


def test_the_mean_is_that_of_z_scores():
    ranking = Ensemble([FIRST, SECOND]).rank("q", DOCUMENTS)
    expected = (z_scores([1, 2, 3, -2]) + z_scores([100, -100, 0, -200])) / 2
    np.testing.assert_allclose([by_id(ranking)[each.id] for each in DOCUMENTS], expected, atol=1e-6)
    assert ranking.document_ids == ("z", "x", "y", "w")


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        # ranks: first c b a d, second a c b d
        ("rrf", {"x": 1 / 63 + 1 / 61, "y": 1 / 62 + 1 / 63, "z": 1 / 61 + 1 / 62, "w": 2 / 64}),
        (RRF(k=1), {"x": 1 / 4 + 1 / 2, "y": 1 / 3 + 1 / 4, "z": 1 / 2 + 1 / 3, "w": 2 / 5}),
        ("borda", {"x": 2 + 4, "y": 3 + 2, "z": 4 + 3, "w": 1 + 1}),
        (WeightedSum((3, 1), "min-max"), {"x": 3 * 0.6 + 1, "y": 3 * 0.8 + 1 / 3, "z": 3 + 2 / 3, "w": 0}),
        (WeightedSum((100, 1), "none"), {"x": 200, "y": 100, "z": 300, "w": -400}),
    ],
)
def test_other_formulas(fusion, expected):
    ranking = Ensemble([FIRST, SECOND], fusion).rank("q", DOCUMENTS)
    assert by_id(ranking) == pytest.approx(expected, abs=1e-6)
    assert list(ranking.document_ids) == sorted(expected, key=lambda each: -expected[each])


def test_hits_have_the_scores_of_all_members():
    hit = Ensemble([FIRST, SECOND, FIRST], "rrf", name="team").rank("q", DOCUMENTS, top_k=1)[0]
    assert hit.stage == "team"
    assert hit.stage_scores == {"first": 3.0, "second": 0.0, "first:2": 3.0, "team": hit.score}
    assert (hit.index, hit.document, hit.truncated_tokens) == (2, DOCUMENTS[2], 2)


def test_equal_fused_scores_keep_the_order_they_came_in():
    turned = Table("turned", {text: -score for text, score in FIRST.table.items()})
    both = Ensemble([FIRST, turned], WeightedSum(None, "none"))  # 0 for all
    assert both.rank("q", DOCUMENTS).document_ids == ("x", "y", "z", "w")
    assert both.rank("q", DOCUMENTS[::-1]).document_ids == ("w", "z", "y", "x")


def test_the_scores_of_members_come_through_a_search():
    documents = [Document("1", "a"), Document("2", "b")]
    searcher = Searcher(BM25(documents, language=None), Ensemble([FIRST, SECOND]))
    hit = searcher.search("a b")[0]
    assert list(hit.stage_scores) == ["bm25", "first", "second", "ensemble"]


def test_what_members_note_is_noted():
    noting = Table("noting", FIRST.table, notes=["2 repaired"])
    assert Ensemble([FIRST, noting]).rank("q", DOCUMENTS).notes == ("noting: 2 repaired",)


def test_a_cascade_counts_by_its_order():
    # the scores of its last stage are below those of the stage before: as numbers they would turn it round
    cascade = Cascade(SECOND, [(Table("turn", {"a": -500.0, "c": -400.0}), 2)])
    assert cascade.rank("q", DOCUMENTS).document_ids == ("z", "x", "y", "w")
    assert Ensemble([cascade]).rank("q", DOCUMENTS).document_ids == ("z", "x", "y", "w")


def test_raw_sums_of_pointwise_members_are_scores_of_pairs():
    members = [PointwiseTable("p1", FIRST.table), PointwiseTable("p2", SECOND.table)]
    ensemble = Ensemble(members, WeightedSum((2, 0.5), "none"))
    scores = ensemble.score([("q", text) for text in "abcd"])
    assert scores.dtype == np.float32
    assert scores.tolist() == [52.0, -46.0, 6.0, -104.0]
    assert by_id(ensemble.rank("q", DOCUMENTS)) == {"x": 52.0, "y": -46.0, "z": 6.0, "w": -104.0}


@pytest.mark.parametrize(
    ("ensemble", "why"),
    [
        (Ensemble([PointwiseTable("p", FIRST.table)]), "whole rankings"),
        (Ensemble([PointwiseTable("p", FIRST.table)], "rrf"), "whole rankings"),
        (Ensemble([PointwiseTable("p", FIRST.table), SECOND], WeightedSum(None, "none")), "second cannot"),
    ],
)
def test_where_a_pair_has_no_score_of_its_own_there_is_no_score(ensemble, why):
    assert not hasattr(ensemble, "score")
    with pytest.raises(AttributeError, match=why):
        _ = ensemble.score


QUERIES = {"1": "q one", "2": "q two"}
CANDIDATES = {"1": DOCUMENTS, "2": DOCUMENTS[::-1]}


@pytest.mark.parametrize(("relevant", "weights"), [("z", (0.9, 0.1)), ("x", (0.2, 0.8))])
def test_tuned_weights_put_the_judged_documents_on_top(relevant, weights):
    qrels = {query_id: {relevant: 1} for query_id in QUERIES}
    pytest.importorskip("pytrec_eval")
    tuned = Ensemble.tuned([FIRST, SECOND], QUERIES, CANDIDATES, qrels, "MRR@10", normalisation="min-max")
    assert tuned.rank("q", DOCUMENTS)[0].document_id == relevant
    assert isinstance(tuned.fusion, WeightedSum)
    # the most even of the best: nearer to the middle than the weights of the one that is right alone
    assert abs(tuned.fusion.weights[0] - 0.5) <= abs(weights[0] - 0.5)


def test_tuning_needs_documents_with_ids_of_their_own():
    qrels = {"1": {"x": 1}}
    with pytest.raises(InputError, match="no documents for query '2'"):
        Ensemble.tuned([FIRST, SECOND], QUERIES, {"1": DOCUMENTS}, qrels)
    with pytest.raises(InputError, match="must be Documents"):
        Ensemble.tuned([FIRST, SECOND], {"1": "q"}, {"1": ["a"]}, qrels)
    with pytest.raises(InputError, match="one id twice"):
        Ensemble.tuned([FIRST, SECOND], {"1": "q"}, {"1": [DOCUMENTS[0]] * 2}, qrels)
    with pytest.raises(InputError, match="two retrievers or more"):
        Ensemble.tuned([FIRST], {"1": "q"}, {"1": DOCUMENTS}, qrels)


def test_members_must_return_every_document_once():
    with pytest.raises(ModelOutputError, match="losing lost, added or repeated"):
        Ensemble([FIRST, Losing("losing", FIRST.table)]).rank("q", DOCUMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "needs one reranker"),
        ((FIRST,), "rerankers must be a list"),
        (([FIRST, "bm25"],), "str has not"),
        (([FIRST], "median"), "mean, rrf, borda"),
        (([FIRST], 3), "mean, rrf, borda"),
        (([FIRST, SECOND], WeightedSum((1, 2, 3))), "3 weights for 2 rerankers"),
    ],
)
def test_what_is_no_ensemble(arguments, message):
    with pytest.raises(InputError, match=message):
        Ensemble(*arguments)
