"""Measures of a run against qrels, computed by trec_eval's own code."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossrank.checks import as_list
from crossrank.errors import InputError, require
from crossrank.evaluation.trec import HIGHEST_GRADE, descending_scores
from crossrank.types import Qrels, Ranking

__all__ = ["DEFAULT_MEASURES", "FAMILIES", "Evaluation", "Family", "Measure", "evaluate", "parse_measure"]


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of measure.

    Attributes:
        name: as papers write it.
        whole: trec_eval's measure over the whole ranking, "" where there is none.
        cut: trec_eval's measure at a cutoff, "" where there is none.
        meaning: one line for a help text.
        aliases: other names, in lower case.
    """

    name: str
    whole: str
    cut: str
    meaning: str
    aliases: tuple[str, ...] = ()


FAMILIES = (
    Family("nDCG", "ndcg", "ndcg_cut", "gain grade / log2(rank + 1), over that of the best order"),
    Family("MRR", "recip_rank", "recip_rank", "1 / rank of the first relevant document", ("rr",)),
    Family("MAP", "map", "map_cut", "mean of the precision at each relevant document", ("ap",)),
    Family("Recall", "", "recall", "share of the relevant documents that were found", ("r",)),
    Family("P", "", "P", "share of the first k places that hold a relevant document", ("precision",)),
    Family("Rprec", "Rprec", "", "precision at rank R, R the number of relevant documents", ("r-precision",)),
    Family("Success", "", "success", "1 if a relevant document is among the first k"),
)
"""Every measure there is, by its paper's name."""

DEFAULT_MEASURES = ("nDCG@10", "MRR@10", "MAP", "Recall@100")

_SPELLING = re.compile(r"(?P<name>[A-Za-z]+(?:[_-][A-Za-z]+)*)(?:[@_.](?P<cutoff>[0-9]{1,6}))?")
# Ids end at a NUL in C.
_NO_C_STRING = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of one ranking, such as nDCG@10.

    Attributes:
        family: what is measured.
        cutoff: how many of the first hits count; None for all.
    """

    family: Family
    cutoff: int | None = None

    def __str__(self) -> str:
        return self.family.name if self.cutoff is None else f"{self.family.name}@{self.cutoff}"

    @property
    def trec_eval_name(self) -> str:
        """What trec_eval is asked for: "map", "ndcg_cut.10"."""
        if self.cutoff is None or self.family.cut == self.family.whole:
            return self.family.whole
        return f"{self.family.cut}.{self.cutoff}"

    def value(self, computed: Mapping[str, float]) -> float:
        """Return this measure from what trec_eval computed for one query."""
        value = float(computed[self.trec_eval_name.replace(".", "_")])
        if self.cutoff is not None and self.family.cut == self.family.whole and value > 0:
            # Reciprocal rank has no cutoff in trec_eval; cutting the ranking at k by trec_eval's own
            # order is the same as leaving out first relevant documents below rank k.
            return value if round(1 / value) <= self.cutoff else 0.0
        return value


def parse_measure(name: str) -> Measure:
    """Return the measure of that name.

    Names are those of `FAMILIES` with "@k" where they take a cutoff ("nDCG@10", "MRR@10", "MAP",
    "Recall@100", "P@5", "Rprec"), in any case, or trec_eval's own ("ndcg_cut_10", "recip_rank").

    Raises:
        InputError: no such measure, or a cutoff that is missing, not taken, 0, or above 999,999.
    """
    match = _SPELLING.fullmatch(name) if isinstance(name, str) else None
    if match:
        wanted = match["name"].lower()
        for family in FAMILIES:
            names = {family.name, family.whole, family.cut, *family.aliases} - {""}
            if wanted in {each.lower() for each in names}:
                return _checked_measure(family, wanted, match["cutoff"], name)
    listing = ", ".join(f"{each.name}@k" if each.cut else each.name for each in FAMILIES)
    raise InputError(
        f"there is no measure {name!r}; the measures are {listing} and, over all hits, nDCG, MRR, MAP"
    )


def _checked_measure(family: Family, wanted: str, cutoff: str | None, name: str) -> Measure:
    if cutoff is None:
        if not family.whole or (wanted == family.cut.lower() != family.whole.lower()):
            raise InputError(f"{name!r} needs a cutoff, as in {family.name}@10")
        return Measure(family)
    if not family.cut:
        raise InputError(f"{family.name} takes no cutoff; write {family.name!r}, not {name!r}")
    if int(cutoff) < 1:
        raise InputError(f"the cutoff of {name!r} must be at least 1")
    return Measure(family, int(cutoff))


@dataclass(frozen=True)
class Evaluation(Mapping[str, float]):
    """How good a run is: the mean of each measure by its name, as a mapping.

    Every query with a judgement counts, also one that the run lacks (as 0) and one without a
    relevant document (0 by every measure), as with `trec_eval -c`.

    Attributes:
        means: measure -> mean over the judged queries.
        per_query: query id -> measure -> value, for every judged query in the order of the qrels.
        missing_queries: judged queries that the run lacks; they count as 0.
        unjudged_queries: queries of the run without any judgement; they do not count.
        relevance_level: the lowest grade that is relevant for measures that are not graded.
    """

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]
    missing_queries: tuple[str, ...] = ()
    unjudged_queries: tuple[str, ...] = ()
    relevance_level: int = 1

    @property
    def num_queries(self) -> int:
        """How many queries the means are over."""
        return len(self.per_query)

    def __getitem__(self, measure: str) -> float:
        if measure in self.means:
            return self.means[measure]
        return self.means[_other_spelling(measure)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.means)

    def __len__(self) -> int:
        return len(self.means)


def _other_spelling(measure: str) -> str:
    try:
        return str(parse_measure(measure))
    except InputError:
        raise KeyError(measure) from None


def evaluate(
    run: Mapping[str, Ranking | Mapping[str, float]],
    qrels: Qrels,
    measures: Sequence[str | Measure] = DEFAULT_MEASURES,
    *,
    relevance_level: int = 1,
) -> Evaluation:
    """Measure a run with trec_eval.

    Hits are ordered as trec_eval orders them: by score compared as float32, the highest first, and
    equal scores by document id, the largest first by its UTF-8 bytes. Ranks play no part, except
    that a ranking made by several stages is first given scores that fall with its ranks: see
    `trec.descending_scores`. Unjudged documents count as not relevant. nDCG takes grades as gains
    and its best order from all judgements of the query, found or not; grades below 1 gain nothing.

    Args:
        run: query id -> ranking, or document id -> score.
        qrels: query id -> document id -> grade.
        measures: names that `parse_measure` knows; results have them in canonical spelling.
        relevance_level: the lowest grade that is relevant, at least 1, for every measure but nDCG.
            TREC Deep Learning's passage tracks use 2.

    Raises:
        InputError: an unknown measure, no judgements, a grade that is no whole number or beyond
            ±1,000,000, a score that is not a finite float32, a document twice in a ranking.
        MissingExtraError: pytrec_eval is not installed (extra "eval").

    Source:
        trec_eval 9 through pytrec_eval (Van Gysel and de Rijke 2018, "Pytrec_eval: An Extremely Fast
        Python Interface to trec_eval", SIGIR). nDCG: Järvelin and Kekäläinen 2002, with the discount
        log2(rank + 1).
    """
    if isinstance(measures, (str, Measure)):
        raise InputError(f"measures must be a list, not a single one: use [{str(measures)!r}]")
    wanted = as_list(measures, "measures")
    parsed = list(dict.fromkeys(m if isinstance(m, Measure) else parse_measure(m) for m in wanted))
    if not parsed:
        raise InputError("there is no measure to compute; name at least one, such as nDCG@10")
    if isinstance(relevance_level, bool) or not isinstance(relevance_level, int) or relevance_level < 1:
        raise InputError(f"relevance_level must be a whole number of at least 1, not {relevance_level!r}")
    for name, mapping in (("run", run), ("qrels", qrels)):
        if not isinstance(mapping, Mapping):
            raise InputError(f"{name} must be a mapping by query id, not {type(mapping).__name__}")
    judged = {query_id: _checked_grades(query_id, grades) for query_id, grades in qrels.items() if grades}
    if not judged:
        raise InputError("the qrels have no judgement; there is nothing to measure against")
    scores = {query_id: _scores(query_id, run[query_id]) for query_id in judged if query_id in run}

    pytrec_eval = require("pytrec_eval", "eval")
    evaluator = pytrec_eval.RelevanceEvaluator(
        judged, {measure.trec_eval_name for measure in parsed}, relevance_level=relevance_level
    )
    # A query without hits is 0 by every measure; trec_eval would leave a missing one out of the mean.
    computed = evaluator.evaluate({query_id: found for query_id, found in scores.items() if found})
    per_query = {
        query_id: {
            str(measure): measure.value(computed[query_id]) if query_id in computed else 0.0
            for measure in parsed
        }
        for query_id in judged
    }
    return Evaluation(
        means={
            str(measure): math.fsum(values[str(measure)] for values in per_query.values()) / len(per_query)
            for measure in parsed
        },
        per_query=per_query,
        missing_queries=tuple(query_id for query_id in judged if query_id not in run),
        unjudged_queries=tuple(query_id for query_id in run if query_id not in judged),
        relevance_level=relevance_level,
    )


def _checked_grades(query_id: str, grades: Mapping[str, int]) -> dict[str, int]:
    _check_id(query_id)
    if not isinstance(grades, Mapping):
        raise InputError(
            f"qrels[{query_id!r}] must be a mapping of document id to grade, not {type(grades).__name__}"
        )
    checked = {}
    for document_id, grade in grades.items():
        _check_id(document_id)
        if (
            isinstance(grade, bool)
            or not isinstance(grade, (int, np.integer))
            or abs(int(grade)) > HIGHEST_GRADE
        ):
            raise InputError(
                f"the grade of document {document_id!r} for query {query_id!r} must be a whole number "
                f"of at most {HIGHEST_GRADE:,}, not {grade!r}"
            )
        # Below 0 and 0 are the same to every measure here; but where all grades of a query are below 0,
        # trec_eval's nDCG reads memory that is not its own and may not come back.
        checked[document_id] = max(int(grade), 0)
    return checked


def _scores(query_id: str, found: Ranking | Mapping[str, float]) -> dict[str, float]:
    if isinstance(found, Ranking):
        scores = dict(zip(found.document_ids, descending_scores(found), strict=True))
    elif isinstance(found, Mapping):
        scores = {
            document_id: _checked_score(query_id, document_id, score) for document_id, score in found.items()
        }
    else:
        raise InputError(
            f"run[{query_id!r}] must be a Ranking or a mapping of document id to score, "
            f"not {type(found).__name__}"
        )
    for document_id in scores:
        _check_id(document_id)
    return scores


def _checked_score(query_id: str, document_id: str, score: Any) -> float:
    is_number = isinstance(score, (int, float, np.number)) and not isinstance(score, bool)
    if not is_number or not abs(score) <= float(np.finfo(np.float32).max):
        raise InputError(
            f"document {document_id!r} of query {query_id!r} has score {score!r}; "
            "scores must be finite float32 numbers"
        )
    return float(score)


def _check_id(value: str) -> None:
    if not isinstance(value, str) or not value or _NO_C_STRING.search(value):
        raise InputError(f"an id must be a non-empty string of Unicode text without NUL, not {value!r}")
