"""Retrievers over an index."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import IndexMismatchError, InputError
from crossrank.retrieval.from_index import index_retriever
from crossrank.retrieval.fusion import RRF
from crossrank.retrieval.retriever import Retriever
from crossrank.store.filters import as_filter
from crossrank.store.lance import Index
from crossrank.types import Document


class WordSum:
    """Adds up a fixed direction for every word."""

    name = "word-sum"
    fingerprint = "0"
    dimensions = 8

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        rows = [
            sum(np.random.default_rng(zlib.crc32(word.encode())).normal(size=8) for word in text.split())
            for text in texts
        ]
        return np.array(rows, dtype=np.float32)

    encode_queries = encode_documents


TEXTS = ["red fox", "blue whale", "red whale", "a fox in winter", "snow in winter"]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index.create(tmp_path / "index", WordSum(), fields={"even": bool})
    index.add([{"id": f"d{n}", "text": text, "even": n % 2 == 0} for n, text in enumerate(TEXTS)])
    return index


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_each_kind_is_a_retriever(index: Index, kind: str) -> None:
    retriever = index_retriever(index, kind)
    assert isinstance(retriever, Retriever)
    assert retriever.name == kind
    rankings = retriever.retrieve(["red fox", "winter"], top_k=3)
    assert [r.query for r in rankings] == ["red fox", "winter"]
    assert rankings[0].document_ids[0] == "d0"
    for ranking in rankings:
        assert [hit.rank for hit in ranking] == list(range(1, len(ranking) + 1))
        for hit in ranking:
            assert hit.stage == kind
            assert hit.document == index.get([hit.document_id])[0]
    for condition in ("even = true", {"even": True}, as_filter("even = true")):
        found = retriever.retrieve(["red fox"], top_k=5, filter=condition)[0].document_ids
        assert found
        assert set(found) <= {"d0", "d2", "d4"}


def test_hybrid_is_the_fusion_of_the_two(index: Index) -> None:
    fusion = RRF(k=10)
    fused = index_retriever(index, "hybrid", fusion).retrieve(["red whale"], top_k=5)[0]
    words = index_retriever(index, "bm25").retrieve(["red whale"])[0].document_ids
    vectors = index_retriever(index, "dense").retrieve(["red whale"])[0].document_ids
    for hit in fused:
        parts = [
            1 / (10 + ids.index(hit.document_id) + 1) for ids in (words, vectors) if hit.document_id in ids
        ]
        assert hit.score == pytest.approx(sum(parts), rel=1e-6)


def test_auto_follows_the_bi_encoder(index: Index) -> None:
    assert index_retriever(index).name == "hybrid"
    assert index_retriever(Index.open(index.path)).name == "bm25"
    with pytest.raises(IndexMismatchError, match="opened with it"):
        index_retriever(Index.open(index.path), "hybrid")


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_a_single_text_is_no_list_of_queries(index: Index, kind: str) -> None:
    with pytest.raises(InputError, match="must be a list, not a single str"):
        index_retriever(index, kind).retrieve("fox")


def test_errors(index: Index) -> None:
    with pytest.raises(InputError, match="one of auto, bm25"):
        index_retriever(index, "tfidf")  # type: ignore[arg-type]

    class Everything:
        def matches(self, document: Document) -> bool:
            return True

    with pytest.raises(InputError, match="cannot search with any object"):
        index_retriever(index, "bm25").retrieve(["fox"], filter=Everything())
