"""Adding documents: duplicates, resuming, rejected rows, what is reported when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrank.errors import FileFormatError, InputError
from crossrank.store import ingest
from crossrank.store.lance import Index
from crossrank.store.readers import DocumentReader
from crossrank.store.store import AddReport
from crossrank.types import Document


@pytest.fixture
def index(tmp_path: Path, encoder) -> Index:
    return Index.create(
        tmp_path / "index", encoder, fields={"year": int, "price": float, "draft": bool, "lang": str}
    )


A, B, C = (Document(name, f"text of {name}", metadata={"year": 1}) for name in "abc")
A2 = Document("a", "another text", metadata={"year": 2})


def test_adding_again_costs_no_encoding(index: Index, encoder) -> None:
    assert index.add([A, B]) == AddReport(added=2)
    assert encoder.num_encoded == 2
    version = index.info().version
    assert index.add([A, B]) == AddReport(unchanged=2)
    assert (encoder.num_encoded, index.info().version) == (2, version)
    assert index.add([B, C, A, C]) == AddReport(added=1, unchanged=3)
    assert encoder.num_encoded == 3


def test_a_change_in_any_part_counts(index: Index) -> None:
    base = Document("a", "text", "title", {"year": 1, "other": {"x": 1, "y": 2}})
    index.add([base])
    assert (
        index.upsert([Document("a", "text", "title", {"other": {"y": 2, "x": 1}, "year": 1})]).unchanged == 1
    )
    for changed in (
        Document("a", "text", "title", {"year": 1}),
        Document("a", "text", "title", {"year": 2}),
        Document("a", "title text", "", {"year": 2}),
        Document("a", "text", "title"),
    ):
        assert index.upsert([changed]).replaced == 1
        assert index.get(["a"]) == [changed]


def test_duplicates_with_other_content(index: Index) -> None:
    index.add([A])
    with pytest.raises(
        InputError, match=r"document 2 \('a'\): another document has this id; use on_duplicate="
    ):
        index.add([B, A2])
    assert index.get(["a", "b"]) == [A, None]
    assert index.add([A2, B], on_duplicate="skip") == AddReport(added=1, skipped=1)
    assert index.get(["a", "b"]) == [A, B]
    assert index.upsert([A2, C]) == AddReport(added=1, replaced=1)
    assert index.get(["a", "b", "c"]) == [A2, B, C]
    assert len(index) == 3


def test_duplicates_within_one_call(index: Index) -> None:
    with pytest.raises(InputError, match=r"document 3 \('a'\): another document"):
        index.add([A, B, A2])
    assert index.add([A, A2, A], on_duplicate="skip", batch_size=2) == AddReport(
        added=1, skipped=1, unchanged=1
    )
    assert index.get(["a"]) == [A]
    assert index.upsert([B, C, Document("b", "x"), Document("b", "y")]) == AddReport(added=2, replaced=2)
    assert index.get(["b"]) == [Document("b", "y")]
    report = index.add([A, A2, Document("d", "d")], on_error="collect")
    assert (report.added, report.unchanged) == (1, 1)
    assert [(r.line, r.document_id) for r in report.rejected] == [(2, "a")]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_size_changes_nothing(index: Index, corpus, batch_size: int) -> None:
    corpus = corpus[:20]
    batches: list[tuple[str, ...]] = []
    changed = Document(corpus[3].id, "changed")
    report = index.add(
        [*corpus, changed, corpus[5]], batch_size=batch_size, on_duplicate="replace", on_batch=batches.append
    )
    assert report == AddReport(added=20, replaced=1, unchanged=1)
    assert {name for batch in batches for name in batch} == {d.id for d in corpus}
    assert max(map(len, batches)) <= batch_size
    assert index.get([d.id for d in corpus]) == [*corpus[:3], changed, *corpus[4:]]


def test_batches_of_huge_documents_are_small(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_BATCH_CHARACTERS", 1000)
    batches: list[tuple[str, ...]] = []
    index.add([Document(str(n), "x" * 400) for n in range(9)], on_batch=batches.append)
    assert [len(batch) for batch in batches] == [3, 3, 3]


def test_an_interrupted_call_is_resumed(index: Index, encoder, corpus) -> None:
    def breaking():
        yield from corpus[:50]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(breaking(), batch_size=20)
    assert len(index) == 40
    encoder.num_encoded = 0
    assert index.add(corpus, batch_size=20) == AddReport(added=80, unchanged=40)
    assert encoder.num_encoded == 80


def test_on_batch_is_called_when_the_batch_is_stored(index: Index, corpus) -> None:
    seen = []

    def stored(ids: tuple[str, ...]) -> None:
        seen.extend(ids)
        assert Index.open(index.path).count() == len(seen)

    index.add(corpus[:30], batch_size=7, on_batch=stored)
    assert len(seen) == 30


BAD = [
    ({"id": "x1", "text": "t", "year": "1999"}, "its field 'year' must be of type int, not '1999'"),
    ({"id": "x2", "text": "t", "year": 1.0}, "its field 'year' must be of type int, not 1.0"),
    ({"id": "x3", "text": "t", "year": True}, "must be of type int, not True"),
    ({"id": "x4", "text": "t", "year": 2**63}, "does not fit into 64 bits"),
    ({"id": "x5", "text": "t", "price": float("nan")}, "finite number"),
    ({"id": "x6", "text": "t", "price": 10**400}, "finite number"),
    ({"id": "x7", "text": "t", "draft": 1}, "must be of type bool"),
    ({"id": "x8", "text": "t", "lang": 3}, "must be of type str"),
    ({"id": "x9", "text": "lone \ud800"}, "not valid Unicode"),
    ({"id": "\udfff", "text": "t"}, "not valid Unicode"),
    ({"id": "x10", "text": "t", "lang": "\ud800"}, "not valid Unicode"),
    ({"id": "x11", "text": "t", "set": {1}}, "cannot be stored as JSON"),
    ({"id": "x12", "text": "t", "inf": float("inf")}, "cannot be stored as JSON"),
    ({"id": "x13", "text": "t", 5: 6}, "must be strings, not 5"),
    ({"id": "x14"}, "no column text"),
    (17, "not int"),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_documents_that_cannot_be_stored_raise(index: Index, item: object, message: str) -> None:
    with pytest.raises(InputError, match="document 2") as caught:
        index.add([A, item])  # type: ignore[list-item]
    assert message in str(caught.value)
    assert len(index) == 0


def test_documents_that_cannot_be_stored_are_listed(index: Index) -> None:
    report = index.add([A, *[item for item, _ in BAD], B], on_error="collect")  # type: ignore[list-item]
    assert report.added == 2
    assert [r.line for r in report.rejected] == list(range(2, len(BAD) + 2))
    for rejected, (_, message) in zip(report.rejected, BAD, strict=True):
        assert message in rejected.reason


def test_types_of_fields(index: Index) -> None:
    index.add([{"id": "a", "text": "t", "price": 3, "draft": False, "year": None, "lang": ""}])
    assert index.get(["a"]) == [Document("a", "t", metadata={"price": 3.0, "draft": False, "lang": ""})]
    assert index.count("price = 3 and draft = false and year is null and lang = ''") == 1


def test_rows_of_files_keep_file_and_line(index: Index, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "text": "a", "year": 2000},
        {"id": "2", "text": "b", "year": "2000"},
        {"id": "3", "text": None},
        {"id": "1", "text": "other"},
        {"id": "4", "text": "d"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(FileFormatError, match=r"document '2': its field 'year'") as caught:
        index.add(DocumentReader(path))
    assert (caught.value.path, caught.value.line) == (path, 2)
    report = index.add(DocumentReader(path, on_error="collect"))
    assert report.added == 2
    assert [(r.path, r.line, r.document_id) for r in report.rejected] == [
        (path, 2, "2"),
        (path, 3, "3"),
        (path, 4, "1"),
    ]


def test_csv_cells_get_the_types_of_the_index(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text,year,price,draft,note\n1,a,1999,2.5,true,n\n2,b,,,,\n3,c,old,1,false,\n")
    report = index.add(DocumentReader(path, on_error="collect"))
    assert report.added == 2
    assert index.get(["1", "2"]) == [
        Document("1", "a", metadata={"year": 1999, "price": 2.5, "draft": True, "note": "n"}),
        Document("2", "b", metadata={"note": ""}),
    ]
    assert [str(r) for r in report.rejected] == [
        f"{path}:4 ('3'): column 'year' must hold int values, not 'old'"
    ]


@pytest.mark.parametrize("documents", ["text", A, {"id": "a", "text": "b"}, Path("x.jsonl")])
def test_one_thing_is_no_list(index: Index, documents: object) -> None:
    with pytest.raises(InputError, match="must be an iterable of documents, not a single"):
        index.add(documents)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_duplicate": "ignore"}, "on_duplicate"),
        ({"on_error": "skip"}, "on_error"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_options_are_checked(index: Index, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.add([A], **options)


def test_adding_nothing(index: Index) -> None:
    assert index.add([]) == AddReport()
    assert index.search_text(["x"])[0].hits == ()
    assert index.search_vector(["x"])[0].hits == ()
