"""Rows of queries, texts, pairs and requests: every form, and what a bad row says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.cli.inputs import read_documents, read_pairs, read_queries, read_requests
from crossrank.errors import FileFormatError, InputError
from crossrank.types import Document, Pair


@pytest.fixture
def write(tmp_path: Path):
    def write_file(content: str | bytes, name: str = "rows") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"_id": "a", "text": "one"}\n{"_id": 7, "text": "two"}\n', {"a": "one", "7": "two"}),
        ('{"id": "a", "query": "one"}\n', {"a": "one"}),
        ("a\tone\nb\ttwo\twith a tab\n", {"a": "one", "b": "two\twith a tab"}),
        ("one\n\ntwo\r\n", {"1": "one", "3": "two"}),
        ("\ufeffa\tone\n", {"a": "one"}),
        ("what is [1]?\n[2]?\n", {"1": "what is [1]?", "2": "[2]?"}),
    ],
)
def test_queries_in_every_form(write, content: str, expected: dict[str, str]) -> None:
    assert {name: query.text for name, query in read_queries(write(content)).items()} == expected


def test_queries_from_a_packed_file(write) -> None:
    assert read_queries(write(gzip.compress(b"a\tone\n"), "queries.tsv.gz")) == {"a": ("one", 1)}


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ('{"_id": "a", "text": "one"}\n{"_id": "b"}\n', 2, "no \"text\" in this row; it has '_id'"),
        ('{"_id": "a", "text": 3}\n', 1, "the query must be a string, not int"),
        ('{"_id": "a", "text": " "}\n', 1, "the query is empty"),
        ('{"_id": "a", "text": "\\ud800"}\n', 1, "half of a surrogate pair"),
        ('{"_id": null, "text": "one"}\n', 1, "the query id must be a string that is not empty"),
        ("a\tone\nb\t \n", 2, "the query is empty"),
        ("a\tone\n\ttwo\n", 2, "the query id must be a string that is not empty"),
        ('{"_id": "a", "text": "one"}\nb\ttwo\n', 2, "not JSON"),
        ("a\tone\nb two\n", 2, "no tab between id and query"),
        ("a\tone\n\na\ttwo\n", 3, "query id 'a' comes twice"),
        (b"a\tone\nb\t\xff\n", 2, "not UTF-8"),
    ],
)
def test_a_bad_query_row_is_named_by_file_and_line(write, content, line: int, message: str) -> None:
    path = write(content)
    with pytest.raises(FileFormatError) as caught:
        read_queries(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    assert message in str(caught.value)


def test_an_id_that_no_run_can_hold_is_named_where_it_is_to_go_into_one(write) -> None:
    path = write("a\tone\nb c\ttwo\n")
    assert list(read_queries(path)) == ["a", "b c"]
    with pytest.raises(FileFormatError, match="rows:2: the query id 'b c' cannot be written"):
        read_queries(path, for_run=True)


def test_a_file_without_queries_is_an_error(write) -> None:
    with pytest.raises(InputError, match="no queries"):
        read_queries(write("\n\n"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ('"one\\ntwo"\n{"text": "three"}\n', ["one\ntwo", "three"]),
        ('{"title": "T", "text": "body"}\n{"title": "", "text": "b"}\n', ["T body", "b"]),
        ("", []),
    ],
)
def test_texts_in_every_form(write, content: str, expected: list[str]) -> None:
    assert [document.full_text for document in read_documents(write(content))] == expected


def test_documents_keep_their_ids_and_get_their_position_without_one(write) -> None:
    rows = '"one"\n{"text": "two", "id": "D1", "title": "T", "year": 3}\n{"text": "three", "id": 7}\n'
    assert list(read_documents(write(rows))) == [
        Document("0", "one"),
        Document("D1", "two", "T", {"year": 3}),
        Document("7", "three"),
    ]


def test_an_id_twice_is_named_where_ids_must_differ(write) -> None:
    path = write('{"text": "one", "id": "1"}\n"two"\n')
    assert len(list(read_documents(path))) == 2
    with pytest.raises(FileFormatError, match="rows:2: two documents have the id '1'"):
        list(read_documents(path, unique=True))


def test_a_number_is_not_a_text(write) -> None:
    with pytest.raises(FileFormatError, match=r"rows:2: a document must be a string"):
        list(read_documents(write('"one"\n2\n')))


@pytest.mark.parametrize(
    "content",
    ["q\td\n", '["q", "d"]\n', '{"query": "q", "document": "d"}\n', '{"query": "q", "text": "d"}\n'],
)
def test_pairs_in_every_form(write, content: str) -> None:
    assert list(read_pairs(write(content))) == [(1, Pair("q", "d"))]


@pytest.mark.parametrize(
    "bad", ['["q"]', '["q", 1]', '["", "d"]', '["q", "\\ud800"]', '{"query": "q"}', "{", "7"]
)
def test_a_bad_pair_is_named(write, bad: str) -> None:
    with pytest.raises(FileFormatError, match="rows:2: "):
        list(read_pairs(write(f'["q", "d"]\n{bad}\n')))


@given(st.lists(st.tuples(st.text().filter(str.strip), st.text())))
def test_pairs_written_as_json_come_back_as_they_were(tmp_path_factory, pairs) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    assert [tuple(pair) for _, pair in read_pairs(path)] == pairs


def test_requests_keep_their_id(write) -> None:
    rows = (
        '{"query": "q", "documents": ["a", {"text": "b"}], "query_id": 4}\n{"query": "r", "documents": []}\n'
    )
    assert [tuple(request) for request in read_requests(write(rows))] == [
        ("q", [Document("0", "a"), Document("1", "b")], "4", 1),
        ("r", [], None, 2),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        '{"query": "q"}',
        '{"query": "", "documents": ["a"]}',
        '{"query": "q", "documents": [1]}',
        '{"query": "q", "documents": [{"text": "a", "id": ""}]}',
        '{"query": "q", "documents": [{"text": "a", "title": 1}]}',
        '{"query": "q", "documents": [{"text": "a", "id": "D"}, {"text": "b", "id": "D"}]}',
        '["q"]',
    ],
)
def test_a_bad_request_is_named(write, bad: str) -> None:
    with pytest.raises(FileFormatError, match="rows:1: "):
        list(read_requests(write(bad + "\n")))
