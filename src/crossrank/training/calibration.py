"""Judged pairs to a calibration: a map to probabilities with held-out figures, and thresholds.

No figure is of pairs that its map was fitted on: queries are parted into folds, and each fold's pairs get the
probabilities of a map that was fitted on the others. What is saved is fitted on all of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crossrank.checks import as_list, as_number, check_count
from crossrank.errors import InputError
from crossrank.evaluation.probabilities import Bin, probability_figures, reliability, roc_auc
from crossrank.models.calibration import (
    CALIBRATION_FILE,
    Aim,
    Calibration,
    Floats,
    Method,
    Threshold,
    sigmoid,
    write_calibration,
)
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import BUILT_IN, resolve
from crossrank.models.model_folder import Draft, check_target
from crossrank.models.quantize import Candidates, in_hash_order
from crossrank.training.probability_maps import METHODS, fit_map
from crossrank.training.thresholds import Ints, choose_threshold
from crossrank.types import Qrels

__all__ = [
    "CalibrationReport",
    "JudgedPair",
    "calibrate",
    "calibration_target",
    "judged_pairs",
    "save_calibration",
]

_LEAST_OF_A_KIND = 10


class JudgedPair(NamedTuple):
    """A query, a document's text, and whether the one is relevant to the other."""

    query: str
    document: str
    relevant: bool


@dataclass(frozen=True)
class CalibrationReport:
    """What `calibrate` fitted and measured; all figures are of held-out pairs.

    Attributes:
        calibration: what to save.
        roc_auc: how often a relevant pair scores higher than an irrelevant one, over all pairs.
        methods: "sigmoid" (of the raw score, unfitted) and each method that could be fitted -> "ece",
            "brier", "log_loss".
        before: the bins of the sigmoid of the raw score.
        after: the bins of the calibration.
        unreached: ("precision", share) that no score reaches.
    """

    calibration: Calibration
    roc_auc: float
    methods: Mapping[str, Mapping[str, float]]
    before: tuple[Bin, ...]
    after: tuple[Bin, ...]
    unreached: tuple[tuple[str, float], ...]


def judged_pairs(candidates: Candidates, qrels: Qrels, *, relevance_level: int = 1) -> list[JudgedPair]:
    """Return the candidates of judged queries as pairs; a document without a judgement is not relevant.

    Args:
        candidates: {query id: (query, documents)}, as a first stage gives them.
        qrels: judgements.
        relevance_level: the lowest grade that is relevant.
    """
    return [
        JudgedPair(query, document.full_text, qrels[query_id].get(document.id, 0) >= relevance_level)
        for query_id, (query, documents) in candidates.items()
        if query_id in qrels
        for document in documents
    ]


def calibrate(
    model: CrossEncoder,
    pairs: Iterable[JudgedPair | tuple[str, str, bool]],
    *,
    method: Method | None = None,
    wanted_precision: Sequence[float] = (0.9,),
    wanted_recall: Sequence[float] = (),
    holds_for: str = "",
    folds: int = 5,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
) -> CalibrationReport:
    """Fit probabilities to a model's scores of judged pairs it was not trained on.

    The probabilities hold for pairs like these: other queries, other texts, another first stage or depth
    have another share of relevant pairs, and the same score then means another probability.

    Args:
        model: opened as it will be used; the calibration holds for its weights, precision and settings.
        pairs: (query, document, relevant) each, of 10 relevant and 10 irrelevant ones or more.
        method: "temperature", "platt" or "isotonic"; None takes the one of least held-out log loss.
        wanted_precision: a threshold is chosen for each of these shares.
        wanted_recall: likewise.
        holds_for: in words, what kind of pairs these are.
        folds: parts that the queries are put into, at least 2.
        bins: of the expected calibration error.
        resamples: samples for the intervals of thresholds.
        seed: of folds and samples.

    Raises:
        InputError: too few pairs or queries, one kind alone, a model with several labels that was opened
            without the one to rank by, relevant pairs that do not score higher, a setting out of its range.
        QueryTooLongError: a query longer than the model takes.
    """
    rows = _rows(pairs)
    check_count(folds, "folds")
    if method is not None and method not in METHODS:
        raise InputError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    aims: list[tuple[Aim, float]] = [
        ("precision", as_number(share, "wanted_precision", 0, 1)) for share in wanted_precision
    ]
    aims += [("recall", as_number(share, "wanted_recall", 0, 1)) for share in wanted_recall]
    if not isinstance(model, CrossEncoder):
        raise InputError(f"{model.name} is a {type(model).__name__}; calibration is for cross-encoders")
    label = model.label
    if label is None:
        raise InputError(
            f"{model.name} gives {len(model.labels)} scores ({', '.join(model.labels)}); open it with label= "
            "the one to calibrate"
        )
    texts = list(dict.fromkeys(row.query for row in rows))
    numbers = {query: number for number, query in enumerate(texts)}
    queries = np.array([numbers[row.query] for row in rows], dtype=np.int64)
    if folds < 2 or len(texts) < folds:
        raise InputError(
            f"{len(texts)} queries cannot be put into {folds} folds; give more, at least 2 folds"
        )
    relevant = np.array([row.relevant for row in rows], dtype=np.float64)
    logits = model.score([(row.query, row.document) for row in rows])
    scores = (logits if logits.ndim == 1 else logits[:, model.labels.index(label)]).astype(np.float64)
    parts = _parts(texts, queries, relevant, folds, seed)
    before = sigmoid(scores)
    held_out = _tried(METHODS if method is None else (method,), scores, relevant, parts)
    figures = {"sigmoid": probability_figures(before, relevant, bins=bins)}
    figures |= {name: probability_figures(values, relevant, bins=bins) for name, values in held_out.items()}
    best = min(held_out, key=lambda name: figures[name]["log_loss"])
    fitted = fit_map(best, scores, relevant)
    thresholds: list[Threshold] = []
    unreached: list[tuple[str, float]] = []
    for each, wanted in aims:
        chosen = choose_threshold(
            scores,
            relevant,
            queries,
            parts,
            fitted,
            aim=each,
            wanted=wanted,
            resamples=resamples,
            seed=seed,
        )
        if chosen is None:
            unreached.append((each, wanted))
        else:
            thresholds.append(chosen)
    return CalibrationReport(
        calibration=Calibration(
            map=fitted,
            label=label,
            made_with=model.score_identity,
            holds_for=holds_for,
            num_pairs=len(rows),
            num_queries=len(texts),
            share_relevant=float(relevant.mean()),
            figures={"before": figures["sigmoid"], "after": figures[best]},
            thresholds=tuple(thresholds),
        ),
        roc_auc=roc_auc(scores, relevant),
        methods=figures,
        before=tuple(reliability(before, relevant, bins=bins)),
        after=tuple(reliability(held_out[best], relevant, bins=bins)),
        unreached=tuple(unreached),
    )


def save_calibration(
    calibration: Calibration,
    model: str | Path,
    to: str | Path | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Put a calibration beside the weights it is for; returns its file.

    Args:
        calibration: what `calibrate` fitted.
        model: the model it was fitted for: its own folder gets the file, unless `to` names another.
        to: a new or empty folder, which becomes a copy of the model with the calibration. Needed for
            built-in models and models from the hub: what other programs keep is not written into.
        revision: of a hub model.
        overwrite: replace a calibration, or a model at `to`.

    Raises:
        InputError: there is a calibration, or a `to` that cannot be written.
        CheckpointNotFoundError: there is no such model.
    """
    folder = resolve(model, kind="cross-encoder", revision=revision)
    target = calibration_target(model, folder, to, overwrite=overwrite)
    if to is None:
        return write_calibration(calibration, target)
    with Draft.of(target) as draft:
        shutil.copytree(folder, draft.folder)
        write_calibration(calibration, draft.folder)
        draft.keep()
    return target / CALIBRATION_FILE


def calibration_target(model: str | Path, folder: Path, to: str | Path | None, *, overwrite: bool) -> Path:
    """Return the folder that `save_calibration` would write, or say why it cannot, before anything is scored.

    Args:
        model: as it was named.
        folder: where it is.
        to: see `save_calibration`.
        overwrite: see `save_calibration`.

    Raises:
        InputError: see `save_calibration`.
    """
    if to is not None:
        target = Path(to)
        check_target(target, folder, overwrite=overwrite)
        return target
    given = Path(model)
    if str(model) in BUILT_IN or not given.is_dir():
        raise InputError(f"{model} is not a folder of yours to write to; name a folder for a copy with to=")
    if (folder / CALIBRATION_FILE).exists() and not overwrite:
        raise InputError(
            f"{folder} has a calibration already; replace it with overwrite=True, or name a folder for a "
            "copy with to="
        )
    return folder


def _rows(pairs: Iterable[JudgedPair | tuple[str, str, bool]]) -> list[JudgedPair]:
    rows: list[JudgedPair] = []
    for position, row in enumerate(as_list(pairs, "pairs")):
        if not isinstance(row, (tuple, list)) or len(row) != 3 or row[2] not in (0, 1):
            raise InputError(f"pairs[{position}] must be (query, document, relevant), relevant True or False")
        rows.append(JudgedPair(row[0], row[1], bool(row[2])))
    num_relevant = sum(row.relevant for row in rows)
    for count, kind in ((num_relevant, "relevant"), (len(rows) - num_relevant, "irrelevant")):
        if count < _LEAST_OF_A_KIND:
            raise InputError(
                f"{count} of {len(rows)} pairs are {kind}; a calibration needs at least {_LEAST_OF_A_KIND}, "
                "and some hundred to be worth anything"
            )
    return rows


def _parts(texts: Sequence[str], queries: Ints, relevant: Floats, folds: int, seed: int) -> list[Ints]:
    """Rows by fold: queries in the order of a hash, dealt out like cards."""
    order = in_hash_order({str(number): text for number, text in enumerate(texts)}, seed)
    fold_of = np.empty(len(texts), dtype=np.int64)
    for place, number in enumerate(order):
        fold_of[int(number)] = place % folds
    parts = [np.flatnonzero(fold_of[queries] == fold) for fold in range(folds)]
    for part in parts:
        rest = np.delete(relevant, part)
        if not 0 < rest.sum() < len(rest):
            raise InputError(
                "without one fold of the queries the pairs are all relevant or all irrelevant; give "
                "judgements of more queries, or fewer folds"
            )
    return parts


def _tried(
    methods: Sequence[Method], scores: Floats, relevant: Floats, parts: Sequence[Ints]
) -> dict[Method, Floats]:
    """Held-out probabilities by method; one of several that cannot be fitted to these scores is left out."""
    found: dict[Method, Floats] = {}
    fault: InputError | None = None
    for method in methods:
        try:
            found[method] = _held_out(method, scores, relevant, parts)
        except InputError as error:  # noqa: PERF203  (such as a temperature where all scores are above 0)
            fault = error
    if fault is not None and not found.keys() & {"temperature", "platt"}:
        raise fault  # a staircase would hide that scores do not rise with relevance
    return found


def _held_out(method: Method, scores: Floats, relevant: Floats, parts: Sequence[Ints]) -> Floats:
    """Probabilities of each fold's pairs by a map fitted on the others."""
    values = np.empty(len(scores))
    for part in parts:
        rest = np.ones(len(scores), dtype=bool)
        rest[part] = False
        values[part] = fit_map(method, scores[rest], relevant[rest])(scores[part])
    return values
