"""Saying that nothing answers: in the library's Searcher, and what is said of what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from crossrank import BM25, Document, Hit, Ranking, Searcher
from crossrank.abstention import NOTHING_ANSWERS, probable, probable_ranking
from crossrank.errors import InputError

DOCUMENTS = [Document(str(number), f"fox number {number}") for number in range(6)]


class Calibrated:
    """A reranker that takes the number in a document's id for its probability, in tenths."""

    name = "calibrated"

    def __init__(self, *, fails: bool = False, silent: bool = False) -> None:
        self.fails, self.silent = fails, silent

    def rank(self, query: str, documents: Sequence[Document], top_k: int | None = None) -> Ranking:
        if self.fails:
            raise RuntimeError("out of order")
        hits = [
            Hit(
                document.id,
                float(document.id),
                1,
                self.name,
                probability=None if self.silent else int(document.id) / 10,
            )
            for document in documents
        ]
        return Ranking.from_hits(query, hits, top_k=top_k)

    def rank_many(self, queries, documents, top_k=None) -> list[Ranking]:
        return [self.rank(query, each, top_k) for query, each in zip(queries, documents, strict=True)]


def searched(
    min_probability: float | None, *, depth: int = 100, top_k: int = 10, **reranker: bool
) -> Ranking:
    searcher = Searcher(BM25(DOCUMENTS), Calibrated(**reranker), depth=depth, min_probability=min_probability)
    return searcher.search("fox", top_k=top_k)


def test_hits_that_are_not_probable_enough_are_left_out_and_counted() -> None:
    found = searched(0.35)
    assert found.document_ids == ("5", "4")
    assert [hit.rank for hit in found] == [1, 2]
    assert found.notes == ("left out 4 of 6 documents: below 0.35",)
    assert found.status == "ok"


def test_the_least_probability_itself_is_enough() -> None:
    assert searched(0.5).document_ids == ("5",)


def test_that_nothing_answers_is_said_with_the_best_there_was() -> None:
    found = searched(0.9)
    assert len(found) == 0
    assert found.notes == (
        f"{NOTHING_ANSWERS}: the most probable of 6 documents has 0.500, and 0.9 is asked for",
    )


def test_without_a_least_probability_nothing_is_left_out() -> None:
    assert len(searched(None)) == 6
    assert searched(None).notes == ()
    assert searched(0).notes == ()


def test_documents_below_the_depth_have_no_probability_and_are_left_out() -> None:
    found = searched(0.0, depth=2)
    assert len(found) == 2
    assert found.notes == ("left out 4 of 6 documents that have no probability: not reranked to the end",)


def test_top_k_counts_hits_that_are_left() -> None:
    found = searched(0.15, top_k=2)
    assert found.document_ids == ("5", "4")
    assert found.notes == ("left out 2 of 6 documents: below 0.15",)


def test_a_reranker_that_fails_takes_no_hit_away() -> None:
    found = searched(0.9, fails=True)
    assert len(found) == 6
    assert found.status == "degraded"
    assert found.notes[-1] == "no hit was left out as improbable: calibrated gave no probabilities"


def test_no_candidates_is_not_the_same_as_no_answer() -> None:
    found = Searcher(BM25(DOCUMENTS), Calibrated(), min_probability=0.5).search("whale")
    assert len(found) == 0
    assert found.notes == ()


def test_many_queries_are_each_cut() -> None:
    searcher = Searcher(BM25(DOCUMENTS), Calibrated(), min_probability=0.35)
    found = searcher.search_many({"a": "fox", "b": "fox number 1"})
    assert [ranking.document_ids for ranking in found.values()] == [("5", "4"), ("5", "4")]


def test_a_reranker_without_probabilities_cannot_be_asked_for_them() -> None:
    with pytest.raises(InputError, match="calibrated gives none"):
        searched(0.5, silent=True)
    with pytest.raises(InputError, match="give a reranker too"):
        Searcher(BM25(DOCUMENTS), min_probability=0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        Searcher(BM25(DOCUMENTS), Calibrated(), min_probability=1.5)
    unfit = Calibrated()
    unfit.why_uncalibrated = "it has never been calibrated"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="it has never been calibrated"):
        Searcher(BM25(DOCUMENTS), unfit, min_probability=0.5)


def test_a_rankings_other_notes_stay() -> None:
    whole = replace(Calibrated().rank("fox", DOCUMENTS), notes=("first",))
    cut = probable_ranking(whole, 0.45, top_k=1)
    assert cut.document_ids == ("5",)
    assert cut.notes == ("first", "left out 5 of 6 documents: below 0.45")
    assert len(whole) == 6
    assert probable([], 0.5) == ([], [])
