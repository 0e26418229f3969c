"""Saying that nothing answers: hits that are not probable enough are left out, and it is said how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossrank.types import Hit, Ranking

__all__ = ["NOTHING_ANSWERS", "probable", "probable_ranking"]

NOTHING_ANSWERS = "nothing here answers the question"
"""How the note of a ranking begins whose hits are all too improbable."""


def probable(hits: Sequence[Hit], min_probability: float) -> tuple[list[Hit], list[str]]:
    """Return the hits whose probability is at least that, in their order, and notes on the others.

    Args:
        hits: of one ranking; one without a probability, which no calibrated reranker has seen, is left out.
        min_probability: from 0 to 1.
    """
    if not hits:
        return [], []
    kept = [hit for hit in hits if hit.probability is not None and hit.probability >= min_probability]
    known = [hit.probability for hit in hits if hit.probability is not None]
    unknown = len(hits) - len(known)
    notes = []
    if not kept:
        best = (
            f"the most probable of {len(known)} documents has {max(known):.3f}"
            if known
            else "none was scored"
        )
        notes.append(f"{NOTHING_ANSWERS}: {best}, and {min_probability:g} is asked for")
    elif len(kept) < len(known):
        notes.append(f"left out {len(known) - len(kept)} of {len(hits)} documents: below {min_probability:g}")
    if unknown and known:
        notes.append(
            f"left out {unknown} of {len(hits)} documents that have no probability: not reranked to the end"
        )
    return kept, notes


def probable_ranking(ranking: Ranking, min_probability: float, top_k: int | None = None) -> Ranking:
    """Return a reranker's ranking with the hits that are probable enough alone.

    Args:
        ranking: whose hits have probabilities.
        min_probability: from 0 to 1.
        top_k: how many of them to keep; None keeps all.
    """
    kept, notes = probable(ranking.hits, min_probability)
    hits = tuple(replace(hit, rank=rank) for rank, hit in enumerate(kept[:top_k], start=1))
    return replace(ranking, hits=hits, notes=(*ranking.notes, *notes))
