"""Tournament: who is compared with whom, what decides, and what follows below."""

from __future__ import annotations

import pytest
from members import DOCUMENTS, Table

from crossrank.composition.tournament import Judge, Tournament
from crossrank.errors import InputError, ModelOutputError
from crossrank.models.pairwise import AllPairs, Heap, SlidingWindow
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25

FIRST = Table("first", {"a": 1.0, "b": 2.0, "c": 3.0, "d": -2.0})  # c b a d


class Alphabetical:
    """Prefers the text that comes first in the alphabet."""

    name = "alphabetical"

    def __init__(self):
        self.asked = []

    def prefer(self, comparisons):
        self.asked.append(list(comparisons))
        return [1.0 if first < second else 0.0 for _, first, second in comparisons]


def test_the_best_of_the_first_stage_are_compared_and_the_others_follow():
    judge = Alphabetical()
    ranking = Tournament(judge, FIRST, depth=2).rank("q", DOCUMENTS)
    assert sorted(judge.asked[0]) == [("q", "b", "c"), ("q", "c", "b")]
    assert ranking.document_ids == ("y", "z", "x", "w")
    # two comparisons, each won by b: 2 points and 0; the others 1 below the one before
    assert ranking.scores == (2.0, 0.0, -1.0, -2.0)
    assert ranking[0].stage_scores == {"first": 2.0, "alphabetical": 2.0}
    assert ranking[0].stage == "alphabetical"
    assert ranking[3].document is DOCUMENTS[3]


@pytest.mark.parametrize("plan", [AllPairs(), AllPairs("bradley-terry"), Heap(4), SlidingWindow(4)])
def test_plans_find_the_same_best(plan):
    ranking = Tournament(Alphabetical(), FIRST, depth=4, plan=plan).rank("q", DOCUMENTS)
    assert ranking.document_ids == ("x", "y", "z", "w")


def test_without_a_first_stage_documents_are_taken_as_they_come():
    ranking = Tournament(Alphabetical(), depth=2).rank("q", ["c", "b", "a"])
    assert ranking.document_ids == ("1", "0", "2")
    assert ranking[0].stage_scores == {"alphabetical": 2.0}


def test_the_number_of_comparisons_is_known_and_can_be_capped():
    judge = Alphabetical()
    tournament = Tournament(judge, FIRST, depth=3, max_calls=6)
    assert [tournament.calls(count) for count in (0, 1, 2, 3, 100)] == [0, 0, 2, 6, 6]
    tournament.rank_many(["q", "r"], [DOCUMENTS, DOCUMENTS])
    assert [len(asked) for asked in judge.asked] == [12], "both queries in one call"
    first = Table("first", FIRST.table)
    with pytest.raises(InputError, match="max_calls=5"):
        Tournament(judge, first, depth=3, max_calls=5).rank("q", DOCUMENTS)
    assert first.calls == [], "said before anything is computed"


def test_it_is_a_stage_of_a_search():
    documents = ["c water", "b water", "a water water"]
    searcher = Searcher(BM25(documents, language=None), [(Tournament(Alphabetical()), 2)], on_error="raise")
    found = searcher.search("water")
    assert found.document_ids == ("0", "2", "1") or found.document_ids == ("2", "0", "1")
    assert [hit.stage for hit in found] == ["alphabetical", "alphabetical", "bm25"]


def test_preferences_must_be_probabilities():
    class Wrong(Alphabetical):
        def prefer(self, comparisons):
            return [2.0] * len(comparisons)

    with pytest.raises(ModelOutputError, match="from 0 to 1"):
        Tournament(Wrong()).rank("q", DOCUMENTS)


def test_a_judge_is_any_object_with_a_name_and_prefer():
    assert isinstance(Alphabetical(), Judge)
    for judge, options, message in [
        (FIRST, {}, "Table has not"),
        (Alphabetical(), {"first": "bm25"}, "str has not"),
        (Alphabetical(), {"depth": 0}, "depth"),
        (Alphabetical(), {"max_calls": 0}, "max_calls"),
    ]:
        with pytest.raises(InputError, match=message):
            Tournament(judge, **options)
