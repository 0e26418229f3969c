"""Mining: what must hold for every row, whatever the first stage, filters, order and block size."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mining_inputs import DOCUMENTS, QRELS, QUERIES, OverlapTeacher, rows_in, run_of

from crossrank import BM25, BiEncoder, CrossEncoder, Dense, Document, Hybrid, Index
from crossrank.errors import InputError, ModelOutputError, QueryTooLongError
from crossrank.training.corpus import as_corpus
from crossrank.training.near_duplicates import resemblance, shingles
from crossrank.training.negatives import Filters, MiningReport, Source, mine

GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = {document.id: document.full_text for document in DOCUMENTS}
IDS = [document.id for document in DOCUMENTS]


def mined(
    sources: list[Source], path: Path, queries: dict[str, str] = QUERIES, qrels: Any = QRELS, **options: Any
) -> tuple[list[dict[str, Any]], MiningReport]:
    report = mine(queries, qrels, DOCUMENTS, sources, path, form="pairs", **options)
    return rows_in(path), report


def drawn_judgements(rng: np.random.Generator) -> dict[str, dict[str, int]]:
    """One positive that the corpus has for each query, and other documents of any grade, some not there."""
    qrels = {}
    for number, query_id in enumerate(QUERIES):
        others = rng.choice([*IDS, "gone"], size=int(rng.integers(7)), replace=False)
        qrels[query_id] = {str(name): int(rng.integers(-1, 4)) for name in others} | {f"d{number}": 2}
    return qrels


def drawn_source(rng: np.random.Generator, tag: str) -> Source:
    rankings = {}
    for query_id in QUERIES:
        ids = rng.choice([*IDS, "elsewhere"], size=int(rng.integers(41)), replace=False)
        scores = sorted(
            (float(score) for score in rng.normal(0, 4, len(ids)).astype(np.float32)), reverse=True
        )
        rankings[query_id] = list(zip(map(str, ids), scores, strict=True))
    skip_top = int(rng.integers(6))
    return Source(
        run_of(rankings, tag),
        int(rng.integers(1, 6)),
        skip_top=skip_top,
        depth=int(rng.integers(skip_top + 1, 46)),
        sampling=str(rng.choice(["top", "random", "spread"])),
    )


LIMITS = st.one_of(st.none(), st.floats(-10, 10, width=32))
MARGINS = st.one_of(st.none(), st.floats(0, 2))
SETTINGS = st.fixed_dictionaries(
    {
        "absolute_margin": MARGINS,
        "relative_margin": MARGINS,
        "positive_score": st.sampled_from(["min", "max", "mean"]),
        "false_negatives": st.sampled_from(["drop", "keep"]),
        "suspect_from": st.sampled_from([None, 0.5, 1.5]),
        "near_duplicates": st.sampled_from([None, 0.2, 0.8]),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), SETTINGS, LIMITS, st.booleans(), st.integers(1, 2))
def test_every_row_keeps_every_rule(seed, num_sources, options, limit, taught, level) -> None:
    rng = np.random.default_rng(seed)
    qrels = drawn_judgements(rng)
    one, two = (drawn_source(rng, tag) for tag in ("one", "two"))
    mix = [[one], [one, Source("random", 2)], [one, two, Source("random", 1)]][num_sources - 1]
    if not taught and len(mix) == 3:
        limit = None  # two scales
    if not taught and options["absolute_margin"] is None and options["relative_margin"] is None:
        options = {**options, "positive_score": "min"}
    if not taught:
        options = {**options, "suspect_from": None}
    filters = Filters(**options, max_score=limit, min_score=None if limit is None else limit - 5)
    teacher = OverlapTeacher() if taught else None
    with tempfile.TemporaryDirectory() as folder:
        rows, report = mined(
            mix, Path(folder, "n.jsonl"), qrels=qrels, filters=filters, teacher=teacher, relevance_level=level
        )
    for query_id, query in QUERIES.items():
        positives = [row for row in rows if row["query_id"] == query_id and row["label"] == 1]
        negatives = [row for row in rows if row["query_id"] == query_id and row["label"] == 0]
        usable = [
            name for name, grade in qrels[query_id].items() if grade >= level and TEXTS.get(name, "").strip()
        ]
        ids = [row["document_id"] for row in negatives]
        assert [row["document_id"] for row in positives] == (usable if negatives else [])
        assert len(set(ids)) == len(ids)
        assert all(qrels[query_id].get(name, 0) <= 0 for name in ids)
        assert all(TEXTS[name].strip() for name in ids)
        for source in mix:
            own = [row for row in negatives if row["source"] == source.name]
            assert len(own) <= source.count
            if source.is_random:
                assert all(row["rank"] is None and row["score"] is None for row in own)
                continue
            ranking = source.first_stage[query_id]
            assert all(source.skip_top < row["rank"] <= source.depth for row in own)
            assert all(ranking[row["rank"] - 1].document_id == row["document_id"] for row in own)
            assert all(ranking[row["rank"] - 1].score == pytest.approx(row["score"], rel=1e-6) for row in own)
        for row in negatives:
            score = row["score"]
            if taught:
                score = row["teacher_score"]
                assert score == pytest.approx(teacher.score([(query, TEXTS[row["document_id"]])])[0])
            if score is not None:
                known = {each["document_id"]: each["teacher_score"] for each in positives}
                if not taught:
                    [source] = [source for source in mix if source.name == row["source"]]
                    hits = {
                        hit.document_id: hit.score for hit in source.first_stage[query_id][: source.depth]
                    }
                    known = {name: hits[name] for name in usable if name in hits}
                check_score(score, known, len(usable), filters, taught=taught)
        if filters.near_duplicates is not None:
            sets = [shingles(TEXTS[name]) for name in [*usable, *ids]]
            for number in range(len(usable), len(sets)):
                assert all(
                    resemblance(sets[number], other) < filters.near_duplicates for other in sets[:number]
                )
    assert report.num_negatives == sum(row["label"] == 0 for row in rows)
    assert sum(report.negatives.values()) == report.num_negatives
    assert report.num_rows == len(rows)


def check_score(score: float, known: dict[str, float], total: int, filters: Filters, *, taught: bool) -> None:
    """The rules of scores, written down a second time."""
    if filters.max_score is not None:
        assert filters.min_score <= score <= filters.max_score
    margins = (filters.absolute_margin, filters.relative_margin)
    if margins != (None, None):
        assert len(known) == total or (filters.positive_score == "max" and known)
    if not known:
        return
    values = list(known.values())
    positive = {"min": min(values), "max": max(values), "mean": sum(values) / len(values)}[
        filters.positive_score
    ]
    if margins[0] is not None:
        assert score <= positive - margins[0] + 1e-4
    if margins[1] is not None:
        assert score <= positive - margins[1] * abs(positive) + 1e-4
    if taught and filters.false_negatives == "drop":
        least = positive if filters.suspect_from is None else max(positive, filters.suspect_from)
        assert score < least + 1e-4


@settings(max_examples=25, deadline=None)
@given(st.permutations(list(QUERIES)), st.integers(1, 9), st.integers(0, 3), st.booleans())
def test_neither_order_nor_block_size_changes_a_querys_negatives(order, block_size, seed, taught) -> None:
    bm25 = BM25(DOCUMENTS)
    sources = [
        Source(bm25, 2, "spread", depth=30, sampling="spread"),
        Source(bm25, 2, "any", skip_top=1, sampling="random"),
        Source("random", 2),
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = {"seed": seed, "teacher": OverlapTeacher() if taught else None}
        rows, report = mined(sources, Path(folder, "a.jsonl"), **options)
        shuffled = {query_id: QUERIES[query_id] for query_id in order}
        others, other_report = mined(
            sources, Path(folder, "b.jsonl"), queries=shuffled, block_size=block_size, **options
        )
        mined(sources, Path(folder, "c.jsonl"), **options)
        assert Path(folder, "c.jsonl").read_bytes() == Path(folder, "a.jsonl").read_bytes()
    assert sorted(others, key=lambda row: row["query_id"]) == rows
    for name in ("num_positives", "negatives", "positives_lost", "refused", "suspected"):
        assert getattr(other_report, name) == getattr(report, name)
    assert sorted(other_report.short) == list(report.short)


def test_suspects_are_those_above_the_positive_and_above_the_limit(tmp_path: Path) -> None:
    teacher = OverlapTeacher()
    found = run_of({query_id: [(f"d{n}", -float(n)) for n in range(50)] for query_id in QUERIES})
    sources = [Source(found, 40, depth=50)]

    def refused(limit: float | None) -> int:
        filters = Filters(suspect_from=limit, near_duplicates=None)
        path = tmp_path / f"{limit}.jsonl"
        rows, report = mined(sources, path, teacher=teacher, filters=filters)
        for query_id in QUERIES:
            own = [row for row in rows if row["query_id"] == query_id]
            if not own:
                continue  # all were refused
            positive = min(row["teacher_score"] for row in own if row["label"])
            least = positive if limit is None else max(positive, limit)
            assert all(row["teacher_score"] < least for row in own if not row["label"])
        return report.refused.get("false_negative", 0)

    assert refused(None) > refused(0.6) > refused(100.0) == 0
    with pytest.raises(InputError, match="suspect_from is a teacher's score"):
        mined(sources, tmp_path / "n.jsonl", filters=Filters(suspect_from=0.5))


def test_seeds_differ(tmp_path: Path) -> None:
    sources = [Source("random", 4)]
    one, _ = mined(sources, tmp_path / "1.jsonl", seed=1)
    two, _ = mined(sources, tmp_path / "2.jsonl", seed=2)
    assert one != two


def test_a_mix_of_first_stages_with_a_model_as_teacher(tmp_path: Path) -> None:
    bi_encoder = BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1)
    teacher = CrossEncoder(GOLDEN / "bert", threads=1)
    bm25, dense = BM25(DOCUMENTS), Dense(DOCUMENTS, bi_encoder)
    sources = [Source(dense, 4), Source(bm25, 2), Source(Hybrid([bm25, dense]), 1), Source("random", 1)]
    filters = Filters(false_negatives="keep")
    rows, report = mined(sources, tmp_path / "n.jsonl", teacher=teacher, filters=filters)
    assert report.negatives == {"dense": 32, "bm25": 16, "hybrid": 8, "random": 8}
    assert report.short == ()
    scores = teacher.score([(row["query"], row["document"]) for row in rows])
    assert [row["teacher_score"] for row in rows] == pytest.approx(scores.tolist(), abs=1e-4)
    suspected = [
        (row, positive)
        for row in rows
        for positive in [
            min(r["teacher_score"] for r in rows if r["query_id"] == row["query_id"] and r["label"])
        ]
        if not row["label"] and row["teacher_score"] >= positive
    ]
    assert report.suspected["false_negative"] == len(suspected) > 0
    dropped, strict = mined(sources, tmp_path / "d.jsonl", teacher=teacher)
    assert strict.refused["false_negative"] == strict.suspected["false_negative"] > 0
    assert len(dropped) < len(rows)


def test_an_index_is_first_stage_and_corpus(tmp_path: Path) -> None:
    with Index.create(tmp_path / "index") as index:
        index.add(DOCUMENTS)
        sources = [Source(index, 2), Source("random", 2)]
        report = mine(QUERIES, QRELS, index, sources, tmp_path / "n.jsonl", form="pairs")
    rows = rows_in(tmp_path / "n.jsonl")
    assert report.negatives == {"bm25": 16, "random": 16}
    assert all(row["document"] == TEXTS[row["document_id"]] for row in rows)


def test_the_pairs_of_many_queries_are_scored_together(tmp_path: Path) -> None:
    teacher = OverlapTeacher()
    filters = Filters(near_duplicates=None, false_negatives="keep")
    mined([Source(BM25(DOCUMENTS), 3, depth=20)], tmp_path / "n.jsonl", teacher=teacher, filters=filters)
    # the positives in one call, then 3 candidates and half as many again (5) of each query in another
    assert (teacher.num_calls, teacher.num_pairs) == (2, 8 * 2 + 8 * 5)


def test_few_documents_are_looked_up_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    corpus_type = type(as_corpus(["a"]))
    get = corpus_type.get
    monkeypatch.setattr(corpus_type, "get", lambda self, ids: [looked_up.extend(ids), get(self, ids)][1])
    documents = [Document(f"d{number}", f"number {number}") for number in range(5000)]
    mine(QUERIES, QRELS, documents, [Source("random", 2)], tmp_path / "n.jsonl", texts=False)
    assert len(looked_up) <= 8 * (3 + 4)  # positives, then 2 and half as many again


def test_a_block_whose_positives_are_all_lost(tmp_path: Path) -> None:
    qrels = {**QRELS, "q0": {"gone": 1}}
    teacher = CrossEncoder(GOLDEN / "bert", threads=1)
    rows, report = mined(
        [Source("random", 1)], tmp_path / "n.jsonl", qrels=qrels, teacher=teacher, block_size=1
    )
    assert report.without_positives == ("q0",)
    assert "q0" not in {row["query_id"] for row in rows}


def test_settings_may_be_numpys_numbers(tmp_path: Path) -> None:
    qrels = {"q0": {"d0": np.int64(1)}}
    filters = Filters(max_score=np.float32(9), near_duplicates=np.float64(0.5))
    _, report = mined(
        [Source(BM25(DOCUMENTS, k1=np.float32(1)), 1)], tmp_path / "n.jsonl", qrels=qrels, filters=filters
    )
    assert report.num_negatives == 1


def test_a_copy_of_a_positive_is_suspected_and_a_copy_of_a_negative_is_refused(tmp_path: Path) -> None:
    documents = [
        Document("fox", "The red fox ran over the hill."),
        Document("copy", "the red fox ran over the hill"),
        Document("hole", "A fox hole is deep and dark in winter."),
        Document("same hole", "A fox hole is deep and dark, in winter!"),
        Document("red", "Red is a colour of the fox."),
    ]
    bm25 = BM25(documents)
    report = mine({"q": "red fox"}, {"q": {"fox": 1}}, documents, [Source(bm25, 4)], tmp_path / "n.jsonl")
    [row] = rows_in(tmp_path / "n.jsonl")
    assert row["document_ids"][0] == "fox"
    assert "copy" not in row["document_ids"]
    assert len({"hole", "same hole"} & {*row["document_ids"]}) == 1
    assert report.refused == {"near_duplicate_of_negative": 1, "near_duplicate_of_positive": 1}
    [suspect] = report.examples
    assert (suspect.positive_id, suspect.document_id, suspect.score) == ("fox", "copy", 1.0)
    assert report.short == ("q",)


def test_ids_count_and_not_texts(tmp_path: Path) -> None:
    documents = [Document("a", "red fox"), Document("b", "red fox"), Document("c", "a fox")]
    mine(
        *({"q": "red fox", "same text": "red fox"}, {"q": {"a": 1}, "same text": {"c": 1}}, documents),
        *([Source(BM25(documents), 5)], tmp_path / "n.jsonl"),
        filters=Filters(near_duplicates=None),
    )
    rows = rows_in(tmp_path / "n.jsonl")
    assert [row["document_ids"] for row in rows] == [["a", "b", "c"], ["c", "a", "b"]]


def test_a_margin_needs_the_positives_score(tmp_path: Path) -> None:
    hits = [("d40", 0.9), ("d0", 0.8), ("d41", 0.75), ("d42", 0.5), ("d10", 0.45), ("d43", 0.3)]
    queries, options = {"q0": QUERIES["q0"]}, {"near_duplicates": None, "relative_margin": 0.05}

    def kept(positive_score: str, depth: int) -> tuple[list[str], dict[str, int]]:
        rows, report = mined(
            [Source(run_of({"q0": hits}), 5, depth=depth)],
            tmp_path / "n.jsonl",
            queries=queries,
            filters=Filters(**options, positive_score=positive_score),
            overwrite=True,
        )
        return [row["document_id"] for row in rows if not row["label"]], dict(report.refused)

    assert kept("min", 6) == (["d43"], {"relative_margin": 3})
    assert kept("max", 6) == (["d41", "d42", "d43"], {"relative_margin": 1})
    assert kept("mean", 6) == (["d42", "d43"], {"relative_margin": 2})
    assert kept("min", 4) == ([], {"positive_score_unknown": 3})  # d10 is not found
    assert kept("max", 4) == (["d41", "d42"], {"relative_margin": 1})


def test_the_report_says_what_is_lost_and_short(tmp_path: Path) -> None:
    qrels = {"q0": {"d0": 1, "gone": 1, "d55": 1}, "q1": {"gone": 1}, "q2": {"d2": 1}, "q3": {"d3": 1}}
    run = run_of({"q0": [("d30", 2.0), ("elsewhere", 1.0)], "q3": [("d30", 2.0), ("d31", 1.0), ("d55", 0.5)]})
    rows, report = mined([Source(run, 2)], tmp_path / "n.jsonl", qrels=qrels)
    assert {row["query_id"] for row in rows} == {"q0", "q3"}
    assert (report.num_queries, report.num_positives, report.num_negatives) == (4, 3, 3)
    assert report.positives_lost == {"empty": 1, "not_in_corpus": 2}
    assert (report.without_positives, report.short, report.without_negatives) == (
        ("q1",),
        ("q0", "q2"),
        ("q2",),
    )
    assert report.refused == {"not_in_corpus": 1}


def test_examples_are_the_worst_suspect_of_each_query(tmp_path: Path) -> None:
    hits = [(f"d{number}", 100.0 - number) for number in range(30, 50)]
    run = run_of({query_id: [*hits, (f"d{number}", 5.0 - number)] for number, query_id in enumerate(QUERIES)})
    qrels = {query_id: {f"d{number}": 1} for number, query_id in enumerate(QUERIES)}
    filters = Filters(absolute_margin=0, near_duplicates=None)
    _, report = mined([Source(run, 2)], tmp_path / "n.jsonl", qrels=qrels, filters=filters)
    assert report.suspected == {"absolute_margin": 8 * 20} == report.refused
    assert [each.query_id for each in report.examples] == sorted(QUERIES, reverse=True)
    assert {(each.document_id, each.rank, each.score) for each in report.examples} == {("d30", 1, 70.0)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "n.csv"}, "ends in .jsonl or .parquet"),
        ({"path": "no/n.jsonl"}, "there is no folder"),
        ({"form": "triples"}, "one of lists, pairs, triplets"),
        ({"sources": []}, "one source or more"),
        ({"sources": [Source("random", 1), Source("random", 2)]}, "different names"),
        ({"sources": [BM25(["a"])]}, r"Source\(retriever, count\)"),
        ({"queries": {"other": "text"}}, "none of the 1 queries has a document judged 1 or more"),
        ({"queries": {"q0": " "}}, "query 'q0' is empty"),
        ({"queries": {"q0": "\ud800"}}, "query 'q0' has a lone surrogate"),
        (
            {"queries": {"\ud800": "a"}, "qrels": {"\ud800": {"d1": 1}}},
            "the id of query .* has a lone surrogate",
        ),
        ({"filters": None}, r"filters must be Filters\(\.\.\.\), not None"),
        ({"documents": ["a", "\ud800"]}, "document '1' has a lone surrogate"),
        ({"documents": []}, "no documents"),
        ({"relevance_level": 0}, "relevance_level"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"block_size": 0}, "block_size"),
        ({"filters": Filters(min_score=1)}, "random documents have no score"),
        ({"filters": Filters(positive_score="max")}, "does nothing without a margin"),
        ({"teacher": object()}, "the teacher must score each pair by itself"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: dict, message: str) -> None:
    given_ = {"queries": QUERIES, "qrels": QRELS, "documents": DOCUMENTS, "sources": [Source("random", 1)]}
    path = tmp_path / arguments.get("path", "n.jsonl")
    with pytest.raises(InputError, match=message):
        mine(**{**given_, **arguments, "path": path})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_score": 2, "max_score": 1}, "min_score 2 is above max_score 1"),
        ({"absolute_margin": -1}, "absolute_margin must be a number of at least 0"),
        ({"near_duplicates": 1.5}, "near_duplicates must be a number between"),
        ({"positive_score": "median"}, "one of min, max, mean"),
        ({"false_negatives": True}, "one of drop, keep"),
        ({"max_score": float("nan")}, "max_score must be a number"),
    ],
)
def test_bad_filters(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Filters(**options)


def test_limits_are_of_one_scale(tmp_path: Path) -> None:
    bm25 = BM25(DOCUMENTS)
    sources = [Source(bm25, 1), Source(bm25, 1, "other")]
    with pytest.raises(InputError, match="bm25, other each have their own"):
        mined(sources, tmp_path / "n.jsonl", filters=Filters(max_score=3))
    mined(sources, tmp_path / "n.jsonl", filters=Filters(max_score=3), teacher=OverlapTeacher())


def test_a_query_too_long_for_the_teacher_is_found_first(tmp_path: Path) -> None:
    teacher = CrossEncoder(GOLDEN / "bert", threads=1)
    queries = {**QUERIES, "q7": "fox " * 1000}
    with pytest.raises(QueryTooLongError, match="query 'q7'"):
        mined([Source("random", 1)], tmp_path / "n.jsonl", queries=queries, teacher=teacher)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_loses_documents_is_an_error(tmp_path: Path) -> None:
    class Forgetful(OverlapTeacher):
        def rank(self, query, documents, top_k=None):
            return super().rank(query, documents[1:], top_k)

    with pytest.raises(ModelOutputError, match="overlap must score every document once"):
        mined([Source("random", 1)], tmp_path / "n.jsonl", teacher=Forgetful())
