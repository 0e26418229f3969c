"""Queries that the user's own generator makes: a function in Python, or a file of what one has made.

The file is JSON lines (also gzipped), CSV, TSV or Parquet with the columns document_id and query; a document
may come in many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from crossrank.checks import as_list, as_strings, check_text, check_texts
from crossrank.errors import FileFormatError, InputError
from crossrank.progress import track
from crossrank.store.formats import rows_of
from crossrank.types import Document

__all__ = ["Generator", "generate", "read_generated"]

Generator: TypeAlias = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Texts to queries: for each text those that it answers, best first; none where it has none to give."""

_AT_A_TIME = 64


def generate(
    documents: Sequence[Document], generator: Generator, *, progress: bool | None = None
) -> dict[str, list[str]]:
    """Ask a generator for queries.

    Args:
        documents: their full texts are what it is given, some dozens at a time.
        generator: see `Generator`; any function around a seq2seq or large language model.
        progress: True shows a bar, False none, None one for a long call on a terminal.

    Returns:
        Document id -> queries, of the documents that have any.

    Raises:
        InputError: it gives something else than a list of strings for each text.
    """
    found: dict[str, list[str]] = {}
    with track(len(documents), "Generating queries", progress=progress) as tracked:
        for start in range(0, len(documents), _AT_A_TIME):
            block = documents[start : start + _AT_A_TIME]
            answers = as_list(generator([document.full_text for document in block]), "the generator's answer")
            if len(answers) != len(block):
                raise InputError(
                    f"the generator was given {len(block)} texts and answered for {len(answers)}; "
                    "it must give a list of queries for each, in their order"
                )
            for document, answer in zip(block, answers, strict=True):
                queries = as_strings(answer, f"the generator's queries for document {document.id!r}")
                check_texts(queries, f"the generator's queries for document {document.id!r}")
                if queries:
                    found[document.id] = queries
            tracked.advance(len(block))
    return found


def read_generated(path: str | Path) -> dict[str, list[str]]:
    """Return document id -> queries, in the order of the file.

    Raises:
        FileFormatError: it cannot be read, has a row without the two columns, or no row.
    """
    path = Path(path)
    found: dict[str, list[str]] = {}
    for row in rows_of(path, path.parent, "utf-8"):
        if row.values is None:
            raise FileFormatError(row.reason, path, row.line)
        for name in ("document_id", "query"):
            if not isinstance(row.values.get(name), str) or not row.values[name].strip():
                raise FileFormatError(
                    f"{name!r} must be a string that is not empty, not {row.values.get(name)!r:.60}",
                    path,
                    row.line,
                )
            check_text(row.values[name], f"{name} in line {row.line} of {path}")
        found.setdefault(row.values["document_id"], []).append(row.values["query"])
    if not found:
        raise FileFormatError("there is no row in it", path)
    return found
