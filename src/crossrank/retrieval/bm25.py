"""BM25 over a list of documents in memory."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_number, as_strings, check_count
from crossrank.errors import InputError
from crossrank.retrieval.retriever import (
    Filter,
    as_documents,
    best_rows,
    matching,
    ranking_of,
)
from crossrank.retrieval.text import Analyzer
from crossrank.store.filters import FilterLike
from crossrank.types import Document, Ranking

__all__ = ["BM25"]


class BM25:
    """Ranks documents by the words they share with the query.

    The score of document d for query q is the sum, over the terms t of q (a term that occurs twice
    counts twice), of

        idf(t) · tf / (tf + k1 · (1 − b + b · |d| / avgdl)),   idf(t) = ln(1 + (N − df + 0.5) / (df + 0.5))

    with tf the times t occurs in d, |d| the number of terms of d after analysis, avgdl the mean of
    |d|, df the number of documents that have t and N that of all. This is Lucene's BM25 (no factor
    k1 + 1, an idf that is never negative) with exact document lengths where Lucene rounds them to a
    byte. Terms are what `text.Analyzer` makes of `Document.full_text` and of the query.

    What a posting adds to a score is computed when the index is made; a query then only adds up. The
    sum is taken in float64 over the sorted terms: the order of the query's words does not change it. Safe
    to use from many threads.

    Args:
        documents: texts, or documents with ids; a text gets its position as id.
        k1: how soon further occurrences of a term stop counting, at least 0.
        b: how much long documents are held back, from 0 to 1.
        language: for stemming and stop words; None for neither. See `text.Analyzer`.
        analyzer: another analysis than the language's own; `language` is then not used.
        name: of this stage in hits.

    Raises:
        InputError: k1 or b out of range, an unknown language, documents that are not texts or
            Documents, or two with the same id.

    Source:
        Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the
        variant is "Lucene (accurate)" in Kamphuis et al. 2020, "Which BM25 Do You Mean?".

    Example:
        >>> BM25(["a red fox", "a blue whale"]).retrieve(["whales"])[0].document_ids
        ('1',)
    """

    def __init__(
        self,
        documents: Sequence[str | Document],
        k1: float = 0.9,
        b: float = 0.4,
        language: str | None = "english",
        *,
        analyzer: Analyzer | None = None,
        name: str = "bm25",
    ) -> None:
        self.name = name
        self.k1 = as_number(k1, "k1", 0)
        self.b = as_number(b, "b", 0, 1)
        self.analyzer = analyzer if analyzer is not None else Analyzer(language)
        if not callable(getattr(self.analyzer, "analyze", None)):
            raise InputError(f"the analyzer must have a method analyze(text), {self.analyzer!r} has not")
        self.documents = as_documents(documents)
        self._build()

    def __len__(self) -> int:
        return len(self.documents)

    def _build(self) -> None:
        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__  # a new term gets the next number
        flat = array("i")  # the term numbers of all documents, one after the other
        lengths = np.empty(len(self.documents), dtype=np.int64)
        for row, document in enumerate(self.documents):
            terms = self.analyzer.analyze(document.full_text)
            lengths[row] = len(terms)
            flat.extend(map(vocabulary.__getitem__, terms))
        self._vocabulary = dict(vocabulary)

        num_documents, num_terms = len(self.documents), len(vocabulary)
        term_of = np.frombuffer(flat, dtype=np.intc) if flat else np.empty(0, dtype=np.intc)
        # One number per occurrence, ordered by term and then document: equal ones count to tf.
        keys = term_of.astype(np.int64) * max(num_documents, 1) + np.repeat(np.arange(num_documents), lengths)
        postings, tf = np.unique(keys, return_counts=True)
        terms_of_postings, rows = np.divmod(postings, max(num_documents, 1))
        df = np.bincount(terms_of_postings, minlength=num_terms)
        self._starts = np.concatenate([[0], np.cumsum(df)])
        self._rows = rows.astype(np.int32)

        idf = np.log1p((num_documents - df + 0.5) / (df + 0.5))
        average = lengths.mean() if flat else 1.0
        saturation = self.k1 * (1 - self.b + self.b * lengths / average)
        weights = idf[terms_of_postings] * (tf / (tf + saturation[rows]))
        self._weights = weights.astype(np.float32)

    def scores(self, query: str) -> npt.NDArray[np.float32]:
        """Return (len(documents),) float32: each document's score, 0 where it shares no term."""
        as_strings([query], "queries")
        total = np.zeros(len(self.documents), dtype=np.float64)
        for term, count in sorted(Counter(self.analyzer.analyze(query)).items()):
            number = self._vocabulary.get(term)
            if number is not None:
                postings = slice(self._starts[number], self._starts[number + 1])
                total[self._rows[postings]] += count * self._weights[postings].astype(np.float64)
        return total.astype(np.float32)

    def retrieve(
        self, queries: Sequence[str], top_k: int = 100, filter: Filter | FilterLike | None = None
    ) -> list[Ranking]:
        """Return one ranking per query, in the order of the queries.

        Documents that share no term with the query are not among the hits, so a ranking can be
        shorter than `top_k`, or empty. Equal scores keep the order of the documents.

        Args:
            queries: the texts to search for.
            top_k: the most hits a ranking may have, at least 1.
            filter: only documents that it matches are found; a dict or a string (see
                `crossrank.store.filters`), or an object with `matches`. Document
                frequencies, and so scores, are those of all documents.

        Raises:
            InputError: queries that are not a list of strings, top_k below 1, or a filter that cannot be
                read.
        """
        texts = as_strings(queries, "queries")
        check_count(top_k)
        allowed = matching(self.documents, filter)
        rankings = []
        for query in texts:
            scores = self.scores(query)
            if allowed is not None:
                scores[~allowed] = 0
            found = np.flatnonzero(scores)
            rows = found[best_rows(scores[found], top_k)]
            rankings.append(ranking_of(query, self.documents, rows, scores[rows], self.name))
        return rankings
