"""Rerankers with given scores, to compose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossrank.types import Document, Hit, Ranking


class Table:
    """Orders documents by a table of scores, text -> score; compares nothing, and cannot score pairs."""

    def __init__(self, name: str, table: Mapping[str, float], *, notes: Sequence[str] = ()) -> None:
        self.name, self.table, self.notes = name, dict(table), tuple(notes)
        self.calls: list[list[int]] = []

    def rank(self, query, documents, top_k=None):
        return self.rank_many([query], [documents], top_k)[0]

    def rank_many(self, queries, documents, top_k=None):
        self.calls.append([len(each) for each in documents])
        return [
            replace(
                Ranking.from_hits(
                    query,
                    [
                        Hit(each.id, self.value(each.text), 1, self.name, place, each, truncated_tokens=place)
                        for place, each in enumerate(candidates)
                    ],
                    top_k=top_k,
                ),
                notes=self.notes,
            )
            for query, candidates in zip(queries, documents, strict=True)
        ]

    def value(self, text: str) -> float:
        return float(np.float32(self.table[text]))


class PointwiseTable(Table):
    """A table that can score pairs, too."""

    def score(self, pairs):
        return np.array([self.table[document] for _, document in pairs], dtype=np.float32)


class Losing(Table):
    """Loses the last document."""

    def rank_many(self, queries, documents, top_k=None):
        return [replace(ranking, hits=ranking.hits[:-1]) for ranking in super().rank_many(queries, documents)]


DOCUMENTS = [
    Document("x", "a"),
    Document("y", "b", metadata={"n": 1}),
    Document("z", "c"),
    Document("w", "d"),
]
