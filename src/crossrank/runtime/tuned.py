"""How a model runs fastest here, as `crossrank tune` measured it: kept in a file, read when a model opens.

A file is of one shape of model on one processor with one number of threads; what was measured with other
versions of the libraries does not count. Nothing is measured here: benchmarking/tune.py does that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import onnxruntime

from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.native import library
from crossrank.runtime.processor import processor
from crossrank.whole_files import write_whole

__all__ = [
    "TUNED_VARIABLE",
    "Found",
    "Measurement",
    "Tuned",
    "find_tuned",
    "installed_versions",
    "keep_tuned",
    "tuned_folder",
    "tuned_here",
]

TUNED_VARIABLE = "CROSSRANK_TUNED"
"""Environment variable: the folder of what was measured, in place of the user's own; "off" reads nothing."""

_OFF = "off"
_NEVER = "it was not measured yet"

_logger = logging.getLogger(__name__)


class Measurement(NamedTuple):
    """What one way of running a model took.

    Attributes:
        precision: "float32", "int8" or "bf16".
        token_budget: tokens of a batch.
        workers: batches that ran at a time.
        run_threads: threads of each.
        rounds_s: seconds of each round.
    """

    precision: str
    token_budget: int
    workers: int
    run_threads: int
    rounds_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The middle round."""
        return statistics.median(self.rounds_s)


@dataclass(frozen=True)
class Tuned:
    """How to run a model, and the figures that say so.

    Attributes:
        precision: what the other two were measured in.
        token_budget: tokens of a batch.
        run_threads: threads of one batch; `threads // run_threads` batches run at a time.
        threads: of the model.
        clearly_faster: the precisions that beat the model's own by the margin in every round.
        num_pairs: inputs of a round.
        num_tokens: of all of them.
        precisions: what each precision took, the model's own first.
        batches: what each way of batching took, the usual one first.
        left_out: what was not measured, and why.
        versions: of the libraries.
        measured_at: when, in ISO 8601.
    """

    precision: Literal["float32", "int8"]
    token_budget: int
    run_threads: int
    threads: int
    clearly_faster: tuple[str, ...]
    num_pairs: int
    num_tokens: int
    precisions: tuple[Measurement, ...]
    batches: tuple[Measurement, ...]
    left_out: Mapping[str, str]
    versions: Mapping[str, str | None]
    measured_at: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        rows = {
            name: [{**each._asdict(), "median_s": each.median_s} for each in getattr(self, name)]
            for name in ("precisions", "batches")
        }
        return {**asdict(self), **rows}


class Found(NamedTuple):
    """What was measured of a model.

    Attributes:
        tuned: None where nothing that counts was.
        why: why not, in words.
        path: the file, whether it is there or not; None where nothing is kept.
        is_damaged: whether the file is there and cannot be read.
    """

    tuned: Tuned | None
    why: str
    path: Path | None
    is_damaged: bool = False


def tuned_folder() -> Path | None:
    """Where measurements are kept: `CROSSRANK_TUNED`, or the user's folder for caches; None for nowhere."""
    stated = os.environ.get(TUNED_VARIABLE, "").strip()
    if stated:
        return None if stated.lower() == _OFF else Path(stated)
    try:
        home = Path.home()
    except RuntimeError:  # a user without one
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "crossrank" / "tuned"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "crossrank" / "tuned"
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (caches if caches.is_absolute() else home / ".cache") / "crossrank" / "tuned"


def tuned_here(checkpoint: Checkpoint, threads: int, *, of_file: bool) -> Tuned | None:
    """What counts for a model that is opened; a file that cannot be read, or is too old, is said once.

    Args:
        checkpoint: the opened folder.
        threads: of the model.
        of_file: whether its own ONNX file runs, and not a graph of its weights.
    """
    found = find_tuned(checkpoint, threads, of_file=of_file)
    if found.path is not None and found.why not in ("", _NEVER):
        level = logging.WARNING if found.is_damaged else logging.INFO
        _say_once(
            level,
            f"{checkpoint.folder} runs as if it had not been measured: {found.why}; `crossrank tune` "
            f"measures again, and {TUNED_VARIABLE}={_OFF} reads no measurements",
        )
    return found.tuned


def find_tuned(checkpoint: Checkpoint, threads: int, *, of_file: bool) -> Found:
    """Read what was measured of a model; see `tuned_here`."""
    path = _path(checkpoint, threads, of_file)
    if path is None:
        return Found(None, f"there is no folder for measurements, or {TUNED_VARIABLE} is {_OFF}", None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before, now = dict(content["versions"]), installed_versions()
        if changed := [name for name in now if now[name] != before.get(name)]:
            name = changed[0]
            return Found(None, f"{name} was {before.get(name)} and is {now[name]}", path)
        return Found(_parsed(content, threads), "", path)
    except FileNotFoundError:
        return Found(None, _NEVER, path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Found(None, f"{path} is damaged ({type(error).__name__}: {error})", path, is_damaged=True)


def keep_tuned(tuned: Tuned, checkpoint: Checkpoint, *, of_file: bool) -> Path | None:
    """Write down what was measured, whole or not at all.

    Args:
        tuned: what was.
        checkpoint: of which model.
        of_file: see `tuned_here`.

    Returns:
        The file; None where nothing is to be kept, or it cannot be written, which is logged.
    """
    path = _path(checkpoint, tuned.threads, of_file)
    if path is None:
        return None
    text = json.dumps({"processor": processor()._asdict(), **tuned.as_dict()}, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    except OSError as error:
        _logger.warning(
            "what was measured cannot be kept: %s; name another folder in %s", error, TUNED_VARIABLE
        )
        return None
    return path


@cache
def installed_versions() -> dict[str, str | None]:
    """The versions that a measurement counts for; None for what is not installed."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    compiled = library()
    return {
        "crossrank": version("crossrank"),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch,
        "native library": compiled.stem if compiled else None,
    }


def _path(checkpoint: Checkpoint, threads: int, of_file: bool) -> Path | None:
    """The file of this shape of model on this machine.

    Time depends on a model's shape and not on what its weights are: these are not read, which for a large
    model would take longer than to open it.
    """
    folder = tuned_folder()
    if folder is None:
        return None
    machine = [*processor(), threads]
    forms = [of_file, bool(checkpoint.weight_files), checkpoint.int8_file is not None]
    shape = [checkpoint.architecture, checkpoint.config, len(checkpoint.modules)]
    key = json.dumps([machine, forms, shape], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _parsed(content: Mapping[str, Any], threads: int) -> Tuned:
    """A file's content; ValueError, TypeError or KeyError where it is none."""
    rows = {
        name: tuple(
            Measurement(**{**{key: row[key] for key in Measurement._fields}, "rounds_s": _seconds(row)})
            for row in content[name]
        )
        for name in ("precisions", "batches")
    }
    texts = {"left_out": dict(content["left_out"]), "versions": dict(content["versions"])}
    names = {"clearly_faster": tuple(content["clearly_faster"])}
    tuned = Tuned(**{**{key: content[key] for key in Tuned.__dataclass_fields__}, **rows, **texts, **names})
    if tuned.precision not in ("float32", "int8"):
        raise ValueError(f"precision is {tuned.precision!r}")
    numbers = [tuned.token_budget, tuned.run_threads, tuned.num_pairs, tuned.num_tokens]
    numbers += [value for row in (*tuned.precisions, *tuned.batches) for value in row[1:4]]
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError("a number is none")
    if tuned.threads != threads or tuned.run_threads > threads:
        raise ValueError(f"{tuned.run_threads} threads a batch, of {tuned.threads}")
    if not tuned.precisions or not tuned.batches:
        raise ValueError("there are no figures")
    return tuned


def _seconds(row: Mapping[str, Any]) -> tuple[float, ...]:
    seconds = tuple(float(value) for value in row["rounds_s"])
    if not seconds:
        raise ValueError("a row has no rounds")
    return seconds


@cache
def _say_once(level: int, message: str) -> None:
    _logger.log(level, message)
