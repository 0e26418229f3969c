"""Mined negatives as files to train from: lists, pairs or triplets, in JSON lines or Parquet.

Columns of the three forms, a row each for

    lists      a query: query_id, query, then in parallel document_ids, documents, labels, sources, ranks,
               scores, teacher_scores: its positives, then its negatives
    pairs      a query and a document: query_id, query, document_id, document, label, source, rank, score,
               teacher_score
    triplets   a query, a positive and a negative (each with each): query_id, query, positive_id, positive,
               negative_id, negative, source, rank, score, teacher_score, positive_teacher_score

Labels are 1 for positives and 0 for negatives. Source, rank and score say where a negative is from; a
positive's source is "qrels", without rank and score. Texts are title and text, as models read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, get_args

from crossrank.errors import InputError, require
from crossrank.training.selection import Outcome
from crossrank.whole_files import opened_whole

__all__ = ["Form", "check_output", "rows_of", "write_rows"]

Form: TypeAlias = Literal["lists", "pairs", "triplets"]

POSITIVE_SOURCE = "qrels"

_COLUMNS: dict[Form, dict[str, str]] = {
    "lists": {
        **{"query_id": "text", "query": "text", "document_ids": "texts", "documents": "texts"},
        **{"labels": "labels", "sources": "texts", "ranks": "ranks"},
        **{"scores": "scores", "teacher_scores": "scores"},
    },
    "pairs": {
        **{"query_id": "text", "query": "text", "document_id": "text", "document": "text"},
        **{"label": "label", "source": "text", "rank": "rank", "score": "score", "teacher_score": "score"},
    },
    "triplets": {
        **{"query_id": "text", "query": "text", "positive_id": "text", "positive": "text"},
        **{"negative_id": "text", "negative": "text", "source": "text", "rank": "rank", "score": "score"},
        **{"teacher_score": "score", "positive_teacher_score": "score"},
    },
}
_TEXTS = frozenset({"query", "document", "documents", "positive", "negative"})
_ROW_GROUP = 1024  # fixed: the same rows give the same Parquet file, however they were mined


def check_output(path: Path, form: str) -> None:
    """Find before hours of mining that the result could not be written.

    Raises:
        InputError: a form or an ending that is not known, or a folder that is not there.
        MissingExtraError: Parquet without pyarrow.
    """
    if form not in get_args(Form):
        raise InputError(f"form must be one of {', '.join(get_args(Form))}, not {form!r}")
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: negatives go to a file whose name ends in .jsonl or .parquet")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix == ".parquet":
        require("pyarrow.parquet", "search")


def rows_of(
    outcome: Outcome, query: str, texts: Mapping[str, str] | None, form: Form
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one query; none if it has no positive or no negative.

    Args:
        outcome: what was mined for it.
        query: its text.
        texts: document id -> text; None leaves texts out, the query's too.
        form: of the rows.
    """
    if not outcome.positives or not outcome.negatives:
        return
    positives = [
        {"id": document_id, "label": 1, "source": POSITIVE_SOURCE, "teacher_score": score}
        for document_id, score in outcome.positives.items()
    ]
    negatives = [
        {
            "id": each.document_id,
            "label": 0,
            "source": each.source,
            "rank": each.rank,
            "score": each.score,
            "teacher_score": each.teacher_score,
        }
        for each in outcome.negatives
    ]
    for row in _SHAPES[form](positives, negatives):
        whole = {"query_id": outcome.query_id, "query": query, **row}
        if texts is not None:
            for name, of in (
                ("document", "document_id"),
                ("positive", "positive_id"),
                ("negative", "negative_id"),
            ):
                if of in whole:
                    whole[name] = texts[whole[of]]
            if "document_ids" in whole:
                whole["documents"] = [texts[document_id] for document_id in whole["document_ids"]]
        yield {name: whole.get(name) for name in _columns(form, texts is not None)}


_Entries: TypeAlias = Sequence[Mapping[str, Any]]


def _lists(positives: _Entries, negatives: _Entries) -> Iterator[dict[str, Any]]:
    entries = [*positives, *negatives]
    names = {"document_ids": "id", "labels": "label", "sources": "source", "ranks": "rank", "scores": "score"}
    names["teacher_scores"] = "teacher_score"
    yield {column: [entry.get(name) for entry in entries] for column, name in names.items()}


def _pairs(positives: _Entries, negatives: _Entries) -> Iterator[dict[str, Any]]:
    for entry in (*positives, *negatives):
        yield {"document_id": entry["id"], **entry}


def _triplets(positives: _Entries, negatives: _Entries) -> Iterator[dict[str, Any]]:
    for positive in positives:
        for negative in negatives:
            yield {
                **negative,
                "positive_id": positive["id"],
                "negative_id": negative["id"],
                "positive_teacher_score": positive["teacher_score"],
            }


_SHAPES: dict[Form, Callable[[_Entries, _Entries], Iterator[dict[str, Any]]]] = {
    "lists": _lists,
    "pairs": _pairs,
    "triplets": _triplets,
}


def _columns(form: Form, with_texts: bool) -> dict[str, str]:
    return {name: kind for name, kind in _COLUMNS[form].items() if with_texts or name not in _TEXTS}


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, form: Form, *, texts: bool) -> int:
    """Write rows and return how many; the file appears whole or not at all.

    Args:
        rows: as `rows_of` gives them.
        path: a name that ends in .jsonl or .parquet.
        form: of the rows.
        texts: whether they have texts.

    Raises:
        InputError: the file cannot be written.
    """
    with opened_whole(path) as file:
        if path.suffix == ".parquet":
            return _write_parquet(rows, file, _columns(form, texts))
        return _write_lines(rows, file)


def _write_lines(rows: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
    count = 0
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def _write_parquet(rows: Iterable[Mapping[str, Any]], file: BinaryIO, columns: Mapping[str, str]) -> int:
    pa = require("pyarrow", "search")
    parquet = require("pyarrow.parquet", "search")
    text, rank, score, label = pa.string(), pa.int32(), pa.float64(), pa.int8()
    types = {
        **{"text": text, "rank": rank, "score": score, "label": label},
        **{"texts": pa.list_(text), "ranks": pa.list_(rank), "scores": pa.list_(score)},
        "labels": pa.list_(label),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    count = 0
    left = iter(rows)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(left, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count
