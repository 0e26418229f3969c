"""Files become documents; rows that cannot are named by file and line."""

from __future__ import annotations

import datetime
import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from crossrank.errors import FileFormatError, InputError
from crossrank.store.readers import DocumentReader, document_from
from crossrank.types import Document


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '\ufeff{"id": "1", "text": "one", "title": "T", "year": 1999, "none": null}\r\n'
        "\n"
        '{"_id": 2, "contents": "two", "metadata": {"lang": "en"}}\n'
        '{"text": "three"}',
    )
    reader = DocumentReader(path)
    expected = [
        Document("1", "one", "T", {"year": 1999}),
        Document("2", "two", "", {"lang": "en"}),
        Document("a.jsonl:4", "three"),
    ]
    assert list(reader) == expected
    assert list(reader) == expected
    assert (reader.path, reader.line, reader.rejected) == (path, 4, [])
    assert reader.read_bytes == reader.size_bytes == path.stat().st_size
    packed = write(tmp_path / "b.jsonl.gz", gzip.compress(path.read_bytes()))
    assert [d.text for d in DocumentReader(packed)] == ["one", "two", "three"]


def test_csv_and_tsv(tmp_path: Path) -> None:
    content = 'docno,title,body,year,ok\nd1,T,"multi\nline, text",1999,true\n\nd2,,"say ""hi""",,0\n'
    path = write(tmp_path / "a.csv", content)
    assert list(DocumentReader(path)) == [
        Document("d1", "multi\nline, text", "T", {"year": "1999", "ok": "true"}),
        Document("d2", 'say "hi"', "", {"year": "", "ok": "0"}),
    ]
    typed = DocumentReader(path, fields={"year": int, "ok": bool, "absent": float})
    assert [d.metadata for d in typed] == [{"year": 1999, "ok": True}, {"ok": False}]
    assert typed.line == 5
    tabs = write(tmp_path / "a.tsv.gz", gzip.compress(b"passage\tn\nhello, you\t1\n"))
    assert list(DocumentReader(tabs)) == [Document("a.tsv.gz:2", "hello, you", "", {"n": "1"})]


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1," + "word " * 100_000 + "\n")
    assert len(next(iter(DocumentReader(path))).text) == 500_000


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "id": pa.array([7, 8, None]),
            "passage": ["one", None, "three"],
            "day": [datetime.date(2020, 1, 2)] * 3,
            "tags": [["a"], [], None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    reader = DocumentReader(tmp_path / "a.parquet", on_error="collect")
    assert list(reader) == [Document("7", "one", "", {"day": "2020-01-02", "tags": ["a"]})]
    assert [str(r) for r in reader.rejected] == [
        f"{tmp_path}/a.parquet:2 ('8'): 'passage' must be a string, not null",
        f"{tmp_path}/a.parquet:3: 'id' must be a string that is not empty or a whole number, not None",
    ]
    write(tmp_path / "b.parquet", b"PAR1 this is none")
    with pytest.raises(FileFormatError, match="not a readable Parquet file"):
        list(DocumentReader(tmp_path / "b.parquet"))


def test_beir_folder(tmp_path: Path) -> None:
    line = json.dumps({"_id": "x", "title": "T", "text": "t", "metadata": {"url": "u"}})
    write(tmp_path / "beir" / "corpus.jsonl.gz", gzip.compress(line.encode()))
    write(tmp_path / "beir" / "queries.jsonl", '{"_id": "q", "text": "query"}')
    write(tmp_path / "beir" / "readme.md", "# About")
    assert list(DocumentReader(tmp_path / "beir")) == [Document("x", "t", "T", {"url": "u"})]


def test_folder_of_pages(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "  plain text\n")
    write(tmp_path / "guides/intro.MD", "Intro first.\n```\n# not this\n```\n## The *title* ##\n\nBody\n")
    write(
        tmp_path / "guides/page.html",
        "<html><head><title> A &amp; B\n</title><style>p {}</style>"
        "<script>var x = '<p>no</p>';</script></head>"
        "<body><svg><title>icon</title></svg><p>Hello <b>bo</b>ld<br>new&nbsp;line</p><script/><div>end",
    )
    write(tmp_path / ".git/x.txt", "hidden")
    write(tmp_path / "data.bin", b"\xff\xfe")
    assert list(DocumentReader(tmp_path)) == [
        Document("b.txt", "plain text"),
        Document("guides/intro.MD", "Intro first.\n```\n# not this\n```\n\nBody", "The *title*"),
        Document("guides/page.html", "Hello bold\nnew line\nend", "A & B"),
    ]
    assert [d.id for d in DocumentReader(tmp_path / "b.txt")] == ["b.txt"]


BAD_JSONL = [
    b'{"id": "ok1", "text": "fine"}',
    b'{"id": "broken", "text": "x"',
    b'["a list"]',
    b'{"id": "", "text": "x"}',
    b'{"id": true, "text": "x"}',
    b'{"id": "t", "text": 5}',
    b'{"id": "u", "body_text": "x"}',
    b'{"id": "v", "text": "caf\xe9"}',
    b'{"id": "w", "text": "x", "n": NaN}',
    b'{"id": "y", "text": "x", "a": 1, "metadata": {"a": 2}}',
    b'{"id": "z", "text": "x", "title": ["t"]}',
    b'{"id": "ok2", "text": "fine too"}',
]


def test_bad_rows_are_collected_with_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", b"\n".join(BAD_JSONL))
    reader = DocumentReader(path, on_error="collect")
    assert [d.id for d in reader] == ["ok1", "ok2"]
    assert [(r.path, r.line) for r in reader.rejected] == [(path, line) for line in range(2, 12)]
    reasons = [r.reason for r in reader.rejected]
    for reason, part in zip(
        reasons,
        [
            "not JSON: Expecting ',' delimiter at character 29",
            "a JSON object is expected, not list",
            "'id' must be a string that is not empty or a whole number, not ''",
            "not True",
            "'text' must be a string, not int 5",
            "no column text or contents or body or passage among id, body_text; name the right one with",
            "not utf-8 text: invalid continuation byte at byte 25 of the line (0xe9)",
            "NaN is not a JSON value",
            "'a' is both a column and a key of 'metadata'",
            "'title' must be a string, not list ['t']",
        ],
        strict=True,
    ):
        assert part in reason


@pytest.mark.parametrize("line", range(2, 12))
def test_bad_rows_raise_with_file_and_line(tmp_path: Path, line: int) -> None:
    path = write(tmp_path / "bad.jsonl", b"\n".join([b""] * (line - 1) + [BAD_JSONL[line - 1]]))
    with pytest.raises(FileFormatError) as caught:
        list(DocumentReader(path))
    assert (caught.value.path, caught.value.line) == (path, line)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_bad_csv_rows(tmp_path: Path) -> None:
    content = b'id,text,year\n1,a,1999\n2,b\n3,c,d,e\n4,caf\xe9,2000\n5,"x"y,2001\n6,f,soon\n7,g,2002\n'
    reader = DocumentReader(write(tmp_path / "a.csv", content), on_error="collect", fields={"year": int})
    assert [d.id for d in reader] == ["1", "7"]
    assert [(r.line, r.document_id) for r in reader.rejected] == [
        (3, None),
        (4, None),
        (5, None),
        (6, None),
        (7, "6"),
    ]
    assert "2 columns where the header has 3" in reader.rejected[0].reason
    assert "(0xe9)" in reader.rejected[2].reason
    assert "column 'year' must hold int values, not 'soon'" in reader.rejected[4].reason


def test_a_quote_that_is_not_closed_is_located(tmp_path: Path) -> None:
    closed = write(tmp_path / "a.csv", 'id,text\n1,a\n2,"open\n3,c\n4,d\n5,"x"\n6,y\n')
    reader = DocumentReader(closed, on_error="collect")
    assert [d.id for d in reader] == ["1", "6"]
    assert [(r.line, "goes on to line 6" in r.reason) for r in reader.rejected] == [(3, True)]
    never = write(tmp_path / "b.csv", 'id,text\n1,a\n2,"open\n3,c\n4,d\n')
    reader = DocumentReader(never, on_error="collect")
    assert [d.id for d in reader] == ["1"]
    assert [(r.line, "goes on to line 5" in r.reason) for r in reader.rejected] == [(3, True)]


@pytest.mark.parametrize("cell", ["1_000", "\u0663", "1e3x"])
def test_cells_are_numbers_as_tables_have_them(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path / "a.csv", f"id,text,n\n1,x,{cell}\n")
    for kind in (int, "float"):
        with pytest.raises(FileFormatError, match=r"a\.csv:2: column 'n' must hold"):
            list(DocumentReader(path, fields={"n": kind}))


def test_text_after_an_svg_that_is_not_closed_is_seen(tmp_path: Path) -> None:
    page = write(tmp_path / "a.html", "<p>start</p><svg><path><g>icon</g><p>visible</p></svg><p>end</p>")
    [document] = DocumentReader(page)
    assert document.text == "start\nvisible\nend"


def test_readers_arguments_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"id": "1", "text": "x"}')
    for options, message in (
        ({"on_error": "ignore"}, "on_error must be one of raise, collect"),
        ({"fields": {"n": "date"}}, "must be str, int, float or bool"),
        ({"fields": ["n"]}, "fields must be a mapping"),
    ):
        with pytest.raises(InputError, match=message):
            DocumentReader(path, **options)
    with pytest.raises(InputError, match="utf-16 cannot be read line by line"):
        list(DocumentReader(path, encoding="utf-16"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,body_text\n1,x\n", "a.csv: no column text or contents"),
        ("a.csv", b"id,text,id\n1,x,2\n", "same name: id"),
        ("a.csv", b"\xff\n", "a.csv:1: the header cannot be read"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz:1: the file cannot be read any further"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 9999)[:-20], "cannot be read any further"),
    ],
)
def test_files_that_cannot_be_read_raise_even_when_collecting(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        list(DocumentReader(write(tmp_path / name, content), on_error="collect"))


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "key,text,note,head\n1,long,short,H\n")
    [document] = DocumentReader(path, id_column="key", text_column="note", title_column="head")
    assert document == Document("1", "short", "H", {"text": "long"})
    with pytest.raises(
        FileFormatError, match="no column kee among key, text, note, head; name the right one"
    ):
        list(DocumentReader(path, id_column="kee"))


def test_other_encodings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n1,café\n".encode("latin-1"))
    assert [d.text for d in DocumentReader(path, encoding="latin-1")] == ["café"]
    with pytest.raises(InputError, match="no encoding 'latin-99'"):
        list(DocumentReader(path, encoding="latin-99"))


def test_what_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        DocumentReader(tmp_path / "nope.jsonl")
    with pytest.raises(InputError, match="this kind of file is not known"):
        DocumentReader(write(tmp_path / "a.docx", "x"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither corpus\.jsonl"):
        DocumentReader(tmp_path / "empty")


def test_reading_streams(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 10_000}) + "\n"
    reader = DocumentReader(write(tmp_path / "big.jsonl", line * 2000))  # 20 MB
    tracemalloc.start()
    try:
        count = sum(1 for _ in reader)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2000
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", "a document must be a Document or a dict"),
        ({"text": "x"}, "no id; one of the keys id, _id, doc_id, docno is needed"),
        ({"id": "1"}, "no column text"),
        ({"id": 1.5, "text": "x"}, "not 1.5"),
        ({"id": "1", "text": b"x"}, "must be a string, not bytes"),
    ],
)
def test_dicts_that_are_no_documents(item: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        document_from(item)  # type: ignore[arg-type]


def test_a_callers_dict_is_left_as_it_is() -> None:
    item = {"id": 5, "text": "t", "metadata": {"a": 1}, "b": None}
    assert document_from(item) == Document("5", "t", "", {"a": 1})
    assert item == {"id": 5, "text": "t", "metadata": {"a": 1}, "b": None}
