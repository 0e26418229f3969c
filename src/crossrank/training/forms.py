"""What losses are computed from: lists, turned into the columns that sentence-transformers' trainers take.

A form has a name, which the table of losses uses, and a function that makes its columns: text columns in
the order in which losses expect them, and "label" where there is one. What the data lacks for a form is
said in an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from crossrank.errors import InputError
from crossrank.training.examples import TrainingList

__all__ = ["FORMS", "Columns", "Form", "columns_of"]

Columns: TypeAlias = dict[str, list[Any]]


@dataclass(frozen=True)
class Form:
    """A shape of training rows.

    Attributes:
        name: as the table of losses has it.
        row: what a row is, in words, for messages and `--dry-run`.
        columns: makes them; takes lists (cut to `list_size`), and class names or None.
        lists: a row is a query with all its documents: `gradient_cache: auto` is on.
    """

    name: str
    row: str
    columns: Callable[[Sequence[TrainingList], Sequence[str] | None], Columns]
    lists: bool = False


def columns_of(
    form: str,
    lists: Sequence[TrainingList],
    *,
    list_size: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> Columns:
    """Return the columns of a form.

    Args:
        form: its name in `FORMS`.
        lists: the training data.
        list_size: documents a query at most: see `TrainingList.cut`.
        seed: of the draws.
        classes: names of the classes, in the order of the model's outputs.

    Raises:
        InputError: the data lacks what the form needs.
    """
    columns = FORMS[form].columns([each.cut(list_size, seed) for each in lists], classes)
    if not next(iter(columns.values())):
        raise InputError(f"no row of training data: {FORMS[form].row} needs a positive and a negative")
    return columns


def _pairs(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "document": [], "label": []}
    for each in lists:
        for document, label in zip(each.documents, each.labels, strict=True):
            number = _number(label, each)
            if not 0 <= number <= 1:
                raise InputError(
                    f"query {each.query_id!r}: a pair's label must be between 0 and 1, not {number:g}; "
                    "say label_range: [lowest, highest] beside the file"
                )
            _append(columns, each.query, document, number)
    return columns


def _scored_pairs(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "document": [], "label": []}
    for each in lists:
        for document, score in zip(each.documents, _teacher(each), strict=True):
            _append(columns, each.query, document, score)
    return columns


def _classes(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    if not classes:
        raise InputError("classes need their names, in order: student.classes: [contradiction, ...]")
    columns: Columns = {"query": [], "document": [], "label": []}
    for each in lists:
        for document, label in zip(each.documents, each.labels, strict=True):
            name = label if isinstance(label, str) else f"{label:g}"
            if name not in classes:
                raise InputError(
                    f"query {each.query_id!r} has label {name!r}; student.classes are {', '.join(classes)}"
                )
            _append(columns, each.query, document, list(classes).index(name))
    return columns


def _triplets(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "positive": [], "negative": []}
    for each in lists:
        for positive in each.positives:
            for negative in each.negatives:
                _append(columns, each.query, each.documents[positive], each.documents[negative])
    return columns


def _scored_triplets(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "positive": [], "negative": [], "label": []}
    for each in lists:
        scores = _teacher(each)
        for positive in each.positives:
            for negative in each.negatives:
                margin = scores[positive] - scores[negative]
                _append(columns, each.query, each.documents[positive], each.documents[negative], margin)
    return columns


def _lists(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "documents": [], "label": []}
    for each in lists:
        labels = [_number(label, each) for label in each.labels]
        if len({*labels}) > 1:  # nothing is to be learnt where all are equal
            _append(columns, each.query, [*each.documents], labels)
    return columns


def _scored_lists(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    columns: Columns = {"query": [], "documents": [], "label": []}
    for each in lists:
        if len(each.documents) > 1:
            scores = _teacher(each)
            both = [[scores[i], _number(label, each)] for i, label in enumerate(each.labels)]
            _append(columns, each.query, [*each.documents], both)
    return columns


def _tuples(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    return _wide(lists, with_scores=False)


def _scored_tuples(lists: Sequence[TrainingList], classes: Sequence[str] | None) -> Columns:
    return _wide(lists, with_scores=True)


def _wide(lists: Sequence[TrainingList], *, with_scores: bool) -> Columns:
    """Make a row of each positive with the same number of negatives, each in a column of its own.

    Rows have one width, that of the query with the fewest negatives among the nine in ten that have most;
    queries with fewer negatives are left out.
    """
    judged = [each for each in lists if each.positives and each.negatives]
    if not judged:
        return {"anchor": []}
    counts = sorted((len(each.negatives) for each in judged), reverse=True)
    width = counts[(len(counts) - 1) * 9 // 10]
    columns: Columns = {"anchor": [], "positive": [], **{f"negative_{i + 1}": [] for i in range(width)}}
    if with_scores:
        columns["label"] = []
    for each in judged:
        if len(each.negatives) < width:
            continue
        for positive in each.positives:
            kept = [positive, *each.negatives[:width]]
            row: list[Any] = [each.query, *(each.documents[i] for i in kept)]
            if with_scores:
                scores = _teacher(each)
                row.append([scores[i] for i in kept])
            _append(columns, *row)
    return columns


def _append(columns: Columns, *row: Any) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _number(label: float | str, of: TrainingList) -> float:
    if isinstance(label, str):
        raise InputError(
            f"query {of.query_id!r} has label {label!r}, the name of a class; the loss ce is for classes"
        )
    return label


def _teacher(of: TrainingList) -> tuple[float, ...]:
    if of.teacher_scores is None:
        raise InputError(
            f"query {of.query_id!r} has no teacher's score for each document; mine with --teacher, or take a "
            "loss that needs none"
        )
    return of.teacher_scores


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("pairs", "a query, a document, a label between 0 and 1", _pairs),
        Form("scored_pairs", "a query, a document, a teacher's score", _scored_pairs),
        Form("classes", "two texts and the name of a class", _classes),
        Form("triplets", "a query, a positive, a negative", _triplets),
        Form("scored_triplets", "a query, a positive, a negative, a teacher's margin", _scored_triplets),
        Form("lists", "a query, documents, labels", _lists, lists=True),
        Form("scored_lists", "a query, documents, a teacher's scores and labels", _scored_lists, lists=True),
        Form("tuples", "a query, a positive, negatives", _tuples),
        Form("scored_tuples", "a query, a positive, negatives, a teacher's scores", _scored_tuples),
    )
}
"""Every form by its name."""
