"""Several rerankers as one: each orders all documents, a formula makes one order of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list
from crossrank.composition.members import as_given, judged_candidates, numbered, rank_all
from crossrank.errors import InputError, ModelOutputError
from crossrank.evaluation.trec import descending_scores
from crossrank.models.requests import RankVerbs, Requests, check_pairs
from crossrank.models.reranker import Reranker, asked_once
from crossrank.retrieval.fusion import RRF, Borda, Fusion, Metric, Normalisation, WeightedSum, tune
from crossrank.stages import check_reranker, unused_name
from crossrank.types import Document, Pair, Qrels, Ranking

__all__ = ["Ensemble", "FusionName"]

FusionName = Literal["mean", "rrf", "borda"]


class Ensemble(RankVerbs):
    """Asks several rerankers about all documents and fuses their rankings.

    Members of different families give scores of different scales, so "mean" takes the mean of their z-scores
    within each list: how many standard deviations a document is above its list's mean. What a document scores
    then depends on the list it is in. Where a score must be the pair's own, take raw scores,
    `WeightedSum(weights, "none")`, with weights that bring them to one scale: such an ensemble of pointwise
    members has `score`, too.

    A hit has the fused score, and each member's own in `stage_scores`; equal fused scores keep the order that
    documents came in. Its `truncated_tokens` is that of the member that read least, and what a member's
    ranking notes is noted under its name. Many queries are ranked in one call of each member. What members
    raise comes out too; one that does not return each document once is a ModelOutputError.

    Safe to use from many threads if its members are.

    Args:
        rerankers: at least one, of any families. Two of the same name get ":2", ":3" added to it.
        fusion: "mean" (of z-scores), "rrf" (reciprocal ranks, which ignore scores and so suit members whose
            scores mean little), "borda" (points for places), or a formula of `crossrank.retrieval.fusion`
            with settings of its own, such as `WeightedSum((2, 1), "min-max")`; for weights chosen by
            judgements, see `tuned`.
        name: of this reranker; the stage of its hits.

    Attributes:
        member_names: names of the members, all different: what `Hit.stage_scores` has their scores under.

    Raises:
        InputError: no reranker, something that is none, an unknown fusion, or weights that are not one for
            each.

    Source:
        Fusion of reranked lists by mean scores and by reciprocal ranks: see `crossrank.retrieval.fusion`.

    Example:
        >>> from crossrank import CrossEncoder
        >>> mini = CrossEncoder()
        >>> both = Ensemble([mini, CrossEncoder(long_documents="max")], fusion="rrf")
        >>> both.rank("who wrote Hamlet", ["A hamlet is a village.", "Shakespeare's Hamlet"])[0].index
        1
    """

    def __init__(
        self, rerankers: Sequence[Reranker], fusion: FusionName | Fusion = "mean", *, name: str = "ensemble"
    ) -> None:
        self.rerankers: tuple[Reranker, ...] = tuple(as_list(rerankers, "rerankers"))
        if not self.rerankers:
            raise InputError("an ensemble needs one reranker or more")
        for each in self.rerankers:
            check_reranker(each)
        self.name = name
        self.fusion = _formula(fusion, len(self.rerankers))
        names = [name]
        for each in self.rerankers:
            names.append(unused_name(each.name, names))
        self.member_names = tuple(names[1:])

    @classmethod
    def tuned(
        cls,
        rerankers: Sequence[Reranker],
        queries: Mapping[str, str],
        documents: Mapping[str, Sequence[Document]],
        qrels: Qrels,
        measure: str | Metric = "nDCG@10",
        *,
        normalisation: Normalisation = "z-score",
        steps: int = 10,
        name: str = "ensemble",
    ) -> Ensemble:
        """Return the ensemble with the best weights on judged queries; see `retrieval.fusion.tune`.

        Args:
            rerankers: at least two.
            queries: query id -> text.
            documents: query id -> candidates, with ids that the judgements know.
            qrels: judgements. Use queries that are not measured on later: a dev split.
            measure: what to tune for.
            normalisation: of the scores: see `WeightedSum`.
            steps: how fine the grid of weights is.
            name: of the ensemble.

        Raises:
            InputError: fewer than two rerankers, a query without candidates, candidates with one id twice, or
                no judged query.
        """
        ensemble = cls(rerankers, name=name)
        texts, candidates = judged_candidates(queries, documents)
        runs = {
            own_name: dict(zip(queries, _rankings(member, texts, candidates), strict=True))
            for own_name, member in zip(ensemble.member_names, ensemble.rerankers, strict=True)
        }
        ensemble.fusion = tune(runs, qrels, measure, normalisation=normalisation, steps=steps)
        return ensemble

    @property
    def asked_once(self) -> bool:
        """See `crossrank.models.reranker.asked_once`."""
        return asked_once(*self.rerankers)

    @property
    def score(self) -> Callable[[Sequence[Pair | tuple[str, str]]], npt.NDArray[np.float32]]:
        """Score pairs: float32 (n,), the weighted sum of the members' raw scores.

        There where every member has `score` and the fusion adds up raw scores; other ensembles have no score
        that is a pair's own, so they lack this attribute.
        """
        if not isinstance(self.fusion, WeightedSum) or self.fusion.normalisation != "none":
            raise AttributeError(
                f"{self.name} fuses whole rankings, so a pair has no score of its own; "
                'fusion=WeightedSum(weights, "none") gives one'
            )
        for own_name, member in zip(self.member_names, self.rerankers, strict=True):
            if not callable(getattr(member, "score", None)):
                raise AttributeError(f"{self.name} cannot score pairs, since its member {own_name} cannot")
        return self._score

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        numbered_documents = [numbered(each) for each in requests.documents]
        by_member = [_rankings(each, requests.queries, numbered_documents) for each in self.rerankers]
        return [
            self._fused(list(rankings), documents, top_k)
            for documents, rankings in zip(requests.documents, zip(*by_member, strict=True), strict=True)
        ]

    def _fused(
        self, rankings: list[Ranking], documents: Sequence[str | Document], top_k: int | None
    ) -> Ranking:
        fused = self.fusion(rankings, names=self.member_names, stage=self.name)
        unread: dict[str, int] = {}
        for hit in (hit for ranking in rankings for hit in ranking):
            unread[hit.document_id] = max(hit.truncated_tokens, unread.get(hit.document_id, 0))
        order = sorted(fused, key=lambda hit: (-hit.score, int(hit.document_id)))[:top_k]
        return Ranking(
            rankings[0].query,
            tuple(
                replace(as_given(hit, documents, rank), truncated_tokens=unread[hit.document_id])
                for rank, hit in enumerate(order, start=1)
            ),
            status=next((ranking.status for ranking in rankings if ranking.status != "ok"), "ok"),
            notes=tuple(
                f"{own_name}: {note}"
                for own_name, ranking in zip(self.member_names, rankings, strict=True)
                for note in ranking.notes
            ),
        )

    def _score(self, pairs: Sequence[Pair | tuple[str, str]]) -> npt.NDArray[np.float32]:
        pairs = check_pairs(pairs)
        total = np.zeros(len(pairs), dtype=np.float64)
        assert isinstance(self.fusion, WeightedSum)  # or there is no `score`
        weights = self.fusion.weights or (1.0,) * len(self.rerankers)
        for weight, own_name, member in zip(weights, self.member_names, self.rerankers, strict=True):
            scores = member.score(pairs)  # type: ignore[attr-defined]
            if scores.shape != (len(pairs),):
                raise ModelOutputError(
                    f"{own_name} gave scores of shape {scores.shape} for {len(pairs)} pairs; an ensemble "
                    "adds up one score a pair"
                )
            total += weight * scores.astype(np.float64)
        return total.astype(np.float32)

    def __repr__(self) -> str:
        return f"Ensemble({', '.join(self.member_names)}; {self.fusion!r})"


def _rankings(
    member: Reranker, queries: Sequence[str], documents: Sequence[Sequence[Document]]
) -> list[Ranking]:
    """A member's rankings, with scores that fall with the ranks (a cascade's may not)."""
    return [
        replace(
            ranking,
            hits=tuple(
                replace(hit, score=score)
                for hit, score in zip(ranking, descending_scores(ranking), strict=True)
            ),
        )
        for ranking in rank_all(member, queries, documents)
    ]


def _formula(fusion: FusionName | Fusion, count: int) -> Fusion:
    if fusion == "mean":
        return WeightedSum((1 / count,) * count, "z-score")
    if fusion == "rrf":
        return RRF()
    if fusion == "borda":
        return Borda()
    if isinstance(fusion, str) or not callable(fusion):
        raise InputError(
            f"fusion must be one of {', '.join(get_args(FusionName))}, or a formula such as "
            f"WeightedSum(...), not {fusion!r}"
        )
    weights = getattr(fusion, "weights", None)
    if weights is not None and len(weights) != count:
        raise InputError(f"there are {len(weights)} weights for {count} rerankers; give one for each")
    return fusion
