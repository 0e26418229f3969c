"""The work of mining: a block of queries, their candidates, and the rounds in which these are tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from crossrank.errors import ModelOutputError
from crossrank.training.corpus import Corpus
from crossrank.training.near_duplicates import Shingles, shingles
from crossrank.training.selection import Filters, Outcome, Selection, Stated, stated_score
from crossrank.training.sources import Candidate, Source, as_single, random_candidates, window
from crossrank.types import Document, Qrels, Ranking

if TYPE_CHECKING:
    from crossrank.models.reranker import Reranker

__all__ = ["Miner"]


class _Search(NamedTuple):
    """One query's candidates of a source that were not tried yet, in the order they will be."""

    selection: Selection
    candidates: list[Candidate]
    stated: Stated | None


class Miner:
    """Mines blocks of queries.

    Args:
        corpus: the sources' documents.
        qrels: judgements.
        sources: what is mined, in this order.
        filters: what candidates must pass.
        teacher: scores candidates and positives; None for no teacher.
        seed: of all draws.
        relevance_level: the lowest grade that is positive.
    """

    def __init__(
        self,
        corpus: Corpus,
        qrels: Qrels,
        sources: Sequence[Source],
        *,
        filters: Filters,
        teacher: Reranker | None,
        seed: int,
        relevance_level: int,
    ) -> None:
        self._corpus = corpus
        self._qrels = qrels
        self._sources = sources
        self._filters = filters
        self._teacher = teacher
        self._seed = seed
        self._level = relevance_level
        self._shingles: dict[str, Shingles] = {}

    def mine(self, queries: Mapping[str, str]) -> list[Outcome]:
        """Return what was found for each query of a block."""
        self._shingles.clear()
        selections = self._begin(queries)
        mined = {query_id: query for query_id, query in queries.items() if selections[query_id].positives}
        if self._teacher is not None:
            asked = [(selections[query_id], selections[query_id].positives) for query_id in mined]
            for query_id, scores in zip(mined, self._scores(asked), strict=True):
                selections[query_id].outcome.positives.update(scores)
        for source in self._sources if mined else ():
            self._mine_source(source, mined, selections)
        return [selection.outcome for selection in selections.values()]

    def _begin(self, queries: Mapping[str, str]) -> dict[str, Selection]:
        positive_ids = {
            query_id: [name for name, grade in self._qrels[query_id].items() if grade >= self._level]
            for query_id in queries
        }
        found = self._documents(name for ids in positive_ids.values() for name in ids)
        selections = {}
        for query_id, query in queries.items():
            outcome = Outcome(query_id)
            positives = []
            for name in positive_ids[query_id]:
                document = found[name]
                if document is not None and document.full_text.strip():
                    positives.append(document)
                    outcome.positives[name] = None
                else:
                    reason = "not_in_corpus" if document is None else "empty"
                    outcome.lost[reason] = outcome.lost.get(reason, 0) + 1
            selections[query_id] = Selection(query, outcome, positives, self._filters, self._shingles_of)
        return selections

    def _mine_source(
        self, source: Source, queries: Mapping[str, str], selections: Mapping[str, Selection]
    ) -> None:
        """Try a source's candidates, those of all queries together, until each query has its count."""
        rankings = [Ranking(query) for query in queries.values()]
        if not source.is_random:
            rankings = source.rankings(queries)
        waiting: list[_Search] = []
        for query_id, ranking in zip(queries, rankings, strict=True):
            selection = selections[query_id]
            judged = {name for name, grade in self._qrels[query_id].items() if grade > 0}
            if source.is_random:
                found = random_candidates(source, self._corpus, judged, seed=self._seed, query_id=query_id)
            else:
                found = window(source, ranking, judged, seed=self._seed, query_id=query_id)
            candidates = [each for each in found if not selection.has(each.document_id)]
            waiting.append(_Search(selection, candidates, self._stated(selection, source, ranking)))
        while waiting:
            waiting = self._round(source, waiting)
        order = {each.name: number for number, each in enumerate(self._sources)}
        for query_id in queries:  # "random" and "spread" find them in another order
            selections[query_id].outcome.negatives.sort(key=lambda each: (order[each.source], each.rank or 0))

    def _round(self, source: Source, searches: Sequence[_Search]) -> list[_Search]:
        """Try the next few candidates of every query, and return the searches that must go on."""
        tried = []
        for search in searches:
            missing = search.selection.missing(source)
            # Half as many again, since some are refused: few rounds, and few pairs scored in vain.
            tried.append(search.candidates[: missing + missing // 2 + 1])
        found = self._documents(each.document_id for candidates in tried for each in candidates)
        refusals = [
            {each: search.selection.refusal_of_text(found[each.document_id]) for each in candidates}
            for search, candidates in zip(searches, tried, strict=True)
        ]
        scores: list[dict[str, float]] = [{} for _ in searches]
        if self._teacher is not None:
            asked = []
            for search, refused in zip(searches, refusals, strict=True):
                fit = [found[each.document_id] for each, refusal in refused.items() if refusal is None]
                asked.append((search.selection, [document for document in fit if document is not None]))
            scores = self._scores(asked)
        left = []
        for search, refused, scored in zip(searches, refusals, scores, strict=True):
            for candidate, refusal in refused.items():
                # a first stage may have a document twice
                if search.selection.missing(source) and not search.selection.has(candidate.document_id):
                    search.selection.take(
                        source,
                        candidate,
                        found[candidate.document_id],
                        refusal=refusal,
                        teacher_score=scored.get(candidate.document_id),
                        stated=search.stated,
                    )
            rest = search.candidates[len(refused) :]
            if search.selection.missing(source) and rest:
                left.append(search._replace(candidates=rest))
        return left

    def _stated(self, selection: Selection, source: Source, ranking: Ranking) -> Stated | None:
        """Return the positive score, by the teacher or, without one, by the source."""
        known, query_id = selection.outcome.positives, selection.outcome.query_id
        if self._teacher is not None:
            scores = {name: score for name, score in known.items() if score is not None}
        else:
            scores = {
                hit.document_id: as_single(hit.score, source.name, query_id)
                for hit in ranking
                if hit.document_id in known
            }
        return stated_score(scores, len(known), self._filters.positive_score)

    def _scores(self, asked: Sequence[tuple[Selection, Sequence[Document]]]) -> list[dict[str, float]]:
        """Return the teacher's scores by document id, of all queries' documents in one call."""
        assert self._teacher is not None
        rankings = self._teacher.rank_many(
            [selection.query for selection, _ in asked], [documents for _, documents in asked]
        )
        scores = []
        name = self._teacher.name
        for (selection, documents), ranking in zip(asked, rankings, strict=True):
            query_id = selection.outcome.query_id
            found = {hit.document_id: as_single(hit.score, name, query_id) for hit in ranking}
            if found.keys() != {document.id for document in documents}:
                raise ModelOutputError(f"{name} must score every document once, and did not for {query_id!r}")
            scores.append(found)
        return scores

    def _documents(self, ids: Iterable[str]) -> dict[str, Document | None]:
        unique = list(dict.fromkeys(ids))
        return dict(zip(unique, self._corpus.get(unique), strict=True))

    def _shingles_of(self, document: Document) -> Shingles:
        found = self._shingles.get(document.id)
        if found is None:
            found = self._shingles[document.id] = shingles(document.full_text)
        return found
