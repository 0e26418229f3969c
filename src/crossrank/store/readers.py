"""From files and dicts to documents.

Which column is what, unless told otherwise: the first present of `id`, `_id`, `doc_id`, `docno` is the
id; of `text`, `contents`, `body`, `passage` the text; `title` the title. All other columns become
metadata, and an object in a column `metadata` is merged into it, as in BEIR. A row without an id
column gets the file's name and its line: "faq.csv:17"; a file of text is one document whose id is its
path within the folder that was read.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from crossrank.errors import FileFormatError, InputError
from crossrank.store.formats import RawRow, files_of, rows_of
from crossrank.store.schema import typed_fields
from crossrank.store.store import DocumentLike, OnError, Rejected
from crossrank.types import Document

__all__ = ["ID_COLUMNS", "TEXT_COLUMNS", "TITLE_COLUMNS", "DocumentReader", "document_from"]

ID_COLUMNS = ("id", "_id", "doc_id", "docno")
TEXT_COLUMNS = ("text", "contents", "body", "passage")
TITLE_COLUMNS = ("title",)


class DocumentReader:
    """The documents of a file or folder, read as they are asked for.

    JSONL, CSV and TSV (each also .gz), Parquet, text, Markdown and HTML files, BEIR folders, and
    folders of text, Markdown and HTML. Can be iterated again, from the start.

    Args:
        source: the file or folder.
        id_column: name of the column with the id; None finds it.
        text_column: name of the column with the text; None finds it.
        title_column: name of the column with the title; None finds it.
        fields: types of metadata fields: str, int, float or bool, or the type's name. The cells of a CSV
            file are converted to them, and an empty cell is a missing value. `Index.add` sets those of
            the index where None is given.
        on_error: "raise" ends the reading at a row that cannot be read; "collect" lists the row in
            `rejected` and goes on.
        encoding: of text files.

    Attributes:
        path: the file that the last document came from.
        line: the line it begins on (its row in Parquet), 1-based.
        rejected: rows that are no documents, in the order they were met.
        size_bytes: of all files together.
        read_bytes: how much of that has been read.

    Raises:
        InputError: nothing to read at `source`, or a kind of file that is not known.
        FileFormatError: (while iterating) a row that cannot be read and `on_error="raise"`, or a file
            that cannot be read at all.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        id_column: str | None = None,
        text_column: str | None = None,
        title_column: str | None = None,
        fields: Mapping[str, type | str] | None = None,
        on_error: OnError = "raise",
        encoding: str = "utf-8",
    ) -> None:
        if on_error not in get_args(OnError):
            raise InputError(f"on_error must be one of {', '.join(get_args(OnError))}, not {on_error!r}")
        self.source = Path(source)
        self.fields: Mapping[str, type] | None = None if fields is None else typed_fields(fields)
        self.on_error = on_error
        self.encoding = encoding
        self._id_columns = (id_column,) if id_column is not None else ID_COLUMNS
        self._text_columns = (text_column,) if text_column is not None else TEXT_COLUMNS
        self._title_columns = (title_column,) if title_column is not None else TITLE_COLUMNS
        self._id_is_given = id_column is not None
        self._files, self._root = files_of(self.source)
        for path in self._files:
            rows_of(path, self._root, encoding)  # an unknown kind of file is an error now, not later
        self.size_bytes = sum(path.stat().st_size for path in self._files)
        self.path: Path = self._files[0]
        self.line = 0
        self.read_bytes = 0
        self.rejected: list[Rejected] = []

    def with_fields(self, fields: Mapping[str, type]) -> DocumentReader:
        """Return a reader of the same documents with other types of metadata fields."""
        reader = copy.copy(self)
        reader.fields, reader.rejected = fields, []
        return reader

    def __iter__(self) -> Iterator[Document]:
        self.rejected = []
        finished_bytes = 0
        for path in self._files:
            for row in rows_of(path, self._root, self.encoding):
                self.path, self.line = path, row.line
                self.read_bytes = finished_bytes + row.read_bytes
                try:
                    document = self._document(row)
                except _BadRowError as error:
                    if self.on_error == "raise":
                        raise FileFormatError(str(error), path, row.line) from None
                    self.rejected.append(Rejected(str(error), path, row.line, error.document_id))
                    continue
                yield document
            finished_bytes += path.stat().st_size
        self.read_bytes = finished_bytes

    def _document(self, row: RawRow) -> Document:
        if row.values is None:
            raise _BadRowError(row.reason)
        missing = _missing_column(row.values, self._text_columns, "text_column")
        if not missing and self._id_is_given:
            missing = _missing_column(row.values, self._id_columns, "id_column")
        if missing and row.whole_columns:
            raise FileFormatError(missing, self.path)
        if missing:
            raise _BadRowError(missing)
        values = dict(row.values)
        document_id = self._id_of(values)
        text = _text(values, self._text_columns, document_id)
        title = _text(values, self._title_columns, document_id, optional=True)
        metadata = _metadata(values, document_id)
        if row.textual and self.fields:
            metadata = self._typed(metadata, document_id)
        return Document(document_id, text, title, metadata)

    def _id_of(self, values: dict[str, Any]) -> str:
        column = next((name for name in self._id_columns if name in values), None)
        if column is None:
            return f"{self.path.relative_to(self._root).as_posix()}:{self.line}"
        return _id(values.pop(column), column)

    def _typed(self, metadata: dict[str, Any], document_id: str) -> dict[str, Any]:
        typed = dict(metadata)
        for name, kind in (self.fields or {}).items():
            cell = metadata.get(name)
            if not isinstance(cell, str) or kind is str:
                continue
            if not cell.strip():
                del typed[name]
                continue
            try:
                typed[name] = _BOOLEANS[cell.strip().lower()] if kind is bool else _number(cell, kind)
            except (ValueError, KeyError):
                raise _BadRowError(
                    f"column {name!r} must hold {kind.__name__} values, not {cell!r}", document_id
                ) from None
        return typed


def _number(cell: str, kind: type) -> Any:
    if "_" in cell or not cell.isascii():  # Python's numbers, not a table's
        raise ValueError(cell)
    return kind(cell)


_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def document_from(item: DocumentLike) -> Document:
    """Return the document that a dict describes; a `Document` is returned as it is.

    The keys of a dict are read as the columns of a file are; an id is required.

    Raises:
        InputError: something else, or a dict without id or text.
    """
    if isinstance(item, Document):
        return item
    if not isinstance(item, Mapping):
        raise InputError(
            f"a document must be a Document or a dict with id and text, not {type(item).__name__}"
        )
    try:
        values = dict(item)
        column = next((name for name in ID_COLUMNS if name in values), None)
        if column is None:
            raise _BadRowError(f"no id; one of the keys {', '.join(ID_COLUMNS)} is needed")
        document_id = _id(values.pop(column), column)
        missing = _missing_column(values, TEXT_COLUMNS, None)
        if missing:
            raise _BadRowError(missing)
        text = _text(values, TEXT_COLUMNS, document_id)
        title = _text(values, TITLE_COLUMNS, document_id, optional=True)
        return Document(document_id, text, title, _metadata(values, document_id))
    except _BadRowError as error:
        raise InputError(str(error)) from None


class _BadRowError(Exception):
    """Why a row is no document."""

    def __init__(self, reason: str, document_id: str | None = None) -> None:
        super().__init__(reason)
        self.document_id = document_id


def _missing_column(values: Mapping[str, Any], columns: tuple[str, ...], option: str | None) -> str:
    """Return what is wrong when none of the columns is there, else nothing."""
    if any(name in values for name in columns):
        return ""
    advice = f"; name the right one with {option}" if option else ""
    present = ", ".join(map(str, values)) or "no columns"
    return f"no column {' or '.join(columns)} among {present}{advice}"


def _id(value: Any, column: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise _BadRowError(f"{column!r} must be a string that is not empty or a whole number, not {value!r}")
    return value


def _text(
    values: dict[str, Any], columns: tuple[str, ...], document_id: str, *, optional: bool = False
) -> str:
    """Take the first of the columns that is present out of the values."""
    column = next((name for name in columns if name in values), None)
    value = values.pop(column) if column is not None else None
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise _BadRowError(f"{column!r} must be a string, not {_shown(value)}", document_id)
    return value


def _metadata(values: dict[str, Any], document_id: str) -> dict[str, Any]:
    nested = values.get("metadata")
    if isinstance(nested, Mapping):
        del values["metadata"]
        both = sorted(set(values) & set(nested))
        if both:
            raise _BadRowError(f"{both[0]!r} is both a column and a key of 'metadata'", document_id)
        values = {**values, **nested}
    return {name: value for name, value in values.items() if value is not None}


def _shown(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r:.60}"
