"""How near scores are to float32's: the classes exact, tolerance and approximate, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.evaluation.collections import Collection
from crossrank.evaluation.measures import evaluate
from crossrank.evaluation.significance import compare as compare_means
from crossrank.evaluation.trec import read_qrels
from crossrank.retrieval.bm25 import BM25
from crossrank.runtime.quantization import compare, exceeded
from crossrank.types import Document, Qrels

__all__ = ["DEPTHS", "EXACT", "TOLERANCE", "Judged", "judge", "read_judged", "within_tolerance"]

Array = npt.NDArray[np.float32]

EXACT = 1e-4
"""Most that a logit may differ from float32's in the class "exact"."""

TOLERANCE = 0.003
"""Most that the ends of the 95 % interval of ΔnDCG@10 may be from 0 in the class "tolerance"."""

DEPTHS = (10, 20, 50, 100)
"""How many candidates are reranked at the points of a curve of nDCG@10 against milliseconds."""

_MEASURE = "nDCG@10"
_TOP = 10


class Judged(NamedTuple):
    """Judged queries with the candidates that are reranked for each, in the first stage's order."""

    name: str
    queries: dict[str, str]
    candidates: list[list[Document]]
    qrels: Qrels

    def pairs(self) -> list[list[tuple[str, str]]]:
        """Query and text of each candidate, a list a query."""
        return [
            [(query, document.full_text) for document in documents]
            for query, documents in zip(self.queries.values(), self.candidates, strict=True)
        ]

    def scored(self, score: Callable[[list[tuple[str, str]]], Array]) -> list[Array]:
        """Return what one call of a scorer gives all pairs, an array a query."""
        pairs = self.pairs()
        ends = np.cumsum([len(each) for each in pairs])[:-1]
        return np.split(score([pair for each in pairs for pair in each]), ends)

    def difference(self, reference: Sequence[Array], scores: Sequence[Array]) -> dict[str, Any]:
        """What other scores do to the rankings of the float32 scores.

        Args:
            reference: float32 logits, one array a query, in the order of the candidates.
            scores: those to look at, alike.

        Returns:
            "float32" and "other": nDCG@10; "difference" and "interval": other less float32, with its 95 %
            bootstrap interval over queries; "within": whether that lies inside ±`TOLERANCE`; "kendall_tau"
            and "top10_overlap": means over queries; "mean_delta_in_std", "max_delta": of logits; "by_depth":
            nDCG@10 where only the first candidates are reranked.
        """
        other, float32 = (evaluate(self._run(each), self.qrels, [_MEASURE]) for each in (scores, reference))
        found = compare_means(other, float32, _MEASURE)
        parity = compare(reference, scores, shortest=_TOP)
        interval = found.difference
        deepest = max(map(len, self.candidates))
        overlaps = [_overlap(*each) for each in zip(reference, scores, strict=True)]
        depths = [depth for depth in DEPTHS if depth < deepest] + [deepest]
        return {
            "queries": len(self.queries),
            "pairs": parity.num_pairs,
            "float32": round(found.other_mean.value, 5),
            "other": round(found.mean.value, 5),
            "difference": round(interval.value, 5),
            "interval": [round(interval.low, 5), round(interval.high, 5)],
            "within": max(-interval.low, interval.high) <= TOLERANCE,
            "kendall_tau": parity.kendall_tau,
            "top10_overlap": round(float(np.mean(overlaps)), 4),
            "mean_delta_in_std": round(parity.mean_delta / parity.reference_std, 5),
            "max_delta": parity.max_delta,
            "by_depth": {
                str(depth): round(self.quality([each[:depth] for each in scores]), 5) for depth in depths
            },
        }

    def quality(self, scores: Sequence[Array]) -> float:
        """nDCG@10 of the candidates in the order of their scores.

        Args:
            scores: one array a query, of the candidates or the first of them. With at least 10, those below
                cannot change the measure.
        """
        return evaluate(self._run(scores), self.qrels, [_MEASURE])[_MEASURE]

    def _run(self, scores: Sequence[Array]) -> dict[str, dict[str, float]]:
        return {
            query_id: {
                document.id: float(score)
                for document, score in zip(documents[: len(values)], values, strict=True)
            }
            for query_id, documents, values in zip(self.queries, self.candidates, scores, strict=True)
        }


def read_judged(
    folder: str | Path,
    *,
    depth: int = 50,
    num_queries: int | None = None,
    split: str = "test",
    run: str | None = None,
    qrels: str | Path | None = None,
) -> Judged:
    """Judged queries of a collection, with BM25's candidates or those of a run.

    Args:
        folder: a collection in BEIR form.
        depth: candidates of a query.
        num_queries: the first of the judged queries; None takes all.
        split: whose judgements.
        run: name of a run of the collection, whose candidates are taken in place of BM25's.
        qrels: a file of judgements in place of the split's.

    Raises:
        FileFormatError: something missing or malformed in the collection.
        InputError: no judged query has candidates.
    """
    collection = Collection.open(folder)
    judgements = read_qrels(Path(qrels)) if qrels else collection.qrels(split)
    queries = {name: text for name, text in collection.queries().items() if name in judgements}
    documents = {document.id: document for document in collection.documents()}
    rankings: Mapping[str, Any]
    if run:
        rankings = collection.run(run)
        queries = {name: text for name, text in queries.items() if name in rankings}
    queries = dict(list(queries.items())[:num_queries])
    if not run:
        found = BM25(list(documents.values())).retrieve(list(queries.values()), depth)
        rankings = dict(zip(queries, found, strict=True))
    candidates = {
        name: [documents[hit.document_id] for hit in rankings[name][:depth] if hit.document_id in documents]
        for name in queries
    }
    queries = {name: text for name, text in queries.items() if candidates[name]}
    if not queries:
        raise InputError(f"{collection.folder}: no judged query has candidates")
    return Judged(
        collection.name,
        queries,
        [candidates[name] for name in queries],
        {name: judgements[name] for name in queries},
    )


def within_tolerance(found: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Whether a difference is proven small on every collection; None where there is none.

    Args:
        found: collection -> what `Judged.difference` gives.
    """
    return all(each["within"] for each in found.values()) if found else None


def judge(
    reference: Array,
    scores: Array,
    alone: Array,
    few: Sequence[int],
    *,
    proven: bool | None = None,
) -> dict[str, Any]:
    """Say how near scores are to the reference, and whether a pair's score is its own.

    "exact" is a largest difference below `EXACT`, also where pairs are scored alone. "tolerance" is a
    difference of nDCG@10 whose 95 % interval lies inside ±`TOLERANCE` on judged queries; without any, it is
    what the int8 parity gate lets pass, if no score moves by `EXACT` when its pair is scored alone. Anything
    else is "approximate".

    Args:
        reference: float32 logits (n,).
        scores: those of the contestant (n,).
        alone: scores of some pairs, in a call of their own.
        few: which those are.
        proven: what `within_tolerance` says.
    """
    parity = compare([reference], [scores])
    delta_alone = float(np.abs(alone - scores[list(few)]).max())
    if parity.max_delta < EXACT and delta_alone < EXACT:
        kind = "exact"
    elif (not exceeded(parity) and delta_alone < EXACT) if proven is None else proven:
        kind = "tolerance"
    else:
        kind = "approximate"
    return {
        "class": kind,
        "max_delta": parity.max_delta,
        "mean_delta_in_std": parity.mean_delta / parity.reference_std if parity.reference_std else 0.0,
        "kendall_tau": parity.kendall_tau,
        "top10_overlap": _overlap(reference, scores),
        "max_delta_alone": delta_alone,
    }


def _overlap(reference: Array, scores: Array) -> float:
    top = min(_TOP, len(reference))
    best = [set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (reference, scores)]
    return len(best[0] & best[1]) / top
