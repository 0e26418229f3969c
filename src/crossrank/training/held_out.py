"""What a model in training is measured on: queries with candidates, or pairs of sentences, held out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.evaluation.measures import evaluate, parse_measure
from crossrank.evaluation.pairs import spearman
from crossrank.retrieval.bm25 import BM25
from crossrank.training.examples import TrainingList, draw, read_lists
from crossrank.training.recipes import HeldOut

__all__ = ["HeldOutSet", "Measured", "open_held_out"]

PAIR_MEASURES = ("spearman", "accuracy")
"""Measures over all pairs of sentences together."""

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measured:
    """One measurement.

    Attributes:
        value: of the measure.
        per_query: query id -> value; empty for measures over all pairs together.
        deviation: standard deviation of the scores within lists, averaged; for pairs of sentences that of all
            pairs, and of a classifier that of the class where it is largest. 0 is a model that says the same
            of everything.
    """

    value: float
    per_query: Mapping[str, float]
    deviation: float


@dataclass(frozen=True)
class HeldOutSet:
    """Queries and the documents that are ranked for them.

    Attributes:
        name: where they are from, for messages and the card.
        measure: what is measured, by its name.
        queries: query id -> text.
        document_ids: of each query, in the order of the queries.
        documents: their texts.
        qrels: all judgements of the queries, also of documents that are no candidates.
        labels: of each pair, for measures over pairs.
        classes: names of the classes, for accuracy.
    """

    name: str
    measure: str
    queries: Mapping[str, str]
    document_ids: Sequence[Sequence[str]]
    documents: Sequence[Sequence[str]]
    qrels: Mapping[str, Mapping[str, int]]
    labels: Sequence[float | str] = ()
    classes: Sequence[str] | None = None

    @property
    def num_pairs(self) -> int:
        """How many pairs are scored at each measurement."""
        return sum(map(len, self.documents))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what decides a measurement: queries, candidates with their texts, judgements."""
        decides = (self.queries, self.document_ids, self.documents, self.qrels, self.labels)
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def measured(self, scores: Sequence[Scores]) -> Measured:
        """Return the measure of these scores.

        Args:
            scores: of each query's documents, in the order of `documents`; finite.
        """
        if self.measure in PAIR_MEASURES:
            joined = np.concatenate([*scores])
            value = self._accuracy(joined) if self.measure == "accuracy" else self._spearman(joined)
            return Measured(value, {}, float(joined.std(axis=0).max()))
        run = {
            query_id: dict(zip(ids, map(float, found), strict=True))
            for query_id, ids, found in zip(self.queries, self.document_ids, scores, strict=True)
        }
        evaluation = evaluate(run, self.qrels, [self.measure])
        per_query = {query_id: values[self.measure] for query_id, values in evaluation.per_query.items()}
        return Measured(evaluation[self.measure], per_query, float(np.mean([s.std() for s in scores])))

    def _grades(self) -> Scores:
        return np.asarray(self.labels, dtype=np.float32)

    def _spearman(self, scores: Scores) -> float:
        """Return the rank correlation; a model that says the same of all pairs orders none of them: 0."""
        return spearman(scores, self._grades()) if np.ptp(scores) else 0.0

    def _accuracy(self, scores: Scores) -> float:
        if scores.ndim == 2 and self.classes:
            wanted = [_class_name(label) for label in self.labels]
            found = [self.classes[i] for i in scores.argmax(axis=1)]
            return float(np.mean([a == b for a, b in zip(wanted, found, strict=True)]))
        # a logit above 0 is a probability above a half
        return float(np.mean((scores > 0) == (self._grades() > 0.5)))


def open_held_out(
    choice: HeldOut,
    seed: int,
    classes: Sequence[str] | None = None,
    training: Sequence[TrainingList] = (),
) -> HeldOutSet:
    """Return the set that a recipe names.

    Args:
        choice: of the recipe.
        seed: of the draw of queries.
        classes: names of the student's classes.
        training: lists of the training data, which queries are taken of where the recipe names nothing else.

    Raises:
        InputError: a measure that is not known or does not fit, or nothing that is judged.
        FileFormatError: see `Collection` and `read_lists`.
    """
    if choice.collection is not None:
        if choice.measure in PAIR_MEASURES:
            raise InputError(f"held_out.measure {choice.measure} is of pairs; name a file of them")
        return _of_collection(choice, choice.collection, str(parse_measure(choice.measure)), seed)
    if choice.file is not None:
        name, training = choice.file, read_lists(Path(choice.file))
    else:
        name = "the training data"
        choice = replace(choice, queries=choice.queries or _share(len(training)))
    if choice.measure in PAIR_MEASURES:
        return _of_pairs(choice, name, training, seed, classes)
    return _of_lists(choice, name, training, str(parse_measure(choice.measure)), seed)


def _share(count: int) -> int:
    """How many of the training data's queries are held out."""
    if count < 2:
        raise InputError("one query cannot be trained on and held out; say held_out: null to measure nothing")
    return min(200, max(count // 20, min(20, count // 5), 1))


def _of_collection(choice: HeldOut, folder: str, measure: str, seed: int) -> HeldOutSet:
    collection = Collection.open(folder)
    qrels = collection.qrels(choice.split)
    queries = _drawn(collection.queries(choice.split), choice, seed)
    documents = [*collection.documents()]
    texts = {document.id: document.full_text for document in documents}
    ids: list[list[str]] = []
    if choice.candidates == "bm25":
        rankings = BM25(documents).retrieve([*queries.values()], choice.depth)
        ids = [[hit.document_id for hit in ranking] for ranking in rankings]
    else:
        run = collection.run(choice.candidates)
        missing = [query_id for query_id in queries if query_id not in run]
        if missing:
            raise InputError(f"the run {choice.candidates} of {folder} lacks query {missing[0]!r}")
        ids = [[hit.document_id for hit in run[query_id]][: choice.depth] for query_id in queries]
    found = {query_id: each for query_id, each in zip(queries, ids, strict=True) if each}
    if not found:
        raise InputError(f"no query of {folder} has a candidate")
    return HeldOutSet(
        name=f"{collection.name} ({choice.split}, {choice.candidates} top {choice.depth})",
        measure=measure,
        queries={query_id: queries[query_id] for query_id in found},
        document_ids=[*found.values()],
        documents=[[texts[name] for name in each] for each in found.values()],
        qrels={query_id: qrels[query_id] for query_id in queries},
    )


def _of_lists(
    choice: HeldOut, source: str, lists: Sequence[TrainingList], measure: str, seed: int
) -> HeldOutSet:
    lists = [each for each in lists if each.positives]
    if not any(len(each.documents) > 1 for each in lists):
        raise InputError(
            f"{source} has no query with a positive among other documents, so {measure} cannot be measured: "
            "give held_out a file or a collection, for pairs of sentences held_out.measure spearman or "
            "accuracy, or say held_out: null to measure nothing"
        )
    drawn = _drawn({str(i): each.query for i, each in enumerate(lists)}, choice, seed)
    kept = [lists[int(name)] for name in drawn]
    ids = {name: [str(i) for i in range(len(each.documents))] for name, each in zip(drawn, kept, strict=True)}
    return HeldOutSet(
        name=_shown(choice, source),
        measure=measure,
        queries=drawn,
        document_ids=[*ids.values()],
        documents=[each.documents for each in kept],
        qrels={name: _grades_of(each, ids[name]) for name, each in zip(drawn, kept, strict=True)},
    )


def _grades_of(of: TrainingList, ids: Sequence[str]) -> dict[str, int]:
    grades = {}
    for name, label in zip(ids, of.labels, strict=True):
        if isinstance(label, str) or label != math.floor(label):
            raise InputError(f"query {of.query_id!r} has label {label!r}; rankings need whole grades")
        grades[name] = int(label)
    return grades


def _shown(choice: HeldOut, source: str) -> str:
    return source if choice.file is None else Path(source).name


def _of_pairs(
    choice: HeldOut,
    source: str,
    lists: Sequence[TrainingList],
    seed: int,
    classes: Sequence[str] | None,
) -> HeldOutSet:
    drawn = _drawn({str(i): each.query for i, each in enumerate(lists)}, choice, seed)
    kept = [lists[int(name)] for name in drawn]
    labels = [label for each in kept for label in each.labels]
    if choice.measure == "spearman" and any(isinstance(label, str) for label in labels):
        raise InputError(f"{source} has names of classes; held_out.measure spearman is for numbers")
    if choice.measure == "spearman" and len({*labels}) < 2:
        raise InputError(f"{source} has the same label everywhere; spearman is of different ones")
    if choice.measure == "accuracy" and classes:
        unknown = sorted({_class_name(label) for label in labels} - {*classes})
        if unknown:
            known = ", ".join(classes)
            raise InputError(f"{source} has label {unknown[0]!r}; student.classes are {known}")
    return HeldOutSet(
        name=_shown(choice, source),
        measure=choice.measure,
        queries=drawn,
        document_ids=[[str(i) for i in range(len(each.documents))] for each in kept],
        documents=[each.documents for each in kept],
        qrels={},
        labels=labels,
        classes=classes,
    )


def _drawn(queries: Mapping[str, str], choice: HeldOut, seed: int) -> dict[str, str]:
    if choice.queries is None or choice.queries >= len(queries):
        return dict(queries)
    kept = {*sorted(queries, key=lambda query_id: draw(seed, query_id))[: choice.queries]}
    return {query_id: text for query_id, text in queries.items() if query_id in kept}


def _class_name(label: float | str) -> str:
    return label if isinstance(label, str) else f"{label:g}"
