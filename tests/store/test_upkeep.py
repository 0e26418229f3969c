"""The index keeps its own indices: when it folds, when it trains, and that results stay right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank.store import upkeep
from crossrank.store.lance import Index
from crossrank.types import Document


@pytest.fixture
def small_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ANN_THRESHOLD", 1000)
    monkeypatch.setattr(upkeep, "_ROWS_PER_PARTITION", 50)
    monkeypatch.setattr(upkeep, "_MIN_PROBES", 5)


def many(start: int, stop: int) -> list[Document]:
    return [
        Document(f"n{n}", f"word{n % 97} word{n % 89} word{n % 13}", metadata={"n": n})
        for n in range(start, stop)
    ]


def test_a_large_add_is_folded_a_small_one_is_not(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index")
    index.add(many(0, 63))
    assert index.info().unindexed == 63
    index.add(many(63, 64))
    assert index.info().unindexed == 0
    index.add(many(64, 5000))
    assert index.info().unindexed == 0
    index.add(many(5000, 5099))
    assert index.info().unindexed == 99
    index.add(many(5099, 5103))
    assert index.info().unindexed == 0


def test_many_small_adds_stay_quick_and_exact(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index")
    documents = many(0, 140)
    for document in documents:
        index.add([document])
    assert index.info().unindexed < 64
    at_once = Index.create(tmp_path / "at-once")
    at_once.add(documents)
    index.optimize()
    assert index.search_text(["word3 word7"], 200)[0] == at_once.search_text(["word3 word7"], 200)[0]


def test_the_vector_index_comes_and_grows_by_itself(tmp_path: Path, encoder, small_threshold: None) -> None:
    index = Index.create(tmp_path / "index", encoder, fields={"n": int})
    index.add(many(0, 900))
    assert index.info().vector_index_rows is None
    index.add(many(900, 1200))
    assert index.info().vector_index_rows == 1200
    index.add(many(1200, 1400))
    assert index.info().vector_index_rows == 1200
    index.add(many(1400, 2400))
    assert index.info().vector_index_rows == 2400
    names = [config.name for config in index._table.lance.list_indices()]
    assert sum(name.startswith("vector") for name in names) == 1


def test_scores_with_a_vector_index_are_exact(tmp_path: Path, encoder, small_threshold: None) -> None:
    documents = many(0, 1500)
    index = Index.create(tmp_path / "index", encoder, fields={"n": int})
    index.add(documents)
    index.add(many(1500, 1510))  # not in the vector index yet
    info = index.info()
    assert (info.vector_index_rows, info.unindexed) == (1500, 10)
    documents += many(1500, 1510)
    vectors = encoder.encode_documents([d.full_text for d in documents])
    queries = [f"word{n} word{n + 20}" for n in range(12)]
    found = 0
    for ranking, query in zip(index.search_vector(queries, 20), encoder.encode_queries(queries), strict=True):
        expected = vectors @ query
        for hit in ranking:
            assert hit.score == pytest.approx(expected[int(hit.document_id[1:])], abs=1e-6)
        last = np.sort(expected)[-20]
        found += sum(hit.score >= last - 1e-6 for hit in ranking)
    assert found / (20 * len(queries)) > 0.8
    assert index.search_vector([documents[1505].full_text], 30)[0].document_ids.count("n1505") == 1
    # A filter that few documents meet: all of them are found, however far from the query.
    narrow = {"n": {"in": [3, 700, 1400, 1507]}}
    for ranking in index.search_vector(queries, 4, narrow):
        assert sorted(ranking.document_ids) == ["n1400", "n1507", "n3", "n700"]


def test_an_index_left_over_by_a_crash_is_removed(tmp_path: Path, encoder, small_threshold: None) -> None:
    from lancedb.index import IvfFlat

    index = Index.create(tmp_path / "index", encoder)
    index.add(many(0, 1100))
    config = IvfFlat(distance_type="dot", num_partitions=2)
    index._table.lance.create_index("vector", config=config, name="vector_at_600")
    index.optimize()
    names = [config.name for config in index._table.lance.list_indices()]
    assert sorted(names) == ["content_text", "id_lookup", "vector_at_1100"]


def test_a_table_without_its_indices_gets_them(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "index")
    index._table.lance.drop_index("content_text")
    index._table.lance.drop_index("id_lookup")
    assert index.search_text(["foxes"])[0].hits == ()
    index.add([{"id": "a", "text": "a fox"}])
    assert index.search_text(["foxes"])[0].document_ids == ("a",)


def test_deleting_much_is_folded(tmp_path: Path, corpus: list[Document]) -> None:
    index = Index.create(tmp_path / "index", language=None)
    index.add(corpus)
    assert index.delete([d.id for d in corpus[:100]]) == 100
    fresh = Index.create(tmp_path / "fresh", language=None)
    fresh.add(corpus[100:])
    fresh.optimize()
    assert index.search_text(["fox whale"], 50)[0] == fresh.search_text(["fox whale"], 50)[0]


def test_optimize_frees_old_versions(tmp_path: Path, encoder, corpus: list[Document]) -> None:
    index = Index.create(tmp_path / "index", encoder)
    for start in range(0, 120, 5):
        index.add(corpus[start : start + 5])
    index.optimize()
    before = index.info()
    assert len(index._table.lance.list_versions()) > 20
    index.optimize(grace_s=0)
    after = index.info()
    assert len(index._table.lance.list_versions()) < 10
    assert after.size_bytes < before.size_bytes
    assert index.get([d.id for d in corpus]) == corpus


@pytest.mark.parametrize(("rows", "probes"), [(50_000, 40), (300_000, 40), (1_000_000, 122)])
def test_probes(rows: int, probes: int) -> None:
    assert upkeep.num_probes(rows) == probes
    assert upkeep.num_partitions(rows) == rows // 2048
