"""A small corpus with judgements, a first stage as rankings, and a teacher that needs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossrank.types import Document, Hit, Ranking, Run

WORDS = (
    *("fox", "whale", "river", "mountain", "music", "train", "winter", "island"),
    *("copper", "garden", "letter", "engine", "forest", "glass", "bridge", "harbour"),
)


def made_documents() -> list[Document]:
    """60 documents; d50 to d54 are copies of d0 to d4 but for case and points, and d55 is empty."""
    rng = np.random.default_rng(3)
    documents = [
        Document(
            f"d{number}",
            " ".join(rng.choice(WORDS, size=int(rng.integers(8, 25)))),
            title=str(rng.choice(WORDS)) if number % 2 else "",
        )
        for number in range(50)
    ]
    copies = [Document(f"d{50 + n}", f"{documents[n].full_text.upper()}.") for n in range(5)]
    return [
        *documents,
        *copies,
        Document("d55", " "),
        *(Document(f"d{n}", f"{n} bells") for n in range(56, 60)),
    ]


DOCUMENTS = made_documents()
QUERIES = {f"q{number}": f"{WORDS[number]} {WORDS[-number - 1]} {WORDS[number + 3]}" for number in range(8)}
QRELS = {
    f"q{number}": {f"d{number}": 2, f"d{number + 10}": 1, f"d{number + 20}": 0}
    for number in range(len(QUERIES))
}


class OverlapTeacher:
    """Scores a pair by the share of the query's words in the document, and their place."""

    name = "overlap"
    fingerprint = "overlap"

    def __init__(self) -> None:
        self.num_calls = 0
        self.num_pairs = 0

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.array([self._score(*pair) for pair in pairs], dtype=np.float32)

    def rank(self, query: str, documents: Sequence[Document], top_k: int | None = None) -> Ranking:
        hits = [
            Hit(each.id, float(self._score(query, each.full_text)), 1, self.name, index=index)
            for index, each in enumerate(documents)
        ]
        return Ranking.from_hits(query, hits, top_k=top_k)

    def rank_many(
        self, queries: Sequence[str], documents: Sequence[Sequence[Document]], top_k: int | None = None
    ) -> list[Ranking]:
        self.num_calls += 1
        self.num_pairs += sum(map(len, documents))
        return [self.rank(query, each, top_k) for query, each in zip(queries, documents, strict=True)]

    @staticmethod
    def _score(query: str, text: str) -> np.float32:
        words = text.lower().split()
        return np.float32(
            sum(words.count(word) / (1 + words.index(word)) for word in query.split() if word in words)
        )


def run_of(rankings: Mapping[str, Sequence[tuple[str, float]]], tag: str = "first") -> Run:
    """Rankings by query id from (document id, score), best first."""
    return Run(
        {
            query_id: Ranking(
                QUERIES.get(query_id, ""),
                tuple(Hit(name, score, rank, tag) for rank, (name, score) in enumerate(hits, start=1)),
            )
            for query_id, hits in rankings.items()
        },
        tag,
    )


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
