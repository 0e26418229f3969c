"""Rows of queries, texts, pairs and requests: every form, and what a bad row says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.cli.inputs import read_pairs, read_queries, read_requests, read_texts
from crossrank.errors import FileFormatError, InputError
from crossrank.types import Pair


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
    assert read_queries(write(content)) == expected


def test_queries_from_a_packed_file(write) -> None:
    assert read_queries(write(gzip.compress(b"a\tone\n"), "queries.tsv.gz")) == {"a": "one"}


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ('{"_id": "a", "text": "one"}\n{"_id": "b"}\n', 2, "no \"text\" in this row; it has '_id'"),
        ('{"_id": "a", "text": 3}\n', 1, '"text" must be a string, not int'),
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
    assert list(read_texts(write(content))) == expected


def test_a_number_is_not_a_text(write) -> None:
    with pytest.raises(FileFormatError, match=r"rows:2: expected a string"):
        list(read_texts(write('"one"\n2\n')))


@pytest.mark.parametrize(
    "content",
    ["q\td\n", '["q", "d"]\n', '{"query": "q", "document": "d"}\n', '{"query": "q", "text": "d"}\n'],
)
def test_pairs_in_every_form(write, content: str) -> None:
    assert list(read_pairs(write(content))) == [Pair("q", "d")]


@pytest.mark.parametrize("bad", ['["q"]', '["q", 1]', '{"query": "q"}', "{", "7"])
def test_a_bad_pair_is_named(write, bad: str) -> None:
    with pytest.raises(FileFormatError, match="rows:2: "):
        list(read_pairs(write(f'["q", "d"]\n{bad}\n')))


@given(st.lists(st.tuples(st.text(), st.text())))
def test_pairs_written_as_json_come_back_as_they_were(tmp_path_factory, pairs) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    assert [tuple(pair) for pair in read_pairs(path)] == pairs


def test_requests_keep_their_id(write) -> None:
    rows = (
        '{"query": "q", "documents": ["a", {"text": "b"}], "query_id": 4}\n{"query": "r", "documents": []}\n'
    )
    assert [tuple(request) for request in read_requests(write(rows))] == [
        ("q", ["a", "b"], "4"),
        ("r", [], None),
    ]


@pytest.mark.parametrize("bad", ['{"query": "q"}', '{"query": "q", "documents": [1]}', '["q"]'])
def test_a_bad_request_is_named(write, bad: str) -> None:
    with pytest.raises(FileFormatError, match="rows:1: "):
        list(read_requests(write(bad + "\n")))
