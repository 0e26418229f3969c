"""Scores to probabilities: the map, the file it is kept in, and what that file is bound to.

A calibration is fitted in `crossrank.training.calibration`; to apply one takes numpy alone. It lies as
`calibration.json` in the model's folder and says which weights, precision and settings its scores were made
with. A model opened otherwise gives other scores, so it then has no probabilities, and says why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError
from crossrank.runtime.settings import bad_setting, read_object, read_setting
from crossrank.whole_files import write_whole

__all__ = [
    "CALIBRATION_FILE",
    "Aim",
    "Calibration",
    "Method",
    "ProbabilityMap",
    "Threshold",
    "differences",
    "may_change_precision",
    "read_calibration",
    "sigmoid",
    "write_calibration",
]

CALIBRATION_FILE = "calibration.json"
"""Name of the calibration in a model folder."""

Method = Literal["temperature", "platt", "isotonic"]
Aim = Literal["precision", "recall"]

Floats = npt.NDArray[np.float64]


def sigmoid(logits: npt.ArrayLike) -> Floats:
    """Return 1 / (1 + exp(-logits)) as float64, which keeps apart high scores that float32 makes equal."""
    wide = np.asarray(logits, dtype=np.float64)
    small = np.exp(-np.abs(wide))  # never overflows
    return np.asarray(np.where(wide >= 0, 1, small) / (1 + small))


@dataclass(frozen=True, slots=True)
class ProbabilityMap:
    """A function of the raw score that never falls.

    Attributes:
        method: "temperature" is sigmoid(slope × score); "platt" is sigmoid(slope × score + intercept);
            "isotonic" goes in straight lines from knot to knot, and is flat beyond the first and the last.
        slope: above 0; 1 / temperature.
        intercept: 0 but for "platt".
        knots: (score, probability) of "isotonic", both rising; empty otherwise.
    """

    method: Method
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __call__(self, scores: npt.ArrayLike) -> Floats:
        """Return the probabilities of raw scores, float64 of the same shape."""
        wide = np.asarray(scores, dtype=np.float64)
        if self.method == "isotonic":
            places, values = np.array(self.knots).T
            return np.asarray(np.interp(wide, places, values))
        return sigmoid(self.slope * wide + self.intercept)


@dataclass(frozen=True, slots=True)
class Threshold:
    """The score from which on pairs are taken as relevant, chosen for a wanted precision or recall.

    Attributes:
        aim: what was wanted: "precision" takes the lowest score that reaches it, "recall" the highest.
        wanted: how much of it.
        score: pairs of this raw score or more are taken.
        probability: the same as a probability.
        precision: share of the taken pairs that are relevant, over the pairs it was chosen on.
        recall: share of the relevant pairs that are taken.
        interval: 95 % bootstrap interval of the aimed-at measure at this score, over queries.
        score_interval: 95 % bootstrap interval of the score itself, chosen anew in each sample.
        held_out: the aimed-at measure where each fold's pairs are cut at a score chosen on the other folds.
    """

    aim: Aim
    wanted: float
    score: float
    probability: float
    precision: float
    recall: float
    interval: tuple[float, float]
    score_interval: tuple[float, float]
    held_out: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns a model's scores into probabilities, and how far that can be trusted.

    Attributes:
        map: the function.
        label: which of the model's labels the scores are of.
        made_with: what the scores depend on (`CrossEncoder.score_identity`).
        holds_for: in words, what kind of pairs it was fitted on: a probability of other ones may be wrong.
        num_pairs: pairs it was fitted on.
        num_queries: their queries.
        share_relevant: share of the pairs that are relevant.
        figures: "before" and "after" -> "ece", "brier", "log_loss" on pairs the map was not fitted on;
            before is the sigmoid of the raw score.
        thresholds: chosen on these pairs.
    """

    map: ProbabilityMap
    label: str
    made_with: Mapping[str, Any]
    holds_for: str
    num_pairs: int
    num_queries: int
    share_relevant: float
    figures: Mapping[str, Mapping[str, float]]
    thresholds: tuple[Threshold, ...] = field(default=())

    def probability(self, scores: npt.ArrayLike) -> Floats:
        """Return the probability of relevance for raw scores, float64 of the same shape."""
        return self.map(scores)


def differences(calibration: Calibration, identity: Mapping[str, Any], label: str) -> str:
    """Return in words how a model differs from the one a calibration was made with; "" where it does not.

    Args:
        calibration: of a model.
        identity: the model's `CrossEncoder.score_identity`.
        label: the label it ranks by.
    """
    made_with = calibration.made_with
    if made_with.get("precision") != identity["precision"]:
        return f"precision is {identity['precision']!r} and was {made_with.get('precision')!r}"
    if made_with.get("fingerprint") != identity["fingerprint"]:
        return "weights, tokenizer or configs of the model have changed"
    if calibration.label != label:
        return f"label is {label!r} and was {calibration.label!r}"
    return ", ".join(
        f"{name} is {value!r} and was {made_with.get(name)!r}"
        for name, value in identity.items()
        if made_with.get(name) != value
    )


def write_calibration(calibration: Calibration, folder: Path) -> Path:
    """Write a calibration into a model's folder, in place of the one that may be there; returns its file."""
    path = folder / CALIBRATION_FILE
    content = {**asdict(calibration), "crossrank": version("crossrank")}
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return path


def read_calibration(folder: Path) -> Calibration | None:
    """Return the calibration in a model's folder; None where there is none.

    Raises:
        CheckpointError: the file is damaged; names the entry.
    """
    path = folder / CALIBRATION_FILE
    if not path.is_file():
        return None
    content = read_object(path)
    figures = read_setting(content, "figures", dict, source=path)
    return Calibration(
        map=_map(read_setting(content, "map", dict, source=path), path),
        label=read_setting(content, "label", str, source=path),
        made_with=read_setting(content, "made_with", dict, source=path),
        holds_for=read_setting(content, "holds_for", str, source=path),
        num_pairs=read_setting(content, "num_pairs", int, source=path, least=1),
        num_queries=read_setting(content, "num_queries", int, source=path, least=1),
        share_relevant=read_setting(content, "share_relevant", float, source=path, least=0),
        figures={
            when: {
                name: read_setting(read_setting(figures, when, dict, source=path), name, float, source=path)
                for name in read_setting(figures, when, dict, source=path)
            }
            for when in figures
        },
        thresholds=tuple(
            _threshold(entry, path) for entry in read_setting(content, "thresholds", list, source=path)
        ),
    )


def may_change_precision(folder: Path) -> bool:
    """Whether a model may be computed in float32 in place of int8: no calibration is bound to its int8 form.

    A calibration that cannot be read is bound to nothing.
    """
    try:
        found = read_calibration(folder)
    except CheckpointError:
        return True
    return found is None or found.made_with.get("precision") == "float32"


def _map(content: Mapping[str, Any], path: Path) -> ProbabilityMap:
    method = read_setting(content, "method", str, source=path)
    if method not in get_args(Method):
        raise bad_setting(path, "method", method, f"one of {', '.join(get_args(Method))}")
    slope = read_setting(content, "slope", float, source=path)
    intercept = read_setting(content, "intercept", float, source=path)
    if not (slope > 0 and np.isfinite(slope) and np.isfinite(intercept)):
        raise bad_setting(path, "slope and intercept", [slope, intercept], "finite, the slope above 0")
    listed = read_setting(content, "knots", list, source=path)
    knots = tuple(_numbers(knot, "knots", path) for knot in listed)
    columns = np.array(knots).T
    if method == "isotonic" and not (
        knots
        and np.isfinite(columns).all()
        and (np.diff(columns[0]) > 0).all()
        and (np.diff(columns[1]) >= 0).all()
        and columns[1, 0] >= 0
        and columns[1, -1] <= 1
    ):
        raise bad_setting(path, "knots", listed, "pairs of rising scores and rising probabilities")
    return ProbabilityMap(method, slope, intercept, knots)  # type: ignore[arg-type]  # looked at above


def _numbers(value: Any, key: str, path: Path) -> tuple[float, float]:
    if (
        not isinstance(value, (list, tuple))
        or len(value) != 2
        or {type(each) for each in value} - {int, float}
    ):
        raise bad_setting(path, key, value, "two numbers")
    return float(value[0]), float(value[1])


def _threshold(entry: Any, path: Path) -> Threshold:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: an entry of thresholds is no object; calibrate the model again")
    aim = read_setting(entry, "aim", str, source=path)
    if aim not in get_args(Aim):
        raise bad_setting(path, "aim", aim, f"one of {', '.join(get_args(Aim))}")
    numbers = {
        name: read_setting(entry, name, float, source=path)
        for name in ("wanted", "score", "probability", "precision", "recall", "held_out")
    }
    intervals = {name: _numbers(entry.get(name), name, path) for name in ("interval", "score_interval")}
    return Threshold(aim=aim, **numbers, **intervals)  # type: ignore[arg-type]  # looked at above
