"""The index: what goes in comes out, is found, and is found by the right formula."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import IndexMismatchError, IndexStoreError, InputError, ModelOutputError
from crossrank.store.lance import Index
from crossrank.store.store import Store
from crossrank.types import Document

FIELDS = {"year": int, "lang": str}


@pytest.fixture
def index(tmp_path: Path, encoder, corpus) -> Index:
    index = Index.create(tmp_path / "index", encoder, fields=FIELDS)
    index.add(corpus)
    return index


def test_documents_come_back_as_they_were(index: Index, corpus: list[Document]) -> None:
    assert isinstance(index, Store)
    assert index.get([d.id for d in corpus]) == corpus
    assert index.get(["nope", "d003"]) == [None, corpus[3]]
    assert sorted(index.documents(), key=lambda d: d.id) == corpus
    assert len(index) == index.count() == len(corpus)


def test_ids_are_those_of_the_documents(index: Index, corpus: list[Document], monkeypatch) -> None:
    monkeypatch.setattr("crossrank.store.lance._IDS_AT_A_TIME", 7)
    assert list(index.ids()) == [document.id for document in index.documents()]
    condition = "year < 1990"
    matching = [document.id for document in index.documents(condition)]
    assert 0 < len(matching) < len(corpus)
    assert list(index.ids(condition)) == matching
    assert list(index.ids({"year": {"<": 1990}})) == matching
    index.delete(matching[:2])
    assert list(index.ids(condition)) == matching[2:]
    with pytest.raises(InputError, match="colour"):
        index.ids("colour = 'red'")  # before the first id is asked for


@pytest.mark.parametrize(
    "document",
    [
        Document("empty", ""),
        Document("title only", "", title="A title"),
        Document("spaces", " leading and trailing ", title=" t "),
        Document('it\'s "quoted"; -- `x`\\', "quote ' quote"),
        Document("nul\0id", "nul \0 byte"),
        Document("emoji 🦊", "naïve 🦊 fox — 漢字", title="Ti🦊tle"),
        Document("huge", "word " * 400_000),
        Document(
            "meta", "x", metadata={"year": -(2**63), "lang": "", "n": [1, {"a": None}], "f": 1.5, "Ü b": "x"}
        ),
        Document("newlines\n", "a\r\nb\n\nc\u2028d"),
    ],
)
def test_unusual_documents_come_back(tmp_path: Path, document: Document) -> None:
    index = Index.create(tmp_path / "index", fields=FIELDS)
    assert index.add([document]).added == 1
    assert Index.open(tmp_path / "index").get([document.id]) == [document]
    assert index.add([document]).unchanged == 1
    assert index.delete([document.id]) == 1
    assert index.get([document.id]) == [None]


def bm25(query: str, documents: list[Document]) -> dict[str, float]:
    """BM25 with k1 = 1.2 and b = 0.75 over documents whose words need no stemming."""
    texts = {d.id: re.findall(r"\w+", d.full_text.lower()) for d in documents}
    average = sum(map(len, texts.values())) / len(texts)
    scores: Counter[str] = Counter()
    for term in query.split():
        having = [i for i, words in texts.items() if term in words]
        idf = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for i in having:
            tf = texts[i].count(term)
            scores[i] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(texts[i]) / average))
    return scores


def test_text_search_is_bm25(tmp_path: Path, corpus: list[Document]) -> None:
    index = Index.create(tmp_path / "index", language=None)
    index.add(corpus)
    for query in ("whale river", "music", "glass bridge forest train"):
        expected = bm25(query, corpus)
        [ranking] = index.search_text([query], top_k=200)
        assert {hit.document_id for hit in ranking} == {i for i, score in expected.items() if score > 0}
        for hit in ranking:
            assert hit.score == pytest.approx(expected[hit.document_id], rel=1e-5)
        assert [hit.rank for hit in ranking] == list(range(1, len(ranking) + 1))
        order = [(hit.score, hit.document_id) for hit in ranking]
        assert order == sorted(order, reverse=True)
        assert index.search_text([query], top_k=7)[0].document_ids == ranking.document_ids[:7]


def test_statistics_are_exact_after_optimize(tmp_path: Path, corpus: list[Document]) -> None:
    index = Index.create(tmp_path / "index", language=None)
    for start in range(0, 120, 10):
        index.add(corpus[start : start + 10])
    index.upsert([Document("d000", "whale whale whale")])
    index.delete(["d001", "d002"])
    index.optimize()
    now = [Document("d000", "whale whale whale"), *corpus[3:]]
    expected = bm25("whale river", now)
    for hit in index.search_text(["whale river"], top_k=200)[0]:
        assert hit.score == pytest.approx(expected[hit.document_id], rel=1e-5)


def test_stemming_stop_words_accents_and_scripts(tmp_path: Path) -> None:
    def found(index: Index, query: str) -> tuple[str, ...]:
        return index.search_text([query])[0].document_ids

    english = Index.create(tmp_path / "en")
    english.add([{"id": "1", "text": "The running foxes at the café"}, {"id": "2", "text": "x" * 200}])
    assert found(english, "fox runs") == ("1",)
    assert found(english, "CAFE") == ("1",)
    assert found(english, "the") == ()
    assert found(english, "x" * 200) == ("2",)
    german = Index.create(tmp_path / "de", language="German")
    german.add([{"id": "1", "text": "Die Häuser der Stadt"}])
    assert found(german, "haus") == ("1",)
    assert found(german, "die der") == ()
    anything = Index.create(tmp_path / "any", language=None)
    anything.add([{"id": "1", "text": "the foxes"}, {"id": "2", "text": "我爱北京天安门"}])
    assert found(anything, "the") == ("1",)
    assert found(anything, "fox") == ()
    assert found(anything, "北京") == ("2",)


@pytest.mark.parametrize(
    "query", ["", "  ", "the", '"fox', "fox AND", "+(-*^~:", "title:fox", "\0", "🦊", "x" * 100_000]
)
def test_no_query_breaks_text_search(index: Index, query: str) -> None:
    assert index.search_text([query, "fox"])[1] == index.search_text(["fox"])[0]
    assert index.search_text([query])[0].query == query


def test_vector_search_is_exact_when_small(index: Index, encoder, corpus: list[Document]) -> None:
    queries = ["fox river", "winter train music"]
    vectors = encoder.encode_documents([d.full_text for d in corpus])
    rankings = index.search_vector(queries, top_k=120)
    for ranking, query in zip(rankings, encoder.encode_queries(queries), strict=True):
        expected = vectors @ query
        assert len(ranking) == 120
        for hit in ranking:
            assert hit.score == pytest.approx(expected[int(hit.document_id[1:])], abs=1e-6)
            assert hit.document == corpus[int(hit.document_id[1:])]
        assert np.allclose(ranking.scores, np.sort(expected)[::-1], atol=1e-6)
    by_vector = index.search_vector(encoder.encode_queries(queries), top_k=120)
    assert [r.hits for r in by_vector] == [r.hits for r in rankings]
    assert index.search_vector([]) == []
    assert index.search_vector(np.zeros((0, 16), dtype=np.float32)) == []


def test_new_rows_are_searchable_at_once(index: Index) -> None:
    index.add([{"id": "new", "text": "zeppelin"}])
    assert index.info().unindexed == 1
    assert index.search_text(["zeppelin"])[0].document_ids == ("new",)
    assert index.search_vector(["zeppelin"], top_k=1)[0].document_ids == ("new",)
    index.upsert([{"id": "new", "text": "gyroscope"}])
    assert index.search_text(["zeppelin"])[0].document_ids == ()
    assert index.search_text(["gyroscope"])[0].document_ids == ("new",)
    assert index.search_vector(["gyroscope"], top_k=1)[0].document_ids == ("new",)
    index.delete(["new"])
    assert index.search_text(["gyroscope"])[0].document_ids == ()
    assert index.search_vector(["gyroscope"], top_k=1)[0].document_ids != ("new",)


def test_filters_are_applied_before_the_cut(index: Index, corpus: list[Document]) -> None:
    condition = "year >= 1990 and lang = 'de'"
    matching = {d.id for d in corpus if d.metadata["year"] >= 1990 and d.metadata["lang"] == "de"}
    assert index.count(condition) == len(matching)
    assert {d.id for d in index.documents(condition)} == matching
    assert set(index.search_vector(["fox"], 120, condition)[0].document_ids) == matching
    whole = index.search_text(["fox whale river music"], 200)[0]
    some = index.search_text(["fox whale river music"], 5, condition)[0]
    assert [(h.document_id, h.score) for h in some] == [
        (h.document_id, h.score) for h in whole if h.document_id in matching
    ][:5]
    with pytest.raises(InputError, match=r"no field 'colour'; it has id \(str\), year \(int\), lang"):
        index.search_text(["fox"], filter={"colour": "red"})


def test_ties_are_cut_by_id(tmp_path: Path, encoder) -> None:
    index = Index.create(tmp_path / "index", encoder)
    names = [f"{number:03d}" for number in range(300)]
    index.add([{"id": name, "text": "same words"} for name in reversed(names)])
    for _ in range(3):
        expected = tuple(reversed(names[-5:]))  # the largest first, as trec_eval has it
        assert index.search_text(["words"], top_k=5)[0].document_ids == expected
        assert index.search_vector(["words"], top_k=5)[0].document_ids == expected


def test_another_bi_encoder_is_refused(index: Index, encoder_type, tmp_path: Path) -> None:
    with pytest.raises(IndexMismatchError, match=r"'hashing' \(16 dim.*'other' \(16 dim"):
        Index.open(index.path, encoder_type(name="other", fingerprint="0" * 64))
    with pytest.raises(IndexMismatchError, match="8 dimensions"):
        Index.open(index.path, encoder_type(dimensions=8))
    Index.open(index.path, encoder_type(name="renamed"))
    words = Index.create(tmp_path / "words")
    with pytest.raises(IndexMismatchError, match="has no vectors"):
        Index.open(words.path, encoder_type())
    with pytest.raises(IndexMismatchError, match="has no vectors"):
        words.search_vector(["fox"])


def test_without_the_bi_encoder_there_is_text_search(index: Index, encoder) -> None:
    reader = Index.open(index.path)
    assert reader.search_text(["fox"]) == index.search_text(["fox"])
    assert (
        reader.search_vector(encoder.encode_queries(["fox"]), 5)[0].hits
        == index.search_vector(["fox"], 5)[0].hits
    )
    with pytest.raises(IndexMismatchError, match=r"without a bi-encoder.*'hashing'"):
        reader.search_vector(["fox"])
    with pytest.raises(IndexMismatchError, match="cannot be added"):
        reader.add([{"id": "x", "text": "y"}])
    assert reader.delete(["d000"]) == 1


def test_bad_vectors_are_refused(tmp_path: Path, encoder, index: Index) -> None:
    with pytest.raises(InputError, match=r"shape \(n, 16\)"):
        index.search_vector(np.zeros(16, dtype=np.float32))
    for wrong in (np.array([["1"] * 16]), np.ones((1, 16), dtype=complex)):
        with pytest.raises(InputError, match="must be real numbers"):
            index.search_vector(wrong)
    with pytest.raises(InputError, match="NaN"):
        index.search_vector(np.full((1, 16), np.nan, dtype=np.float32))
    encoder.encode_documents = lambda texts: np.full((len(texts), 16), np.inf)
    with pytest.raises(ModelOutputError, match="the vectors of hashing have NaN or infinity in row 0"):
        index.add([{"id": "bad", "text": "x"}])
    encoder.encode_documents = lambda texts: np.zeros((len(texts), 3))
    with pytest.raises(ModelOutputError, match=r"shape \(1, 16\), one row each, not \(1, 3\)"):
        index.add([{"id": "bad", "text": "x"}])
    assert index.get(["bad"]) == [None]


def test_create_and_overwrite(index: Index, tmp_path: Path, encoder_type) -> None:
    with pytest.raises(IndexStoreError, match="there is an index already"):
        Index.create(index.path)
    other = Index.create(index.path, encoder_type(dimensions=4), fields={"colour": "str"}, overwrite=True)
    assert len(other) == 0
    assert other.search_text(["fox"])[0].hits == ()
    other.add([{"id": "a", "text": "a red fox", "colour": "red"}])
    assert other.search_text(["fox"], filter={"colour": "red"})[0].document_ids == ("a",)
    with pytest.raises(IndexMismatchError, match="open it again"):
        index.search_text(["fox"])
    assert Index.open(index.path).fields == {"colour": str}


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IndexStoreError, match="there is no index here"):
        Index.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "half" / "documents.lance" / "_versions").mkdir(parents=True)
    with pytest.raises(IndexStoreError, match="there is no index here"):
        Index.open(tmp_path / "half")
    assert len(Index.create(tmp_path / "half")) == 0
    (tmp_path / "file").write_text("x")
    with pytest.raises(IndexStoreError, match="no index can be created"):
        Index.create(tmp_path / "file")


def test_damage_is_reported(index: Index) -> None:
    for manifest in (index.path / "documents.lance" / "_versions").glob("*.manifest"):
        manifest.write_bytes(manifest.read_bytes()[:10])
    with pytest.raises(IndexStoreError, match="the store failed"):
        Index.open(index.path)


def test_a_table_of_another_program_is_refused(tmp_path: Path) -> None:
    import lancedb

    lancedb.connect(str(tmp_path)).create_table("documents", [{"x": 1}])
    with pytest.raises(IndexStoreError, match="not made by crossrank"):
        Index.open(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "klingon"}, "'klingon' is not known"),
        ({"fields": {"or": int}}, "'or' cannot be the name"),
        ({"fields": {"a b": int}}, "'a b' cannot be the name"),
        ({"fields": {"x": list}}, "must be str, int, float or bool"),
        ({"fields": {"x": "date"}}, "must be str, int, float or bool, not 'date'"),
        ({"fields": {"Year": int, "year": int}}, "differ only in case"),
    ],
)
def test_settings_are_checked(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Index.create(tmp_path / "index", **options)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("call", ["search_text", "search_vector", "get", "delete"])
def test_a_single_string_is_no_list(index: Index, call: str) -> None:
    for single in ("fox", {"fox", "whale"}, {"fox": 1}, None):
        with pytest.raises(InputError, match="must be a list"):
            getattr(index, call)(single)
    with pytest.raises(InputError, match=r"\[1\] must be a string"):
        getattr(index, call)(["fox", 3])
    with pytest.raises(InputError, match=r"\[0\] has a lone surrogate"):
        getattr(index, call)(["\ud800"])


def test_any_ordered_iterable_is_a_list(index: Index) -> None:
    assert index.search_text(q for q in ["fox", "whale"]) == index.search_text(["fox", "whale"])
    assert index.search_vector(q for q in ["fox"]) == index.search_vector(["fox"])
    assert index.get(name for name in ["d001"]) == index.get(["d001"])


def test_top_k_may_be_any_whole_number(index: Index) -> None:
    for search in (index.search_text, index.search_vector):
        every = search(["fox"], 1000)[0].hits
        assert search(["fox"], 10**12)[0].hits == every
        assert search(["fox"], np.int64(3))[0].hits == every[:3]


def test_documents_without_text_are_kept_and_never_found(tmp_path: Path, encoder, caplog) -> None:
    index = Index.create(tmp_path / "index", encoder)
    blank = [Document("none", ""), Document("blank", " \n")]
    documents = [Document("a", "a red fox"), Document("t", "", "Fox"), *blank]
    index.add(documents)
    assert "documents without text: 2" in caplog.text
    assert index.get([d.id for d in documents]) == documents
    index.upsert([Document("a", "a blue fox")])
    for found in (index.search_vector(["fox"]), index.search_text(["fox"])):
        assert sorted(found[0].document_ids) == ["a", "t"]
    index.upsert([Document("none", "another fox"), Document("a", "")])  # there and back
    assert sorted(index.search_vector(["fox"])[0].document_ids) == ["none", "t"]


def test_the_precision_of_the_bi_encoder_is_stored(tmp_path: Path, encoder_type) -> None:
    made_with = encoder_type()
    made_with.precision = "int8"
    Index.create(tmp_path / "index", made_with)
    stored = Index.open(tmp_path / "index").model
    assert stored is not None
    assert stored.precision == "int8"
    with pytest.raises(IndexMismatchError, match=r"\(int8, 16 dimensions"):
        Index.open(tmp_path / "index", encoder_type(fingerprint="0" * 64))


@pytest.mark.parametrize(
    "metadata", [{"pair": (1, 2)}, {"deep": {"z": {1: 2}}}, {3: 1}, {"raw": b"x"}, {"bad": math.nan}]
)
def test_metadata_that_would_not_come_back_is_refused(index: Index, metadata: dict) -> None:
    with pytest.raises(InputError, match=rf"metadata.*{next(iter(metadata))}|keys of its metadata"):
        index.add([Document("new", "text", metadata=metadata)])


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True])
def test_top_k_is_checked(index: Index, top_k: object) -> None:
    with pytest.raises(InputError, match="top_k"):
        index.search_text(["fox"], top_k=top_k)  # type: ignore[arg-type]


def test_closing(index: Index) -> None:
    with index:
        assert len(index) == 120
    with pytest.raises(IndexStoreError, match="was closed"):
        index.count()
    index.close()


def test_info(index: Index) -> None:
    info = index.info()
    assert (info.documents, info.language, info.fields) == (120, "english", FIELDS)
    assert info.model is not None
    assert info.model.name == "hashing"
    assert info.vector_index_rows is None
    assert info.size_bytes > 1000
    assert "hashing" in repr(index)


def test_many_threads_search(index: Index) -> None:
    expected = (index.search_text(["fox river"])[0].hits, index.search_vector(["fox river"])[0].hits)
    wrong = []

    def search() -> None:
        for _ in range(5):
            found = (index.search_text(["fox river"])[0].hits, index.search_vector(["fox river"])[0].hits)
            if found != expected:
                wrong.append(found)

    threads = [threading.Thread(target=search) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
