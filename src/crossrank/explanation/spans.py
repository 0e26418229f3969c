"""Where the words and the passages of a text are, and what is left of it without them."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np

from crossrank.retrieval.text import word_spans

__all__ = ["Span", "groups", "sentences", "units", "without", "words_in"]

Span = tuple[int, int]

_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+\s*|\n\s*")


def sentences(text: str, max_words: int) -> list[Span]:
    """Cut a text into sentences, and those of more than `max_words` words into parts of so many.

    A sentence ends at its closing mark before white space, at an ideographic one, or with its line. The spans
    cover the text, but for white space at their ends, and are in its order; each has a word or more.
    """
    ends = [match.end() for match in _END.finditer(text)]
    found: list[Span] = []
    words = word_spans(text)
    place = start = 0
    for end in dict.fromkeys([*ends, len(text)]):
        first = place
        while place < len(words) and words[place][0] < end:
            place += 1
        inside = words[first:place]
        if not inside:
            continue  # marks without a word belong to the next sentence
        for begin in range(0, len(inside), max_words):
            last = begin + max_words >= len(inside)
            stop = end if last else inside[begin + max_words][0]
            found.append(_trimmed(text, start, stop))
            start = stop
    return found


def words_in(spans: list[Span], start: int, end: int) -> list[Span]:
    """Return those of the spans, which are in order, that begin in [start, end)."""
    return spans[bisect_left(spans, (start,)) : bisect_left(spans, (end,))]


def groups(spans: list[Span], count: int) -> list[Span]:
    """Join neighbouring spans into at most `count` of about the same number."""
    size = -(-len(spans) // count) if spans else 1
    return [(spans[i][0], spans[min(i + size, len(spans)) - 1][1]) for i in range(0, len(spans), size)]


def units(text: str, tokens: Iterable[Span]) -> tuple[list[Span], list[int]]:
    """Join tokens to the words they are parts of; one that is part of none, such as a mark, is a unit itself.

    Args:
        text: what the tokens are of.
        tokens: characters [start, end) of each; an empty span stands for no characters.

    Returns:
        The units that have tokens, in the order of the text, and the position of each token's unit, -1 for a
        token without characters.
    """
    words = word_spans(text)
    ends = np.array([end for _, end in words], dtype=np.int64)
    of_tokens: list[Span | None] = []
    for start, end in tokens:
        # the first word that ends behind the token's beginning: a token may begin with a blank
        place = int(np.searchsorted(ends, start, side="right"))
        if end <= start:
            of_tokens.append(None)
        elif place < len(words) and words[place][0] < end:
            of_tokens.append(words[place])
        else:
            of_tokens.append((start, end))
    found = sorted({unit for unit in of_tokens if unit is not None})
    positions = {unit: position for position, unit in enumerate(found)}
    return found, [-1 if unit is None else positions[unit] for unit in of_tokens]


def without(text: str, span: Span) -> str:
    """Return a text without a part of it, nor the second of the two blanks that were around it."""
    start, end = span
    if end < len(text) and text[end].isspace() and (start == 0 or text[start - 1].isspace()):
        end += 1
    elif end == len(text) and start > 0 and text[start - 1].isspace():
        start -= 1
    return text[:start] + text[end:]


def _trimmed(text: str, start: int, end: int) -> Span:
    while end > start and text[end - 1].isspace():
        end -= 1
    while start < end and text[start].isspace():
        start += 1
    return start, end
