"""Where negatives come from: a first stage, a run file, or chance; and in which order they are tried.

Every draw is a hash of the seed, the query's id, the source's name and what is drawn. So it is the same in
any order of queries, in blocks of any size, and on every machine and version of Python.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from crossrank.checks import check_count
from crossrank.errors import InputError, ModelOutputError
from crossrank.training.corpus import Corpus
from crossrank.types import Ranking, Run

if TYPE_CHECKING:
    from crossrank.retrieval.retriever import Retriever
    from crossrank.store.lance import Index

__all__ = ["RANDOM", "Candidate", "Sampling", "Source", "as_single", "random_candidates", "window"]

RANDOM = "random"
"""The first stage that is none: documents drawn from the whole corpus."""

Sampling: TypeAlias = Literal["top", "random", "spread"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Candidate(NamedTuple):
    """A document that may become a negative.

    Attributes:
        document_id: its id.
        rank: 1-based in its source's ranking, positives counted; None for a random one.
        score: its source's, as `as_single` gives it; None for a random one.
    """

    document_id: str
    rank: int | None
    score: float | None


@dataclass(frozen=True)
class Source:
    """A first stage, and how many negatives a query gets from it.

    Args:
        first_stage: a retriever; an index (by words and vectors, or by words alone if it was opened without
            its bi-encoder); rankings by query id, such as `read_run` gives; or "random".
        count: negatives a query, at least 1.
        name: in the output; "" takes the retriever's name, the run's tag, or "random".
        skip_top: first hits of the ranking that are passed over.
        depth: the last rank that is looked at. Of a random source: how many documents are drawn to choose
            from, since filters refuse some.
        sampling: in which order the hits of the window are tried until `count` have passed the filters:
            "top" from the best down, "random" in random order, "spread" one from each of `count` equal
            parts of the window, then another from each.

    Raises:
        InputError: something else, a window without ranks, or a window or sampling of a random source.
    """

    first_stage: Retriever | Index | Mapping[str, Ranking] | Literal["random"]
    count: int
    name: str = ""
    skip_top: int = 0
    depth: int = 100
    sampling: Sampling = "top"

    def __post_init__(self) -> None:
        stage: Any = self.first_stage
        if callable(getattr(stage, "search_text", None)):
            from crossrank.retrieval.from_index import index_retriever

            stage = index_retriever(stage)
            object.__setattr__(self, "first_stage", stage)
        if isinstance(stage, Mapping):
            own_name = stage.tag if isinstance(stage, Run) else "run"
        elif stage == RANDOM:
            own_name = RANDOM
        elif callable(getattr(stage, "retrieve", None)):
            own_name = stage.name
        else:
            raise InputError(
                'a source needs a retriever, an index, rankings by query id, or "random", not '
                f"{stage!r:.100}; over a list of texts, BM25(texts) is a retriever"
            )
        object.__setattr__(self, "name", self.name or own_name)
        check_count(self.count, f"count of source {self.name!r}")
        check_count(self.depth, f"depth of source {self.name!r}")
        if self.sampling not in get_args(Sampling):
            raise InputError(
                f"sampling of source {self.name!r} must be one of {', '.join(get_args(Sampling))}, not "
                f"{self.sampling!r}"
            )
        if isinstance(self.skip_top, bool) or not isinstance(self.skip_top, int) or self.skip_top < 0:
            raise InputError(
                f"skip_top of source {self.name!r} must be a whole number, not {self.skip_top!r}"
            )
        if self.skip_top >= self.depth:
            raise InputError(
                f"source {self.name!r} skips {self.skip_top} hits and looks at {self.depth}, so none is "
                "left; raise depth or lower skip_top"
            )
        if self.is_random and (self.skip_top or self.sampling != "top"):
            raise InputError("a random source has no ranks: skip_top and sampling would do nothing")

    @property
    def is_random(self) -> bool:
        """Whether documents are drawn from the whole corpus."""
        return isinstance(self.first_stage, str)

    @property
    def description(self) -> dict[str, Any]:
        """What decides its candidates, as far as it can be told; plain JSON."""
        options = {name: getattr(self, name) for name in ("name", "count", "skip_top", "depth", "sampling")}
        if isinstance(self.first_stage, Mapping):
            hasher = hashlib.sha256()
            for query_id, ranking in self.first_stage.items():
                hits = [(hit.document_id, float(hit.score)) for hit in ranking]
                hasher.update(json.dumps([query_id, hits]).encode())
            return {**options, "rankings": hasher.hexdigest()}
        return {**options, "first_stage": _described(self.first_stage)}

    def rankings(self, queries: Mapping[str, str]) -> list[Ranking]:
        """Return a ranking of at most `depth` hits for each query; one that a run lacks gets none.

        Args:
            queries: query id -> text.
        """
        stage: Any = self.first_stage
        if isinstance(stage, Mapping):
            found = [stage.get(query_id, Ranking(text)) for query_id, text in queries.items()]
            return [Ranking(each.query, each.hits[: self.depth]) for each in found]
        return list(stage.retrieve(list(queries.values()), top_k=self.depth))


def _described(stage: Any) -> Any:
    """Say what a retriever is by its settings, its models and the retrievers in it."""
    if isinstance(stage, str):
        return stage
    parts: dict[str, Any] = {"type": type(stage).__name__, "name": stage.name}
    for name in ("k1", "b", "depth"):
        if hasattr(stage, name):
            parts[name] = getattr(stage, name)
    fusion = getattr(stage, "fusion", None)
    if fusion is not None:
        # the repr of a function has its address in it
        parts["fusion"] = repr(fusion) if is_dataclass(fusion) else type(fusion).__name__
    analyzer = getattr(stage, "analyzer", None)
    if analyzer is not None:
        parts["language"] = getattr(analyzer, "language", None)
    holder = stage if hasattr(stage, "bi_encoder") else getattr(stage, "index", None)
    fingerprint = getattr(getattr(holder, "bi_encoder", None), "fingerprint", None)
    if fingerprint is not None:
        parts["bi_encoder"] = fingerprint
    if hasattr(stage, "retrievers"):
        parts["retrievers"] = [_described(each) for each in stage.retrievers]
    return parts


def window(
    source: Source, ranking: Ranking, excluded: Collection[str], *, seed: int, query_id: str
) -> list[Candidate]:
    """Return the candidates of one query's ranking in the order they are tried.

    Args:
        source: whose ranking it is.
        ranking: as `Source.rankings` gives it.
        excluded: ids that must not be negatives; they keep their ranks.
        seed: of the run.
        query_id: the query's.

    Raises:
        ModelOutputError: a score that is not finite.
    """
    found = [
        Candidate(hit.document_id, rank, as_single(hit.score, source.name, query_id))
        for rank, hit in enumerate(ranking, start=1)
        if rank > source.skip_top and hit.document_id not in excluded
    ]
    if source.sampling == "top":
        return found
    key = _lot(seed, query_id, source.name)
    if source.sampling == "random":
        return sorted(found, key=lambda candidate: key(candidate.document_id))
    borders = [part * len(found) // source.count for part in range(source.count + 1)]
    turns = [
        (turn, key(candidate.document_id), candidate)
        for start, end in itertools.pairwise(borders)
        for turn, candidate in enumerate(sorted(found[start:end], key=lambda each: key(each.document_id)))
    ]
    return [candidate for _, _, candidate in sorted(turns, key=lambda each: each[:2])]


def random_candidates(
    source: Source, corpus: Corpus, excluded: Collection[str], *, seed: int, query_id: str
) -> list[Candidate]:
    """Return up to `source.depth` documents of the whole corpus, each as likely as any other.

    They are drawn by number: no text is read.

    Args:
        source: a random one.
        corpus: what is drawn from.
        excluded: ids that must not be negatives.
        seed: of the run.
        query_id: the query's.
    """
    key = _lot(seed, query_id, source.name)
    total = len(corpus)
    numbers: Sequence[int]
    if total <= 2 * source.depth:  # few numbers are new when most have been drawn: shuffle instead
        numbers = sorted(range(total), key=lambda number: key(str(number)))[: source.depth]
    else:
        drawn: dict[int, None] = {}
        turn = 0
        while len(drawn) < source.depth:
            drawn[int.from_bytes(key(str(turn)), "big") % total] = None
            turn += 1
        numbers = list(drawn)
    ids = map(corpus.id_at, numbers)
    return [Candidate(document_id, None, None) for document_id in ids if document_id not in excluded]


def _lot(seed: int, query_id: str, source: str) -> Callable[[str], bytes]:
    start = hashlib.blake2b(json.dumps([seed, query_id, source]).encode(), digest_size=16)

    def lot(what: str) -> bytes:
        hasher = start.copy()
        hasher.update(json.dumps(what).encode())
        return hasher.digest()

    return lot


def as_single(score: float, stage: str, query_id: str) -> float:
    """Return a score as the shortest number that is the same float32: what is filtered is what is written.

    Args:
        score: of a hit.
        stage: who gave it, for the message.
        query_id: to which query, for the message.

    Raises:
        ModelOutputError: NaN, or infinite as float32.
    """
    if not abs(score) <= _FLOAT32_MAX:
        raise ModelOutputError(f"{stage} gave the score {score} for query {query_id!r}; it must be finite")
    return float(str(np.float32(score)))
