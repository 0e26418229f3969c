"""Sentence pairs with labels: reading them, and how well scores or classes agree with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import FileFormatError, InputError
from crossrank.store.formats import rows_of

__all__ = [
    "Agreement",
    "LabelledPair",
    "agreement",
    "best_threshold",
    "pearson",
    "read_labelled_pairs",
    "spearman",
]

Floats = npt.NDArray[np.float64]

_TEXTS = (("text1", "text2"), ("query", "document"), ("query", "text"), ("sentence1", "sentence2"))


class LabelledPair(NamedTuple):
    """Two texts and what is said of them.

    Attributes:
        first: a sentence, or a query.
        second: a sentence, or a document's text.
        label: a number, or the name of a class.
    """

    first: str
    second: str
    label: float | str


@dataclass(frozen=True)
class Agreement:
    """How predicted classes agree with labels.

    Attributes:
        accuracy: share of the pairs whose class is the label.
        f1: class -> harmonic mean of precision and recall; 0 for a class that is never right.
        macro_f1: mean of these over the classes.
        counts: label -> predicted class -> pairs.
    """

    accuracy: float
    f1: Mapping[str, float]
    macro_f1: float
    counts: Mapping[str, Mapping[str, int]]


def read_labelled_pairs(path: Path) -> Iterator[LabelledPair]:
    """Read pairs with labels: JSON lines, CSV, TSV (each also .gz) or Parquet, with names of columns.

    A row has `text1` and `text2` (or `query` and `document`, or `sentence1` and `sentence2`), and `label`: a
    number, true or false, or the name of a class. A `title` is put before the second text.

    Raises:
        FileFormatError: a row that lacks something, with its line; or no row.
    """
    none = True
    for row in rows_of(path, path.parent, "utf-8"):
        none = False
        if row.values is None:
            raise FileFormatError(row.reason, path, row.line)
        try:
            yield _pair(row.values)
        except InputError as error:
            raise FileFormatError(str(error), path, row.line) from None
    if none:
        raise FileFormatError("no pairs in it", path)


def pearson(values: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the linear correlation of two columns, from -1 to 1.

    Raises:
        InputError: columns that do not fit one another, of fewer than 2 entries, or one that is constant.
    """
    first, second = _numbers(values, "values"), _numbers(labels, "labels")
    if len(first) != len(second) or len(first) < 2:
        raise InputError(f"a correlation needs 2 columns of one length, not {len(first)} and {len(second)}")
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    if lengths == 0:
        raise InputError("one of the columns is constant, so there is no correlation")
    return float(np.clip(first @ second / lengths, -1, 1))


def spearman(values: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the correlation of two columns' ranks; equal entries share the mean of their ranks.

    Raises:
        InputError: see `pearson`.
    """
    return pearson(_ranks(_numbers(values, "values")), _ranks(_numbers(labels, "labels")))


def agreement(predicted: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> Agreement:
    """Compare predicted classes with labels.

    Args:
        predicted: (n,) names.
        labels: (n,) names.
        classes: all there are, in the order to show them.

    Raises:
        InputError: lists that do not fit one another, or a name that is none of the classes.
    """
    if len(predicted) != len(labels) or not labels:
        raise InputError(
            f"{len(predicted)} predictions and {len(labels)} labels; give one of each for a pair"
        )
    counts = {name: dict.fromkeys(classes, 0) for name in classes}
    for found, label in zip(predicted, labels, strict=True):
        for name in (found, label):
            if name not in counts:
                raise InputError(f"{name!r} is none of the classes {', '.join(classes)}")
        counts[label][found] += 1
    f1 = {}
    for name in classes:
        right = counts[name][name]
        said = sum(counts[label][name] for label in classes)
        there = sum(counts[name].values())
        f1[name] = 2 * right / (said + there) if right else 0.0
    return Agreement(
        accuracy=sum(counts[name][name] for name in classes) / len(labels),
        f1=f1,
        macro_f1=sum(f1.values()) / len(f1),
        counts=counts,
    )


def best_threshold(values: npt.ArrayLike, relevant: npt.ArrayLike) -> float:
    """Return the value from which on pairs are called positive for the highest accuracy.

    It lies halfway between two neighbouring values; of equally good ones it is the highest.

    Args:
        values: (n,) scores.
        relevant: (n,) of 0 and 1.

    Raises:
        InputError: columns that do not fit one another.
    """
    scores, truth = _numbers(values, "values"), _numbers(relevant, "relevant")
    if len(scores) != len(truth) or not len(scores):
        raise InputError(f"{len(scores)} values and {len(truth)} labels; give one of each for a pair")
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last of each score
    right = np.cumsum(2 * truth[order] - 1)[ends]  # positives gained less negatives lost
    best = int(np.argmax(right))
    if right[best] < 0:  # better to call none positive
        return float(np.nextafter(scores.max(), np.inf))
    last = scores[order][ends[best]]
    below = scores[order][ends[best] + 1] if best + 1 < len(ends) else last
    return float((last + below) / 2)


def _pair(values: Mapping[str, Any]) -> LabelledPair:
    names = next((names for names in _TEXTS if all(name in values for name in names)), None)
    if names is None or "label" not in values:
        wanted = "text1, text2 and label, or query, document and label"
        raise InputError(f"a row needs {wanted}; this one has {', '.join(map(str, values)) or 'nothing'}")
    texts = [values[name] for name in names]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            raise InputError(f"{name} must be a string, not {type(text).__name__}")
    if values.get("title"):
        texts[1] = f"{values['title']} {texts[1]}"
    return LabelledPair(texts[0], texts[1], _label(values["label"]))


def _label(value: Any) -> float | str:
    if isinstance(value, str) and value:
        try:
            number = float(value)  # of a CSV file, where everything is text
        except ValueError:
            return value
        return number if np.isfinite(number) else value
    if isinstance(value, (bool, int, float)) and np.isfinite(value):
        return float(value)
    raise InputError(f"label must be a number or the name of a class, not {value!r:.80}")


def _numbers(values: npt.ArrayLike, name: str) -> Floats:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}") from None
    if column.ndim != 1 or not np.isfinite(column).all():
        raise InputError(f"{name} must be one column of finite numbers")
    return column


def _ranks(column: Floats) -> Floats:
    _, where, counts = np.unique(column, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[where], dtype=np.float64)
