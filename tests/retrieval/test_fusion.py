"""Fusion formulas: values by hand, and what must hold for any rankings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.retrieval.fusion import RRF, Borda, Fusion, WeightedSum, tune
from crossrank.types import Document, Hit, Qrels, Ranking

NORMALISATIONS = ["min-max", "z-score", "dbsf", "none"]


def ranking(stage: str, scores: Mapping[str, float], query: str = "q") -> Ranking:
    return Ranking.from_hits(query, [Hit(name, score, 1, stage) for name, score in scores.items()])


def fused(fusion: Fusion, *lists: Mapping[str, float]) -> dict[str, float]:
    result = fusion([ranking(f"r{number}", each) for number, each in enumerate(lists)])
    assert list(result.scores) == sorted(result.scores, reverse=True)
    assert [hit.rank for hit in result] == list(range(1, len(result) + 1))
    return dict(zip(result.document_ids, result.scores, strict=True))


scores_by_id = st.dictionaries(
    st.sampled_from("abcdefgh"), st.floats(-100, 100, width=32), min_size=0, max_size=8
)
score_lists = st.lists(scores_by_id, min_size=1, max_size=4)
fusions = st.sampled_from([RRF(), RRF(k=1), *(WeightedSum(None, how) for how in NORMALISATIONS)])


def test_rrf_by_hand() -> None:
    result = fused(RRF(), {"a": 9, "b": 5, "c": 1}, {"c": 0.9, "a": 0.5})
    expected = {"a": 1 / 61 + 1 / 62, "c": 1 / 63 + 1 / 61, "b": 1 / 62}
    assert list(result) == ["a", "c", "b"]
    assert result == {name: float(np.float32(value)) for name, value in expected.items()}


def test_rrf_weights_and_k() -> None:
    result = fused(RRF(k=1, weights=(3, 1)), {"a": 2, "b": 1}, {"b": 2, "a": 1})
    assert result == pytest.approx({"a": 3 / 2 + 1 / 3, "b": 3 / 3 + 1 / 2})


def test_min_max_by_hand() -> None:
    result = fused(WeightedSum((2, 1)), {"a": 30, "b": 20, "c": 10}, {"c": 0.5, "d": 0.5})
    assert result == pytest.approx({"a": 2, "c": 1, "b": 1, "d": 1})


def test_z_score_by_hand() -> None:
    # First list: mean 2, population standard deviation sqrt(2/3); z = -1.2247, 0, 1.2247.
    z = math.sqrt(3 / 2)
    result = fused(WeightedSum(None, "z-score"), {"a": 3, "b": 2, "c": 1}, {"c": 8, "b": 4})
    assert result == pytest.approx({"a": z - 1, "c": -z + 1, "b": 0 - 1})


def test_dbsf_by_hand() -> None:
    scores = {"a": 12.0, "b": 7.0, "c": 5.0, "d": 4.0}
    mean, deviation = 7.0, math.sqrt((25 + 0 + 4 + 9) / 3)
    assert deviation == statistics.stdev(scores.values())
    low, high = mean - 3 * deviation, mean + 3 * deviation
    expected = {name: (score - low) / (high - low) for name, score in scores.items()}
    expected["a"] += 0.5  # a list of one document
    assert fused(WeightedSum(None, "dbsf"), scores, {"a": 3.0}) == pytest.approx(expected)


def test_dbsf_does_not_cut_off_outliers() -> None:
    result = fused(WeightedSum(None, "dbsf"), {"top": 100.0} | {f"d{n}": float(n % 2) for n in range(40)})
    assert result["top"] > 1


def test_without_normalisation() -> None:
    result = fused(WeightedSum((1, 0.5), "none"), {"a": 3, "b": -2}, {"b": 4, "c": -1})
    assert result == pytest.approx({"a": 3 - 0.5, "b": -2 + 2, "c": -2 - 0.5})


def test_hits_say_where_they_come_from() -> None:
    document = Document("a", "text")
    first = Ranking("q", (Hit("a", 3.0, 1, "bm25", index=4),), query_id="7")
    second = Ranking("q", (Hit("b", 0.9, 1, "dense"), Hit("a", 0.5, 2, "dense", document=document)))
    result = RRF()([first, second])
    hit = result[0]
    assert (result.query, result.query_id) == ("q", "7")
    assert (hit.document_id, hit.stage, hit.index, hit.document) == ("a", "hybrid", 4, document)
    assert hit.stage_scores == {"bm25": 3.0, "dense": 0.5, "hybrid": hit.score}
    assert result[1].stage_scores == {"dense": 0.9, "hybrid": result[1].score}
    renamed = RRF()([first, second], names=["x", "y"], stage="both", top_k=1)
    assert [list(hit.stage_scores) for hit in renamed] == [["x", "y", "both"]]


def test_rankings_of_one_stage_are_told_apart() -> None:
    lists = [ranking("bm25", {"a": 1}), ranking("bm25", {"a": 2}), ranking("hybrid", {"a": 3})]
    assert list(RRF()(lists)[0].stage_scores) == ["bm25", "bm25:2", "hybrid:2", "hybrid"]


def test_ties_go_by_id_as_in_trec_eval() -> None:
    result = fused(WeightedSum((1, 1), "none"), {"z": 2, "c": 1, "a": 1}, {"b": 1, "a": 0, "c": 0})
    assert list(result) == ["z", "c", "b", "a"]


@pytest.mark.parametrize("fusion", [RRF(), WeightedSum(), WeightedSum(None, "none")])
@pytest.mark.parametrize("top_k", [0, -1, 2.5, True])
def test_top_k_is_checked(fusion: Fusion, top_k: object) -> None:
    with pytest.raises(InputError, match="top_k"):
        fusion([ranking("bm25", {"a": 1.0})], top_k=top_k)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", NORMALISATIONS)
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_must_be_finite(how, score: float) -> None:
    with pytest.raises(InputError, match="NaN or infinity"):
        WeightedSum(None, how)([ranking("bm25", {"a": score, "b": 1.0})])


@pytest.mark.parametrize("how", ["min-max", "z-score", "dbsf"])
@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_normalised_scores_do_not_depend_on_the_scale(how, scale: float) -> None:
    scores = {"a": 3.0, "b": 2.0, "c": -1.0}
    usual = fused(WeightedSum(None, how), scores)
    assert fused(
        WeightedSum(None, how), {name: scale * score for name, score in scores.items()}
    ) == pytest.approx(usual, rel=1e-6)


def test_a_ranking_without_the_querys_text_is_of_the_same_query() -> None:
    known, read = ranking("bm25", {"a": 2.0, "b": 1.0}), replace(ranking("file", {"b": 9.0}), query="")
    assert RRF()([read, known]).query == known.query
    assert RRF()([read, known]).document_ids == RRF()([known, read]).document_ids == ("b", "a")
    with pytest.raises(InputError, match="only rankings for one query"):
        RRF()([read, known, replace(known, query="another")])


@pytest.mark.parametrize("weights", ["12", 5, (1, "x"), (True, 1), (-1, 1), (0, 0)])
def test_weights_are_checked(weights: object) -> None:
    for formula in (RRF, WeightedSum):
        with pytest.raises(InputError, match="weight"):
            formula(weights=weights)


def test_empty_rankings() -> None:
    assert len(RRF()([Ranking("q"), Ranking("q")])) == 0
    for how in NORMALISATIONS:
        assert fused(WeightedSum(None, how), {}, {"a": 1.0}).keys() == {"a"}


@given(score_lists, fusions, st.randoms(use_true_random=False))
def test_the_order_of_the_rankings_does_not_matter(
    lists: list[dict[str, float]], fusion: Fusion, random: object
) -> None:
    shuffled = list(lists)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(fused(fusion, *shuffled).items()) == list(fused(fusion, *lists).items())


@given(score_lists, fusions)
def test_a_document_ahead_in_every_ranking_stays_ahead(lists: list[dict[str, float]], fusion: Fusion) -> None:
    result = fused(fusion, *lists)
    assert result.keys() == {name for each in lists for name in each}
    for better in result:
        for worse in result:
            if all(worse not in each or (better in each and each[better] > each[worse]) for each in lists):
                assert result[better] >= result[worse]


@given(scores_by_id, fusions)
def test_one_ranking_keeps_its_order(scores: dict[str, float], fusion: Fusion) -> None:
    result = fused(fusion, scores)
    in_order = [scores[name] for name in result]
    assert in_order == sorted(in_order, reverse=True) or len(set(result.values())) < len(result)


@given(score_lists, fusions, st.integers(1, 5))
def test_top_k_is_the_head(lists: list[dict[str, float]], fusion: Fusion, top_k: int) -> None:
    rankings = [ranking(f"r{number}", each) for number, each in enumerate(lists)]
    assert fusion(rankings, top_k=top_k).hits == fusion(rankings).hits[:top_k]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RRF(k=0), "k must"),
        (lambda: RRF(weights=(1, -1)), "weights"),
        (lambda: WeightedSum((0, 0)), "weights"),
        (lambda: WeightedSum((1,), "softmax"), "softmax"),  # type: ignore[arg-type]
        (lambda: RRF()([]), "no ranking"),
        (lambda: WeightedSum((1, 2))([Ranking("q")]), "2 weights for 1 rankings"),
        (lambda: RRF()([Ranking("q"), Ranking("p")]), "'q' and 'p'"),
        (lambda: RRF()([Ranking("q", (Hit("a", 2, 1, "s"), Hit("a", 1, 2, "s")))]), "'s'.*twice"),
        (lambda: RRF()([Ranking("q")], names=["x", "y"]), "names"),
        (lambda: WeightedSum()([Ranking("q", (Hit("a", math.nan, 1, "s"),))]), "finite"),
        (lambda: tune({"a": {}}, {}), "two retrievers"),
        (lambda: tune({"a": {}, "b": {}}, {"1": {"d": 1}}), "query ids"),
    ],
)
def test_bad_input(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def reciprocal_rank(run: Mapping[str, Ranking], qrels: Qrels) -> float:
    """Mean reciprocal rank of the first relevant document."""
    total = 0.0
    for query_id, judged in qrels.items():
        ranks = [hit.rank for hit in run.get(query_id, ()) if judged.get(hit.document_id)]
        total += 1 / min(ranks) if ranks else 0
    return total / len(qrels)


def judged_lists(good: Sequence[int]) -> tuple[dict[str, dict[str, Ranking]], Qrels]:
    """Three retrievers; those numbered in `good` put document "z", the relevant one, first."""
    right, wrong = {"z": 3, "b": 2, "c": 1}, {"c": 3, "b": 2, "z": 1}
    runs = {
        f"r{number}": {
            str(query): ranking(f"r{number}", right if number in good else wrong, f"query {query}")
            for query in range(4)
        }
        for number in range(3)
    }
    return runs, {str(query): {"z": 1} for query in range(4)}


def test_tune_finds_the_retriever_to_trust() -> None:
    runs, qrels = judged_lists(good=[1])
    tuned = tune(runs, qrels, reciprocal_rank, steps=4)
    assert tuned.normalisation == "min-max"
    assert tuned.weights is not None
    assert sum(tuned.weights) == pytest.approx(1)
    # Document z is first where r1 outweighs the other two together; at 0.25, 0.5, 0.25 it ties
    # with c, and the larger id goes first.
    assert tuned.weights == (0.25, 0.5, 0.25)


def test_tune_prefers_even_weights_where_all_are_equally_good() -> None:
    runs, qrels = judged_lists(good=[0, 1, 2])
    assert tune(runs, qrels, reciprocal_rank, steps=3).weights == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_tune_counts_a_query_that_a_retriever_lacks_as_nothing_found() -> None:
    runs, qrels = judged_lists(good=[0])
    del runs["r1"], runs["r0"]["2"], runs["r2"]["3"]
    seen: list[set[str]] = []

    def metric(run: Mapping[str, Ranking], judged: Qrels) -> float:
        seen.append(set(run))
        return reciprocal_rank(run, judged)

    tuned = tune(runs, {**qrels, "unknown": {"a": 1}}, metric, normalisation="z-score", steps=2)
    assert tuned == WeightedSum((1.0, 0.0), "z-score")
    assert seen == [{"0", "1", "2", "3"}] * 3


def test_borda_gives_points_for_places_and_shares_those_a_ranking_did_not_give() -> None:
    first = Ranking("q", tuple(Hit(each, 0.0, n, "a") for n, each in enumerate("abcd", 1)))
    second = Ranking("q", tuple(Hit(each, 0.0, n, "b") for n, each in enumerate("db", 1)))
    # 4 documents; the second ranking gave 4 and 3, so a and c share 2 + 1
    fused = Borda()([first, second])
    assert {hit.document_id: hit.score for hit in fused} == {"a": 5.5, "b": 6.0, "c": 3.5, "d": 5.0}
    weighted = Borda((0, 2))([first, second])
    assert {hit.document_id: hit.score for hit in weighted} == {"a": 3.0, "b": 6.0, "c": 3.0, "d": 8.0}
    with pytest.raises(InputError, match="2 weights for 1 rankings"):
        Borda((1, 2))([first])
