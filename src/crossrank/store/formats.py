"""The rows of a file, one by one: JSONL, CSV and TSV (each also gzipped), Parquet, text, Markdown, HTML.

Files are streamed: only one row, or one batch of a Parquet file, is in memory. A row that cannot be
read is still a row, with the reason instead of values; only a file that cannot be read at all, or not
any further, raises.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from crossrank.errors import FileFormatError, InputError, require
from crossrank.store.markup import Page, read_html, read_markdown

__all__ = ["RawRow", "files_of", "rows_of"]

_PAGE_READERS: Mapping[str, Callable[[str], Page]] = {
    ".txt": lambda source: Page("", source.strip()),
    ".text": lambda source: Page("", source.strip()),
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
}
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class RawRow:
    """One row of a file.

    Attributes:
        line: 1-based: the line it begins on; the row's number in Parquet; 1 for a file of text.
        values: by column; None when the row cannot be read.
        reason: why it cannot be read.
        read_bytes: how much of the file has been read.
        textual: the format has no types, every value is a string.
        whole_columns: the columns are those of the file, the same for every row.
    """

    line: int
    values: Mapping[str, Any] | None = None
    reason: str = ""
    read_bytes: int = 0
    textual: bool = False
    whole_columns: bool = False


Rows: TypeAlias = "Iterator[RawRow]"


def files_of(source: Path) -> tuple[list[Path], Path]:
    """Return the files to read, in order, and the folder their names are relative to.

    A folder with `corpus.jsonl` or `corpus.jsonl.gz` is a BEIR collection. Any other folder stands
    for the text, Markdown and HTML files in it, at any depth, sorted by path; hidden files and
    folders and other kinds of files are no part of it.

    Raises:
        InputError: nothing is there, or a folder without such files.
    """
    if source.is_file():
        return [source], source.parent
    if not source.is_dir():
        raise InputError(f"{source}: there is no such file or folder")
    for name in ("corpus.jsonl", "corpus.jsonl.gz"):
        if (source / name).is_file():
            return [source / name], source
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in _PAGE_READERS and not name.startswith(".")
        ]
    if not found:
        raise InputError(
            f"{source}: this folder has neither corpus.jsonl (BEIR) nor files named "
            f"{', '.join(_PAGE_READERS)}; name a .jsonl, .csv, .tsv or .parquet file itself"
        )
    return sorted(found), source


def rows_of(path: Path, root: Path, encoding: str) -> Rows:
    """Yield the rows of one file; its name says what it holds.

    Args:
        path: the file.
        root: folder that the ids of text files are relative to.
        encoding: of the text in it.

    Raises:
        InputError: an unknown kind of file.
        FileFormatError: the file cannot be opened, or not be read any further.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if kind in (".jsonl", ".ndjson"):
        return _jsonl(path, encoding)
    if kind in (".csv", ".tsv"):
        return _csv(path, encoding, "\t" if kind == ".tsv" else ",")
    if suffixes[-1:] == [".parquet"]:
        return _parquet(path)
    if suffixes and suffixes[-1] in _PAGE_READERS:
        return _page(path, root, encoding, _PAGE_READERS[suffixes[-1]])
    raise InputError(
        f"{path}: this kind of file is not known; use .jsonl, .csv, .tsv (also .gz), .parquet, "
        f"{', '.join(_PAGE_READERS)}, or a folder"
    )


class _Lines:
    """The lines of a file, decoded; goes on after a line that cannot be decoded."""

    def __init__(self, path: Path, raw: IO[bytes], content: IO[bytes], encoding: str) -> None:
        self.number = 0  # of the line read last
        self._path, self._raw, self._content, self._encoding = path, raw, content, encoding

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            line = self._content.readline()
        except (OSError, EOFError, zlib.error) as error:
            raise FileFormatError(
                f"the file cannot be read any further: {error}", self._path, self.number + 1
            ) from error
        if not line:
            raise StopIteration
        self.number += 1
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise _BadLineError(
                f"not {self._encoding} text: {error.reason} at byte {error.start + 1} of the line "
                f"(0x{line[error.start]:02x}); convert the file to UTF-8, or give its "
                "encoding: DocumentReader(path, encoding=...)"
            ) from None
        return text.removeprefix("\ufeff") if self.number == 1 else text

    @property
    def read_bytes(self) -> int:
        return self._raw.tell()


class _BadLineError(Exception):
    """A line that is no text in the file's encoding."""


@contextmanager
def _open_lines(path: Path, encoding: str) -> Iterator[_Lines]:
    try:
        line_end = "\n".encode(encoding)
    except LookupError:
        raise InputError(f"there is no encoding {encoding!r}") from None
    if line_end not in (b"\n", b"\xef\xbb\xbf\n"):  # lines are parted before they are decoded
        raise InputError(f"files in {encoding} cannot be read line by line; convert {path} to UTF-8")
    try:
        raw = path.open("rb")
    except OSError as error:
        raise FileFormatError(f"the file cannot be opened: {error.strerror}", path) from error
    with raw:
        if path.suffix.lower() == ".gz":
            with gzip.open(raw) as content:
                yield _Lines(path, raw, content, encoding)  # type: ignore[arg-type]
        else:
            yield _Lines(path, raw, raw, encoding)


def _jsonl(path: Path, encoding: str) -> Rows:
    with _open_lines(path, encoding) as lines:
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except _BadLineError as error:
                yield RawRow(lines.number, reason=str(error))
                continue
            if line.strip():
                yield _json_row(line, lines.number, lines.read_bytes)


def _json_row(line: str, number: int, read_bytes: int) -> RawRow:
    try:
        values = json.loads(line.rstrip(), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return RawRow(number, reason=f"not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return RawRow(number, reason=f"not usable JSON: {error}")
    if not isinstance(values, dict):
        return RawRow(number, reason=f"a JSON object is expected, not {type(values).__name__}")
    return RawRow(number, values, read_bytes=read_bytes)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _csv(path: Path, encoding: str, delimiter: str) -> Rows:
    # The csv module refuses cells above 128 KB unless told otherwise, for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))
    with _open_lines(path, encoding) as lines:
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            start = lines.number + 1
            try:
                cells = next(records)
            except StopIteration:
                return
            except (_BadLineError, csv.Error) as error:
                if header is None:
                    raise FileFormatError(f"the header cannot be read: {error}", path, start) from error
                through = f"; the row goes on to line {lines.number}" if lines.number > start else ""
                yield RawRow(start, reason=f"{error}{through}")
                continue
            if not cells:
                continue
            if header is None:
                header = _header(cells, path, start)
            elif len(cells) != len(header):
                yield RawRow(start, reason=f"{len(cells)} columns where the header has {len(header)}")
            else:
                values = dict(zip(header, cells, strict=True))
                yield RawRow(start, values, "", lines.read_bytes, textual=True, whole_columns=True)


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise FileFormatError(f"the header has columns with the same name: {', '.join(repeated)}", path, line)
    return header


def _parquet(path: Path) -> Rows:
    parquet = require("pyarrow.parquet", "search")
    pa = require("pyarrow", "search")
    try:
        with parquet.ParquetFile(path) as file:
            size, total, number = path.stat().st_size, max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    plain = {name: _plain(value) for name, value in values.items()}
                    yield RawRow(number, plain, "", size * number // total, whole_columns=True)
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(f"not a readable Parquet file: {error}", path) from error


def _plain(value: Any) -> Any:
    """Return dates and times as ISO 8601 text: metadata is JSON."""
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else value


def _page(path: Path, root: Path, encoding: str, read: Callable[[str], Page]) -> Rows:
    with _open_lines(path, encoding) as lines:
        try:
            page = read("".join(lines))
        except _BadLineError as error:
            yield RawRow(lines.number, reason=str(error))
            return
        values = {"id": path.relative_to(root).as_posix(), "title": page.title, "text": page.text}
        yield RawRow(1, values, read_bytes=lines.read_bytes)
