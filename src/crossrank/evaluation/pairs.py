"""Sentence pairs with labels: reading them, and how well scores or classes agree with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, check_count
from crossrank.errors import FileFormatError, InputError
from crossrank.store.formats import rows_of

if TYPE_CHECKING:
    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.models.cross_encoder import CrossEncoder

__all__ = [
    "Agreement",
    "LabelledPair",
    "agreement",
    "best_threshold",
    "interval_over_pairs",
    "pair_values",
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


def pair_values(
    model: CrossEncoder | BiEncoder, pairs: Sequence[LabelledPair]
) -> npt.NDArray[np.floating[Any]]:
    """Return what a model says of pairs.

    Args:
        model: a bi-encoder gives cosines, of texts encoded as documents; a cross-encoder what its activation
            makes of its scores.
        pairs: their labels are not looked at.

    Returns:
        (n,), or (n, labels) of a model with several labels.

    Raises:
        InputError: a text that the model cannot read.
    """
    from crossrank.models.bi_encoder import BiEncoder

    if not isinstance(model, BiEncoder):
        return model.activate(model.score([(pair.first, pair.second) for pair in pairs]))
    texts = list(dict.fromkeys(text for pair in pairs for text in pair[:2]))
    vectors = model.encode_documents(texts)
    rows = {text: row for row, text in enumerate(texts)}
    first = vectors[[rows[pair.first] for pair in pairs]].astype(np.float64)
    second = vectors[[rows[pair.second] for pair in pairs]].astype(np.float64)
    return np.asarray((first * second).sum(axis=1))


def interval_over_pairs(
    measure: Callable[..., float],
    *columns: npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a measure, over samples of pairs.

    Args:
        measure: such as `pearson`, called with samples of the columns.
        columns: (n,) each; a sample takes the same pairs of all.
        confidence: a share from 0 to 1.
        resamples: how many samples are drawn; one that the measure is not defined on does not count.
        seed: of the draws.

    Raises:
        InputError: settings out of their range, or a measure that no sample defines.
    """
    confidence = as_number(confidence, "confidence", 0, 1)
    check_count(resamples, "resamples")
    arrays = [np.asarray(column) for column in columns]
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = random.integers(len(arrays[0]), size=len(arrays[0]))
        with contextlib.suppress(InputError):
            found.append(measure(*(column[drawn] for column in arrays)))
    if not found:
        raise InputError("no sample of the pairs defines the measure; give more pairs")
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


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
    """Return Spearman's correlation: of two columns' ranks; equal entries share the mean of their ranks.

    A constant column has no ranks, and so no correlation with anything.

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
