"""The three forms in two formats: what is in a row, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mining_inputs import rows_in

from crossrank.errors import InputError
from crossrank.training import negative_files
from crossrank.training.negative_files import Form, rows_of, write_rows
from crossrank.training.selection import Negative, Outcome

OUTCOME = Outcome(
    "q",
    positives={"a": 2.5, "b": None},
    negatives=[Negative("c", "bm25", 3, 7.25, -1.5), Negative("d", "random", None, None)],
)
TEXTS = {"a": "A", "b": "B", "c": "Ç", "d": "D"}
LISTS = {
    "query_id": "q",
    "query": "text",
    "document_ids": ["a", "b", "c", "d"],
    "documents": ["A", "B", "Ç", "D"],
    "labels": [1, 1, 0, 0],
    "sources": ["qrels", "qrels", "bm25", "random"],
    "ranks": [None, None, 3, None],
    "scores": [None, None, 7.25, None],
    "teacher_scores": [2.5, None, -1.5, None],
}
PAIRS = [
    dict(
        zip(
            [
                *("query_id", "query", "document_id", "document"),
                *("label", "source", "rank", "score", "teacher_score"),
            ],
            ["q", "text", *values],
            strict=True,
        )
    )
    for values in (
        ("a", "A", 1, "qrels", None, None, 2.5),
        ("b", "B", 1, "qrels", None, None, None),
        ("c", "Ç", 0, "bm25", 3, 7.25, -1.5),
        ("d", "D", 0, "random", None, None, None),
    )
]
TRIPLETS = [
    dict(
        zip(
            [
                *("query_id", "query", "positive_id", "positive", "negative_id", "negative"),
                *("source", "rank", "score", "teacher_score", "positive_teacher_score"),
            ],
            ["q", "text", *positive[:2], *negative, positive[2]],
            strict=True,
        )
    )
    for positive in (("a", "A", 2.5), ("b", "B", None))
    for negative in (("c", "Ç", "bm25", 3, 7.25, -1.5), ("d", "D", "random", None, None, None))
]
FORMS: dict[Form, list[dict[str, object]]] = {"lists": [LISTS], "pairs": PAIRS, "triplets": TRIPLETS}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["n.jsonl", "n.parquet"])
def test_rows(tmp_path: Path, form: Form, name: str) -> None:
    path = tmp_path / name
    count = write_rows(rows_of(OUTCOME, "text", TEXTS, form), path, form, texts=True)
    rows = rows_in(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    assert rows == FORMS[form]
    assert list(rows[0]) == list(FORMS[form][0])
    assert count == len(rows)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["n.jsonl", "n.parquet"])
def test_without_texts_ids_stay(tmp_path: Path, form: Form, name: str) -> None:
    path = tmp_path / name
    write_rows(rows_of(OUTCOME, "text", None, form), path, form, texts=False)
    rows = rows_in(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()
    texts = {"query", "document", "documents", "positive", "negative"}
    assert rows == [{name: row[name] for name in row if name not in texts} for row in FORMS[form]]


@pytest.mark.parametrize(
    "outcome", [Outcome("q", {"a": None}), Outcome("q", {}, negatives=OUTCOME.negatives)]
)
@pytest.mark.parametrize("form", FORMS)
def test_a_query_without_positive_or_negative_has_no_row(outcome: Outcome, form: Form) -> None:
    assert list(rows_of(outcome, "text", TEXTS, form)) == []


def test_the_same_rows_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negative_files, "_ROW_GROUP", 3)
    for name in ("a.parquet", "b.parquet"):
        write_rows(PAIRS * 2, tmp_path / name, "pairs", texts=True)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == PAIRS * 2


def test_an_empty_file_has_its_columns(tmp_path: Path) -> None:
    assert write_rows([], tmp_path / "n.parquet", "pairs", texts=True) == 0
    assert pq.read_table(tmp_path / "n.parquet").column_names == list(PAIRS[0])


def test_a_failure_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text("earlier")

    def failing():
        yield LISTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(failing(), path, "lists", texts=True)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n\.jsonl cannot be written"):
        write_rows([], tmp_path / "no folder" / "n.jsonl", "lists", texts=True)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert write_rows([], tmp_path / "link.jsonl", "lists", texts=True) == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_bytes() == b""
