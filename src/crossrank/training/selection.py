"""Which candidates become negatives: the filters, and one query's choice in the making."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

from crossrank.checks import as_number
from crossrank.errors import InputError
from crossrank.training.near_duplicates import Shingles, resemblance
from crossrank.training.sources import Candidate, Source
from crossrank.types import Document

__all__ = [
    "Filters",
    "Negative",
    "Outcome",
    "PositiveScore",
    "Selection",
    "Stated",
    "Suspect",
    "stated_score",
]

PositiveScore: TypeAlias = Literal["min", "max", "mean"]

_LIMIT = 3.4e38  # scores are float32


@dataclass(frozen=True)
class Filters:
    """What a candidate must pass to become a negative.

    A candidate's score is the teacher's where there is a teacher, and otherwise its source's; a random
    document without a teacher has none, and no filter of scores refuses it. The positive score that margins
    are measured from is of the same kind. A source gives a positive a score only where it finds it within
    its depth: where that leaves the positive score unknown, margins refuse all its candidates for the
    query, since a positive that is not found stands below all that are.

    Args:
        min_score: a candidate below it is refused, as too easy.
        max_score: a candidate above it is refused, as likely relevant.
        absolute_margin: a candidate is refused unless score <= positive - margin; at least 0.
        relative_margin: a candidate is refused unless score <= positive - margin * |positive|; 0.05 is "at
            most 95 % of the positive score". For scores whose zero means something, such as cosines, and so
            not for the logits of most teachers. At least 0.
        positive_score: of a query's several positives, the lowest score ("min"), the highest ("max") or
            their mean ("mean") is the positive score.
        false_negatives: what happens to a candidate that the teacher gives the positive score or more:
            "drop" refuses it as a suspected false negative, "keep" does not.
        suspect_from: a candidate that the teacher scores below it is no such suspect, whatever the positive
            score is: where the positive itself has a low score, both may be far from relevant. None sets no
            such limit.
        near_duplicates: a candidate whose `near_duplicates.resemblance` to a positive, or to a negative that
            was chosen before it, is this or more is refused; above 0, at most 1. None refuses none.

    Raises:
        InputError: a value out of range, or limits that leave nothing between them.

    Source:
        Margins to the positive score: Moreira et al. 2024, "NV-Retriever" (arXiv:2407.15831). A
        cross-encoder against false negatives: Qu et al. 2021, "RocketQA" (arXiv:2010.08191).
    """

    min_score: float | None = None
    max_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    positive_score: PositiveScore = "min"
    false_negatives: Literal["drop", "keep"] = "drop"
    suspect_from: float | None = None
    near_duplicates: float | None = 0.8

    def __post_init__(self) -> None:
        for name in ("min_score", "max_score", "suspect_from"):
            if getattr(self, name) is not None:
                as_number(getattr(self, name), name, -_LIMIT, _LIMIT)
        for name in ("absolute_margin", "relative_margin"):
            if getattr(self, name) is not None:
                as_number(getattr(self, name), name, 0)
        if self.near_duplicates is not None:
            as_number(self.near_duplicates, "near_duplicates", 1e-6, 1)
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise InputError(
                f"min_score {self.min_score:g} is above max_score {self.max_score:g}: nothing could pass both"
            )
        for name, known in (
            ("positive_score", get_args(PositiveScore)),
            ("false_negatives", ("drop", "keep")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    @property
    def has_margin(self) -> bool:
        """Whether candidates are compared with the positive score by a margin."""
        return self.absolute_margin is not None or self.relative_margin is not None

    @property
    def has_limit(self) -> bool:
        """Whether scores have a limit that is the same for all queries."""
        return self.min_score is not None or self.max_score is not None


class Stated(NamedTuple):
    """The positive score of a query, and the positive to name beside it (the one nearest to it)."""

    score: float
    positive_id: str


def stated_score(scores: Mapping[str, float], num_positives: int, kind: PositiveScore) -> Stated | None:
    """Return the positive score that candidates are compared with; None where it is unknown.

    Args:
        scores: of the positives that have one, by id.
        num_positives: how many there are; "min" and "mean" need the scores of all.
        kind: which score it is.
    """
    if not scores or (kind != "max" and len(scores) < num_positives):
        return None
    values = scores.values()
    score = min(values) if kind == "min" else max(values) if kind == "max" else sum(values) / len(values)
    nearest = min(scores, key=lambda document_id: (abs(scores[document_id] - score), document_id))
    return Stated(score, nearest)


@dataclass(frozen=True)
class Negative:
    """A negative of one query.

    Attributes:
        document_id: its id.
        source: name of the source it is from.
        rank: 1-based rank there, None from a random source.
        score: score there, None from a random source.
        teacher_score: the teacher's score (a raw logit), None without a teacher.
    """

    document_id: str
    source: str
    rank: int | None
    score: float | None
    teacher_score: float | None = None


@dataclass(frozen=True)
class Suspect:
    """A candidate that was refused, or noted, because it may be relevant.

    Attributes:
        query_id: the query.
        positive_id: the positive it was compared with.
        document_id: the candidate.
        reason: "false_negative" (the teacher scores it no lower than the positive), "absolute_margin",
            "relative_margin" or "near_duplicate_of_positive".
        source: where it was found.
        rank: 1-based rank there, None from a random source.
        score: what was compared; for a near duplicate the resemblance to the positive.
        positive_score: what it was compared with; for a near duplicate 1.
    """

    query_id: str
    positive_id: str
    document_id: str
    reason: str
    source: str
    rank: int | None
    score: float
    positive_score: float


@dataclass
class Outcome:
    """What mining found for one query.

    Attributes:
        query_id: the query.
        positives: positives that the corpus has, by id, with the teacher's score or None.
        lost: reason -> positives that cannot be used: "not_in_corpus", "empty".
        negatives: in the order of the sources, by rank within one.
        refused: reason -> candidates that were tried and refused.
        suspects: candidates that may be relevant.
    """

    query_id: str
    positives: dict[str, float | None] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    negatives: list[Negative] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    suspects: list[Suspect] = field(default_factory=list)


class _Refusal(NamedTuple):
    reason: str
    positive_id: str | None = None  # where the candidate may be relevant: as this one is
    score: float = 0.0
    positive_score: float = 0.0


class Selection:
    """One query's negatives in the making.

    Args:
        query: its text.
        outcome: what is known of the query; is added to.
        positives: the documents of its positives.
        filters: what candidates must pass.
        shingles_of: a document -> its shingles.
    """

    def __init__(
        self,
        query: str,
        outcome: Outcome,
        positives: Sequence[Document],
        filters: Filters,
        shingles_of: Callable[[Document], Shingles],
    ) -> None:
        self.query = query
        self.outcome = outcome
        self.positives = positives
        self._filters = filters
        self._shingles_of = shingles_of
        self._chosen: dict[str, Document] = {}

    def missing(self, source: Source) -> int:
        """Return how many negatives of a source are still to be found."""
        return source.count - sum(each.source == source.name for each in self.outcome.negatives)

    def has(self, document_id: str) -> bool:
        """Return whether a document is a negative already, of this source or an earlier one."""
        return document_id in self._chosen

    def refusal_of_text(self, document: Document | None) -> _Refusal | None:
        """Return why a document cannot be a negative whatever its score; None if it can."""
        if document is None:
            return _Refusal("not_in_corpus")
        if not document.full_text.strip():
            return _Refusal("empty")
        limit = self._filters.near_duplicates
        if limit is not None:
            found = self._shingles_of(document)
            for positive in self.positives:
                same = resemblance(found, self._shingles_of(positive))
                if same >= limit:
                    return _Refusal("near_duplicate_of_positive", positive.id, same, 1.0)
        return None

    def take(
        self,
        source: Source,
        candidate: Candidate,
        document: Document | None,
        *,
        refusal: _Refusal | None,
        teacher_score: float | None,
        stated: Stated | None,
    ) -> None:
        """Make a candidate a negative, or note why it is none.

        Args:
            source: where it is from.
            candidate: not a negative already.
            document: its document, None where the corpus has none.
            refusal: what `refusal_of_text` gave.
            teacher_score: None without a teacher.
            stated: the positive score its score is compared with, None where unknown.
        """
        score = candidate.score if teacher_score is None else teacher_score
        if refusal is None and score is not None:
            refusal = self._refusal_of_score(score, stated, by_teacher=teacher_score is not None)
        if refusal is not None and refusal.positive_id is not None:
            self.outcome.suspects.append(
                Suspect(
                    query_id=self.outcome.query_id,
                    positive_id=refusal.positive_id,
                    document_id=candidate.document_id,
                    reason=refusal.reason,
                    source=source.name,
                    rank=candidate.rank,
                    score=refusal.score,
                    positive_score=refusal.positive_score,
                )
            )
            if refusal.reason == "false_negative" and self._filters.false_negatives == "keep":
                refusal = None
        if refusal is None and document is not None and self._repeats(document):
            refusal = _Refusal("near_duplicate_of_negative")
        if refusal is not None:
            refused = self.outcome.refused
            refused[refusal.reason] = refused.get(refusal.reason, 0) + 1
        elif document is not None:  # one that is not there was refused
            self._chosen[candidate.document_id] = document
            self.outcome.negatives.append(
                Negative(candidate.document_id, source.name, candidate.rank, candidate.score, teacher_score)
            )

    def _refusal_of_score(self, score: float, stated: Stated | None, *, by_teacher: bool) -> _Refusal | None:
        filters = self._filters
        if filters.min_score is not None and score < filters.min_score:
            return _Refusal("min_score")
        if filters.max_score is not None and score > filters.max_score:
            return _Refusal("max_score")
        if stated is None:
            return _Refusal("positive_score_unknown") if filters.has_margin else None
        positive, positive_id = stated
        if filters.absolute_margin is not None and score > positive - filters.absolute_margin:
            return _Refusal("absolute_margin", positive_id, score, positive)
        if filters.relative_margin is not None and score > positive - filters.relative_margin * abs(positive):
            return _Refusal("relative_margin", positive_id, score, positive)
        least = positive if filters.suspect_from is None else max(positive, filters.suspect_from)
        if by_teacher and score >= least:
            return _Refusal("false_negative", positive_id, score, positive)
        return None

    def _repeats(self, document: Document) -> bool:
        limit = self._filters.near_duplicates
        if limit is None:
            return False
        found = self._shingles_of(document)
        return any(resemblance(found, self._shingles_of(each)) >= limit for each in self._chosen.values())
