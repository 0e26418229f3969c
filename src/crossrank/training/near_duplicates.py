"""How much of two texts is the same: Jaccard similarity of their word shingles.

A miner compares a few dozen texts a query, so sets are compared as they are; MinHash would only estimate
the same number.

Source:
    Broder 1997, "On the resemblance and containment of documents".
"""

from __future__ import annotations

from typing import TypeAlias

from crossrank.retrieval.text import Analyzer

__all__ = ["SHINGLE_WORDS", "Shingles", "resemblance", "shingles"]

SHINGLE_WORDS = 3
"""Words of a shingle. Of a text of n words, a change of one word changes at most three of n - 2."""

Shingles: TypeAlias = frozenset[tuple[str, ...]]

# Words as written, without stemming and stop words: small words tell a copy from a paraphrase.
_WORDS = Analyzer(language=None)


def shingles(text: str) -> Shingles:
    """Return all runs of `SHINGLE_WORDS` successive words; a shorter text is one shingle, if it has words."""
    words = _WORDS.analyze(text)
    if len(words) < SHINGLE_WORDS:
        return frozenset([tuple(words)]) if words else frozenset()
    return frozenset(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def resemblance(one: Shingles, other: Shingles) -> float:
    """Return the Jaccard similarity, from 0 to 1: shingles in both among those in either.

    1 for the same words in the same order, whatever their case and punctuation. 0 where a text has none.
    """
    common = len(one & other)
    return common / (len(one) + len(other) - common) if common else 0.0
