"""Which pseudo-queries are worth training with: no copies of one another, and found again by a search."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossrank.checks import as_number, check_count
from crossrank.retrieval.retriever import Retriever
from crossrank.retrieval.text import Analyzer
from crossrank.training.adapt.pseudo_queries import PseudoQuery

__all__ = ["Filtered", "round_trip", "without_near_duplicates"]

_AT_A_TIME = 256  # queries of one search


@dataclass(frozen=True)
class Filtered:
    """What a filter left.

    Attributes:
        queries: those that passed, in their order.
        dropped: source -> how many did not.
    """

    queries: tuple[PseudoQuery, ...]
    dropped: Mapping[str, int]


def without_near_duplicates(
    queries: Sequence[PseudoQuery], *, threshold: float = 0.8, language: str | None = "english"
) -> Filtered:
    """Drop queries whose terms are nearly those of an earlier query, of whatever document.

    Two documents that the same query fits would be each other's false negatives. Terms are compared as sets,
    by their Jaccard similarity, exactly; only pairs that share one of their rarest terms are looked at, since
    no other pair can reach the threshold.

    Args:
        queries: in the order in which they are preferred.
        threshold: the similarity from which the later one is dropped, above 0.
        language: for stemming and stop words; a query of stop words alone is dropped.

    Source:
        Prefix filtering: Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins in Data Cleaning".
    """
    as_number(threshold, "threshold", 1e-6, 1)
    analyzer = Analyzer(language)
    terms = [frozenset(analyzer.analyze(query.text)) for query in queries]
    frequencies = Counter(term for each in terms for term in each)
    kept: list[int] = []
    by_prefix: defaultdict[str, list[int]] = defaultdict(list)
    for i, mine in enumerate(terms):
        # of n terms, t * n or more are in both: so one of any n - ceil(t * n) + 1 is
        length = len(mine) - math.ceil(threshold * len(mine) - 1e-9) + 1
        prefix = sorted(mine, key=lambda term: (frequencies[term], term))[:length]
        others = {j for term in prefix for j in by_prefix[term]}
        if not mine or any(_jaccard(mine, terms[j]) >= threshold for j in others):
            continue
        kept.append(i)
        for term in prefix:
            by_prefix[term].append(i)
    return _filtered(queries, {*kept})


def round_trip(queries: Sequence[PseudoQuery], search: Retriever, *, top_k: int = 20) -> Filtered:
    """Drop queries whose document is not among the first hits of a search for them.

    Args:
        queries: to search for.
        search: over all documents, without what the queries withhold.
        top_k: hits among which the document must be.
    """
    check_count(top_k)
    kept = set()
    for start in range(0, len(queries), _AT_A_TIME):
        block = queries[start : start + _AT_A_TIME]
        rankings = search.retrieve([query.text for query in block], top_k)
        for i, (query, ranking) in enumerate(zip(block, rankings, strict=True), start=start):
            if query.document_id in ranking.document_ids:
                kept.add(i)
    return _filtered(queries, kept)


def _filtered(queries: Sequence[PseudoQuery], kept: set[int]) -> Filtered:
    dropped = Counter(query.source for i, query in enumerate(queries) if i not in kept)
    return Filtered(
        tuple(query for i, query in enumerate(queries) if i in kept), dict(sorted(dropped.items()))
    )


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
