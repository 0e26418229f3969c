"""Occlusion: what the score loses when a word is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossrank.checks import check_count
from crossrank.errors import InputError
from crossrank.explanation.result import Explanation, Link, Term, wordless
from crossrank.explanation.spans import Span, groups, sentences, without, words_in
from crossrank.progress import Track, track
from crossrank.retrieval.text import word_spans

__all__ = ["Occlusion"]

_PASSAGES = 32  # a long text is looked at in as many parts


@dataclass(frozen=True)
class Occlusion:
    """Leaves words out and looks at the score, for any reranker that scores pairs.

    - A word's weight is the score minus the score without the word, of the query as of the document.
    - A link's weight is how much more a document's word does with the query's word there than without it:
      s(q, d) − s(q, d∖j) − s(q∖i, d) + s(q∖i, d∖j).
    - A document of more than `max_words` words is left out passage by passage first (a passage is a sentence
      or some neighbouring ones), then word by word within the weightiest passages.

    The number of scored pairs is known beforehand (`calls`). A word that is left out makes a shorter text:
    where a model cuts documents, it then reads on by as much.

    Args:
        max_words: words of the document that are left out one by one, at most.
        link_terms: the weightiest words of the document, that are looked at with each word of the query.

    Source:
        Zeiler and Fergus 2014, arXiv:1311.2901, for images; Li, Monroe and Jurafsky 2016, arXiv:1612.08220,
        for words. The links are the interaction of two left-out terms, as in Tsang et al. 2020,
        arXiv:2006.10965.
    """

    max_words: int = 64
    link_terms: int = 8

    def __post_init__(self) -> None:
        check_count(self.max_words, "max_words")
        if self.link_terms != 0:
            check_count(self.link_terms, "link_terms")

    def calls(self, query: str, document: str) -> int:
        """Return the most pairs that explaining this one takes; fewer only for a long document."""
        num_query, num_words = len(word_spans(query)), len(word_spans(document))
        num_query = num_query if num_query > 1 else 0
        singly = min(num_words, self.max_words)
        passages = self._calls_for_passages(document, (0, len(document)), word_spans(document))
        return 1 + num_query + passages + singly + num_query * min(singly, self.link_terms)

    def explain(self, query: str, document: str, reranker: Any, progress: bool | None = None) -> Explanation:
        """Explain the score of a pair.

        Args:
            query: not empty.
            document: text.
            reranker: an object with `score(pairs)`.
            progress: see `crossrank.progress.track`.

        Raises:
            InputError: a reranker whose scores are not pairs' own; what it raises comes out too.
        """
        with track(self.calls(query, document), "Explaining", progress=progress) as tracked:
            scorer = _Scorer(reranker, tracked)
            score = scorer.scores([(query, document)])[0]
            notes = []
            query_words = word_spans(query)
            query_terms = [_term(query, span, 0.0) for span in query_words]
            if len(query_words) > 1:
                lost = scorer.scores([(without(query, span), document) for span in query_words])
                query_terms = [
                    _term(query, span, score - value) for span, value in zip(query_words, lost, strict=True)
                ]
            elif query_words:
                notes.append(
                    "a query of one word has nothing to be left out of: it has no weight, and no links"
                )
            words = word_spans(document)
            passages: list[Term] = []
            chosen = words
            if len(words) > self.max_words:
                chosen, passages = self._narrowed(query, document, words, score, scorer)
                notes.append(
                    f"words of the weightiest passages were looked at: {len(chosen)} of {len(words)}"
                )
            lost = scorer.scores([(query, without(document, span)) for span in chosen])
            terms = [_term(document, span, score - value) for span, value in zip(chosen, lost, strict=True)]
            links: list[Link] = []
            if len(query_words) > 1:
                links = self._links((query, document), query_terms, terms, score, scorer)
            notes += wordless(query_terms, document, terms)
            if unread := scorer.unread(query, document):
                notes.append(f"the model did not read the last {unread} tokens of the document")
            tracked.advance((tracked.total or 0) - tracked.done)  # a long document may take fewer
        return Explanation(
            query=query,
            document=document,
            model=scorer.name,
            method="occlusion",
            score=score,
            query_terms=tuple(query_terms),
            document_terms=tuple(terms),
            links=tuple(links),
            passages=tuple(passages),
            calls=scorer.calls,
            notes=tuple(notes),
        )

    def _narrowed(
        self, query: str, document: str, words: list[Span], score: float, scorer: _Scorer
    ) -> tuple[list[Span], list[Term]]:
        """The words of the weightiest passages, and the passages that were looked at, both in their order."""
        passages: list[Term] = []
        start, end = 0, len(document)
        while True:
            parts = self._parts(document, (start, end))
            lost = scorer.scores([(query, without(document, part)) for part in parts])
            measured = [_term(document, part, score - value) for part, value in zip(parts, lost, strict=True)]
            passages += measured
            ranked = sorted(measured, key=lambda passage: -abs(passage.weight))
            best = ranked[0]
            if len(words_in(words, best.start, best.end)) <= self.max_words:
                break
            start, end = best.start, best.end
        chosen: list[Span] = []
        for passage in ranked:
            inside = words_in(words, passage.start, passage.end)
            if len(chosen) + len(inside) > self.max_words:
                break
            chosen += inside
        return sorted(chosen), sorted(passages, key=lambda passage: (passage.start, -passage.end))

    def _parts(self, document: str, span: Span) -> list[Span]:
        start, end = span
        found = [(start + low, start + high) for low, high in sentences(document[start:end], self.max_words)]
        return groups(found, _PASSAGES)

    def _calls_for_passages(self, document: str, span: Span, words: list[Span]) -> int:
        if len(words) <= self.max_words:
            return 0
        parts = self._parts(document, span)
        deeper = (self._calls_for_passages(document, part, words_in(words, *part)) for part in parts)
        return len(parts) + max(deeper, default=0)

    def _links(
        self,
        texts: tuple[str, str],
        query_terms: Sequence[Term],
        terms: Sequence[Term],
        score: float,
        scorer: _Scorer,
    ) -> list[Link]:
        query, document = texts
        weightiest = sorted(range(len(terms)), key=lambda place: -abs(terms[place].weight))[: self.link_terms]
        places = [(i, j) for i in range(len(query_terms)) for j in sorted(weightiest)]
        both_lost = scorer.scores(
            [
                (
                    without(query, (query_terms[i].start, query_terms[i].end)),
                    without(document, (terms[j].start, terms[j].end)),
                )
                for i, j in places
            ]
        )
        links = [
            # with w = s(q, d) - s(without one): w_i + w_j - s(q, d) + s(without both)
            Link(i, j, query_terms[i].weight + terms[j].weight - score + value)
            for (i, j), value in zip(places, both_lost, strict=True)
        ]
        return sorted(links, key=lambda link: -abs(link.weight))


class _Scorer:
    """One score a pair from any pointwise reranker, and how many were asked for."""

    def __init__(self, reranker: Any, tracked: Track) -> None:
        self.name = str(getattr(reranker, "name", type(reranker).__name__))
        if not callable(getattr(reranker, "score", None)):
            raise InputError(
                f"{self.name} has no score of a pair by itself, so leaving words out "
                "says nothing; explain one of its pointwise members, or another reranker"
            )
        self.calls = 0
        self._reranker = reranker
        self._tracked = tracked

    def scores(self, pairs: list[tuple[str, str]]) -> list[float]:
        if not pairs:
            return []
        values = np.asarray(self._reranker.score(pairs), dtype=np.float64)
        if values.ndim > 1:  # several labels: a ranking goes by the one that was chosen
            rankings = self._reranker.rank_many(
                [query for query, _ in pairs], [[document] for _, document in pairs]
            )
            values = np.array([ranking[0].score for ranking in rankings], dtype=np.float64)
        self.calls += len(pairs)
        self._tracked.advance(len(pairs))
        floats: list[float] = values.tolist()
        return floats

    def unread(self, query: str, document: str) -> int:
        """How many of the document's tokens were not read, where the reranker says so."""
        if not callable(getattr(self._reranker, "rank", None)):
            return 0
        ranking = self._reranker.rank(query, [document])
        return int(ranking[0].truncated_tokens) if len(ranking) else 0


def _term(text: str, span: Span, weight: float) -> Term:
    return Term(text[span[0] : span[1]], *span, weight)
