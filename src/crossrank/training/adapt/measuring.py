"""Before and after: what the models of a search are worth on queries that nothing was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crossrank.cache import ScoreCache
from crossrank.evaluation.measures import evaluate
from crossrank.evaluation.significance import Comparison, compare
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.pipeline import Searcher
from crossrank.retrieval.bm25 import BM25
from crossrank.retrieval.dense import Dense
from crossrank.retrieval.hybrid import Hybrid
from crossrank.retrieval.retriever import Retriever
from crossrank.training.adapt.vectors import RememberedEncoder
from crossrank.types import Document, Qrels
from crossrank.whole_files import write_whole

__all__ = ["Judged", "Models", "Search", "is_better", "measure_adaptation"]

_EXAMPLES = 5  # of queries that lost most
_TOP = 100  # hits that are measured


class Search:
    """First stages over documents, which are encoded once a bi-encoder.

    Args:
        documents: what is searched.
        language: of BM25.
        vectors: where vectors are kept.
    """

    def __init__(self, documents: Sequence[Document], language: str | None, vectors: ScoreCache) -> None:
        self.documents = documents
        self.bm25 = BM25(documents, language=language)
        self._vectors = vectors
        self._dense: dict[str, Dense] = {}

    def dense(self, bi_encoder: BiEncoder) -> Dense:
        """Return the retriever of a bi-encoder."""
        if bi_encoder.fingerprint not in self._dense:
            encoder = RememberedEncoder(bi_encoder, self._vectors)
            self._dense[bi_encoder.fingerprint] = Dense(self.documents, encoder)
        return self._dense[bi_encoder.fingerprint]

    def hybrid(self, bi_encoder: BiEncoder) -> Hybrid:
        """Return BM25 and a bi-encoder as one."""
        return Hybrid([self.bm25, self.dense(bi_encoder)])


@dataclass(frozen=True)
class Judged:
    """What is measured on.

    Attributes:
        name: in the report.
        search: over the documents.
        queries: query id -> text.
        qrels: judgements.
        sources: query id -> source of a pseudo-query; empty for queries that people asked.
    """

    name: str
    search: Search
    queries: Mapping[str, str]
    qrels: Qrels
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Models:
    """The models before and after; None where training gave none."""

    old_bi_encoder: BiEncoder
    old_reranker: CrossEncoder
    new_bi_encoder: BiEncoder | None
    new_reranker: CrossEncoder | None


def is_better(found: Comparison, significance: float) -> bool:
    """Return whether a comparison shows a gain that chance does not explain."""
    return found.difference.value > 0 and found.p_value < significance


def measure_adaptation(
    judged: Judged,
    models: Models,
    *,
    measure: str,
    depth: int,
    significance: float,
    done: Path,
    kept: Mapping[str, bool] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure each model before and after, and the search of those that are kept.

    A bi-encoder is kept for what the first stage does with it, BM25 and bi-encoder as one; it is measured
    alone, too. A reranker is measured over the same candidates, those of BM25 and the old bi-encoder.

    Args:
        judged: what is measured on.
        models: before and after.
        measure: by its name.
        depth: candidates that are reranked.
        significance: see `is_better`.
        done: file of what has been measured: a killed run does not measure it again.
        kept: "bi_encoder" and "reranker" -> whether the new one is kept; None decides it by this measurement.
        progress: True shows bars, False none, None those of long calls on a terminal.

    Returns:
        Plain values: "name", "queries", "systems" (name -> mean), "comparisons" ("bi_encoder",
        "bi_encoder_alone", "reranker", "search" -> a `Comparison` as a dict, with the "losses" of it, the
        queries that lost most, and "sources" -> means before and after), "kept".
    """
    over = _Measurer(judged, measure, depth, done, progress)
    search = judged.search
    old_hybrid = search.hybrid(models.old_bi_encoder)
    over.run("BM25", search.bm25)
    alone_before = over.run("bi-encoder before", search.dense(models.old_bi_encoder))
    first_before = over.run("BM25 + bi-encoder before", old_hybrid)
    before = over.run("search before", old_hybrid, models.old_reranker)
    comparisons: dict[str, Any] = {}
    decided = {"bi_encoder": False, "reranker": False}
    new_hybrid = old_hybrid
    with_new_reranker = before
    if models.new_bi_encoder is not None:
        alone = over.run("bi-encoder after", search.dense(models.new_bi_encoder))
        new_hybrid = search.hybrid(models.new_bi_encoder)
        first = over.run("BM25 + bi-encoder after", new_hybrid)
        comparisons["bi_encoder"], decided["bi_encoder"] = over.compare(first, first_before, significance)
        comparisons["bi_encoder_alone"], _ = over.compare(alone, alone_before, significance)
    if models.new_reranker is not None:
        with_new_reranker = over.run("reranker after, candidates before", old_hybrid, models.new_reranker)
        comparisons["reranker"], decided["reranker"] = over.compare(with_new_reranker, before, significance)
    kept = dict(decided if kept is None else kept)
    if any(kept.values()):
        name = "search with what is kept"
        if kept["bi_encoder"]:
            reranker = models.new_reranker if kept["reranker"] else models.old_reranker
            after = over.run(name, new_hybrid, reranker)
        else:  # the same search, which has been measured
            after = with_new_reranker
            over.means[name] = over.means["reranker after, candidates before"]
        comparisons["search"], _ = over.compare(after, before, significance)
    return {
        "name": judged.name,
        "queries": len(judged.queries),
        "documents": len(judged.search.documents),
        "systems": over.means,
        "comparisons": comparisons,
        "kept": kept,
    }


class _Measurer:
    """Runs systems over the same queries, each once: what it found is written down."""

    def __init__(self, judged: Judged, measure: str, depth: int, done: Path, progress: bool | None) -> None:
        self._judged, self._measure, self._depth, self._progress = judged, measure, depth, progress
        self._file = done
        lines = done.read_bytes().splitlines() if done.is_file() else []
        self._done: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.means: dict[str, float] = {}

    def run(self, name: str, first: Retriever, reranker: CrossEncoder | None = None) -> dict[str, float]:
        """Return query id -> value of the measure."""
        key = (self._judged.name, name)
        earlier = (each for each in self._done if (each["on"], each["system"]) == key)
        found = next(earlier, None) or self._measured(name, first, reranker)
        self.means[name] = found["mean"]
        per_query: dict[str, float] = found["per_query"]
        return per_query

    def _measured(self, name: str, first: Retriever, reranker: CrossEncoder | None) -> dict[str, Any]:
        searcher = Searcher(first, reranker, depth=self._depth, on_error="raise")
        run = searcher.search_many(self._judged.queries, top_k=_TOP, progress=self._progress)
        evaluation = evaluate(run, self._judged.qrels, [self._measure])
        values = {query_id: each[self._measure] for query_id, each in evaluation.per_query.items()}
        found: dict[str, Any] = {
            "on": self._judged.name,
            "system": name,
            "mean": float(evaluation[self._measure]),
            "per_query": {query_id: float(value) for query_id, value in values.items()},
        }
        self._done.append(found)
        text = "".join(json.dumps(each) + "\n" for each in self._done)
        write_whole(self._file, lambda path: path.write_text(text, encoding="utf-8"))
        return found

    def compare(
        self, after: Mapping[str, float], before: Mapping[str, float], significance: float
    ) -> tuple[dict[str, Any], bool]:
        """Return the comparison in plain values, and whether it shows a gain."""
        found = compare(after, before)
        changes = {query_id: (before[query_id], value) for query_id, value in after.items()}
        worst = sorted(changes, key=lambda query_id: (changes[query_id][1] - changes[query_id][0], query_id))
        lost = [
            {
                "query": self._judged.queries[query_id],
                "before": changes[query_id][0],
                "after": changes[query_id][1],
            }
            for query_id in worst[:_EXAMPLES]
            if changes[query_id][1] < changes[query_id][0]
        ]
        by_source: dict[str, list[tuple[float, float]]] = {}
        for query_id, source in self._judged.sources.items():
            if query_id in changes:
                by_source.setdefault(source, []).append(changes[query_id])
        sources = {
            source: {
                "queries": len(values),
                "before": sum(value for value, _ in values) / len(values),
                "after": sum(value for _, value in values) / len(values),
            }
            for source, values in sorted(by_source.items())
        }
        return {**asdict(found), "lost_most": lost, "sources": sources}, is_better(found, significance)
