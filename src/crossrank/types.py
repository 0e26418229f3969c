"""The nouns every layer speaks in: Document, Hit, Ranking, Run, Qrels.

No logic beyond what keeps them true. All are immutable: nothing crossrank does changes an object a
caller passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from crossrank.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from crossrank.context import Context

__all__ = ["Document", "Hit", "Pair", "Qrels", "Ranking", "Run", "TokenIds"]

Qrels = Mapping[str, Mapping[str, int]]
"""Judgements: query id -> document id -> grade (0 is judged and not relevant)."""


class Pair(NamedTuple):
    """A query and a document's text: what a pointwise reranker scores."""

    query: str
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class TokenIds:
    """What a tokenizer made of a text.

    Attributes:
        tokenizer: the fingerprint of the tokenizer.
        text: what it was given.
        ids: (n,) whole numbers, without special tokens.
    """

    tokenizer: str
    text: str
    ids: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Document:
    """A text that can be found.

    Attributes:
        id: unique within a collection or index, not empty.
        text: the body; may be empty (some collections have such documents).
        title: optional, empty when there is none.
        metadata: typed fields to filter on and show; not searched.
        token_ids: of `full_text`, where an index that keeps them found the document; they save a reranker
            the tokenising. No part of what the document is: equal documents may have other ones.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    token_ids: TokenIds | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InputError(f"a document id must be a non-empty string, not {self.id!r}")
        for name in ("text", "title"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"document {self.id!r}: {name} must be a string, not {type(value).__name__}")

    @property
    def full_text(self) -> str:
        """Title and text joined by a space: what models read (the BEIR convention)."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """One document of a ranking.

    Attributes:
        document_id: id of the document; for a plain list of texts, its position as a string.
        score: float32 value that ranks it here, higher is better; comparable within one ranking.
        rank: 1-based.
        stage: which stage gave the score: "bm25", "dense", "hybrid", "rerank", a model's name.
        index: 0-based position in the list the caller passed; None when there was no list.
        document: the document itself where it is at hand.
        probability: calibrated probability of relevance, None without calibration.
        first_stage_rank: 1-based rank among the candidates, None when there was no first stage.
        first_stage_score: the first stage's score.
        stage_scores: the score each stage gave, by stage name, in the order the stages ran.
        truncated_tokens: how many document tokens the model did not see.
        span: character span [start, end) of the winning window of a long document.
    """

    document_id: str
    score: float
    rank: int
    stage: str
    index: int | None = None
    document: Document | None = None
    probability: float | None = None
    first_stage_rank: int | None = None
    first_stage_score: float | None = None
    stage_scores: Mapping[str, float] = field(default_factory=dict)
    truncated_tokens: int = 0
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Ranking(Sequence[Hit]):
    """One query's hits, best first.

    Attributes:
        query: the query's text.
        hits: best first, ranks 1..n.
        query_id: id in a run, None for a query typed by a person.
        timings_ms: wall milliseconds by stage, in the order the stages ran.
        status: "ok", or "degraded" when a stage failed and an earlier order stands.
        notes: what a reader should know: the failure, candidates left out by a time budget.
    """

    query: str
    hits: tuple[Hit, ...] = ()
    query_id: str | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    status: str = "ok"
    notes: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self.hits[index]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def document_ids(self) -> tuple[str, ...]:
        """Document ids, best first."""
        return tuple(hit.document_id for hit in self.hits)

    @property
    def scores(self) -> tuple[float, ...]:
        """Scores, best first."""
        return tuple(hit.score for hit in self.hits)

    def as_context(
        self,
        *,
        max_tokens: int = 2000,
        template: str | None = None,
        count_tokens: Callable[[str], int] | None = None,
        allow_cut: bool = False,
    ) -> Context:
        """Return the best passages that fit, numbered for citation: see `crossrank.context.as_context`."""
        from crossrank.context import DEFAULT_TEMPLATE, as_context

        return as_context(
            self,
            max_tokens=max_tokens,
            template=DEFAULT_TEMPLATE if template is None else template,
            count_tokens=count_tokens,
            allow_cut=allow_cut,
        )

    @classmethod
    def from_hits(
        cls, query: str, hits: Sequence[Hit], *, top_k: int | None = None, query_id: str | None = None
    ) -> Ranking:
        """Order hits by score, best first, and number them.

        Equal scores keep the order they came in: for a reranker that is the first stage's order.

        Args:
            query: the query's text.
            hits: in any order; their `rank` is set anew.
            top_k: how many to keep; None keeps all.
            query_id: id of the query in a run.
        """
        ordered = sorted(hits, key=lambda hit: -hit.score)[:top_k]
        return cls(
            query,
            tuple(replace(hit, rank=rank) for rank, hit in enumerate(ordered, start=1)),
            query_id=query_id,
        )


@dataclass(frozen=True)
class Run(Mapping[str, Ranking]):
    """Rankings of many queries by query id, as a TREC run file holds them.

    Attributes:
        rankings: query id -> ranking, in the order of the queries.
        tag: the run's name, the last column of a TREC run file.
    """

    rankings: Mapping[str, Ranking]
    tag: str = "crossrank"

    def __getitem__(self, query_id: str) -> Ranking:
        return self.rankings[query_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rankings)

    def __len__(self) -> int:
        return len(self.rankings)
