"""What the terminal and the page share: how strong a weight is shown, and texts that are safe to show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crossrank.explanation.result import Explanation, Link, Term

__all__ = ["LEVELS", "Piece", "Shading", "pieces", "top_links", "top_terms", "visible"]

LEVELS = 4
"""Shades of each direction; level 0 is none."""

_FAINT = 0.04  # of the strongest weight: below, a term is shown without a shade

# One character for one, so that offsets stay. Terminals obey control characters, and direction marks let a
# text change the order of what stands around it.
_VISIBLE = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    **dict.fromkeys([0x200E, 0x200F, 0x061C, 0x2028, 0x2029], 0xFFFD),
}


class Piece(NamedTuple):
    """A part of a text to show: a term, or what stands between two (`term` is None)."""

    text: str
    term: Term | None


class Shading:
    """How strong a weight is shown: against the strongest, of query and document alike."""

    def __init__(self, explanation: Explanation) -> None:
        terms = (*explanation.query_terms, *explanation.document_terms)
        self._strongest = max((abs(term.weight) for term in terms), default=0.0)
        self._strongest_passage = max((abs(term.weight) for term in explanation.passages), default=0.0)

    def level(self, weight: float) -> int:
        """Return from -LEVELS to LEVELS; 0 for what is as good as nothing."""
        return _level(weight, self._strongest)

    def passage_level(self, weight: float) -> int:
        """Return the same for a passage, against the strongest passage."""
        return _level(weight, self._strongest_passage)


def _level(weight: float, strongest: float) -> int:
    part = abs(weight) / strongest if strongest else 0.0
    if part < _FAINT:
        return 0
    level = min(LEVELS, 1 + int(part * LEVELS))
    return level if weight > 0 else -level


def visible(text: str) -> str:
    """Return a text of the same length without characters that could change what is around it."""
    return text.translate(_VISIBLE)


def pieces(text: str, terms: tuple[Term, ...]) -> Iterator[Piece]:
    """Cut a text into its terms and what stands between them; both safe to show."""
    place = 0
    for term in terms:
        if term.start > place:
            yield Piece(visible(text[place : term.start]), None)
        yield Piece(visible(text[term.start : term.end]), term)
        place = term.end
    if place < len(text):
        yield Piece(visible(text[place:]), None)


def top_terms(terms: tuple[Term, ...], count: int) -> list[Term]:
    """Return the weightiest terms, those without weight left out."""
    weighty = [term for term in terms if term.weight]
    return sorted(weighty, key=lambda term: -abs(term.weight))[:count]


def top_links(explanation: Explanation, count: int) -> list[Link]:
    """Return the weightiest links, those as good as nothing left out."""
    strongest = abs(explanation.links[0].weight) if explanation.links else 0.0
    return [link for link in explanation.links[:count] if abs(link.weight) > _FAINT * strongest]
