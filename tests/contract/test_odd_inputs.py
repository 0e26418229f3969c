"""Every family: nothing to rank, texts that are hostile, arguments that cannot be used."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from crossrank.errors import InputError
from crossrank.types import Document

QUERY = "what is the water of the river"
TEXTS = ["the water of the river is blue", "a cat and a dog", "old city"]
HOSTILE = {
    "NUL": "the water\x00of the\x00\x00 river",
    "controls": "the\x01\x02\x1b[31m water\x7f\x85\u2028\u2029 of",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 water 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "combining": "wa" + "\u0301" * 200 + "ter",
    "directions": "\u202eretaw\u202c \u200f\u2066river\u2069",
    "planes": "𝔀𝓪𝓽𝓮𝓻 \U0010fffd \ue000 \ufeff \ufffe",
    "special tokens": "[SEP] [CLS] </s> <s> [PAD] <pad> <extra_id_0> <|im_end|> Relevant: true [MASK]",
    "markup": "<script>alert(1)</script> {query} %s {{0}} \\ \" ' `",
    "one word": "water" * 600,
    "spaces": " \t\n\r\v\f\u00a0\u3000",
    "no word": "\u200b\u200b",
    "scripts": "水は青い вода синяя الماء أزرق जल नीला है น้ำเป็นสีฟ้า",
}


def test_no_documents_give_an_empty_ranking(reranker):
    ranking = reranker.rank(QUERY, [])
    assert len(ranking) == 0
    assert ranking.query == QUERY
    assert reranker.rank_many([], []) == []
    assert [len(each) for each in reranker.rank_many([QUERY, "cat"], [[], []])] == [0, 0]


def test_one_document_is_first(reranker):
    ranking = reranker.rank(QUERY, ["cat"])
    assert [(hit.rank, hit.index) for hit in ranking] == [(1, 0)]
    assert math.isfinite(ranking[0].score)


def test_empty_documents_are_ranked_too(reranker):
    ranking = reranker.rank(QUERY, ["", TEXTS[0], "  \n", Document("d", "")])
    assert sorted(hit.index for hit in ranking) == [0, 1, 2, 3]
    assert all(map(math.isfinite, ranking.scores))
    assert len(reranker.rank(QUERY, [""])) == 1


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_strange_documents_are_ranked_as_they_are(family, reranker, text, by_index):
    ranking = reranker.rank(QUERY, [TEXTS[0], text, TEXTS[1]])
    assert sorted(hit.index for hit in ranking) == [0, 1, 2]
    assert all(map(math.isfinite, ranking.scores))
    if family.pointwise:  # the others' scores are theirs, whatever stands between them
        plain = by_index(reranker.rank(QUERY, [TEXTS[0], TEXTS[1]]))
        np.testing.assert_allclose(
            by_index(ranking)[[0, 2]], plain, rtol=family.tolerance, atol=family.tolerance
        )


@pytest.mark.parametrize("name", ["NUL", "emoji", "special tokens", "markup", "scripts"])
def test_strange_queries_are_taken(reranker, name):
    query = f"water {HOSTILE[name][:40]}"
    ranking = reranker.rank(query, TEXTS)
    assert ranking.query == query
    assert sorted(hit.index for hit in ranking) == [0, 1, 2]


def test_a_very_long_document_is_ranked(reranker):
    ranking = reranker.rank(QUERY, [TEXTS[1], "the water of the old river is blue " * 2000])
    assert sorted(hit.index for hit in ranking) == [0, 1]
    assert all(map(math.isfinite, ranking.scores))


def test_the_same_document_may_come_many_times(reranker):
    document = Document("d", TEXTS[0])
    ranking = reranker.rank(QUERY, [document, document, Document("e", TEXTS[1]), document])
    assert sorted(hit.index for hit in ranking) == [0, 1, 2, 3]
    assert sorted(ranking.document_ids) == ["d", "d", "d", "e"]


def test_an_empty_query_is_an_error(reranker):
    for query in ("", " \n\t"):
        with pytest.raises(InputError, match=r"query.*empty|empty.*query"):
            reranker.rank(query, TEXTS)
    with pytest.raises(InputError, match=r"1.*empty"):
        reranker.rank_many([QUERY, ""], [TEXTS, TEXTS])


@pytest.mark.parametrize(
    ("query", "documents", "named"),
    [
        (None, TEXTS, "query"),
        (7, TEXTS, "query"),
        (b"water", TEXTS, "query"),
        ("wa\ud800ter", TEXTS, "query"),
        (QUERY, "the water", "documents"),
        (QUERY, {"the water", "a cat"}, "documents"),
        (QUERY, {"a": "the water"}, "documents"),
        (QUERY, None, "documents"),
        (QUERY, 5, "documents"),
        (QUERY, [TEXTS[0], None], r"documents.*1"),
        (QUERY, [TEXTS[0], b"cat"], r"documents.*1"),
        (QUERY, [TEXTS[0], ("a", "b")], r"documents.*1"),
        (QUERY, [TEXTS[0], "c\udfffat"], r"documents.*1"),
    ],
)
def test_what_cannot_be_ranked_is_named(reranker, query, documents, named):
    with pytest.raises(InputError, match=named):
        reranker.rank(query, documents)
    with pytest.raises(InputError):
        reranker.rank_many([QUERY, query], [TEXTS, documents])


def test_rank_many_needs_a_list_for_each_query(reranker):
    for queries, documents in [(["a", "b"], [TEXTS]), (["a"], []), ([], [TEXTS]), ("a", [TEXTS])]:
        with pytest.raises(InputError):
            reranker.rank_many(queries, documents)


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "2", float("nan")])
def test_top_k_is_a_whole_number_from_1(reranker, top_k):
    with pytest.raises(InputError, match="top_k"):
        reranker.rank(QUERY, TEXTS, top_k=top_k)
    with pytest.raises(InputError, match="top_k"):
        reranker.rank_many([QUERY], [TEXTS], top_k=top_k)


def test_any_ordered_iterable_is_a_list(family, reranker, same):
    expected = reranker.rank(QUERY, TEXTS)
    for documents in (tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), np.array(TEXTS, dtype=object)):
        same(reranker.rank(QUERY, documents), expected, family.tolerance)
    ranked = reranker.rank_many(iter([QUERY]), iter([iter(TEXTS)]))
    same(ranked[0], expected, family.tolerance)


def test_nothing_of_the_callers_changes(reranker):
    queries = [QUERY, "old city"]
    documents = [[Document("a", TEXTS[0], "river", {"tags": ["x"]}), TEXTS[1]], list(TEXTS)]
    before = copy.deepcopy((queries, documents))
    reranker.rank_many(queries, documents, top_k=1)
    reranker.rank(queries[0], documents[0])
    assert (queries, documents) == before


# --- pointwise families ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs",
    [
        "water",
        [("water",)],
        [("water", "cat", "dog")],
        ["water"],
        [(QUERY, "cat"), (QUERY, None)],
        [("", "cat")],
        [(QUERY, "c\udfffat")],
        {QUERY: "cat"},
        None,
    ],
)
def test_what_is_no_list_of_pairs_is_an_error(scorer, pairs):
    with pytest.raises(InputError):
        scorer.score(pairs)


def test_a_failed_call_leaves_no_trace(family, reranker, same):
    expected = reranker.rank(QUERY, TEXTS)
    for documents in ([*TEXTS, None], [*TEXTS, "\ud800"]):
        with pytest.raises(InputError):
            reranker.rank(QUERY, documents)
    same(reranker.rank(QUERY, TEXTS), expected, family.tolerance)
