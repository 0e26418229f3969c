"""A ranking as numbered passages for a language model's prompt, within a number of tokens."""

from __future__ import annotations

import math
import re
import string
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.types import Document, Hit, Ranking

__all__ = ["DEFAULT_TEMPLATE", "Context", "Source", "as_context", "estimate_tokens"]

DEFAULT_TEMPLATE = "[{number}] {passage}"
"""One passage: its number in brackets, then its title on the same line (if it has one) and its text."""

_FIELDS = ("number", "passage", "title", "text", "document_id")
_BETWEEN = "\n\n"
# A sentence ends at a full stop, question or exclamation mark with closing quotes and brackets and a
# blank or the end after it; those of Chinese and Japanese need no blank.
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』）”’]*")


@dataclass(frozen=True, slots=True)
class Source:
    """What a citation such as [2] stands for.

    Attributes:
        number: 1, 2, ... in the order of the passages.
        document_id: id of the document.
        title: its title, empty where it has none.
        span: characters [start, end) of the document's `full_text` that the passage shows; None
            where it shows all of it.
        is_cut: whether the passage ends before its document (or window) does, at a sentence end.
    """

    number: int
    document_id: str
    title: str = ""
    span: tuple[int, int] | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """Passages for a prompt and where they come from; `str(context)` is the text.

    Attributes:
        text: the passages, best first, with a blank line between two.
        sources: one per passage, in their order.
        left_out: ids of the documents that did not fit, best first.
        num_tokens: of the text, by the counter that was used.
    """

    text: str
    sources: tuple[Source, ...]
    left_out: tuple[str, ...]
    num_tokens: int

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class _Passage:
    """What is shown of a hit: the title unless the text starts within it, and a part of the full text."""

    document: Document
    title: str
    text: str
    start: int  # of the text within the document's full text
    span: tuple[int, int] | None


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: the larger of 1.3 a word and one per 4 UTF-8 bytes.

    Words are what blanks part. English prose has about 1.3 tokens a word with the vocabularies of
    today's language models; the bytes count for long words, code, and languages without blanks. It is
    an estimate: give `as_context` the model's own counter where the limit is hard.
    """
    words = len(text.split())
    return math.ceil(max(1.3 * words, len(text.encode("utf-8", "surrogatepass")) / 4))


def as_context(
    ranking: Ranking,
    *,
    max_tokens: int = 2000,
    template: str = DEFAULT_TEMPLATE,
    count_tokens: Callable[[str], int] | None = None,
    allow_cut: bool = False,
) -> Context:
    """Return the best passages of a ranking that fit, numbered so that an answer can cite them.

    Passages are taken from the best down. One that does not fit is left out whole and listed, and the
    next ones get their chance. Where a hit has a span (the winning window of a long document), that
    part is the passage. Documents without any text are left out.

    Args:
        ranking: hits that carry their documents, as those of a `Searcher` do.
        max_tokens: the most tokens the whole text may have, at least 1.
        template: for one passage, with any of {number}, {passage} (title, if there is one, a line
            end and the text), {title}, {text} and {document_id}; {{ and }} stand for braces.
        count_tokens: text -> number of tokens; None is `estimate_tokens`.
        allow_cut: whether the first passage, if it does not fit, may end at an earlier sentence end;
            its source then says so.

    Raises:
        InputError: max_tokens below 1, a template with other fields or none, or a hit without its
            document.

    Example:
        >>> hit = Hit("d7", 3.2, 1, "bm25", document=Document("d7", "Foxes are red.", "Foxes"))
        >>> print(as_context(Ranking("what colour are foxes", (hit,))))
        [1] Foxes
        Foxes are red.
    """
    check_count(max_tokens, "max_tokens")
    if count_tokens is not None and not callable(count_tokens):
        raise InputError(f"count_tokens must be a function from text to its tokens, not {count_tokens!r}")
    _check_template(template)
    count = count_tokens if count_tokens is not None else estimate_tokens
    text = ""
    sources: list[Source] = []
    left_out: list[str] = []
    for hit in ranking:
        passage = _passage(hit)
        start = text + (_BETWEEN if text else "")
        filled = partial(_filled, template, len(sources) + 1, passage)

        def tokens_to(end: int, start: str = start, filled: Callable[[int], str] = filled) -> int:
            # Counted whole: the tokens of a text are not the sum of its parts' tokens.
            return count(start + filled(end))

        ends = [len(passage.text)] if passage.text.strip() else []
        if ends and allow_cut and not sources and not left_out and tokens_to(ends[0]) > max_tokens:
            ends = _sentence_ends(passage.text)
        num_fitting = bisect_right(ends, max_tokens, key=tokens_to)
        if num_fitting == 0:
            left_out.append(hit.document_id)
            continue
        end = ends[num_fitting - 1]
        text = start + filled(end)
        sources.append(_source(len(sources) + 1, passage, end))
    num_tokens = count(text) if text else 0
    return Context(text, tuple(sources), tuple(left_out), num_tokens)


def _check_template(template: str) -> None:
    try:
        parts = list(string.Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise InputError(f"the template {template!r} cannot be read: {error}") from error
    fields = [name for _, name, _, _ in parts if name is not None]
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise InputError(f"the template has {{{unknown[0]}}}; its fields are {', '.join(_FIELDS)}")
    if any(spec or conversion for _, _, spec, conversion in parts):
        raise InputError("the fields of a template take no format: write {number}, not {number:03}")
    if not {"passage", "text"} & set(fields):
        raise InputError("the template shows no text; it needs {passage} or {text}")


def _passage(hit: Hit) -> _Passage:
    document = hit.document
    if document is None:
        raise InputError(
            f"hit {hit.document_id!r} has no document, so there is no text to show; search with a retriever "
            "or index whose hits have their `document`"
        )
    full_text = document.full_text
    body_start = len(full_text) - len(document.text)
    start, end = hit.span if hit.span is not None else (body_start, len(full_text))
    if not 0 <= start <= end <= len(full_text):
        raise InputError(
            f"hit {hit.document_id!r} has span {hit.span}, outside its {len(full_text)} characters"
        )
    # A window that starts with the title shows it as title, not twice.
    if start == 0 and end > body_start:
        start = body_start
    title = document.title if start >= body_start else ""
    return _Passage(document, title, full_text[start:end], start, hit.span)


def _sentence_ends(text: str) -> list[int]:
    """Return where the sentences before the last one end."""
    length = len(text.rstrip())
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return [end for end in ends if end < length]


def _filled(template: str, number: int, passage: _Passage, end: int) -> str:
    text = passage.text[:end]
    return template.format(
        number=number,
        passage=f"{passage.title}\n{text}" if passage.title else text,
        title=passage.title,
        text=text,
        document_id=passage.document.id,
    )


def _source(number: int, passage: _Passage, end: int) -> Source:
    is_cut = end < len(passage.text)
    span = passage.span
    if is_cut:
        span = (passage.start, passage.start + end)
    return Source(number, passage.document.id, passage.document.title, span, is_cut)
