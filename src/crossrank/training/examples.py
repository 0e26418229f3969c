"""Training data: files of lists, pairs, triplets or sentence pairs, read into lists.

A row of a file is one of

    lists           query, documents, labels, and where there was a teacher teacher_scores
    triplets        query, positive, negative, and teacher_score, positive_teacher_score
    pairs           query, document, label, and teacher_score
    sentence pairs  text1, text2, label: a number, or the name of a class

as `crossrank mine` writes the first three (see `crossrank.training.negative_files`); other columns are
not read. Rows of triplets and pairs with the same query_id (the same query, where there is none) are one
list. A list is everything that is known of a query, whatever the file's form: what a loss needs is made
from lists (`crossrank.training.forms`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from crossrank.checks import check_text
from crossrank.errors import FileFormatError, InputError
from crossrank.runtime.weights import file_digest
from crossrank.store.formats import rows_of
from crossrank.training.recipes import DataSource

__all__ = ["Label", "TrainingData", "TrainingList", "draw", "read_examples", "read_lists"]

Label: TypeAlias = float | str


@dataclass(frozen=True)
class TrainingList:
    """A query and documents that are judged for it.

    Attributes:
        query_id: as the file has it, or the query itself.
        query: its text.
        documents: texts, all different.
        labels: of each document: a grade (above 0 is relevant), a similarity, or the name of a class.
        teacher_scores: of each document; None where one is missing.
    """

    query_id: str
    query: str
    documents: tuple[str, ...]
    labels: tuple[Label, ...]
    teacher_scores: tuple[float, ...] | None = None

    @property
    def positives(self) -> tuple[int, ...]:
        """Positions of the relevant documents."""
        return tuple(i for i, label in enumerate(self.labels) if not isinstance(label, str) and label > 0)

    @property
    def negatives(self) -> tuple[int, ...]:
        """Positions of the documents that are not relevant."""
        return tuple(i for i, label in enumerate(self.labels) if not isinstance(label, str) and label <= 0)

    def keep(self, positions: Sequence[int]) -> TrainingList:
        """Return a list of the documents at these positions, in this order."""
        scores = self.teacher_scores
        return replace(
            self,
            documents=tuple(self.documents[i] for i in positions),
            labels=tuple(self.labels[i] for i in positions),
            teacher_scores=None if scores is None else tuple(scores[i] for i in positions),
        )

    def cut(self, size: int, seed: int) -> TrainingList:
        """Return a list of at most `size` documents, drawn by a hash of seed, query and document.

        Positives are kept first, but for one place that a negative has; the order stays.
        """
        if len(self.documents) <= size:
            return self
        hashes = [draw(seed, self.query_id, document) for document in self.documents]
        drawn = sorted(range(len(hashes)), key=lambda i: hashes[i])
        positives = [i for i in drawn if i in {*self.positives}]
        others = [i for i in drawn if i not in {*positives}]
        most = size - 1 if others and size > 1 else size
        kept = positives[:most]
        return self.keep(sorted(kept + others[: size - len(kept)]))


@dataclass(frozen=True)
class TrainingData:
    """Lists of one or more files, and what they were made from.

    Attributes:
        lists: in the order of the files.
        digests: file -> SHA-256 of its bytes.
        counts: file -> lists that were taken from it.
    """

    lists: tuple[TrainingList, ...]
    digests: Mapping[str, str]
    counts: Mapping[str, int]

    @property
    def num_pairs(self) -> int:
        """Queries with each of their documents."""
        return sum(len(each.documents) for each in self.lists)


def read_examples(sources: Iterable[DataSource], seed: int) -> TrainingData:
    """Read the files of a recipe; everything is held in memory.

    Args:
        sources: the files; of each, a share and a most number of lists are drawn with the seed.
        seed: of the draws.

    Raises:
        FileFormatError: a file that cannot be read, or a row that is none of the forms.
    """
    lists: list[TrainingList] = []
    digests: dict[str, str] = {}
    counts: dict[str, int] = {}
    for source in sources:
        path = Path(source.file)
        drawn = [_ranged(each, source) for each in _drawn(read_lists(path), source, seed)]
        lists += drawn
        counts[source.file] = counts.get(source.file, 0) + len(drawn)
        digests[source.file] = file_digest(path)
    return TrainingData(tuple(lists), digests, counts)


def read_lists(path: Path) -> list[TrainingList]:
    """Return the lists of one file, in its order.

    Raises:
        FileFormatError: see `read_examples`.
    """
    gathered: dict[str, _Gathered] = {}
    lists = []
    for row in rows_of(path, path.parent, "utf-8"):
        if row.values is None:
            raise FileFormatError(row.reason, path, row.line)
        try:
            found = _list_of(row.values, row.line)
        except (InputError, KeyError, TypeError, ValueError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise FileFormatError(f"no row of training data: {reason}", path, row.line) from None
        if isinstance(found, TrainingList):
            lists.append(found)
            continue
        query_id, query, entries = found
        gathered.setdefault(query_id, _Gathered(query_id, query, {})).add(entries)
    lists += [each.as_list() for each in gathered.values()]
    if not lists:
        raise FileFormatError("there is no row in it", path)
    return lists


@dataclass
class _Gathered:
    """A query whose documents come in several rows."""

    query_id: str
    query: str
    entries: dict[str, tuple[Label, float | None]]

    def add(self, entries: Mapping[str, tuple[Label, float | None]]) -> None:
        for document, entry in entries.items():
            self.entries.setdefault(document, entry)

    def as_list(self) -> TrainingList:
        labels = tuple(label for label, _ in self.entries.values())
        return TrainingList(
            self.query_id,
            self.query,
            tuple(self.entries),
            labels,
            _all_or_none([score for _, score in self.entries.values()]),
        )


_Entries: TypeAlias = "tuple[str, str, dict[str, tuple[Label, float | None]]]"


def _list_of(row: Mapping[str, Any], line: int) -> TrainingList | _Entries:
    """Return a row as a whole list, or as documents of a query that may come again."""
    if {"text1", "text2"} <= row.keys():
        first, second = _text(row, "text1"), _text(row, "text2")
        return TrainingList(f"row {line}", first, (second,), (_label(row["label"]),))
    if "documents" in row:
        return _whole(row)
    if {"positive", "negative"} <= row.keys():
        positive, negative = _text(row, "positive"), _text(row, "negative")
        scores = row.get("positive_teacher_score"), row.get("teacher_score")
        entries: dict[str, tuple[Label, float | None]] = {
            positive: (1.0, _score(scores[0])),
            negative: (0.0, _score(scores[1])),
        }
        return _query_id(row), _text(row, "query"), entries
    if "document" in row:
        entry: tuple[Label, float | None] = _label(row["label"]), _score(row.get("teacher_score"))
        return _query_id(row), _text(row, "query"), {_text(row, "document"): entry}
    if row.keys() & {"document_ids", "document_id", "positive_id"}:
        raise InputError("it has ids and no texts; mine again without --ids-only (texts=True)")
    raise InputError(
        "it has none of documents and labels; positive and negative; document and label; text1, text2 and "
        f"label; but {', '.join(row)}"
    )


def _whole(row: Mapping[str, Any]) -> TrainingList:
    documents, labels = row["documents"], row["labels"]
    scores = row.get("teacher_scores") or [None] * len(documents)
    if not isinstance(documents, list) or not len(documents) == len(labels) == len(scores):
        raise InputError("documents, labels and teacher_scores must be lists of one length")
    entries: dict[str, tuple[Label, float | None]] = {}
    for i, document in enumerate(documents):
        check_text(document, f"documents[{i}]")
        entries.setdefault(document, (_label(labels[i]), _score(scores[i])))
    if not entries:
        raise InputError("documents is empty")
    return _Gathered(_query_id(row), _text(row, "query"), entries).as_list()


def _query_id(row: Mapping[str, Any]) -> str:
    return str(row["query_id"]) if row.get("query_id") is not None else _text(row, "query")


def _text(row: Mapping[str, Any], name: str) -> str:
    check_text(row[name], name)
    return str(row[name])


def _label(value: Any) -> Label:
    if isinstance(value, str):
        try:
            value = float(value)  # of a CSV file, where everything is text
        except ValueError:
            return str(value)
    if not isinstance(value, (bool, int, float)) or not abs(value) < float("inf"):
        raise InputError(f"label must be a finite number or the name of a class, not {value!r:.80}")
    return float(value)


def _score(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if not abs(number) < float("inf"):
        raise InputError(f"a teacher's score must be a finite number, not {value!r}")
    return number


def _all_or_none(scores: Sequence[float | None]) -> tuple[float, ...] | None:
    found = tuple(score for score in scores if score is not None)
    return found if len(found) == len(scores) else None


def _drawn(lists: Sequence[TrainingList], source: DataSource, seed: int) -> list[TrainingList]:
    """Return the share of lists with the smallest hashes; their order stays."""
    count = round(len(lists) * source.share)
    if count == 0:
        raise InputError(
            f"{source.file}: a share of {source.share:g} is none of its queries, which are {len(lists):,}"
        )
    count = count if source.limit is None else min(count, source.limit)
    if count >= len(lists):
        return [*lists]
    ranked = sorted(
        range(len(lists)), key=lambda i: draw(seed, source.file, lists[i].query_id, lists[i].query)
    )
    return [lists[i] for i in sorted(ranked[:count])]


def _ranged(found: TrainingList, source: DataSource) -> TrainingList:
    """Return a list whose labels are scaled to 0 to 1, where the recipe says their range."""
    if source.label_range is None:
        return found
    low, high = source.label_range
    labels = []
    for label in found.labels:
        if isinstance(label, str) or not low <= label <= high:
            raise InputError(
                f"{source.file}: query {found.query_id!r} has label {label!r}; "
                f"label_range is [{low:g}, {high:g}]"
            )
        labels.append((label - low) / (high - low))
    return replace(found, labels=tuple(labels))


def draw(seed: int, *parts: str) -> bytes:
    """Return a number in which parts are drawn: the smallest first, whatever else there is."""
    return hashlib.blake2b("\0".join([str(seed), *parts]).encode(), digest_size=8).digest()
