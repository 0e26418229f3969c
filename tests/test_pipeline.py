"""Searcher: what comes out in which order, what failures and time budgets do, and what must always hold."""

import math
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.composition.cascade import Cascade
from crossrank.composition.ensemble import Ensemble
from crossrank.composition.tournament import Tournament
from crossrank.errors import BudgetError, EndpointError, InputError, ModelOutputError, QueryTooLongError
from crossrank.evaluation.collections import Collection
from crossrank.evaluation.trec import read_run, write_run
from crossrank.models.llm.model import Usage
from crossrank.models.reranker import asked_once
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.fusion import RRF, WeightedSum
from crossrank.retrieval.hybrid import Hybrid
from crossrank.types import Document, Hit, Ranking, Run


class Clock:
    """Time that passes only when a stage says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Retriever:
    """Finds documents d0, d1, ... in this order, with falling scores."""

    name = "first"

    def __init__(self, count: int, clock: Clock | None = None, ms: float = 0) -> None:
        self.documents = [Document(f"d{i}", f"text {i}") for i in range(count)]
        self.clock, self.ms = clock, ms
        self.asked: list[tuple[list[str], int]] = []

    def retrieve(self, queries: Sequence[str], top_k: int = 100, filter=None) -> list[Ranking]:
        self.asked.append((list(queries), top_k))
        if self.clock:
            self.clock.now += self.ms / 1000
        found = [d for d in self.documents if filter is None or filter.matches(d)][:top_k]
        hits = [Hit(d.id, 50.0 - i, i + 1, self.name, i, d) for i, d in enumerate(found)]
        return [Ranking(query, tuple(hits)) for query in queries]


class Ordering:
    """Compares a query's documents with one another; a call takes `ms` for each document."""

    def __init__(
        self,
        score: Callable[[str, Document], float] = lambda query, document: zlib.crc32(
            f"{query}|{document.id}".encode()
        ),
        name: str = "model",
        clock: Clock | None = None,
        ms: float = 0,
    ) -> None:
        self.name, self.score_of, self.clock, self.ms = name, score, clock, ms
        self.calls: list[list[int]] = []

    def rank(self, query, documents, top_k=None) -> Ranking:
        return self.rank_many([query], [documents], top_k)[0]

    def rank_many(self, queries, documents, top_k=None) -> list[Ranking]:
        self.calls.append([len(each) for each in documents])
        if self.clock:
            self.clock.now += self.ms / 1000 * sum(map(len, documents))
        return [
            Ranking.from_hits(
                query,
                [
                    Hit(d.id, self.score_of(query, d), 1, self.name, i, d, truncated_tokens=i, span=(0, i))
                    for i, d in enumerate(each)
                ],
                top_k=top_k,
            )
            for query, each in zip(queries, documents, strict=True)
        ]


class Scoring(Ordering):
    """Scores each pair by itself, and says so by its method `score`."""

    def score(self, pairs):
        raise AssertionError("the pipeline ranks, it does not score")


def number(_: str, document: Document) -> float:
    """Puts the last candidate first."""
    return float(document.id[1:])


class Halving:
    """A judge that never prefers."""

    name = "halving"

    def prefer(self, comparisons):
        return [0.5] * len(comparisons)


def failing(error: BaseException, on: str = "") -> Scoring:
    def score(query: str, document: Document) -> float:
        if on in query:
            raise error
        return number(query, document)

    return Scoring(score)


def numbers(ranking: Ranking) -> list[int]:
    return [int(document_id[1:]) for document_id in ranking.document_ids]


def test_without_a_reranker_the_first_stage_stands() -> None:
    first = Retriever(30)
    ranking = Searcher(first).search("q", top_k=3)
    assert first.asked == [(["q"], 3)]
    assert numbers(ranking) == [0, 1, 2]
    hit = ranking[1]
    assert (hit.rank, hit.score, hit.stage, hit.index) == (2, 49.0, "first", 1)
    assert (hit.first_stage_rank, hit.first_stage_score) == (2, 49.0)
    assert dict(hit.stage_scores) == {"first": 49.0}
    assert (ranking.status, ranking.notes, list(ranking.timings_ms)) == ("ok", (), ["first"])


def test_a_reranker_orders_the_first_depth_documents() -> None:
    first = Retriever(30)
    ranking = Searcher(first, Scoring(number), depth=5).search("q", top_k=8)
    assert first.asked == [(["q"], 8)]
    assert numbers(ranking) == [4, 3, 2, 1, 0, 5, 6, 7]
    assert [hit.rank for hit in ranking] == list(range(1, 9))
    best, sixth = ranking[0], ranking[5]
    assert (best.score, best.stage, best.first_stage_rank, best.first_stage_score) == (4, "model", 5, 46)
    assert dict(best.stage_scores) == {"first": 46.0, "model": 4.0}
    assert (best.truncated_tokens, best.span, best.index) == (4, (0, 4), 4)
    assert best.document == first.documents[4]
    assert (sixth.score, sixth.stage, sixth.first_stage_rank) == (45.0, "first", 6)
    assert list(ranking.timings_ms) == ["first", "model"]


def test_more_candidates_than_depth_are_fetched_only_for_top_k() -> None:
    first = Retriever(300)
    searcher = Searcher(first, [(Scoring(name="tiny"), 200), (Scoring(), 50)])
    searcher.search("q", top_k=10)
    searcher.search("q", top_k=250)
    assert [top_k for _, top_k in first.asked] == [200, 250]


def test_a_cascade_is_what_one_does_by_hand() -> None:
    first, tiny, large = Retriever(60), Scoring(name="tiny"), Scoring(lambda q, d: -zlib.crc32(d.id.encode()))
    ranking = Searcher(first, [(tiny, 40), (large, 10)]).search("query", top_k=60)
    found = first.retrieve(["query"], top_k=60)[0]
    once = tiny.rank("query", [hit.document for hit in found[:40]])
    twice = large.rank("query", [hit.document for hit in once[:10]])
    expected = [*twice.document_ids, *once.document_ids[10:], *found.document_ids[40:]]
    assert list(ranking.document_ids) == expected
    assert [hit.stage for hit in ranking] == ["model"] * 10 + ["tiny"] * 30 + ["first"] * 20
    assert list(ranking[0].stage_scores) == ["first", "tiny", "model"]
    assert ranking[0].stage_scores["tiny"] == next(
        hit.score for hit in once if hit.document_id == ranking[0].document_id
    )


def test_equal_names_become_different_stages() -> None:
    searcher = Searcher(
        Retriever(9), [(Scoring(name="first"), 9), (Scoring(name="m"), 5), (Scoring(name="m"), 2)]
    )
    ranking = searcher.search("q")
    assert list(ranking[0].stage_scores) == list(ranking.timings_ms) == ["first", "first:2", "m", "m:2"]


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(0, 25),
    depths=st.lists(st.integers(1, 30), max_size=3).map(lambda d: sorted(d, reverse=True)),
    levels=st.integers(1, 5),
    top_k=st.integers(1, 30),
    fused=st.booleans(),
    broken=st.integers(0, 3),
)
def test_no_document_is_lost_or_invented(count, depths, levels, top_k, fused, broken) -> None:
    def coarse(query: str, document: Document) -> float:  # few levels: many ties
        return float(zlib.crc32(f"{query}{document.id}".encode()) % levels)

    cascade = [
        (failing(RuntimeError("no")) if place == broken else Scoring(coarse, name=f"m{place}"), depth)
        for place, depth in enumerate(depths)
    ]
    searcher = Searcher(Retriever(count), cascade or None, fuse=RRF() if fused and cascade else None)
    everything = searcher.search("a", top_k=30)
    assert sorted(everything.document_ids) == sorted(f"d{i}" for i in range(count))
    assert [hit.rank for hit in everything] == list(range(1, count + 1))
    assert [hit.first_stage_rank for hit in everything] == [n + 1 for n in numbers(everything)]
    # fewer hits are the first ones of all
    fewer = searcher.search("a", top_k=top_k)
    assert fewer.document_ids == everything.document_ids[:top_k]
    # and many queries at once give the same as each by itself
    many = searcher.search_many(["a", "b", "c"], top_k=top_k)
    for query, ranking in zip("abc", many, strict=True):
        alone = searcher.search(query, top_k=top_k)
        assert (ranking.hits, ranking.status, ranking.notes) == (alone.hits, alone.status, alone.notes)


def test_stages_leave_what_they_get_alone() -> None:
    first = Retriever(5)
    kept: list[list[Ranking]] = []
    plain = first.retrieve

    def keeping(*args, **kwargs):
        kept.append(plain(*args, **kwargs))
        return kept[-1]

    first.retrieve = keeping
    queries = {"one": "a", "two": "b"}
    run = Searcher(first, Scoring(number)).search_many(queries)
    assert kept[0] == plain(["a", "b"])
    assert queries == {"one": "a", "two": "b"}
    assert run["one"].document_ids != kept[0][0].document_ids


def test_many_queries_are_pooled_in_bounded_blocks() -> None:
    first, model = Retriever(100), Scoring()
    queries = [f"q{i}" for i in range(100)]
    rankings = Searcher(first, model, depth=100).search_many(queries, progress=False)
    assert [ranking.query for ranking in rankings] == queries
    assert [len(asked) for asked, _ in first.asked] == [40, 40, 20]
    assert [sum(call) for call in model.calls] == [4000, 4000, 2000]


def test_a_mapping_gives_a_run(tmp_path: Path) -> None:
    run = Searcher(Retriever(5), Scoring(number), depth=3).search_many({"x": "a", "y": "b"}, top_k=4)
    assert isinstance(run, Run)
    assert list(run) == ["x", "y"]
    assert (run["y"].query, run["y"].query_id) == ("b", "y")
    write_run(run, tmp_path / "run.trec")  # scores of two scales, and still this order
    assert (
        read_run(tmp_path / "run.trec")["x"].document_ids == run["x"].document_ids == ("d2", "d1", "d0", "d3")
    )
    assert Searcher(Retriever(5)).search_many([]) == []
    assert dict(Searcher(Retriever(5)).search_many({})) == {}


def test_timings_are_each_querys_share() -> None:
    clock = Clock()
    searcher = Searcher(Retriever(10, clock, ms=30), Scoring(clock=clock, ms=2), depth=10, clock=clock)
    assert dict(searcher.search("q").timings_ms) == pytest.approx({"first": 30, "model": 20})
    for ranking in searcher.search_many(["a", "b", "c"]):
        assert dict(ranking.timings_ms) == pytest.approx({"first": 10, "model": 20})


def test_nothing_found_is_an_empty_ranking() -> None:
    model = Scoring()
    for budget_ms in (None, 100):
        ranking = Searcher(Retriever(0), model, fuse=RRF()).search("q", budget_ms=budget_ms)
        assert (ranking.hits, ranking.status, ranking.notes) == ((), "ok", ())
    assert model.calls == []


# failures


def test_a_failing_reranker_leaves_the_order_before_it() -> None:
    for budget_ms in (None, 1e9):
        searcher = Searcher(Retriever(6), failing(RuntimeError("out of\n memory")), depth=4)
        ranking = searcher.search("q", budget_ms=budget_ms)
        assert numbers(ranking) == list(range(6))
        assert {hit.stage for hit in ranking} == {"first"}
        assert ranking.status == "degraded"
        assert ranking.notes == ("model failed, the order before it stands: RuntimeError: out of memory",)
        with pytest.raises(RuntimeError, match="memory"):
            Searcher(Retriever(6), failing(RuntimeError("memory")), on_error="raise").search(
                "q", budget_ms=budget_ms
            )


def test_later_rerankers_still_run() -> None:
    cascade = [(failing(RuntimeError("no")), 6), (Scoring(number, name="second"), 3)]
    ranking = Searcher(Retriever(6), cascade, fuse=WeightedSum((0, 1))).search("q")
    assert numbers(ranking) == [2, 1, 0, 3, 4, 5]
    assert ranking.status == "degraded"
    # and an earlier one's order stands when the last one fails
    cascade = [(Scoring(number, name="tiny"), 4), (failing(RuntimeError("no")), 2)]
    assert numbers(Searcher(Retriever(6), cascade).search("q")) == [3, 2, 1, 0, 4, 5]


def test_one_querys_failure_is_not_the_others() -> None:
    searcher = Searcher(Retriever(4), failing(RuntimeError("no"), on="bad"))
    good, bad, also_good = searcher.search_many(["good", "bad", "also good"])
    assert numbers(good) == numbers(also_good) == [3, 2, 1, 0]
    assert numbers(bad) == [0, 1, 2, 3]
    assert [good.status, bad.status, also_good.status] == ["ok", "degraded", "ok"]


@pytest.mark.parametrize("error", [EndpointError("the server is gone"), BudgetError("spent", Usage())])
def test_a_server_that_failed_for_good_is_not_asked_again(error: Exception) -> None:
    model = failing(error, on="bad")
    rankings = Searcher(Retriever(4), model).search_many(["good", "bad", "also good"])
    assert model.calls == [[4, 4, 4]]
    for ranking in rankings:
        assert (ranking.status, numbers(ranking)) == ("degraded", [0, 1, 2, 3])
        assert str(error) in ranking.notes[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: Ensemble([Scoring(name="other"), model]),
        lambda model: Cascade(Scoring(name="other"), [(model, 3)]),
        lambda model: Tournament(Halving(), model),
    ],
    ids=["itself", "ensemble", "cascade", "tournament"],
)
def test_what_cost_something_is_not_asked_for_twice(wrap) -> None:
    model = failing(RuntimeError("no"), on="bad")
    model.asked_once = True
    rankings = Searcher(Retriever(4), wrap(model)).search_many(["good", "bad"])
    assert len(model.calls) == 1
    assert [ranking.status for ranking in rankings] == ["degraded", "degraded"]
    assert not asked_once(wrap(Scoring(name="cheap")))


@pytest.mark.parametrize("budget_ms", [None, 1e9])
@pytest.mark.parametrize("on_error", ["degrade", "raise"])
def test_the_callers_mistakes_and_interrupts_are_raised(budget_ms, on_error) -> None:
    for error in (QueryTooLongError("long"), InputError("bad"), KeyboardInterrupt(), SystemExit()):
        searcher = Searcher(Retriever(4), failing(error), on_error=on_error)
        with pytest.raises(type(error)):
            searcher.search("q", budget_ms=budget_ms)
        with pytest.raises(type(error)):
            searcher.search_many(["q", "r"], budget_ms=budget_ms)


class Answering(Ordering):
    """Answers every call with the same hits, whatever was asked."""

    def __init__(self, hits: list[Hit]) -> None:
        super().__init__()
        self.hits = tuple(hits)

    def rank_many(self, queries, documents, top_k=None):
        return [Ranking(query, self.hits) for query in queries]


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([Hit("d0", math.nan, 1, "x")], "score nan"),
        ([Hit("d0", math.inf, 1, "x")], "score inf"),
        ([Hit("other", 1.0, 1, "x")], "not among"),
        ([Hit("d0", 1.0, 1, "x"), Hit("d0", 0.5, 2, "x")], "came before"),
    ],
)
def test_answers_that_cannot_be_used_are_failures(hits: list[Hit], message: str) -> None:
    ranking = Searcher(Retriever(3), Answering(hits)).search("q")
    assert (ranking.status, numbers(ranking)) == ("degraded", [0, 1, 2])
    assert message in ranking.notes[0]
    with pytest.raises(ModelOutputError, match=message):
        Searcher(Retriever(3), Answering(hits), on_error="raise").search("q")


@pytest.mark.parametrize("answer", [None, 3, [None]])
def test_answers_that_are_no_rankings_are_failures(answer: object) -> None:
    class Wrong(Scoring):
        def rank_many(self, queries, documents, top_k=None):
            return answer

    ranking = Searcher(Retriever(3), Wrong()).search("q")
    assert (ranking.status, numbers(ranking)) == ("degraded", [0, 1, 2])
    assert "ModelOutputError: model " in ranking.notes[0]


def test_documents_a_reranker_leaves_out_follow_the_others() -> None:
    ranking = Searcher(Retriever(5), Answering([Hit("d2", 1.0, 1, "x")]), depth=4).search("q")
    assert numbers(ranking) == [2, 0, 1, 3, 4]
    assert (ranking.status, ranking.notes) == ("ok", ("model returned 1 of 4 candidates",))


def test_too_few_rankings_from_a_reranker_are_a_failure() -> None:
    class Short(Scoring):
        def rank_many(self, queries, documents, top_k=None):
            return (
                super().rank_many(queries, documents)[:1]
                if len(queries) > 1
                else super().rank_many(queries, documents)
            )

    rankings = Searcher(Retriever(3), Short(number)).search_many(["a", "b"])
    assert [numbers(ranking) for ranking in rankings] == [[2, 1, 0]] * 2  # each by itself worked


# time budgets


def budgeted(budget_ms: float, *, count=100, first_ms=0.0, ms=1.0, reranker=Scoring, depth=100, **options):
    clock = Clock()
    model = reranker(number, clock=clock, ms=ms)
    searcher = Searcher(Retriever(count, clock, first_ms), model, depth=depth, clock=clock, **options)
    return searcher.search("q", top_k=count, budget_ms=budget_ms), model


def test_a_budget_reranks_the_best_candidates_it_has_time_for() -> None:
    ranking, model = budgeted(20.5, first_ms=5)
    scored = sum(sum(call) for call in model.calls)
    assert scored == 15  # all that 15.5 ms allow, and no more
    assert numbers(ranking) == [*range(14, -1, -1), *range(15, 100)]
    assert ranking.notes == ("model scored 15 of 100 candidates within the budget of 20.5 ms",)
    assert ranking.status == "ok"
    assert dict(ranking.timings_ms) == pytest.approx({"first": 5, "model": 15})
    assert len(model.calls) < scored / 2  # in chunks, not one by one


def test_enough_time_gives_the_same_as_no_budget() -> None:
    ranking, _ = budgeted(1000)
    unlimited = Searcher(Retriever(100), Scoring(number)).search("q", top_k=100)
    assert ranking.hits[50].document_id == unlimited.hits[50].document_id
    assert ranking.document_ids == unlimited.document_ids
    assert ranking.scores == unlimited.scores
    assert ranking.notes == ()


@pytest.mark.parametrize(("budget_ms", "first_ms"), [(0, 0), (5, 5), (5, 50)])
def test_no_time_left_is_the_first_stage(budget_ms: float, first_ms: float) -> None:
    ranking, model = budgeted(budget_ms, first_ms=first_ms)
    assert model.calls == []
    assert numbers(ranking) == list(range(100))
    assert ranking.notes == (f"model scored 0 of 100 candidates within the budget of {budget_ms} ms",)
    assert ranking.status == "ok"


@settings(max_examples=80, deadline=None)
@given(
    budget_ms=st.floats(0, 300),
    first_ms=st.floats(0, 50),
    ms=st.floats(0.01, 20),
    count=st.integers(1, 60),
)
def test_a_budget_is_used_and_overrun_by_one_document_at_most(budget_ms, first_ms, ms, count) -> None:
    ranking, model = budgeted(budget_ms, first_ms=first_ms, ms=ms, count=count)
    scored = sum(sum(call) for call in model.calls)
    left_ms = budget_ms - first_ms
    assert (scored - 1) * ms <= max(left_ms, 0) + 1e-6  # only the first document's time is unknown
    assert scored == count or scored * ms > left_ms - ms - 1e-6  # no time for one more
    assert numbers(ranking) == [*range(scored - 1, -1, -1), *range(scored, count)]


def test_a_model_that_slows_down_is_noticed() -> None:
    clock = Clock()

    class Slowing(Scoring):
        def rank_many(self, queries, documents, top_k=None):
            self.ms = 1.0 if sum(map(sum, self.calls)) < 20 else 10.0
            return super().rank_many(queries, documents, top_k)

    searcher = Searcher(Retriever(500), Slowing(number, clock=clock), depth=500, clock=clock)
    ranking = searcher.search("q", budget_ms=200)
    assert ranking.timings_ms["model"] < 1200  # a chunk of 100 was under way when it slowed down


def test_a_reranker_without_scores_takes_all_or_nothing() -> None:
    ranking, model = budgeted(20, reranker=Ordering)
    assert model.calls == [[100]]
    assert numbers(ranking) == list(range(99, -1, -1))
    ranking, model = budgeted(20, reranker=Ordering, first_ms=20)
    assert model.calls == []
    assert ranking.notes


def test_a_cascade_shares_the_budget_in_order() -> None:
    clock = Clock()
    tiny, large = Scoring(number, "tiny", clock, ms=0.1), Scoring(number, "large", clock, ms=5)
    searcher = Searcher(Retriever(100), [(tiny, 100), (large, 20)], clock=clock)
    ranking = searcher.search("q", budget_ms=60.5, top_k=100)
    assert numbers(ranking) == list(range(99, -1, -1))
    assert ranking.notes == ("large scored 10 of 20 candidates within the budget of 60.5 ms",)
    assert [hit.stage for hit in ranking][9:11] == ["large", "tiny"]


def test_many_queries_have_a_budget_each() -> None:
    clock = Clock()
    searcher = Searcher(Retriever(50, clock, 5), Scoring(number, clock=clock, ms=1), clock=clock)
    run = searcher.search_many({"a": "one", "b": "two"}, budget_ms=15.5)
    for query_id in "ab":
        assert run[query_id].query_id == query_id
        assert run[query_id].notes == ("model scored 10 of 50 candidates within the budget of 15.5 ms",)


# fusion


def test_fusion_mixes_both_stages_over_the_reranked_documents() -> None:
    searcher = Searcher(Retriever(6), Scoring(number), depth=4, fuse=WeightedSum((3, 1)))
    ranking = searcher.search("q")
    # min-max: first stage 1, 2/3, 1/3, 0; reranker 0, 1/3, 2/3, 1
    assert numbers(ranking) == [0, 1, 2, 3, 4, 5]
    assert ranking.scores[:4] == pytest.approx((3, 2 + 1 / 3, 1 + 2 / 3, 1))
    assert [hit.stage for hit in ranking] == ["fusion"] * 4 + ["first"] * 2
    assert list(ranking[0].stage_scores) == ["first", "model", "fusion"]
    assert list(ranking.timings_ms) == ["first", "model", "fusion"]
    other = Searcher(Retriever(6), Scoring(number), depth=4, fuse=WeightedSum((1, 3))).search("q")
    assert numbers(other) == [3, 2, 1, 0, 4, 5]


def test_fusion_is_the_formula_over_the_two_rankings() -> None:
    first, model = Retriever(20), Scoring()
    ranking = Searcher(first, model, depth=20, fuse=RRF(k=10)).search("q", top_k=20)
    found = first.retrieve(["q"])[0]
    expected = RRF(k=10)([found, model.rank("q", [hit.document for hit in found])])
    assert ranking.document_ids == expected.document_ids
    assert ranking.scores == expected.scores


def test_fusion_within_a_budget_and_after_a_failure() -> None:
    ranking, _ = budgeted(10.5, fuse=WeightedSum((0, 1)))
    assert numbers(ranking)[:11] == [*range(9, -1, -1), 10]
    assert [hit.stage for hit in ranking][9:11] == ["fusion", "first"]
    failed = Searcher(Retriever(6), failing(RuntimeError("no")), fuse=RRF()).search("q")
    assert {hit.stage for hit in failed} == {"first"}


def test_a_formula_must_keep_every_document() -> None:
    for wrong in (lambda rankings: Ranking("q"), lambda rankings: Ranking("q", rankings[0].hits * 2)):
        with pytest.raises(ModelOutputError, match="fusion"):
            Searcher(Retriever(3), Scoring(), fuse=wrong).search("q")


# arguments


@pytest.mark.parametrize("query", ["", "  \n", None, 5, b"q", ["q"]])
def test_bad_queries(query) -> None:
    searcher = Searcher(Retriever(3), Scoring())
    with pytest.raises(InputError, match="query"):
        searcher.search(query)
    with pytest.raises(InputError, match=r"query|queries"):
        searcher.search_many(["good", query])
    with pytest.raises(InputError, match="queries"):
        searcher.search_many("a single text")


def test_queries_of_many_forms() -> None:
    searcher = Searcher(Retriever(3), Scoring())
    assert len(searcher.search_many(query for query in ["one", "two"])) == 2
    with pytest.raises(InputError, match=r"queries\['q7'\] must be a string that is not empty"):
        searcher.search_many({"q1": "good", "q7": " "})


@pytest.mark.parametrize("top_k", [0, -1, 2.5, True, None])
def test_bad_top_k(top_k) -> None:
    for search in (
        Searcher(Retriever(3)).search,
        lambda q, **o: Searcher(Retriever(3)).search_many([q], **o),
    ):
        with pytest.raises(InputError, match="top_k"):
            search("q", top_k=top_k)


@pytest.mark.parametrize("budget_ms", [-1, math.nan, math.inf, True, "10"])
def test_bad_budgets(budget_ms) -> None:
    with pytest.raises(InputError, match="budget_ms"):
        Searcher(Retriever(3)).search("q", budget_ms=budget_ms)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["a text"], {}, "first stage must be a retriever"),
        ([Retriever(1), "model"], {}, "a reranker has"),
        ([Retriever(1), [Scoring()]], {}, "list of .reranker, depth."),
        ([Retriever(1), (Scoring(), 5)], {}, "list of .reranker, depth."),
        ([Retriever(1), [(Scoring(), 5), (Scoring(), 6)]], {}, "6 comes after 5"),
        ([Retriever(1), [(Scoring(), 0)]], {}, "depth"),
        ([Retriever(1), Scoring()], {"depth": 0}, "depth"),
        ([Retriever(1), Scoring()], {"on_error": "ignore"}, "on_error"),
        ([Retriever(1), Scoring()], {"fuse": "rrf"}, "fuse"),
        ([Retriever(1)], {"fuse": RRF()}, "give a reranker"),
    ],
)
def test_bad_parts(arguments, options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Searcher(*arguments, **options)


def test_hits_need_documents_and_may_not_repeat() -> None:
    class Bare(Retriever):
        def retrieve(self, queries, top_k=100, filter=None):
            return [Ranking(query, (Hit("x", 1.0, 1, "first"),)) for query in queries]

    assert Searcher(Bare(0)).search("q").document_ids == ("x",)
    with pytest.raises(InputError, match="'x' without its text"):
        Searcher(Bare(0), Scoring()).search("q")

    class Twice(Retriever):
        def retrieve(self, queries, top_k=100, filter=None):
            return [Ranking(query, (Hit("x", 1.0, 1, "first"),) * 2) for query in queries]

    with pytest.raises(ModelOutputError, match="twice"):
        Searcher(Twice(0)).search("q")


# with a real first stage


@pytest.fixture(scope="module")
def paragraphs() -> list[Document]:
    return list(Collection.open(Path(__file__).parents[1] / "data" / "sample").documents())[:300]


def test_over_real_paragraphs(paragraphs: list[Document]) -> None:
    first = Hybrid([BM25(paragraphs), BM25(paragraphs, language=None, name="exact")])
    shortest = Scoring(lambda query, document: np.float32(-len(document.text)), name="shortest")
    searcher = Searcher(first, shortest, depth=20)
    queries = {"a": "oil embargo of 1973", "b": "symptoms of disease", "c": "zzzz"}
    run = searcher.search_many(queries, top_k=30)
    assert len(run["c"]) == 0
    for query_id in "ab":
        ranking = run[query_id]
        assert ranking.hits == searcher.search(queries[query_id], top_k=30).hits
        found = first.retrieve([queries[query_id]], top_k=30)[0]
        assert set(ranking.document_ids) == set(found.document_ids)
        assert ranking.document_ids[20:] == found.document_ids[20:]
        lengths = [len(hit.document.text) for hit in ranking if hit.document][:20]
        assert lengths == sorted(lengths)
        assert list(ranking[0].stage_scores)[-2:] == ["hybrid", "shortest"]


def test_filters_in_every_form(paragraphs: list[Document]) -> None:
    documents = [
        Document(d.id, d.text, d.title, {"long": len(d.text) > 700, "n": i}) for i, d in enumerate(paragraphs)
    ]
    searcher = Searcher(BM25(documents), Scoring())

    class Early:
        def matches(self, document: Document) -> bool:
            return document.metadata["n"] < 100

    for filter in ({"n": {"<": 100}}, "n < 100", Early()):
        for ranking in (
            searcher.search("oil", filter=filter),
            searcher.search_many(["oil"], filter=filter)[0],
        ):
            assert len(ranking) > 0
            assert all(hit.document.metadata["n"] < 100 for hit in ranking)
    with pytest.raises(InputError):
        searcher.search("oil", filter=5)


def test_over_an_index(paragraphs: list[Document], tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed (extra: search)")
    from crossrank.store.lance import Index

    class Letters:
        """A bi-encoder that counts letters."""

        name, fingerprint, dimensions = "letters", "l" * 64, 26

        def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
            counts = [[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts]
            vectors = np.array(counts, dtype=np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        encode_queries = encode_documents

    with Index.create(tmp_path / "index", bi_encoder=Letters(), fields={"n": int}) as index:
        index.add([Document(d.id, d.text, d.title, {"n": i}) for i, d in enumerate(paragraphs[:50])])
        ranking = Searcher(index, Scoring(), depth=5, fuse=RRF()).search("oil embargo", filter="n < 30")
        assert list(ranking.timings_ms) == ["hybrid", "model", "fusion"]
        assert len(ranking) == 10
        assert all(hit.document.metadata["n"] < 30 for hit in ranking if hit.document)
        assert list(ranking[0].stage_scores)[-3:] == ["hybrid", "model", "fusion"]
        assert len(ranking.as_context(max_tokens=300).sources) >= 1
    with Index.open(tmp_path / "index") as index:
        assert list(Searcher(index).search("oil embargo").timings_ms) == ["bm25"]


def test_many_threads_get_what_one_gets(paragraphs: list[Document]) -> None:
    searcher = Searcher(BM25(paragraphs), Scoring(), depth=10)
    queries = [f"oil {word}" for word in ("price", "embargo", "war", "crisis", "market", "country")]
    expected = [searcher.search(query).hits for query in queries]
    found: dict[int, tuple[Hit, ...]] = {}

    def work(place: int) -> None:
        found[place] = searcher.search(queries[place]).hits

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[place] for place in range(len(queries))] == expected
