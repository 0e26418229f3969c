"""Queries made from documents alone, each with the document that answers it.

    title       the title; the document is trained with without it
    heading     a Markdown heading of the text, withheld likewise
    sentence    a sentence, withheld likewise: the inverse cloze task; of a longer one, a part
    keywords    the rarest words of a sentence, which is withheld
    question    of a definition, by rules (English alone); nothing is withheld
    generated   what the user's own generator says; nothing is withheld

What is withheld is withheld from the document wherever it is read: where it is searched, mined and trained
with. A query would otherwise be found by a copy of itself, and a model would learn to look for copies.

Source:
    Inverse cloze task: Lee et al. 2019, "Latent Retrieval for Weakly Supervised Open Domain Question
    Answering" (arXiv:1906.00300). Generated queries, filtered by round trip: Dai et al. 2022, "Promptagator"
    (arXiv:2209.11755); Wang et al. 2021, "GPL" (arXiv:2112.07577).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from crossrank.checks import as_strings, check_count
from crossrank.errors import InputError
from crossrank.explanation.spans import Span, sentences, without
from crossrank.progress import track
from crossrank.retrieval.text import Analyzer, word_spans
from crossrank.training.adapt.questions import question_of
from crossrank.training.examples import draw
from crossrank.types import Document

__all__ = [
    "SOURCES",
    "PseudoQuery",
    "check_sources",
    "draw_pseudo_queries",
    "withhold",
]

SOURCES = ("title", "heading", "sentence", "keywords", "question", "generated")
"""Where pseudo-queries come from."""

_FEWEST_TERMS = 2  # of a title or heading: one word is no question about one document
_SENTENCE_WORDS = (5, 24)
_MOST_WORDS = 30
_KEYWORDS = (3, 5)
_REST_WORDS = 10  # that a document keeps: with less there is nothing to find it by
_NO_LIMIT = 1 << 30

_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(?P<heading>.+?)(?:[ \t]+#+)?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class PseudoQuery:
    """A query made from a document.

    Attributes:
        id: unique among those of one draw.
        text: the query.
        document_id: of the document it was made from, its only known positive.
        source: one of `SOURCES`.
        span: [start, end) in the document's text of what it was made from; of a title, where the text says it
            once more. None where there is no such place.
        withheld: whether the document is read without that; and without its title, for a title.
    """

    id: str
    text: str
    document_id: str
    source: str
    span: Span | None = None
    withheld: bool = False


class _Found:
    """A possible pseudo-query of one document."""

    __slots__ = ("source", "span", "text", "withheld")

    def __init__(self, source: str, text: str, span: Span | None = None, *, withheld: bool = True) -> None:
        self.source, self.text, self.span, self.withheld = source, text, span, withheld


def check_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """Return sources that are known, each once.

    Raises:
        InputError: none, or one that is not known.
    """
    names = dict.fromkeys(as_strings(sources, "sources"))
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise InputError(f"sources must be of {', '.join(SOURCES)}, not {unknown[0] if unknown else 'none'}")
    return tuple(names)


def draw_pseudo_queries(
    documents: Sequence[Document],
    *,
    sources: Sequence[str] = SOURCES,
    generated: Mapping[str, Sequence[str]] | None = None,
    per_document: int = 2,
    limit: int | None = None,
    language: str | None = "english",
    seed: int = 0,
    progress: bool | None = None,
) -> list[PseudoQuery]:
    """Make queries from documents.

    Of each document's possible queries so many are drawn by a hash of seed, document and text, one of each
    source in turn. No two are from the same place of the text, and so much is left of every document that it
    can still be found.

    Args:
        documents: with different ids.
        sources: which of `SOURCES`.
        generated: document id -> queries, of the source "generated".
        per_document: the most queries of a document.
        limit: the most queries of all; documents are drawn by the same hash. None takes all.
        language: of the documents: see `Analyzer`. Questions are made in English alone.
        seed: of the draws.
        progress: True shows a bar, False none, None one for a long call on a terminal.

    Returns:
        In the order of the documents.

    Raises:
        InputError: settings out of their range, or generated queries of documents that are not there.
    """
    wanted = check_sources(sources)
    check_count(per_document, "per_document")
    if limit is not None:
        check_count(limit, "limit")
    generated = generated or {}
    unknown = generated.keys() - {document.id for document in documents}
    if unknown:
        raise InputError(f"there are generated queries of document {min(unknown)!r}, which is not there")
    analyzer = Analyzer(language)
    rules = _Rules(analyzer, _document_frequencies(documents, analyzer) if "keywords" in wanted else {})
    by_document: dict[str, list[_Found]] = {}
    with track(len(documents), "Making queries", progress=progress) as tracked:
        for document in documents:
            found = rules.found_in(document, wanted, generated.get(document.id, ()))
            drawn = _drawn(document, found, per_document, seed)
            if drawn:
                by_document[document.id] = drawn
            tracked.advance()
    kept = {*_documents_within(by_document, limit, seed)}
    numbers = itertools.count(1)
    return [
        PseudoQuery(f"p{next(numbers)}", each.text, document_id, each.source, each.span, each.withheld)
        for document_id, drawn in by_document.items()
        if document_id in kept
        for each in drawn
    ]


def withhold(document: Document, queries: Sequence[PseudoQuery]) -> Document:
    """Return a document without what queries made from it withhold.

    Args:
        document: whose metadata stay.
        queries: made from this document, as it is here.
    """
    withheld = [each for each in queries if each.withheld]
    text = document.text
    for span in sorted((each.span for each in withheld if each.span is not None), reverse=True):
        text = without(text, span)
    title = "" if any(each.source == "title" for each in withheld) else document.title
    return Document(document.id, text, title, document.metadata)


class _Rules:
    """The rules that make queries of a document.

    Args:
        analyzer: of words.
        frequencies: term -> documents that have it.
    """

    def __init__(self, analyzer: Analyzer, frequencies: Mapping[str, int]) -> None:
        self._analyzer, self._frequencies = analyzer, frequencies
        self._asks = analyzer.language == "english"

    def found_in(self, document: Document, wanted: Sequence[str], generated: Sequence[str]) -> list[_Found]:
        found: list[_Found] = []
        again = _place_of(document.title, document.text)
        if "title" in wanted and self._says_enough(document.title):
            found.append(_Found("title", _one_line(document.title), again))
        if "generated" in wanted:
            found += [
                _Found("generated", _one_line(text), withheld=False) for text in generated if text.strip()
            ]
        headings = [match.span() for match in _HEADING.finditer(document.text)]
        headings += [again] if again else []
        if "heading" in wanted:
            for match in _HEADING.finditer(document.text):
                if self._says_enough(match["heading"]):
                    found.append(_Found("heading", _one_line(match["heading"]), match.span()))
        for source, rule, most in (
            ("sentence", self._sentence, _SENTENCE_WORDS[1]),
            ("keywords", self._keywords, _SENTENCE_WORDS[1]),
            ("question", self._question, _NO_LIMIT),
        ):
            for span in sentences(document.text, most) if source in wanted else ():
                query = rule(_one_line(document.text[slice(*span)]))
                if query and not any(_overlap(span, heading) for heading in headings):
                    found.append(_Found(source, query, span, withheld=source != "question"))
        return found

    def _sentence(self, sentence: str) -> str:
        return sentence if len(word_spans(sentence)) >= _SENTENCE_WORDS[0] else ""

    def _question(self, sentence: str) -> str:
        return (question_of(sentence) or "") if self._asks else ""

    def _keywords(self, sentence: str) -> str:
        """Return the words of largest idf in their order; "" where there are too few.

        A word that no other document has cannot be found once its sentence is withheld, and is left out.
        """
        words: dict[str, tuple[int, int, str]] = {}
        for place, (start, end) in enumerate(word_spans(sentence)):
            terms = self._analyzer.analyze(sentence[start:end])
            if len(terms) != 1 or terms[0].isdecimal():
                continue
            if self._frequencies.get(terms[0], 0) > 1:
                words.setdefault(terms[0], (self._frequencies[terms[0]], place, sentence[start:end]))
        fewest, most = _KEYWORDS
        if len(words) < 2 * fewest:  # all words of a short sentence would be the sentence
            return ""
        rarest = sorted(words.values())[:most]  # a smaller document frequency is a larger idf
        return " ".join(word for _, _, word in sorted(rarest, key=lambda each: each[1]))

    def _says_enough(self, text: str) -> bool:
        return len({*self._analyzer.analyze(text)}) >= _FEWEST_TERMS and len(word_spans(text)) <= _MOST_WORDS


def _drawn(document: Document, found: Sequence[_Found], count: int, seed: int) -> list[_Found]:
    """Return up to `count`, of each source in turn, that leave enough of the document."""
    queues: dict[str, list[_Found]] = {}
    for each in sorted(found, key=lambda each: draw(seed, document.id, each.source, each.text)):
        queues.setdefault(each.source, []).append(each)
    order = sorted(queues, key=lambda source: draw(seed, document.id, source))
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(queues[source] for source in order)))
    rest = len(word_spans(document.text))
    kept: list[_Found] = []
    for each in in_turn:
        if len(kept) == count:
            break
        if each is None or any(_overlap(each.span, other.span) for other in kept):
            continue
        taken = len(word_spans(document.text[slice(*each.span)])) if each.withheld and each.span else 0
        if rest - taken >= _REST_WORDS:
            rest -= taken
            kept.append(each)
    return kept


def _documents_within(
    by_document: Mapping[str, Sequence[_Found]], limit: int | None, seed: int
) -> Iterator[str]:
    """Yield the documents, by their hash, whose queries are at most `limit` together."""
    room = _NO_LIMIT if limit is None else limit
    for document_id in sorted(by_document, key=lambda name: draw(seed, name)):
        room -= len(by_document[document_id])
        if room < 0:
            return
        yield document_id


def _place_of(title: str, text: str) -> Span | None:
    """Return where a text says its title, whatever its case and line breaks: often at its beginning."""
    words = title.split()
    if not words:
        return None
    match = re.search(r"\s+".join(map(re.escape, words)), text, re.IGNORECASE)
    return match.span() if match else None


def _document_frequencies(documents: Sequence[Document], analyzer: Analyzer) -> Counter[str]:
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update({*analyzer.analyze(document.full_text)})
    return counts


def _overlap(one: Span | None, other: Span | None) -> bool:
    return one is not None and other is not None and one[0] < other[1] and other[0] < one[1]


def _one_line(text: str) -> str:
    return " ".join(text.split())
