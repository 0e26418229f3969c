"""Exact vector search against a plain float64 sort."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import ModelOutputError
from crossrank.retrieval import dense
from crossrank.retrieval.dense import Dense
from crossrank.types import Document


class Vectors:
    """Stands for a bi-encoder: texts are numbers of rows of a table of vectors."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self.table[[int(text) for text in texts]]

    def encode_documents(self, texts: Sequence[str | Document]) -> np.ndarray:
        return self.table[[int(text.text if isinstance(text, Document) else text) for text in texts]]


class Even:
    def matches(self, document: Document) -> bool:
        return int(document.text) % 2 == 0


def table(rows: int, dimensions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dimensions)).astype(np.float32)


def names(count: int) -> list[str]:
    return [str(row) for row in range(count)]


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 70), st.integers(0, 99))
def test_rankings_are_those_of_an_exact_sort(count: int, dimensions: int, top_k: int, seed: int) -> None:
    vectors = table(count, dimensions, seed)
    vectors[count // 2 :: 3] = vectors[0]  # equal vectors, here and there
    retriever = Dense(names(count), Vectors(vectors))
    exact = (vectors.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    for row, ranking in enumerate(retriever.retrieve(names(count), top_k)):
        np.testing.assert_allclose(ranking.scores, np.sort(exact[row])[::-1][:top_k], rtol=1e-6, atol=1e-6)
        indexes = [hit.index for hit in ranking]
        ties = itertools.pairwise(zip(ranking.scores, indexes, strict=True))
        assert all(a < b for (x, a), (y, b) in ties if x == y)


def test_documents_without_text_are_never_found() -> None:
    class Ones:
        def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
            return np.ones((len(texts), 4), dtype=np.float32)

        encode_documents = encode_queries

    documents = [
        Document("a", ""),
        Document("b", "text"),
        Document("c", " \t"),
        Document("d", "", title="title"),
    ]
    assert Dense(documents, Ones()).retrieve(["q"])[0].document_ids == ("b", "d")


def test_a_ranking_does_not_depend_on_the_other_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = table(300, 96)
    vectors[200:] = vectors[:100]
    retriever = Dense(names(300), Vectors(vectors))
    together = retriever.retrieve(names(50), top_k=20)
    assert [retriever.retrieve([query], top_k=20)[0] for query in names(50)] == together
    monkeypatch.setattr(dense, "_BLOCK_SCORES", 1000)
    monkeypatch.setattr(dense, "_BLOCK_ROWS", 7)
    assert retriever.retrieve(names(50), top_k=20) == together
    scores = retriever.scores("3")
    assert all(hit.score == scores[hit.index] for hit in together[3])


def test_hits_and_filter() -> None:
    retriever = Dense(names(10), Vectors(table(10, 4)), name="vectors")
    [ranking] = retriever.retrieve(["4"], top_k=3, filter=Even())
    assert len(ranking) == 3
    assert ranking[0].stage == "vectors"
    assert ranking[0].document == Document("4", "4")
    assert {hit.index % 2 for hit in ranking} == {0}
    everything = retriever.retrieve(["4"], top_k=10)[0]
    assert [h.index for h in everything if h.index % 2 == 0][:3] == [hit.index for hit in ranking]


def test_no_documents_no_queries() -> None:
    assert [len(ranking) for ranking in Dense([], Vectors(table(3, 4))).retrieve(["1"])] == [0]
    assert Dense(names(3), Vectors(table(3, 4))).retrieve([]) == []


def test_vectors_that_cannot_be_used() -> None:
    bad = table(3, 4)
    bad[1, 2] = np.nan
    with pytest.raises(ModelOutputError, match="NaN"):
        Dense(names(3), Vectors(bad))
    retriever = Dense(names(3), Vectors(table(3, 4)))
    retriever.bi_encoder = Vectors(table(3, 5))
    with pytest.raises(ModelOutputError, match=r"5 dimensions.*4"):
        retriever.retrieve(["0"])
    retriever.bi_encoder = Vectors(table(3, 4)[0])
    with pytest.raises(ModelOutputError, match="shape"):
        retriever.retrieve(["0"])
