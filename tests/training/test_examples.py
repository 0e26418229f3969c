"""Training data: every form of file becomes the same lists, and lists become what losses need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mining_inputs import OverlapTeacher
from training_inputs import write_jsonl

from crossrank import BM25, Document
from crossrank.errors import FileFormatError, InputError
from crossrank.training.examples import TrainingList, read_examples, read_lists
from crossrank.training.forms import columns_of
from crossrank.training.held_out import open_held_out
from crossrank.training.negatives import Filters, Source, mine
from crossrank.training.recipes import DataSource, HeldOut

DOCUMENTS = [
    Document("fox", "a red fox in the wood"),
    Document("vixen", "a vixen is a female fox"),
    Document("hole", "a fox hole"),
    Document("wood", "the wood in winter"),
    Document("whale", "a blue whale"),
]
QUERIES = {"q1": "red fox", "q2": "winter wood"}
QRELS = {"q1": {"fox": 1, "vixen": 1}, "q2": {"wood": 1}}


def _mined(folder: Path, form: str, ending: str, teacher: Any = None) -> Path:
    path = folder / f"{form}{ending}"
    filters = Filters() if teacher is None else Filters(false_negatives="keep")
    sources = [Source(BM25(DOCUMENTS), 2)]
    mine(QUERIES, QRELS, DOCUMENTS, sources, path, form=form, teacher=teacher, filters=filters)
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_lists_pairs_and_triplets_that_were_mined_are_the_same_lists(tmp_path: Path, ending: str) -> None:
    wanted = read_lists(_mined(tmp_path, "lists", ending, OverlapTeacher()))
    assert [each.query_id for each in wanted] == ["q1", "q2"]
    assert wanted[0].query == "red fox"
    assert wanted[0].positives == (0, 1)
    assert wanted[0].teacher_scores is not None
    for form in ("pairs", "triplets"):
        found = read_lists(_mined(tmp_path, form, ending, OverlapTeacher()))
        for one, other in zip(wanted, found, strict=True):
            assert one.query == other.query
            # triplets come positive by positive: the order of documents is another
            rows = [sorted(zip(e.documents, e.labels, e.teacher_scores, strict=True)) for e in (one, other)]
            assert rows[0] == rows[1]


def test_sentence_pairs_are_lists_of_one_with_labels_in_range(tmp_path: Path) -> None:
    rows = [{"text1": "a", "text2": "b", "label": 2.5}, {"text1": "a", "text2": "c", "label": 5}]
    path = write_jsonl(tmp_path / "pairs.jsonl", rows)
    data = read_examples([DataSource(str(path), label_range=(0, 5))], 0)
    assert [each.labels for each in data.lists] == [(0.5,), (1.0,)]
    assert columns_of("pairs", data.lists, list_size=8, seed=0)["label"] == [0.5, 1.0]
    with pytest.raises(InputError, match="label_range is"):
        read_examples([DataSource(str(path), label_range=(0, 3))], 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "a", "documents": ["b"], "labels": [1, 0]}, "lists of one length"),
        ({"query": "a", "documents": [], "labels": []}, "documents is empty"),
        ({"query": "a", "documents": [3], "labels": [1]}, r"documents\[0\] must be a string"),
        ({"query": "a", "document": "b"}, "there is no 'label'"),
        ({"query": "a", "document": "b", "label": None}, "label must be a finite number"),
        ({"query": "a", "document": "b", "label": "nan"}, "label must be a finite number .*, not nan"),
        ({"text1": "a", "text2": "b", "label": "-inf"}, "label must be a finite number .*, not -inf"),
        ({"query_id": "a", "document_ids": ["b"], "labels": [1]}, "ids and no texts; mine again"),
        ({"question": "a"}, "it has none of .* but question"),
    ],
)
def test_a_row_that_is_none_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    good = {"query": "a", "documents": ["b"], "labels": [1]}
    path = write_jsonl(tmp_path / "rows.jsonl", [good, row])
    with pytest.raises(FileFormatError, match=message) as raised:
        read_lists(path)
    assert raised.value.line == 2


def test_share_and_limit_draw_the_same_lists_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"query": f"q{i}", "documents": ["a", "b"], "labels": [1, 0]} for i in range(40)]
    path = write_jsonl(tmp_path / "lists.jsonl", rows)

    def drawn(seed: int, **source: Any) -> list[str]:
        return [each.query for each in read_examples([DataSource(str(path), **source)], seed).lists]

    half = drawn(1, share=0.5)
    assert len(half) == 20
    assert {*drawn(1, limit=5)} < {*half}
    assert drawn(2, share=0.5) != half
    write_jsonl(path, rows[::-1])
    assert drawn(1, share=0.5) == half[::-1]


def _list(labels: list[float], teacher: bool = False) -> TrainingList:
    documents = tuple(f"d{i}" for i in range(len(labels)))
    scores = tuple(float(i) for i in range(len(labels))) if teacher else None
    return TrainingList("q", "query", documents, tuple(labels), scores)


@pytest.mark.parametrize("size", range(1, 9))
def test_a_list_that_is_cut_keeps_a_positive_and_a_negative(size: int) -> None:
    cut = _list([0, 1, 0, 1, 1, 0, 0, 0]).cut(size, seed=3)
    assert len(cut.documents) == size
    assert cut.positives or size == 1
    assert cut.negatives or size == 1
    assert [*cut.documents] == sorted(cut.documents)  # their order stays
    assert len(cut.positives) == min(3, max(1, size - 1))


def test_forms_have_the_columns_that_losses_take() -> None:
    both = [_list([1, 0, 0, 1], teacher=True)]

    def columns(form: str) -> dict[str, list[Any]]:
        return columns_of(form, both, list_size=8, seed=0)

    assert columns("triplets")["negative"] == ["d1", "d2", "d1", "d2"]
    assert columns("scored_triplets")["label"] == [-1.0, -2.0, 2.0, 1.0]
    assert columns("lists") == {
        "query": ["query"],
        "documents": [["d0", "d1", "d2", "d3"]],
        "label": [[1, 0, 0, 1]],
    }
    assert columns("scored_lists")["label"] == [[[0.0, 1], [1.0, 0], [2.0, 0], [3.0, 1]]]
    assert columns("scored_tuples") == {
        "anchor": ["query", "query"],
        "positive": ["d0", "d3"],
        "negative_1": ["d1", "d1"],
        "negative_2": ["d2", "d2"],
        "label": [[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]],
    }


@pytest.mark.parametrize(
    ("form", "labels", "message"),
    [
        ("scored_lists", [1, 0], "no teacher's score for each document; mine with --teacher"),
        ("pairs", [5, 0], "between 0 and 1, not 5; say label_range"),
        ("lists", [1, 1], "needs a positive and a negative|no row of training data"),
        ("triplets", [1, 1], "no row of training data"),
        ("tuples", [0, 0], "no row of training data"),
        ("classes", [1, 0], "student.classes"),
    ],
)
def test_what_the_data_lacks_for_a_loss_is_said(form: str, labels: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        columns_of(form, [_list(labels)], list_size=8, seed=0)


def test_held_out_pairs_are_measured_by_spearman(tmp_path: Path) -> None:
    labels = [2, 1, 3, 3, 6, 4]
    rows = [{"text1": "a", "text2": f"{i}", "label": label} for i, label in enumerate(labels)]
    choice = HeldOut(file=str(write_jsonl(tmp_path / "pairs.jsonl", rows)), measure="spearman")
    held_out = open_held_out(choice, seed=0)

    def measured(*scores: float) -> float:
        return held_out.measured([np.float32([score]) for score in scores]).value

    # scipy.stats.spearmanr([1, 2, 2, 4, 5, 5], [2, 1, 3, 3, 6, 4]).statistic
    assert measured(1, 2, 2, 4, 5, 5) == pytest.approx(0.8508410, abs=1e-6)
    assert measured(1, 1, 1, 1, 1, 1) == 0.0  # it orders nothing
    same = write_jsonl(tmp_path / "same.jsonl", [{**row, "label": 1} for row in rows])
    with pytest.raises(InputError, match="the same label everywhere"):
        open_held_out(HeldOut(file=str(same), measure="spearman"), seed=0)


def test_a_classifier_that_says_the_same_of_all_pairs_has_no_deviation(tmp_path: Path) -> None:
    rows = [{"text1": "a", "text2": f"{i}", "label": label} for i, label in enumerate("xyz")]
    choice = HeldOut(file=str(write_jsonl(tmp_path / "pairs.jsonl", rows)), measure="accuracy")
    held_out = open_held_out(choice, seed=0, classes=["x", "y", "z"])

    def deviation(*logits: list[float]) -> float:
        return held_out.measured([np.float32([each]) for each in logits]).deviation

    assert deviation(*[[2, -1, -1]] * 3) == 0
    assert deviation([2, -1, -1], [2, -1, 1], [2, -1, 3]) == pytest.approx(np.std([-1, 1, 3]))


def test_held_out_data_are_known_by_queries_candidates_and_judgements(tmp_path: Path) -> None:
    qrels = tmp_path / "qrels" / "test.tsv"
    qrels.parent.mkdir()

    def digest(corpus: str = "red fox", query: str = "fox", grade: int = 1) -> str:
        write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d", "title": "", "text": corpus}])
        write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": query}])
        qrels.write_text(f"query-id\tcorpus-id\tscore\nq\td\t{grade}\n")
        return open_held_out(HeldOut(collection=str(tmp_path)), seed=0).digest

    found = [digest(), digest(corpus="a fox"), digest(query="red fox"), digest(grade=2)]
    assert len({*found}) == 4
    assert digest() == found[0]


def test_a_share_that_leaves_no_query_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "a", "documents": ["b", "c"], "labels": [1, 0]}])
    with pytest.raises(InputError, match=r"a\.jsonl: a share of 0\.1 is none of its queries, which are 1"):
        read_examples([DataSource(str(path), share=0.1)], 0)


def test_the_files_that_were_read_are_known_by_their_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "a", "documents": ["b", "c"], "labels": [1, 0]}])
    first = read_examples([DataSource(str(path))], 0).digests
    path.write_text(path.read_text() + json.dumps({"query": "z", "documents": ["b"], "labels": [1]}) + "\n")
    assert read_examples([DataSource(str(path))], 0).digests != first
