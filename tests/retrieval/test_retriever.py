"""Checks and selection that all in-memory retrievers share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossrank.errors import InputError
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.hybrid import Hybrid
from crossrank.retrieval.retriever import Retriever, as_documents, best_rows
from crossrank.types import Document


def test_strings_get_their_position_as_id_and_documents_keep_theirs() -> None:
    own = Document("x", "text", title="title", metadata={"year": 1999})
    documents = as_documents(["a", own, ""])
    assert [document.id for document in documents] == ["0", "x", "2"]
    assert documents[1] is own


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("a single text", "list"),
        (["a", 3], r"documents\[1\].*int"),
        ([Document("1", "a"), "b"], r"documents\[0\] and documents\[1\].*'1'"),
        ([Document("a", "a"), Document("a", "b")], "'a'"),
    ],
)
def test_documents_that_cannot_be_used(documents: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_documents(documents)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queries", "top_k", "message"),
    [
        ("fox", 10, "queries must be a list"),
        ([1], 10, r"queries\[0\]"),
        (["a"], 0, "top_k"),
        (["a"], 1.5, "top_k"),
    ],
)
def test_queries_and_top_k_that_cannot_be_used(queries: object, top_k: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BM25(["a fox"]).retrieve(queries, top_k)  # type: ignore[arg-type]


def test_any_ordered_iterable_of_queries_will_do() -> None:
    retriever = BM25(["a fox", "a whale"])
    assert retriever.retrieve(iter(["fox", "whale"])) == retriever.retrieve(["fox", "whale"])
    for wrong in ({"fox", "whale"}, {"fox": 1}, None):
        with pytest.raises(InputError, match="queries must be a list"):
            retriever.retrieve(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("filter", [{"year": {"<": 1900}}, "year < 1900"])
def test_filters_of_every_form(filter: object) -> None:
    documents = [
        Document("old", "a fox", metadata={"year": 1800}),
        Document("new", "a fox", metadata={"year": 1999}),
    ]
    [ranking] = Hybrid([BM25(documents)]).retrieve(["fox"], filter=filter)  # type: ignore[arg-type]
    assert ranking.document_ids == ("old",)
    with pytest.raises(InputError, match="filter"):
        BM25(documents).retrieve(["fox"], filter=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BM25(None), "documents must be a list"),
        (lambda: BM25([], k1="x"), "k1 must be a number"),
        (lambda: BM25([], b=2), "b must be a number between 0 and 1"),
        (lambda: BM25([], analyzer=5), "analyzer"),
        (lambda: Hybrid([BM25([]), 5]), "a retriever has"),
        (lambda: Hybrid([BM25([])], fusion=None), "fusion must be"),
        (lambda: Hybrid([BM25([])], fusion="tuned"), "tune returns"),
    ],
)
def test_parts_that_cannot_be_used(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_bm25_is_a_retriever() -> None:
    assert isinstance(BM25([]), Retriever)


@given(
    hnp.arrays(np.float32, st.integers(0, 30), elements=st.sampled_from([-1.5, 0.0, 0.25, 0.5, 2.0])),
    st.integers(1, 35),
)
def test_best_rows_is_a_stable_sort_cut_short(scores: np.ndarray, top_k: int) -> None:
    assert best_rows(scores, top_k).tolist() == np.argsort(-scores, kind="stable")[:top_k].tolist()
