"""Measures: hand-computed values, trec_eval's tie rule, and what must hold for any run."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import InputError, MissingExtraError
from crossrank.evaluation import measures as module
from crossrank.evaluation.measures import FAMILIES, Evaluation, evaluate, parse_measure
from crossrank.evaluation.trec import read_qrels, read_run, write_run
from crossrank.types import Hit, Ranking

pytest.importorskip("pytrec_eval", reason="pytrec_eval is not installed (extra: eval)")

QRELS = """\
q1 0 a 3
q1 0 b 0
q1 0 c 1
q1 0 d 2
q1 0 never 2
q2 0 x 1
q3 0 m 1
q4 0 z 0
"""
RUN = """\
q1 Q0 b 1 9.0 t
q1 Q0 c 2 8.0 t
q1 Q0 new 3 7.0 t
q1 Q0 a 4 6.0 t
q1 Q0 d 5 5.0 t
q2 Q0 y 1 2.0 t
q2 Q0 x 2 1.0 t
q4 Q0 z 1 1.0 t
q9 Q0 a 1 1.0 t
"""


@pytest.fixture
def judged(tmp_path: Path):
    (tmp_path / "qrels").write_text(QRELS)
    (tmp_path / "run").write_text(RUN)
    return read_run(tmp_path / "run"), read_qrels(tmp_path / "qrels")


def test_values_worked_out_by_hand(judged) -> None:
    run, qrels = judged
    names = [
        "nDCG@3", "nDCG@10", "nDCG", "MRR", "MRR@1", "MRR@2", "MAP", "MAP@2", "Recall@4", "P@5", "P@10",
        "Rprec", "Success@1", "Success@5",
    ]  # fmt: skip
    result = evaluate(run, qrels, names)
    log = math.log2
    best = 3 / log(2) + 2 / log(3) + 2 / log(4) + 1 / log(5)  # of all judgements, found or not
    best_3 = 3 / log(2) + 2 / log(3) + 2 / log(4)
    gained = 1 / log(3) + 3 / log(5) + 2 / log(6)
    q1 = {
        "nDCG@3": (1 / log(3)) / best_3,
        "nDCG@10": gained / best,
        "nDCG": gained / best,
        "MRR": 1 / 2,
        "MRR@1": 0,
        "MRR@2": 1 / 2,
        "MAP": (1 / 2 + 2 / 4 + 3 / 5) / 4,
        "MAP@2": (1 / 2) / 4,
        "Recall@4": 2 / 4,
        "P@5": 3 / 5,
        "P@10": 3 / 10,
        "Rprec": 2 / 4,
        "Success@1": 0,
        "Success@5": 1,
    }
    q2 = dict.fromkeys(("MRR", "MRR@2", "MAP", "MAP@2"), 1 / 2) | {
        "nDCG@3": 1 / log(3),
        "nDCG@10": 1 / log(3),
        "nDCG": 1 / log(3),
        "Recall@4": 1,
        "P@5": 1 / 5,
        "P@10": 1 / 10,
        "Success@5": 1,
    }
    assert dict(result.per_query["q1"]) == pytest.approx(q1, abs=1e-12)
    assert dict(result.per_query["q2"]) == pytest.approx({name: q2.get(name, 0) for name in names}, abs=1e-12)
    # q3 is missing from the run and q4 has no relevant document: both count, as zero
    assert set(result.per_query["q3"].values()) == set(result.per_query["q4"].values()) == {0.0}
    assert dict(result) == pytest.approx({n: (q1[n] + q2.get(n, 0)) / 4 for n in names}, abs=1e-12)
    assert result.num_queries == 4
    assert result.missing_queries == ("q3",)
    assert result.unjudged_queries == ("q9",)
    assert list(result) == names
    assert result["ndcg_cut_10"] == result["nDCG@10"]
    with pytest.raises(KeyError):
        result["nDCG@20"]
    with pytest.raises(KeyError):
        result["no such thing"]


def test_relevance_level_is_the_lowest_relevant_grade(judged) -> None:
    run, qrels = judged
    result = evaluate(run, qrels, ["MRR", "P@5", "Recall@5", "nDCG@10"], relevance_level=2)
    assert result.per_query["q1"]["MRR"] == 1 / 4
    assert result.per_query["q1"]["P@5"] == pytest.approx(2 / 5)
    assert result.per_query["q1"]["Recall@5"] == pytest.approx(2 / 3)
    assert result.per_query["q2"]["MRR"] == 0
    assert result["nDCG@10"] == evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]  # graded: no level
    assert result.relevance_level == 2


def rank_of(relevant: str, scores: dict[str, float]) -> int:
    return round(1 / evaluate({"q": scores}, {"q": {relevant: 1}}, ["MRR"])["MRR"])


def test_ties_go_to_the_larger_document_id() -> None:
    assert rank_of("a", {"a": 1.0, "b": 1.0}) == 2
    assert rank_of("b", {"a": 1.0, "b": 1.0}) == 1
    assert rank_of("10", {"9": 1.0, "10": 1.0}) == 2  # as strings
    assert rank_of("é", {"z": 1.0, "é": 1.0, "\U0001f600": 1.0, "\uffee": 1.0}) == 3  # by UTF-8 bytes
    assert rank_of("a", {"a": 0.0, "b": -0.0}) == 2


def test_scores_are_compared_as_float32() -> None:
    assert rank_of("a", {"a": 1.0 + 1e-8, "b": 1.0}) == 2  # a tie in float32
    assert rank_of("a", {"a": float(np.nextafter(np.float32(1), np.float32(2))), "b": 1.0}) == 1


def test_rr_at_k_is_the_ranking_cut_in_trec_evals_order() -> None:
    run = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}  # trec_eval's order: c b a
    result = evaluate(run, {"q": {"b": 1, "a": 1}}, ["MRR@1", "MRR@2", "MRR"])
    assert dict(result) == {"MRR@1": 0.0, "MRR@2": 0.5, "MRR": 0.5}


def test_a_ranking_of_several_stages_counts_in_its_own_order() -> None:
    hits = (Hit("a", -3.0, 1, "rerank"), Hit("b", -5.0, 2, "rerank"), Hit("c", 12.0, 3, "bm25"))
    run = {"q": Ranking("text", hits)}
    assert evaluate(run, {"q": {"c": 1}}, ["MRR"])["MRR"] == pytest.approx(1 / 3)
    assert evaluate(run, {"q": {"a": 1}}, ["MRR"])["MRR"] == 1


ids = st.text(st.characters(codec="utf-8", exclude_characters="\0 \t\v\f\r\n\ufeff"), min_size=1, max_size=3)
# few different scores, so that there are ties, some of them only in float32
tied = st.sampled_from([-1.0, 0.0, 1.0, 1.0 + 1e-9, 1.0 + 2e-7, 2.5])
judgements = st.dictionaries(ids, st.integers(-1, 3), min_size=1, max_size=10)


@st.composite
def cases(draw: st.DrawFn):
    qrels = draw(judgements)
    pool = st.one_of(st.sampled_from(sorted(qrels)), ids)
    return draw(st.dictionaries(pool, tied, max_size=12)), qrels


def by_the_book(scores: dict[str, float], grades: dict[str, int], level: int, k: int) -> dict[str, float]:
    """The measures from their definitions, for one query, with the tie rule written out."""
    order = sorted(scores, key=lambda d: (np.float32(scores[d]), d.encode()), reverse=True)
    relevant = [grades.get(d, 0) >= level for d in order]
    total = sum(grade >= level for grade in grades.values())
    gains = [max(grades.get(d, 0), 0) for d in order]
    ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(rank + 2) for rank, value in enumerate(values[:k]))

    first = next((rank for rank, is_relevant in enumerate(relevant[:k], start=1) if is_relevant), None)
    precisions = [sum(relevant[:rank]) / rank for rank in range(1, len(order) + 1) if relevant[rank - 1]]
    return {
        f"nDCG@{k}": dcg(gains) / dcg(ideal) if dcg(ideal) else 0.0,
        f"MRR@{k}": 1 / first if first else 0.0,
        "MAP": sum(precisions) / total if total else 0.0,
        f"Recall@{k}": sum(relevant[:k]) / total if total else 0.0,
        f"P@{k}": sum(relevant[:k]) / k,
        "Rprec": sum(relevant[:total]) / total if total else 0.0,
        f"Success@{k}": float(any(relevant[:k])),
    }


@settings(max_examples=150, deadline=None)
@given(case=cases(), level=st.integers(1, 3), k=st.integers(1, 12))
def test_agrees_with_the_definitions(case, level: int, k: int) -> None:
    scores, grades = case
    expected = by_the_book(scores, grades, level, k)
    result = evaluate({"q": scores}, {"q": grades}, list(expected), relevance_level=level)
    assert dict(result.per_query["q"]) == pytest.approx(expected, abs=1e-9)
    assert all(0 <= value <= 1 for value in result.values())


ALL = ["nDCG@5", "nDCG", "MRR@5", "MRR", "MAP", "Recall@5", "P@5", "Rprec", "Success@5"]


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(case, seed: random.Random, tmp_path_factory) -> None:
    scores, grades = case
    scores = scores or {"only": 1.0}
    rows = list(scores.items())
    seed.shuffle(rows)
    judged_rows = list(grades.items())
    seed.shuffle(judged_rows)
    first = evaluate({"q": scores}, {"q": grades}, ALL)
    assert dict(first) == dict(evaluate({"q": dict(rows)}, {"q": dict(judged_rows)}, ALL))
    # nor does a file in between
    path = tmp_path_factory.mktemp("run") / "run.trec"
    hits = [Hit(document_id, score, 1, "t") for document_id, score in rows]
    write_run({"q": Ranking.from_hits("", hits)}, path)
    assert dict(first) == dict(evaluate(read_run(path), {"q": grades}, ALL))


@settings(max_examples=60, deadline=None)
@given(grades=st.lists(st.integers(0, 3), min_size=2, max_size=10), where=st.integers(0, 8))
def test_moving_the_better_document_up_never_lowers_a_measure(grades: list[int], where: int) -> None:
    where %= len(grades) - 1
    qrels = {"q": {f"d{i}": grade for i, grade in enumerate(grades)}}
    order = [f"d{i}" for i in range(len(grades))]
    swapped = list(order)
    swapped[where], swapped[where + 1] = swapped[where + 1], swapped[where]
    if grades[where] > grades[where + 1]:
        order, swapped = swapped, order
    worse, better = (
        evaluate({"q": {d: -float(i) for i, d in enumerate(each)}}, qrels, ALL) for each in (order, swapped)
    )
    for name in ALL:
        assert better[name] >= worse[name] - 1e-12


def test_measures_asked_together_and_apart_agree() -> None:
    qrels = {"q": {f"d{i}": i % 3 for i in range(200)}}
    run = {"q": {f"d{i}": float((i * 37) % 101) for i in range(200)}}
    names = [f"{family}@{k}" for family in ("nDCG", "P", "Recall", "MRR", "MAP") for k in (5, 7, 10, 100)]
    together = evaluate(run, qrels, names)
    assert dict(together) == {name: evaluate(run, qrels, [name])[name] for name in names}


@pytest.mark.parametrize(
    ("name", "canonical", "trec_eval"),
    [
        ("nDCG@10", "nDCG@10", "ndcg_cut.10"),
        ("ndcg_cut_10", "nDCG@10", "ndcg_cut.10"),
        ("ndcg_cut.10", "nDCG@10", "ndcg_cut.10"),
        ("NDCG", "nDCG", "ndcg"),
        ("mrr@10", "MRR@10", "recip_rank"),
        ("RR", "MRR", "recip_rank"),
        ("recip_rank", "MRR", "recip_rank"),
        ("map", "MAP", "map"),
        ("AP@100", "MAP@100", "map_cut.100"),
        ("map_cut_100", "MAP@100", "map_cut.100"),
        ("Recall@100", "Recall@100", "recall.100"),
        ("R@5", "Recall@5", "recall.5"),
        ("P_5", "P@5", "P.5"),
        ("precision@5", "P@5", "P.5"),
        ("Rprec", "Rprec", "Rprec"),
        ("R-precision", "Rprec", "Rprec"),
        ("success_1", "Success@1", "success.1"),
    ],
)
def test_names(name: str, canonical: str, trec_eval: str) -> None:
    measure = parse_measure(name)
    assert str(measure) == canonical
    assert measure.trec_eval_name == trec_eval
    assert parse_measure(canonical) == measure


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nDGC@10", "no measure"),
        ("nDCG@", "no measure"),
        ("nDCG@-1", "no measure"),
        ("nDCG@1.5", "no measure"),
        ("nDCG@9999999", "no measure"),
        ("", "no measure"),
        (None, "no measure"),
        ("nDCG@0", "at least 1"),
        ("P", "needs a cutoff"),
        ("recall", "needs a cutoff"),
        ("ndcg_cut", "needs a cutoff"),
        ("Rprec@5", "no cutoff"),
    ],
)
def test_bad_names_are_refused(name, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_measure(name)


def test_no_name_means_two_measures() -> None:
    names = [
        name.lower()
        for family in FAMILIES
        for name in {family.name.lower(), family.whole.lower(), family.cut.lower(), *family.aliases} - {""}
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, 1e39])
def test_scores_that_trec_eval_cannot_order_are_refused(score: float) -> None:
    for found in ({"d": score}, Ranking("text", (Hit("d", score, 1, "t"),))):
        with pytest.raises(InputError, match="float32"):
            evaluate({"q": found}, {"q": {"d": 1}}, ["MAP"])


@pytest.mark.parametrize(
    ("run", "qrels", "options", "message"),
    [
        ({}, {}, {}, "no judgement"),
        ({}, {"q": {}}, {}, "no judgement"),
        ({}, {"q": {"d": 1.0}}, {}, "whole number"),
        ({}, {"q": {"d": True}}, {}, "whole number"),
        ({}, {"q": {"d": 2**31}}, {}, "at most 1,000,000"),
        ({}, {"q": {"d\0e": 1}}, {}, "NUL"),
        ({"q": {"d\0e": 1.0}}, {"q": {"d": 1}}, {}, "NUL"),
        ({"q": {"\ud800": 1.0}}, {"q": {"d": 1}}, {}, "Unicode"),
        ({"q": ["d"]}, {"q": {"d": 1}}, {}, "Ranking or a mapping"),
        ({"q": {"d": "x"}}, {"q": {"d": 1}}, {}, "score 'x'"),
        ({"q": {"d": None}}, {"q": {"d": 1}}, {}, "score None"),
        ([1], {"q": {"d": 1}}, {}, "run must be a mapping"),
        ({}, None, {}, "qrels must be a mapping"),
        ({}, {"q": ["d"]}, {}, "document id to grade"),
        ({}, {"q": {"d": 1}}, {"measures": None}, "measures must be a list"),
        ({}, {"q": {"d": 1}}, {"measures": []}, "no measure"),
        ({}, {"q": {"d": 1}}, {"measures": "MAP"}, "must be a list"),
        ({}, {"q": {"d": 1}}, {"relevance_level": 0}, "at least 1"),
    ],
)
def test_bad_input_is_refused(run, qrels, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(run, qrels, **options)


def test_empty_rankings_and_numpy_grades() -> None:
    result = evaluate(
        {"a": Ranking("text"), "b": {}}, {"a": {"d": np.int64(1)}, "b": {"d": 1}, "c": {}}, ["MAP"]
    )
    assert isinstance(result, Evaluation)
    assert dict(result) == {"MAP": 0.0}
    assert result.missing_queries == ()
    assert result.num_queries == 2  # a query with an empty list of judgements has none


@pytest.mark.parametrize("grades", [{"a": -1}, {"a": -1, "b": -2}, {"a": -(10**6)}, {"a": 0}])
def test_queries_without_any_relevant_document_are_zero(grades: dict[str, int]) -> None:
    for found in ({"a": 2.0, "c": 1.0, "b": 0.5}, {"c": 1.0}):
        for _ in range(50):  # trec_eval would go by whatever is in memory
            assert set(evaluate({"q": found}, {"q": grades}, ALL).values()) == {0.0}


def test_callers_objects_are_left_alone() -> None:
    run, qrels = {"q": {"b": 1.0, "a": 2.0}}, {"q": {"b": 1}}
    evaluate(run, qrels)
    assert (run, qrels) == ({"q": {"b": 1.0, "a": 2.0}}, {"q": {"b": 1}})
    assert list(run["q"]) == ["b", "a"]


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, extra: str):
        raise MissingExtraError(f"{name} [{extra}]")

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(MissingExtraError, match=r"pytrec_eval \[eval\]"):
        evaluate({}, {"q": {"d": 1}})
