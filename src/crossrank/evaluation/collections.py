"""Test collections in BEIR form: a corpus, queries, judgements, and runs if there are any."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.errors import FileFormatError, InputError
from crossrank.evaluation.trec import numbered_lines, read_qrels, read_run
from crossrank.types import Document, Run

__all__ = ["Collection"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_RUN_ENDINGS = (".trec", ".trec.gz")
_QRELS_ENDINGS = (".tsv", ".tsv.gz")


@dataclass(frozen=True)
class Collection:
    """A folder in BEIR form, opened with `Collection.open`.

        corpus.jsonl[.gz]      {"_id": "d1", "title": "...", "text": "...", any other key}
        queries.jsonl[.gz]     {"_id": "q1", "text": "..."}
        qrels/SPLIT.tsv[.gz]   query-id, corpus-id, score (or TREC's form)
        runs/NAME.trec[.gz]    optional: TREC run files

    An id is a string or a whole number, which becomes a string. `title` may be missing or null.
    Nothing is kept in memory: every call reads its file.

    Attributes:
        folder: where it is.
        corpus_path, queries_path: the two files.
        qrels_paths: split -> file.
        run_paths: name -> file; the name is the file's without .trec or .trec.gz.

    Example:
        >>> collection = Collection.open("data/sample")
        >>> collection.splits
        ('test',)
    """

    folder: Path
    corpus_path: Path
    queries_path: Path
    qrels_paths: Mapping[str, Path]
    run_paths: Mapping[str, Path]

    @classmethod
    def open(cls, folder: str | Path) -> Collection:
        """Open a folder; only the names of its files are looked at.

        Raises:
            FileFormatError: no such folder, or one without corpus or queries, or with the plain and
                the gzipped form of the same file.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileFormatError("there is no such folder", folder)
        return cls(
            folder=folder,
            corpus_path=_plain_or_gzipped(folder, "corpus.jsonl"),
            queries_path=_plain_or_gzipped(folder, "queries.jsonl"),
            qrels_paths=_by_stem(folder / "qrels", _QRELS_ENDINGS),
            run_paths=_by_stem(folder / "runs", _RUN_ENDINGS),
        )

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have judgements, sorted."""
        return tuple(self.qrels_paths)

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of the runs that come with the collection, sorted."""
        return tuple(self.run_paths)

    def documents(self) -> Iterator[Document]:
        """Yield the documents in the order of the file; keys beyond the four known are metadata.

        An object under "metadata", which BEIR writes, is merged into the metadata.

        Raises:
            FileFormatError: a row that is no JSON object or has no usable id, text or title, or an
                id that comes a second time.
        """
        seen: set[str] = set()
        for line, row in _objects(self.corpus_path):
            document_id = _id(row, self.corpus_path, line)
            if document_id in seen:
                raise FileFormatError(f"document {document_id!r} comes a second time", self.corpus_path, line)
            seen.add(document_id)
            metadata = {k: v for k, v in row.items() if k not in ("_id", "id", "title", "text", "metadata")}
            nested = row.get("metadata")
            if isinstance(nested, dict):
                metadata = {**nested, **metadata}
            elif nested is not None:
                metadata["metadata"] = nested
            title = "" if row.get("title") is None else _text(row, "title", self.corpus_path, line)
            yield Document(document_id, _text(row, "text", self.corpus_path, line), title, metadata)

    def queries(self, split: str | None = None) -> dict[str, str]:
        """Return query id -> text, in the order of the file.

        Args:
            split: only queries judged in this split; None gives all.

        Raises:
            InputError: no such split.
            FileFormatError: a row that cannot be used, an id that comes a second time, or a judged
                query that is not in the file.
        """
        queries: dict[str, str] = {}
        for line, row in _objects(self.queries_path):
            query_id = _id(row, self.queries_path, line)
            if query_id in queries:
                raise FileFormatError(f"query {query_id!r} comes a second time", self.queries_path, line)
            queries[query_id] = _text(row, "text", self.queries_path, line)
        if split is None:
            return queries
        judged = self.qrels(split)
        unknown = [query_id for query_id in judged if query_id not in queries]
        if unknown:
            raise FileFormatError(
                f"query {unknown[0]!r} is judged but not in {self.queries_path.name} "
                f"({len(unknown)} such queries)",
                self.qrels_paths[split],
            )
        return {query_id: text for query_id, text in queries.items() if query_id in judged}

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Return the judgements of a split: query id -> document id -> grade.

        Raises:
            InputError: no such split.
            FileFormatError: see `trec.read_qrels`.
        """
        return read_qrels(_named(self.qrels_paths, split, "split", self.folder))

    def run(self, name: str) -> Run:
        """Return a run that comes with the collection, with the queries' texts in its rankings.

        Raises:
            InputError: no such run.
            FileFormatError: see `trec.read_run`.
        """
        return read_run(_named(self.run_paths, name, "run", self.folder), self.queries())


def _named(paths: Mapping[str, Path], name: str, noun: str, folder: Path) -> Path:
    if name not in paths:
        raise InputError(f"{folder} has no {noun} {name!r}; it has {', '.join(paths) or 'none'}")
    return paths[name]


def _plain_or_gzipped(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise FileFormatError(f"no {name} or {name}.gz here; a collection in BEIR form has one", folder)
    if len(found) > 1:
        raise FileFormatError(f"both {name} and {name}.gz are here; remove one", folder)
    return found[0]


def _by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        ending = next((e for e in endings if path.name.endswith(e)), None)
        if ending is None or path.name.startswith("."):
            continue
        stem = path.name.removesuffix(ending)
        if stem in paths:
            raise FileFormatError(f"both {paths[stem].name} and {path.name} are here; remove one", folder)
        paths[stem] = path
    return dict(sorted(paths.items()))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (1-based line, object) of a JSONL file."""
    for line, text in numbered_lines(path):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"not JSON: {error}", path, line) from error
        if not isinstance(row, dict):
            raise FileFormatError(f"a row must be a JSON object, not {type(row).__name__}", path, line)
        yield line, row


def _id(row: Mapping[str, Any], path: Path, line: int) -> str:
    value = row["_id"] if "_id" in row else row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or _SURROGATE.search(value):
        raise FileFormatError(
            f'"_id" must be a non-empty string or a whole number, not {value!r}', path, line
        )
    return value


def _text(row: Mapping[str, Any], key: str, path: Path, line: int) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        has = "is missing" if value is None else f"must be a string, not {type(value).__name__}"
        raise FileFormatError(f'"{key}" {has}', path, line)
    if _SURROGATE.search(value):
        raise FileFormatError(f'"{key}" has half of a surrogate pair, which is no character', path, line)
    return value
