"""Cascade: which documents each stage sees, in what order they end, and what failures do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from members import DOCUMENTS, Losing, PointwiseTable, Table

from crossrank.composition.cascade import Cascade
from crossrank.depths import Margin, TimeBudget
from crossrank.errors import InputError, ModelOutputError
from crossrank.evaluation.measures import evaluate
from crossrank.pipeline import Searcher
from crossrank.types import Hit, Ranking

FIRST = {"a": 1.0, "b": 2.0, "c": 3.0, "d": -2.0}
SECOND = {"a": 100.0, "b": 5.0, "c": 0.0, "d": 200.0}


class Failing(Table):
    def rank_many(self, queries, documents, top_k=None):
        raise RuntimeError("out of memory")


def test_each_stage_orders_the_best_of_the_one_before():
    first, second, third = Table("one", FIRST), Table("two", SECOND), Table("three", {"a": 0.0, "b": 1.0})
    ranking = Cascade(first, [(second, 3), (third, 2)]).rank("q", DOCUMENTS)
    # one: c b a d; two orders c b a: a b c; three orders a b: b a
    assert ranking.document_ids == ("y", "x", "z", "w")
    assert [hit.stage for hit in ranking] == ["three", "three", "two", "one"]
    assert [hit.score for hit in ranking] == [1.0, 0.0, 0.0, -2.0]
    assert ranking[0].stage_scores == {"one": 2.0, "two": 5.0, "three": 1.0}
    assert [hit.document for hit in ranking] == [DOCUMENTS[hit.index] for hit in ranking]
    assert list(ranking.timings_ms) == ["one", "two", "three"]
    assert [first.calls, second.calls, third.calls] == [[[4]], [[3]], [[2]]]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_tuned_cascade_has_the_least_depth_from_which_on_nothing_is_lost(data) -> None:
    pytest.importorskip("pytrec_eval")
    scores = st.fixed_dictionaries(dict.fromkeys("abcd", st.integers(0, 5).map(float)))
    first, second = Table("one", data.draw(scores)), Table("two", data.draw(scores))
    queries = {"1": "q", "2": "r"}
    documents = {"1": DOCUMENTS, "2": DOCUMENTS[:3]}
    grades = st.fixed_dictionaries(dict.fromkeys("xyzw", st.integers(0, 2)))
    qrels = {query_id: data.draw(grades) for query_id in queries}
    within = data.draw(st.sampled_from([0.0, 0.1]))
    tuned = Cascade.tuned([first, second], queries, documents, qrels, within=within)

    def mean(depth: int) -> float:
        rankings = Cascade(first, [(second, depth)]).rank_many([*queries.values()], [*documents.values()])
        run = {
            query_id: {hit.document_id: -float(hit.rank) for hit in ranking}
            for query_id, ranking in zip(queries, rankings, strict=True)
        }
        return evaluate(run, qrels, ["nDCG@10"])["nDCG@10"]

    assert tuned.curve == {depth: pytest.approx(mean(depth)) for depth in (1, 2, 3, 4)}
    depth = tuned.stages[1].depth
    assert all(tuned.curve[each] >= tuned.curve[4] - within for each in range(depth, 5))
    assert depth == 1 or tuned.curve[depth - 1] < tuned.curve[4] - within
    by_hand = Cascade(first, [(second, depth)])
    assert tuned.rank("q", DOCUMENTS).document_ids == by_hand.rank("q", DOCUMENTS).document_ids


def test_tuning_needs_two_rerankers_and_documents_with_ids() -> None:
    first, second = Table("one", FIRST), Table("two", SECOND)
    with pytest.raises(InputError, match="give two rerankers, the fast one first, not 1"):
        Cascade.tuned([first], {"1": "q"}, {"1": DOCUMENTS}, {"1": {"x": 1}})
    with pytest.raises(InputError, match="must be Documents"):
        Cascade.tuned([first, second], {"1": "q"}, {"1": ["a"]}, {"1": {"x": 1}})
    with pytest.raises(InputError, match="within"):
        Cascade.tuned([first, second], {"1": "q"}, {"1": DOCUMENTS}, {"1": {"x": 1}}, within=-1)


def test_many_queries_are_one_call_of_each_stage():
    first, second = Table("one", FIRST), Table("two", SECOND)
    rankings = Cascade(first, [(second, 2)]).rank_many(["q", "r"], [DOCUMENTS, DOCUMENTS[:1]])
    assert [len(ranking) for ranking in rankings] == [4, 1]
    assert second.calls == [[2, 1]]


def test_it_is_what_a_searcher_does_after_its_first_stage():
    class Given:
        name = "given"

        def retrieve(self, queries, top_k=100, filter=None):
            hits = [Hit(each.id, -float(n), n, "given", document=each) for n, each in enumerate(DOCUMENTS, 1)]
            return [Ranking(query, tuple(hits)) for query in queries]

    stages = [(Table("one", FIRST), 4), (Table("two", SECOND), 2)]
    searched = Searcher(Given(), stages).search("q")
    ranked = Cascade(stages[0][0], stages[1:]).rank("q", DOCUMENTS)
    assert ranked.document_ids == searched.document_ids
    assert ranked.scores == searched.scores
    assert [hit.stage for hit in ranked] == [hit.stage for hit in searched]


def test_a_failure_is_raised_or_leaves_the_order_before_it():
    stages = [(Failing("two", {}), 3), (Table("three", SECOND), 2)]
    with pytest.raises(RuntimeError, match="memory"):
        Cascade(Table("one", FIRST), stages).rank("q", DOCUMENTS)
    ranking = Cascade(Table("one", FIRST), stages, on_error="degrade").rank("q", DOCUMENTS)
    assert ranking.document_ids == ("y", "z", "x", "w")
    assert ranking.status == "degraded"
    assert ranking.notes == ("two failed, the order before it stands: RuntimeError: out of memory",)
    with pytest.raises(RuntimeError, match="memory"):  # nothing stands before the first
        Cascade(Failing("one", {}), [], on_error="degrade").rank("q", DOCUMENTS)


def test_notes_of_stages_are_kept():
    noting = Table("two", SECOND, notes=["1 document repeated"])
    ranking = Cascade(Table("one", FIRST, notes=["slow"]), [(noting, 2)]).rank("q", DOCUMENTS)
    assert ranking.notes == ("one: slow", "two: 1 document repeated")
    assert ranking.status == "ok"


def test_the_first_stage_must_return_every_document():
    with pytest.raises(ModelOutputError, match="lost, added or repeated"):
        Cascade(Losing("one", FIRST), []).rank("q", DOCUMENTS)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("bm25", []), {}, "str has not"),
        ((Table("one", FIRST), [Table("two", SECOND)]), {}, "a list of"),
        ((Table("one", FIRST), [(Table("two", SECOND), 0)]), {}, "at least 1"),
        ((Table("one", FIRST), [(Table("two", SECOND), 2), (Table("x", FIRST), 3)]), {}, "may not grow"),
        ((Table("one", FIRST), []), {"on_error": "ignore"}, "on_error"),
    ],
)
def test_what_is_no_cascade(arguments, options, message):
    with pytest.raises(InputError, match=message):
        Cascade(*arguments, **options)


def test_a_rule_decides_for_each_query_how_many_go_on():
    second = Table("two", SECOND)
    cascade = Cascade(Table("one", FIRST), [(second, Margin(1.5, top_k=1))])
    ranking = cascade.rank("q", DOCUMENTS)  # one: 3 2 1 -2, and 3 - 1.5 lets two go on
    assert second.calls == [[2]]
    assert [hit.stage for hit in ranking] == ["two", "two", "one", "one"]
    assert cascade.rank("q", []).hits == ()


def test_a_rule_looks_at_the_latest_stages_scores_alone():
    third = Table("three", FIRST)
    cascade = Cascade(Table("one", FIRST), [(Table("two", SECOND), 3), (third, Margin(96.0, top_k=1))])
    ranking = cascade.rank("q", DOCUMENTS)  # two: 100 5 0 of c b a; 100 - 96 lets two go on
    assert third.calls == [[2]]
    assert [hit.stage for hit in ranking] == ["three", "three", "two", "one"]


def test_a_time_budget_is_the_stages_own():
    clock = iter(range(1000))
    slow = PointwiseTable("two", SECOND)
    cascade = Cascade(Table("one", FIRST), [(slow, TimeBudget(4000.0))], clock=lambda: float(next(clock)))
    ranking = cascade.rank("q", DOCUMENTS)
    done = sum(hit.stage == "two" for hit in ranking)
    assert 0 < done < 4
    assert ranking.notes == (f"two scored {done} of 4 candidates within the budget of 4000 ms",)
