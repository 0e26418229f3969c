"""What a mining run did, in figures and examples."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crossrank.training.selection import Outcome, Suspect

__all__ = ["EXAMPLES", "MiningReport", "Tally"]

EXAMPLES = 10
"""Suspects of each reason that a report names."""


@dataclass(frozen=True)
class MiningReport:
    """What a mining run did.

    Attributes:
        path: the file it wrote.
        form: "lists", "pairs" or "triplets".
        num_rows: rows of the file.
        num_queries: judged queries that were asked for; those without a negative are not in the file.
        num_positives: positives of these queries that the corpus has.
        num_negatives: negatives of all queries together.
        negatives: source -> how many came from it, in the order of the sources.
        positives_lost: reason -> positives that cannot be used: "not_in_corpus", "empty" (no text).
        without_positives: queries that lost all positives, and so are not in the file.
        short: queries with fewer negatives than the sources' counts add up to; those with none, too.
        without_negatives: queries with positives and no negative, and so not in the file.
        refused: reason -> candidates that were tried and refused.
        suspected: reason -> candidates that may be false negatives: see `selection.Suspect`. Those of reason
            "false_negative" are among the negatives with `Filters(false_negatives="keep")`.
        examples: up to `EXAMPLES` suspects of each reason, of different queries, those that exceed their
            positive most first.
    """

    path: Path
    form: str
    num_rows: int
    num_queries: int
    num_positives: int
    num_negatives: int
    negatives: Mapping[str, int]
    positives_lost: Mapping[str, int]
    without_positives: tuple[str, ...]
    short: tuple[str, ...]
    without_negatives: tuple[str, ...]
    refused: Mapping[str, int]
    suspected: Mapping[str, int]
    examples: tuple[Suspect, ...]


@dataclass
class Tally:
    """Adds up the outcomes of queries.

    Args:
        counts: source -> negatives a query should get from it.
    """

    counts: Mapping[str, int]
    num_queries: int = 0
    num_positives: int = 0
    negatives: Counter[str] = field(default_factory=Counter)
    positives_lost: Counter[str] = field(default_factory=Counter)
    without_positives: list[str] = field(default_factory=list)
    short: list[str] = field(default_factory=list)
    without_negatives: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    suspected: Counter[str] = field(default_factory=Counter)
    _examples: dict[str, list[tuple[float, int, Suspect]]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        """Count one query."""
        self.num_queries += 1
        self.num_positives += len(outcome.positives)
        self.negatives.update(each.source for each in outcome.negatives)
        self.positives_lost.update(outcome.lost)
        self.refused.update(outcome.refused)
        if not outcome.positives:
            self.without_positives.append(outcome.query_id)
        elif len(outcome.negatives) < sum(self.counts.values()):
            self.short.append(outcome.query_id)
            if not outcome.negatives:
                self.without_negatives.append(outcome.query_id)
        self.suspected.update(suspect.reason for suspect in outcome.suspects)
        worst: dict[str, Suspect] = {}
        for suspect in outcome.suspects:
            if suspect.reason not in worst or _excess(suspect) > _excess(worst[suspect.reason]):
                worst[suspect.reason] = suspect
        for reason, suspect in worst.items():
            kept = self._examples.setdefault(reason, [])
            # of equal ones the earlier query's stays: a heap's smallest entry is the first to go
            heapq.heappush(kept, (_excess(suspect), -self.num_queries, suspect))
            if len(kept) > EXAMPLES:
                heapq.heappop(kept)

    def report(self, path: Path, form: str, num_rows: int) -> MiningReport:
        """Return the report of a run that wrote `num_rows` rows to `path`."""
        return MiningReport(
            path=path,
            form=form,
            num_rows=num_rows,
            num_queries=self.num_queries,
            num_positives=self.num_positives,
            num_negatives=sum(self.negatives.values()),
            negatives={name: self.negatives[name] for name in self.counts},
            positives_lost=dict(sorted(self.positives_lost.items())),
            without_positives=tuple(self.without_positives),
            short=tuple(self.short),
            without_negatives=tuple(self.without_negatives),
            refused=dict(sorted(self.refused.items())),
            suspected=dict(sorted(self.suspected.items())),
            examples=tuple(
                suspect
                for _, kept in sorted(self._examples.items())
                for _, _, suspect in sorted(kept, key=lambda entry: entry[:2], reverse=True)
            ),
        )


def _excess(suspect: Suspect) -> float:
    return suspect.score - suspect.positive_score
