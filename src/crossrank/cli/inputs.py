"""What commands read from standard input and small files: queries, texts, pairs, requests.

Rows are read one at a time, as UTF-8, and a bad row is an error that names its file and line. (Corpora
are read by `crossrank.store.readers`.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crossrank.errors import FileFormatError, InputError
from crossrank.evaluation.trec import numbered_lines
from crossrank.types import Pair

__all__ = ["STDIN", "RerankRequest", "read_pairs", "read_queries", "read_requests", "read_texts"]

STDIN = Path("-")
"""The name that stands for standard input."""


class RerankRequest(NamedTuple):
    """One line of `crossrank rerank`: a query and the texts to order for it."""

    query: str
    documents: list[str]
    query_id: str | None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give number and text of the lines that are not blank, without their ends."""
    if path != STDIN:
        yield from numbered_lines(path)
        return
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"not UTF-8 text: {error.reason}", _name(path), number) from None
        if line.strip():
            yield number, line


def _name(path: Path) -> str:
    return "<stdin>" if path == STDIN else str(path)


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not JSON: {error.msg} at column {error.colno}", _name(path), number) from None


def _looks_like_json(line: str) -> bool:
    return line.lstrip()[:1] in ("{", "[", '"')


def _text_of(row: Mapping[str, Any], keys: Sequence[str], path: Path, number: int) -> str:
    for key in keys:
        if key in row:
            if isinstance(row[key], str):
                return str(row[key])
            raise FileFormatError(
                f'"{key}" must be a string, not {type(row[key]).__name__}', _name(path), number
            )
    raise FileFormatError(
        f'no "{keys[0]}" in this row; it has {", ".join(map(repr, row))}', _name(path), number
    )


def read_queries(path: Path) -> dict[str, str]:
    """Read queries with their ids, in the order of the file.

    A row is JSON with `_id` and `text` (BEIR form), or `id<TAB>query`, or a query alone, whose id is then
    its line number. The first row says which.

    Raises:
        FileFormatError: a bad row, or an id that comes twice.
    """
    queries: dict[str, str] = {}
    form = ""
    for number, line in _lines(path):
        form = form or ("json" if _looks_like_json(line) else "tsv" if "\t" in line else "lines")
        if form == "json":
            row = _parsed(line, path, number)
            if not isinstance(row, dict):
                raise FileFormatError('not an object with "_id" and "text"', _name(path), number)
            query_id = str(row.get("_id", row.get("id", row.get("query_id", number))))
            query = _text_of(row, ("text", "query"), path, number)
        elif form == "tsv":
            query_id, tab, query = line.partition("\t")
            if not tab:
                raise FileFormatError("no tab between id and query", _name(path), number)
        else:
            query_id, query = str(number), line
        if query_id in queries:
            raise FileFormatError(f"query id {query_id!r} comes twice", _name(path), number)
        queries[query_id] = query
    if not queries:
        raise InputError(f"{_name(path)}: no queries in it")
    return queries


def read_texts(path: Path) -> Iterator[str]:
    """Read texts to encode: lines, or JSON strings, or objects with `text` and perhaps `title`.

    Raises:
        FileFormatError: a bad row.
    """
    is_json: bool | None = None
    for number, line in _lines(path):
        is_json = _looks_like_json(line) if is_json is None else is_json
        row = _parsed(line, path, number) if is_json else line
        if isinstance(row, dict):
            text = _text_of(row, ("text",), path, number)
            title = row.get("title")
            yield f"{title} {text}" if title else text
        elif isinstance(row, str):
            yield row
        else:
            raise FileFormatError('expected a string or an object with "text"', _name(path), number)


def read_pairs(path: Path) -> Iterator[Pair]:
    """Read pairs to score: `query<TAB>document`, `[query, document]` or an object with both names.

    Raises:
        FileFormatError: a bad row.
    """
    is_json: bool | None = None
    for number, line in _lines(path):
        is_json = _looks_like_json(line) if is_json is None else is_json
        if not is_json:
            query, tab, document = line.partition("\t")
            if not tab:
                raise FileFormatError("no tab between query and document", _name(path), number)
            yield Pair(query, document)
            continue
        row = _parsed(line, path, number)
        if isinstance(row, dict):
            yield Pair(
                _text_of(row, ("query",), path, number), _text_of(row, ("document", "text"), path, number)
            )
        elif isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row):
            yield Pair(*row)
        else:
            raise FileFormatError(
                'expected [query, document] or an object with "query" and "document"', _name(path), number
            )


def read_requests(path: Path) -> Iterator[RerankRequest]:
    """Read queries with their documents: a JSON object a line with `query` and `documents`.

    `documents` holds strings or objects with `text`; `query_id` is kept when there is one.

    Raises:
        FileFormatError: a bad row.
    """
    for number, line in _lines(path):
        row = _parsed(line, path, number)
        if not isinstance(row, dict) or not isinstance(row.get("documents"), list):
            raise FileFormatError(
                'expected an object with "query" and a list "documents"', _name(path), number
            )
        query_id = row.get("query_id")
        documents = [
            _text_of(document, ("text",), path, number) if isinstance(document, dict) else document
            for document in row["documents"]
        ]
        if not all(isinstance(document, str) for document in documents):
            raise FileFormatError("each document must be a string", _name(path), number)
        yield RerankRequest(
            _text_of(row, ("query",), path, number), documents, None if query_id is None else str(query_id)
        )
