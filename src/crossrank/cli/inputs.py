"""What commands read from standard input and small files: queries, documents, pairs, requests.

Rows are read one at a time, as UTF-8, and a bad row is an error that names its file and line. (Corpora
are read by `crossrank.store.readers`.)
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from crossrank.errors import FileFormatError, InputError, QueryTooLongError
from crossrank.evaluation.trec import numbered_lines, run_lines
from crossrank.types import Document, Pair, Ranking

__all__ = [
    "STDIN",
    "Query",
    "RerankRequest",
    "as_file",
    "at_place",
    "name_of",
    "read_documents",
    "read_pairs",
    "read_queries",
    "read_requests",
]

STDIN = Path("-")
"""The name that stands for standard input."""


class Query(NamedTuple):
    """A query of a file, and its line there."""

    text: str
    line: int


class RerankRequest(NamedTuple):
    """A query and the documents to order for it; `line` is None when it was given as arguments."""

    query: str
    documents: list[Document]
    query_id: str | None = None
    line: int | None = None


@contextmanager
def as_file(path: Path, name: str = "stdin") -> Iterator[Path]:
    """Give a file that the library can open: standard input is copied to one, called `name`, first.

    Raises:
        FileFormatError: as the library raises it while the file is in use; names standard input.
    """
    if path != STDIN:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, name)
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            yield copy
        except FileFormatError as error:
            if error.path != copy:
                raise
            where = f"{copy}:" if error.line is None else f"{copy}:{error.line}:"
            message = str(error).removeprefix(where).lstrip()
            raise FileFormatError(message, name_of(STDIN), error.line) from None


@contextmanager
def at_place(place: str) -> Iterator[None]:
    """Put where a query is from before the error that says it is too long: a model knows no lines."""
    try:
        yield
    except QueryTooLongError as error:
        raise QueryTooLongError(f"{place}: {error}") from None


def name_of(path: Path) -> str:
    """Return what messages call a file."""
    return "<stdin>" if path == STDIN else str(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Give number and text of the lines that are not blank, without their ends."""
    if path != STDIN:
        yield from numbered_lines(path)
        return
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise FileFormatError(f"not UTF-8 text: {error.reason}", name_of(path), number) from None
        if line.strip(" \t\v\f"):
            yield number, line


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        message = f"not usable JSON: {error}"
    raise FileFormatError(message, name_of(path), number)


def _looks_like_json(line: str) -> bool:
    return line.lstrip()[:1] in ("{", "[", '"')


def _text(value: Any, what: str, path: Path, number: int) -> str:
    """Return a text that may be empty."""
    if not isinstance(value, str):
        raise FileFormatError(
            f"the {what} must be a string, not {type(value).__name__}", name_of(path), number
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FileFormatError(
            f"the {what} has half of a surrogate pair, which is no character", name_of(path), number
        ) from None
    return value


def _query(value: Any, path: Path, number: int) -> str:
    query = _text(value, "query", path, number)
    if not query.strip():
        raise FileFormatError("the query is empty", name_of(path), number)
    return query


def _id(value: Any, what: str, path: Path, number: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise FileFormatError(
            f"the {what} must be a string that is not empty or a whole number, not {value!r}",
            name_of(path),
            number,
        )
    return _text(value, what, path, number)


def _value(row: Mapping[str, Any], keys: Sequence[str], path: Path, number: int) -> Any:
    """Return what a row has under the first of the keys that is there."""
    for key in keys:
        if key in row:
            return row[key]
    present = ", ".join(map(repr, row)) or "nothing"
    raise FileFormatError(f'no "{keys[0]}" in this row; it has {present}', name_of(path), number)


def read_queries(path: Path, *, for_run: bool = False) -> dict[str, Query]:
    """Read queries by their ids, in the order of the file.

    A row is JSON with `_id` and `text` (BEIR form), or `id<TAB>query`, or a query alone, whose id is then
    its line number. The first row says which.

    Args:
        path: the file.
        for_run: refuse ids that a TREC run cannot hold, such as ones with blanks.

    Raises:
        FileFormatError: a bad row, or an id that comes twice.
    """
    queries: dict[str, Query] = {}
    form = ""
    for number, line in _lines(path):
        form = form or ("json" if _looks_like_json(line) else "tsv" if "\t" in line else "lines")
        query_id: Any = number
        query: Any = line
        if form == "json":
            row = _parsed(line, path, number)
            if not isinstance(row, dict):
                raise FileFormatError('not an object with "_id" and "text"', name_of(path), number)
            query_id = next((row[key] for key in ("_id", "id", "query_id") if key in row), number)
            query = _value(row, ("text", "query"), path, number)
        elif form == "tsv":
            query_id, tab, query = line.partition("\t")
            if not tab:
                raise FileFormatError("no tab between id and query", name_of(path), number)
        query_id = _id(query_id, "query id", path, number)
        if query_id in queries:
            raise FileFormatError(f"query id {query_id!r} comes twice", name_of(path), number)
        queries[query_id] = Query(_query(query, path, number), number)
        if for_run:
            try:
                list(run_lines({query_id: Ranking("")}))
            except InputError as error:
                raise FileFormatError(str(error), name_of(path), number) from None
    if not queries:
        raise InputError(f"{name_of(path)}: no queries in it")
    return queries


def _document(value: Any, position: int, path: Path, number: int) -> Document:
    """Return the document of a string or an object; without an id it gets its position."""
    if isinstance(value, str):
        return Document(str(position), _text(value, "document", path, number))
    if not isinstance(value, dict):
        raise FileFormatError(
            f'a document must be a string or an object with "text", not {type(value).__name__}',
            name_of(path),
            number,
        )
    document_id = next((value[key] for key in ("id", "_id") if key in value), position)
    title = value.get("title")
    return Document(
        _id(document_id, "document's id", path, number),
        _text(_value(value, ("text",), path, number), "document's text", path, number),
        "" if title is None else _text(title, "document's title", path, number),
        {key: each for key, each in value.items() if key not in ("id", "_id", "text", "title")},
    )


def _check_unique(document: Document, seen: set[str], path: Path, number: int) -> None:
    if document.id in seen:
        raise FileFormatError(f"two documents have the id {document.id!r}", name_of(path), number)
    seen.add(document.id)


def read_documents(path: Path, *, unique: bool = False) -> Iterator[Document]:
    """Read documents: lines, or JSON strings, or objects with `text` and perhaps `title` and `id`.

    Without an id a document gets its position, from 0.

    Args:
        path: the file.
        unique: refuse an id that comes twice.

    Raises:
        FileFormatError: a bad row.
    """
    is_json: bool | None = None
    seen: set[str] = set()
    for position, (number, line) in enumerate(_lines(path)):
        is_json = _looks_like_json(line) if is_json is None else is_json
        document = _document(_parsed(line, path, number) if is_json else line, position, path, number)
        if unique:
            _check_unique(document, seen, path, number)
        yield document


def read_pairs(path: Path) -> Iterator[tuple[int, Pair]]:
    """Read pairs to score, with their lines: `query<TAB>document`, `[query, document]` or an object.

    Raises:
        FileFormatError: a bad row.
    """
    is_json: bool | None = None
    for number, line in _lines(path):
        is_json = _looks_like_json(line) if is_json is None else is_json
        row = _parsed(line, path, number) if is_json else line.split("\t", maxsplit=1)
        if isinstance(row, dict):
            row = [_value(row, ("query",), path, number), _value(row, ("document", "text"), path, number)]
        if not isinstance(row, list) or len(row) != 2:
            expected = '[query, document] or an object with "query" and "document"'
            raise FileFormatError(
                f"expected {expected}" if is_json else "no tab between query and document",
                name_of(path),
                number,
            )
        yield number, Pair(_query(row[0], path, number), _text(row[1], "document", path, number))


def read_requests(path: Path) -> Iterator[RerankRequest]:
    """Read queries with their documents: a JSON object a line with `query` and `documents`.

    `documents` holds strings, or objects as `read_documents` takes them; `query_id` is kept when there
    is one.

    Raises:
        FileFormatError: a bad row.
    """
    for number, line in _lines(path):
        row = _parsed(line, path, number)
        if not isinstance(row, dict) or not isinstance(row.get("documents"), list):
            raise FileFormatError(
                'expected an object with "query" and a list "documents"', name_of(path), number
            )
        documents: list[Document] = []
        seen: set[str] = set()
        for position, value in enumerate(row["documents"]):
            documents.append(_document(value, position, path, number))
            _check_unique(documents[-1], seen, path, number)
        query_id = row.get("query_id")
        yield RerankRequest(
            _query(_value(row, ("query",), path, number), path, number),
            documents,
            None if query_id is None else _id(query_id, "query id", path, number),
            number,
        )
