"""A hybrid is its retrievers, fused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from crossrank.errors import InputError
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.fusion import RRF, WeightedSum
from crossrank.retrieval.hybrid import Hybrid
from crossrank.retrieval.retriever import Filter
from crossrank.types import Document, Ranking

DOCUMENTS = [
    Document("fox", "a red fox runs", metadata={"red": True}),
    Document("foxes", "foxes run in the red wood", metadata={"red": True}),
    Document("whale", "a blue whale swims", metadata={"red": False}),
    Document("wood", "the wood"),
]
STEMMED = BM25(DOCUMENTS)
EXACT = BM25(DOCUMENTS, language=None, name="exact")


class Red:
    def matches(self, document: Document) -> bool:
        return bool(document.metadata.get("red"))


class Recording:
    """Passes calls on to BM25 and remembers them."""

    name = "recording"

    def __init__(self) -> None:
        self.calls: list[tuple[int, Filter | None]] = []

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | None = None
    ) -> list[Ranking]:
        self.calls.append((top_k, filter))
        return STEMMED.retrieve(queries, top_k, filter)


@pytest.mark.parametrize("fusion", [RRF(), RRF(weights=(2, 1)), WeightedSum((0.3, 0.7), "dbsf")])
def test_it_fuses_what_its_retrievers_find(fusion: RRF | WeightedSum) -> None:
    queries = ["red foxes", "whales", "zebra"]
    rankings = Hybrid([STEMMED, EXACT], fusion).retrieve(queries, top_k=3)
    parts = zip(STEMMED.retrieve(queries), EXACT.retrieve(queries), strict=True)
    for ranking, each in zip(rankings, parts, strict=True):
        assert ranking == fusion(each, top_k=3, names=["bm25", "exact"])
    assert rankings[0][0].stage_scores.keys() == {"bm25", "exact", "hybrid"}
    assert rankings[0][0].document is DOCUMENTS[rankings[0][0].index or 0]
    assert [ranking.query for ranking in rankings] == queries
    assert len(rankings[2]) == 0


def test_depth_filter_and_name() -> None:
    recording = Recording()
    hybrid = Hybrid([recording], "rrf", depth=2, name="mix")
    red = Red()
    [ranking] = hybrid.retrieve(["red wood"], top_k=1, filter=red)
    hybrid.retrieve(["red wood"], top_k=5)
    assert recording.calls == [(2, red), (5, None)]
    assert [hit.stage for hit in ranking] == ["mix"]
    assert ranking.document_ids == ("foxes",)


def test_hybrids_nest() -> None:
    outer = Hybrid([Hybrid([STEMMED], name="inner"), EXACT])
    assert outer.retrieve(["foxes"])[0][0].stage_scores.keys() == {"inner", "exact", "hybrid"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "one retriever"),
        (([STEMMED, BM25([])],), "different names"),
        (([Hybrid([STEMMED])],), "'hybrid'"),
        (([STEMMED], "sum"), "'sum'"),
        (([STEMMED], RRF(), 0), "depth"),
    ],
)
def test_bad_options(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Hybrid(*arguments)  # type: ignore[arg-type]
