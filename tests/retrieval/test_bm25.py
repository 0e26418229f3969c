"""BM25 against numbers worked out by hand and by another implementation, and on a real collection."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import InputError
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.text import Analyzer
from crossrank.types import Document

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a fox is a small wild dog",
    "quick quick quick",
    "",
    "brown bears and brown foxes live in the brown woods of the north",
    "dog eat dog",
]
SCIFACT = Path(__file__).parents[3] / "shared" / "data" / "scifact"

words = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "elk"]), max_size=8).map(" ".join)


class Marked:
    """Lets documents through that carry a mark in their metadata."""

    def matches(self, document: Document) -> bool:
        return bool(document.metadata.get("marked"))


def test_formula_by_hand() -> None:
    # Lengths 4, 2, 3: mean 3. "bee" is in 2 of 3 documents, twice in the first.
    bm25 = BM25(["bee bee ant ant", "bee cat", "dog dog dog"], k1=1.2, b=0.75, language=None)
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    first = idf * 2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 4 / 3))
    second = idf * 1 / (1 + 1.2 * (1 - 0.75 + 0.75 * 2 / 3))
    np.testing.assert_allclose(bm25.scores("bee"), [first, second, 0], rtol=1e-6)
    np.testing.assert_allclose(bm25.scores("bee bee"), [2 * first, 2 * second, 0], rtol=1e-6)
    assert bm25.scores("bee").dtype == np.float32


@pytest.mark.parametrize(
    ("k1", "b", "query", "scores"),
    [  # bm25s 0.3.16, method="lucene", split at spaces, one term at a time and added up
        (0.9, 0.4, "quick dog", [0.822155, 0.351495, 0.829192, 0, 0, 0.508705]),
        (0.9, 0.4, "brown the brown", [1.647981, 0, 0, 0, 2.038805, 0]),
        (1.5, 0.75, "quick dog", [0.553817, 0.254366, 0.781283, 0, 0, 0.469362]),
        (1.5, 0.75, "brown the brown", [1.162927, 0, 0, 0, 1.472039, 0]),
    ],
)
def test_scores_are_those_of_bm25s(k1: float, b: float, query: str, scores: list[float]) -> None:
    np.testing.assert_allclose(BM25(TEXTS, k1, b, language=None).scores(query), scores, atol=2e-6)


def test_hits_carry_what_later_stages_need() -> None:
    documents = [Document("d1", "about nothing"), Document("d2", "swims", title="Whales")]
    [ranking] = BM25(documents).retrieve(["a whale"])
    [hit] = ranking
    assert ranking.query == "a whale"
    assert (hit.document_id, hit.rank, hit.stage, hit.index) == ("d2", 1, "bm25", 1)
    assert hit.document is documents[1]
    assert hit.stage_scores == {"bm25": hit.score}


def test_documents_without_a_common_term_are_not_hits() -> None:
    bm25 = BM25(TEXTS, language=None)
    assert [len(ranking) for ranking in bm25.retrieve(["zebra", "", "north", "dog"])] == [0, 0, 1, 3]


def test_ties_keep_the_order_of_the_documents() -> None:
    bm25 = BM25(["cat", "bee", "cat", "bee", "cat"], language=None)
    [ranking] = bm25.retrieve(["cat"])
    assert ranking.document_ids == ("0", "2", "4")
    assert bm25.retrieve(["cat"], top_k=2)[0].document_ids == ("0", "2")


def test_filter_leaves_scores_alone() -> None:
    documents = [Document(f"d{n}", "cat " * (n + 1), metadata={"marked": n % 2}) for n in range(6)]
    bm25 = BM25(documents, language=None)
    everything = {hit.document_id: hit.score for hit in bm25.retrieve(["cat"])[0]}
    [ranking] = bm25.retrieve(["cat"], top_k=2, filter=Marked())
    assert ranking.document_ids == ("d5", "d3")
    assert all(hit.score == everything[hit.document_id] for hit in ranking)


@pytest.mark.parametrize("documents", [[], ["", " "], ["the", "of"]])
def test_no_documents_or_none_with_terms(documents: list[str]) -> None:
    bm25 = BM25(documents)
    assert len(bm25.retrieve(["the cat"])[0]) == 0
    assert bm25.scores("cat").shape == (len(documents),)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k1": -1}, "k1"), ({"b": 1.5}, "b must be"), ({"k1": math.nan}, "k1"), ({"language": "xx"}, "'xx'")],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BM25(TEXTS, **options)  # type: ignore[arg-type]


@given(st.lists(words, min_size=1, max_size=8), words, st.integers(1, 9))
def test_ranking_is_the_sorted_scores(texts: list[str], query: str, top_k: int) -> None:
    bm25 = BM25(texts, language=None)
    scores = bm25.scores(query)
    expected = sorted((row for row in range(len(texts)) if scores[row] > 0), key=lambda row: -scores[row])
    [ranking] = bm25.retrieve([query], top_k)
    assert [hit.index for hit in ranking] == expected[:top_k]
    assert [hit.rank for hit in ranking] == list(range(1, len(ranking) + 1))
    assert list(ranking.scores) == scores[expected[:top_k]].tolist()


@given(st.lists(words, min_size=1, max_size=6), words)
def test_scores_follow_the_formula(texts: list[str], query: str) -> None:
    documents = [text.split() for text in texts]
    average = sum(map(len, documents)) / len(documents) or 1
    expected = []
    for document in documents:
        total = 0.0
        for term in query.split():
            df = sum(term in other for other in documents)
            tf = document.count(term)
            if tf:
                idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
                total += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(document) / average))
        expected.append(total)
    np.testing.assert_allclose(BM25(texts, language=None).scores(query), expected, rtol=1e-6)


@given(st.permutations(["ant", "bee", "cat", "cat", "dog"]))
def test_word_order_of_the_query_does_not_matter(query: list[str]) -> None:
    bm25 = BM25(["ant bee cat", "cat cat dog", "bee ant ant dog dog"], language=None)
    assert bm25.scores(" ".join(query)).tolist() == bm25.scores("ant bee cat cat dog").tolist()


def test_an_analyzer_of_ones_own() -> None:
    bm25 = BM25(["cats", "cat"], analyzer=Analyzer("english", stem=False))
    assert bm25.retrieve(["cats"])[0].document_ids == ("0",)


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="the SciFact collection is not at ../shared/data/scifact")
def test_quality_on_scifact() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")

    def rows(name: str) -> list[dict[str, str]]:
        with gzip.open(SCIFACT / name, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    qrels: dict[str, dict[str, int]] = {}
    with open(SCIFACT / "qrels" / "test.tsv", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    queries = {row["_id"]: row["text"] for row in rows("queries.jsonl.gz") if row["_id"] in qrels}
    bm25 = BM25([Document(row["_id"], row["text"], row["title"]) for row in rows("corpus.jsonl.gz")])
    rankings = bm25.retrieve(list(queries.values()), top_k=10)
    run = {
        query_id: dict(zip(ranking.document_ids, ranking.scores, strict=True))
        for query_id, ranking in zip(queries, rankings, strict=True)
    }
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    ndcg = sum(value["ndcg_cut_10"] for value in values.values()) / len(qrels)
    assert 0.67 < ndcg < 0.69  # Anserini's BM25 with title and text: 0.679
