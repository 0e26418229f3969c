"""DuoT5: reference preferences, shares of an input, rankings, plans, caps, caches."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from crossrank import Tournament, progress
from crossrank.cache import ScoreCache
from crossrank.errors import CheckpointError, InputError, QueryTooLongError
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.pairwise import AllPairs, Heap, Knockout, SampledPairs, SlidingWindow, aggregate
from crossrank.models.reranker import Reranker
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden_t5"
NAMES = ("t5", "t5_v1_1", "mt5")
QUERY = "what is the water"
DOCUMENTS = ["the cat", "the river is blue", "old", "7 + 5", "where is the light", "a dog (y)"]
LONG = "the water of the old river in the mountain is blue " * 60


@cache
def duo(name="t5_v1_1", **options):
    return DuoT5(GOLDEN / name, **{"threads": 1, "family": "t5", **options})


@pytest.mark.parametrize("name", NAMES)
def test_preferences_are_probabilities_of_true(name):
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    chosen = [i for i, row in enumerate(rows) if row["kind"] == "duo"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        logits = arrays["logits"][chosen].astype(np.float64)
    tokenizer = Tokenizer(Checkpoint.open(GOLDEN / name))
    false, true = (np.exp(logits[:, tokenizer.token_id(token)]) for token in ("▁false", "▁true"))
    model = duo(name, max_length=1024)
    limit = model.settings.max_length
    assert all(len(rows[i]["ids"]) <= limit for i in chosen)
    got = model.prefer([tuple(rows[i]["texts"]) for i in chosen])
    np.testing.assert_allclose(got, true / (false + true), rtol=0, atol=1e-5)
    backwards = model.prefer([tuple(rows[i]["texts"]) for i in chosen][::-1])[::-1]
    np.testing.assert_allclose(backwards, got, rtol=0, atol=1e-5)


def test_a_ranking_adds_preferences_up():
    model = duo()
    ranking = model.rank(QUERY, DOCUMENTS)
    n = len(DOCUMENTS)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    preferences = [model.prefer([(QUERY, DOCUMENTS[i], DOCUMENTS[j])])[0] for i, j in pairs]
    for kind in ("sum", "sum-log", "sym-sum", "sym-sum-log", "bradley-terry"):
        found = duo(plan=AllPairs(kind)).rank(QUERY, DOCUMENTS)
        scores = aggregate(pairs, preferences, n, kind)
        assert [hit.index for hit in found] == np.argsort(-scores, kind="stable").tolist()
        np.testing.assert_allclose(found.scores, np.sort(scores)[::-1], rtol=1e-5, atol=1e-5)
    assert ranking == duo(plan=AllPairs("sym-sum")).rank(QUERY, DOCUMENTS)
    assert isinstance(model, Reranker)


def test_many_queries_are_ranked_as_each_alone():
    for plan in (AllPairs(), Heap(2), Knockout(2), SlidingWindow(2), SampledPairs(2)):
        model = duo(plan=plan)
        queries = [QUERY, "how old is the dog", QUERY]
        lists = [DOCUMENTS, DOCUMENTS[::-1], []]
        together = model.rank_many(queries, lists, top_k=4)
        for query, texts, ranking in zip(queries, lists, together, strict=True):
            alone = model.rank(query, texts, top_k=4)
            assert [hit.index for hit in ranking] == [hit.index for hit in alone]
            np.testing.assert_allclose(ranking.scores, alone.scores, rtol=0, atol=1e-5)


def test_beyond_the_depth_the_order_stands():
    model = duo(depth=3)
    ranking = model.rank(QUERY, DOCUMENTS)
    assert sorted(hit.index for hit in ranking[:3]) == [0, 1, 2]
    assert [hit.index for hit in ranking[3:]] == [3, 4, 5]
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_a_pointwise_stage_comes_before():
    first = MonoT5(GOLDEN / "t5", threads=1)
    order = [hit.index for hit in first.rank(QUERY, DOCUMENTS)]
    model = DuoT5(GOLDEN / "t5_v1_1", first, depth=2, family="t5", threads=1)
    ranking = model.rank(QUERY, DOCUMENTS)
    assert sorted(hit.index for hit in ranking[:2]) == sorted(order[:2])
    assert [hit.index for hit in ranking[2:]] == order[2:]
    assert all(first.name in hit.stage_scores for hit in ranking)


def test_it_stands_at_the_end_of_a_search():
    found = Searcher(BM25(DOCUMENTS), [(MonoT5(GOLDEN / "t5"), 4), (duo(), 2)]).search("the river is old")
    assert found.status == "ok"
    assert len(found) >= 2


def test_calls_are_known_shown_and_capped(monkeypatch):
    opened = []

    class Recorded(progress.Track):
        def __init__(self, total, description, **options):
            super().__init__(total, description, **options)
            opened.append(self)

    monkeypatch.setattr(progress, "Track", Recorded)
    model = DuoT5(GOLDEN / "t5_v1_1", family="t5", depth=4, max_calls=12, threads=1)
    assert (model.calls(3), model.calls(4), model.calls(1000)) == (6, 12, 12)
    asked = []
    prefer = model.prefer
    monkeypatch.setattr(
        model, "prefer", lambda comparisons: (asked.extend(comparisons), prefer(comparisons))[1]
    )
    model.rank(QUERY, DOCUMENTS)
    assert len(asked) == 12
    assert (opened[0].total, opened[0].done) == (12, 12)
    with pytest.raises(InputError, match="can take 12 model calls, more than max_calls=11"):
        duo(depth=4, max_calls=11).rank(QUERY, DOCUMENTS)
    assert len(asked) == 12


def test_both_documents_get_an_equal_share(monkeypatch):
    model = DuoT5(GOLDEN / "t5_v1_1", family="t5", max_length=64, threads=1)
    seen = []
    run = model._engine.run
    monkeypatch.setattr(model._engine, "run", lambda ids, *rest: (seen.append(ids), run(ids, *rest))[1])
    ranking = model.rank(QUERY, [LONG, "the cat"])
    encode = model._tokenizer.encode
    words = ["Query:", QUERY, "Document0:", LONG, "Document1:", "the cat", "Relevant:"]
    parts = [tokens.ids.tolist() for tokens in encode(words)]
    share = (64 - sum(len(parts[i]) for i in (0, 1, 2, 4, 6)) - 1) // 2
    wanted = [*parts[0], *parts[1], *parts[2], *parts[3][:share], *parts[4], *parts[5], *parts[6], 1]
    rows = [[each for each in row if each != 0] for ids in seen for row in ids.tolist()]
    assert wanted in rows
    cut = {hit.index: hit.truncated_tokens for hit in ranking}
    assert cut == {0: len(parts[3]) - share, 1: 0}


def test_a_query_that_is_too_long_is_an_error_before_anything_is_computed():
    model = duo(max_length=64)
    for documents in ([], DOCUMENTS):
        with pytest.raises(QueryTooLongError, match=r"^query has"):
            model.rank("river " * 60, documents)
    with pytest.raises(QueryTooLongError, match=r"^queries\[1\] has"):
        model.rank_many([QUERY, "river " * 60], [DOCUMENTS, DOCUMENTS])
    assert len(duo(max_length=64, long_query="truncate").rank("river " * 60, DOCUMENTS)) == len(DOCUMENTS)


def test_a_cache_saves_comparisons():
    scores = ScoreCache()
    model = DuoT5(GOLDEN / "t5_v1_1", family="t5", cache=scores, threads=1)
    first = model.rank(QUERY, DOCUMENTS)
    assert scores.misses == 30
    again = DuoT5(GOLDEN / "t5_v1_1", family="t5", cache=scores, plan=Heap(3), threads=1)
    again.rank(QUERY, DOCUMENTS)
    assert scores.misses == 30
    assert model.rank(QUERY, DOCUMENTS) == first
    assert first == duo().rank(QUERY, DOCUMENTS)


@pytest.mark.parametrize(
    ("comparisons", "message"),
    [
        ("abc", "comparisons must be a list"),
        ([("q", "a")], r"comparisons\[0\] must be"),
        ([("q", "a", "b"), ("", "a", "b")], r"the query of comparisons\[1\] is empty"),
        ([("q", "a", None)], r"a document of comparisons\[0\]"),
    ],
)
def test_what_is_no_comparison_is_an_error(comparisons, message):
    with pytest.raises(InputError, match=message):
        duo().prefer(comparisons)


def test_no_comparisons():
    assert duo().prefer([]).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth"),
        ({"max_calls": 0}, "max_calls"),
        ({"prompt": "Query: {query} Document: {document}"}, "must have {query} then {document0}"),
        ({"pointwise": "monot5"}, "a reranker has a name"),
        ({"cache": {}}, "ScoreCache"),
    ],
)
def test_options_that_cannot_be_are_errors(options, message):
    with pytest.raises(InputError, match=message):
        DuoT5(GOLDEN / "t5", **options)


def test_two_documents_need_room():
    room = 64 - duo()._tokenizer.num_special_tokens
    assert duo(max_length=64, max_query_length=room - 2).prefer([(QUERY, "the cat", LONG)]).shape == (1,)
    with pytest.raises(InputError, match="no room for two documents"):
        duo(max_length=64, max_query_length=room - 1)


def test_other_kinds_are_refused():
    with pytest.raises(CheckpointError, match="of the kind 'rank_t5', not 'duo_t5'"):
        DuoT5(GOLDEN / "t5_encoder")


@pytest.mark.parametrize("plan", ["sym-sum", Heap, Tournament])
def test_what_is_no_plan_is_refused_at_once(plan):
    with pytest.raises(InputError, match=r"plan must be one of crossrank\.models\.pairwise"):
        DuoT5(GOLDEN / "t5", plan=plan)
