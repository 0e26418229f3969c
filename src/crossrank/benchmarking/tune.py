"""How one model runs fastest on this machine: measured once, kept, and followed whenever it opens.

Inputs of the lengths of MS MARCO's passages and random tokens run in interleaved rounds, first in each
precision, then in batches of several sizes on one thread each or on several. Batches change no score beyond
rounding, so the fastest median is taken. A precision does change scores: it must be faster by a margin in
every round, and only float32 may take the place of int8 by itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crossrank.benchmarking.rounds import PAUSE_S, interleave, load_average
from crossrank.benchmarking.texts import lengths
from crossrank.checks import check_count
from crossrank.errors import CrossrankError, InputError, MissingExtraError, require
from crossrank.models.calibration import may_change_precision
from crossrank.models.hub import DEFAULT_MODELS, resolve
from crossrank.models.load import kind_of
from crossrank.progress import Track, track
from crossrank.runtime.backends import open_backend
from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET, plan
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Engine, open_engine, runs_own_file
from crossrank.runtime.limits import num_threads
from crossrank.runtime.processor import processor
from crossrank.runtime.settings import read_setting
from crossrank.runtime.stored_forms import stored_precision
from crossrank.runtime.tokenization import ModelInputs
from crossrank.runtime.tuned import Measurement, Tuned, find_tuned, installed_versions, keep_tuned

__all__ = ["LEAST_ROUNDS", "TuneReport", "clearly_faster", "fastest_batches", "tune"]

LEAST_ROUNDS = 3
"""Fewer say nothing about noise."""

_PRECISION_MARGIN = 1.15  # how much faster another precision must be, in every round
_HOPELESS = 5.0  # times as slow as the model's own precision: not worth timing
_BATCH_MARGIN = 1.05  # how much faster other batches must be, in the median
_TOKEN_BUDGETS = (DEFAULT_TOKEN_BUDGET, 512, 2048)
_INPUTS_PER_THREAD = 48  # some 4,300 tokens: two of the largest batches
_QUERY_TOKENS, _SPECIAL_TOKENS = 12, 3
_ROW_TOKENS = 512  # of models without a limit of their own

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneReport:
    """How a model runs here from now on.

    Attributes:
        model: its name.
        tuned: the choice, and the figures.
        why: why it was measured in this call; "" where the figures were there already.
        path: the file they are kept in; None where they are not kept.
        notes: what the figures say that is not followed by itself.
        load_average: of the machine before it was measured; None where it was not, or is not known.
    """

    model: str
    tuned: Tuned
    why: str
    path: Path | None
    notes: tuple[str, ...]
    load_average: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {
            "model": self.model,
            "why_measured": self.why or None,
            "path": None if self.path is None else str(self.path),
            "notes": list(self.notes),
            "load_average_before": self.load_average,
            "processor": processor()._asdict(),
            **self.tuned.as_dict(),
        }


def tune(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    threads: int | None = None,
    rounds: int = 5,
    again: bool = False,
    progress: bool | None = None,
) -> TuneReport:
    """Measure how a model runs fastest on this machine's CPU, and keep that for whenever it opens.

    What is kept holds for all models of this shape, on this processor, with this number of threads and these
    versions of crossrank, ONNX Runtime and torch. `precision=`, `token_budget=` and `threads=` of a model go
    before it, and `CROSSRANK_TUNED=off` leaves it out.

    bf16 is timed where torch is installed and the processor has it, and never chosen: it changes scores.
    While it is timed, torch's number of threads is set to `threads`.

    Args:
        model: of any kind: a built-in model, a folder, or a hub name; None takes the built-in reranker.
        revision: commit, tag or branch; for hub models only.
        threads: of the model; None takes the cores this process may use.
        rounds: runs of each way, at least 3.
        again: measure also where that was done already.
        progress: whether a progress bar is shown; None shows it on a terminal.

    Raises:
        CheckpointError: the model cannot be opened.
        InputError: fewer than 3 rounds, or a number of threads that is none.
    """
    check_count(rounds, "rounds")
    if rounds < LEAST_ROUNDS:
        raise InputError(f"rounds is {rounds}; {LEAST_ROUNDS} are needed to tell a difference from noise")
    threads = num_threads(threads)
    name = DEFAULT_MODELS["cross-encoder"] if model is None else str(model)
    folder = resolve(model, kind="cross-encoder", revision=revision)
    subject = _Subject(Checkpoint.open(folder), kind_of(folder, name), threads)
    found = find_tuned(subject.checkpoint, threads, of_file=subject.of_file)
    why = "asked for again" if again and found.tuned else found.why
    if found.tuned is not None and found.tuned.precision != subject.precision(found.tuned.clearly_faster):
        why = "the model may compute in another precision now"
    if not why and found.tuned is not None:
        return TuneReport(name, found.tuned, "", found.path, subject.notes(found.tuned))
    if found.is_damaged:
        _logger.warning("%s; it is measured again", found.why)
    busy = load_average()
    tuned = _measured(subject, rounds, progress)
    path = keep_tuned(tuned, subject.checkpoint, of_file=subject.of_file) if found.path else None
    return TuneReport(name, tuned, why, path, subject.notes(tuned), busy)


def clearly_faster(rounds: Mapping[str, Sequence[float]], own: str) -> tuple[str, ...]:
    """The precisions that beat a model's own by the margin of 15 % in every round.

    Args:
        rounds: precision -> seconds of each round, of the same rounds.
        own: what the model has by itself.
    """
    return tuple(
        precision
        for precision, seconds in rounds.items()
        if precision != own
        and all(mine >= _PRECISION_MARGIN * its for mine, its in zip(rounds[own], seconds, strict=True))
    )


def fastest_batches(measured: Sequence[Measurement]) -> Measurement:
    """The way of batching with the least median; the first, which is the usual one, unless 5 % are gained."""
    best = min(measured, key=lambda each: each.median_s)
    return best if best.median_s * _BATCH_MARGIN <= measured[0].median_s else measured[0]


class _Subject:
    """A model that is measured.

    Args:
        checkpoint: its folder.
        kind: see `crossrank.models.load.KINDS`.
        threads: of the model.
    """

    def __init__(self, checkpoint: Checkpoint, kind: str, threads: int) -> None:
        self.checkpoint = checkpoint
        self.threads = threads
        self.of_file = runs_own_file(checkpoint)
        # Of a T5 the encoder is measured, which is nearly all of it.
        self.output: Literal["logits", "tokens"] = "logits" if kind == "cross_encoder" else "tokens"
        self._scores_pairs = kind not in ("bi_encoder", "late_interaction")
        self._may_change = self._scores_pairs and may_change_precision(checkpoint.folder)
        self.own = self.open("auto").precision if self.of_file else stored_precision(checkpoint, "auto")
        pair = _SPECIAL_TOKENS + (_QUERY_TOKENS if self._scores_pairs else 0)
        self.limit = checkpoint.max_positions
        most = min(checkpoint.max_length or _ROW_TOKENS, self.limit or _ROW_TOKENS)
        self.lengths = np.minimum(lengths("marco", _INPUTS_PER_THREAD * threads) + pair, most)

    def precision(self, faster: Sequence[str]) -> Literal["float32", "int8"]:
        """What the model computes in where these precisions are clearly faster than its own."""
        if self._may_change and "float32" in faster:
            return "float32"
        return "int8" if self.own == "int8" else "float32"

    def open(self, precision: str, run_threads: int = 1) -> Engine:
        """Open it for ONNX Runtime, whatever was measured before."""
        return open_engine(
            self.checkpoint,
            output=self.output,
            precision=precision,  # type: ignore[arg-type]
            threads=self.threads,
            run_threads=run_threads,
        )

    def open_all(self) -> tuple[dict[str, Engine], dict[str, str]]:
        """Open it in every precision there is here, its own first; and why others are not there."""
        engines: dict[str, Engine] = {self.own: self.open("auto" if self.of_file else self.own)}
        left_out = {}
        if self.of_file:
            other = "float32" if self.own == "int8" else "int8"
            left_out[other] = f"the model is an ONNX file in {self.own}"
        elif self.own == "int8":
            engines["float32"] = self.open("float32")
        else:
            left_out["int8"] = "no form of the model passed the parity gate; `crossrank quantize` makes one"
        if not processor().has_bf16:
            left_out["bf16"] = "this processor has no bf16, or the system does not say so"
            return engines, left_out
        try:
            engines["bf16"] = open_backend(
                self.checkpoint, output=self.output, backend="torch", device="cpu", precision="bf16"
            )
        except MissingExtraError as error:
            left_out["bf16"] = str(error)
        except CrossrankError as error:
            left_out["bf16"] = str(error).partition("; ")[0]
        return engines, left_out

    def run(self, engine: Engine, token_budget: int) -> Callable[[], None]:
        """Return what runs the inputs once, in batches of so many tokens."""
        vocabulary = read_setting(self.checkpoint.config, "vocab_size", int, 1000, least=1)
        draw = np.random.default_rng(0).integers
        batches = []
        for rows, length in plan(
            self.lengths, token_budget, self.limit, engine.threads, grouping=engine.grouping
        ):
            ids: npt.NDArray[np.int64] = draw(0, vocabulary, (len(rows), length))
            mask = (np.arange(length) < self.lengths[rows][:, None]).astype(np.int64)
            batches.append(ModelInputs(ids, mask, np.zeros_like(ids)))

        def run() -> None:
            for _ in engine.run_all(batches):
                pass

        return run

    def notes(self, tuned: Tuned) -> tuple[str, ...]:
        """What was found clearly faster and is not followed."""
        notes = []
        if "float32" in tuned.clearly_faster and tuned.precision != "float32":
            bound = "its calibration" if self._scores_pairs else "the vectors of an index"
            notes.append(
                f"float32 is clearly faster here than {self.own}, which {bound} may be bound to; open the "
                "model with precision='float32'"
            )
        if "bf16" in tuned.clearly_faster:
            notes.append(
                f"bf16 is clearly faster here than {self.own}, and gives other scores (about 3 digits are "
                "kept); open the model with precision='bf16'"
            )
        return tuple(notes)


def _measured(subject: _Subject, rounds: int, progress: bool | None) -> Tuned:
    engines, left_out = subject.open_all()
    teams = sorted({1, subject.threads} | ({2} if subject.threads >= 4 else set()))
    ways = [(budget, team) for team in teams for budget in _TOKEN_BUDGETS]
    with track(rounds * (len(engines) + len(ways)), "Measuring", progress=progress) as tracked:
        with _torch_threads(subject.threads, "bf16" in engines):
            runs = {each: subject.run(engine, DEFAULT_TOKEN_BUDGET) for each, engine in engines.items()}
            if "bf16" in runs:
                slower = _times_slower(runs["bf16"], runs[subject.own])
                if slower > _HOPELESS:
                    left_out["bf16"] = f"a run took {slower:.0f} times as long as one in {subject.own}"
                    del runs["bf16"], engines["bf16"]
                    tracked.advance(rounds)
            timed = _timed(runs, rounds, tracked, pause_s=PAUSE_S if "bf16" in engines else 0)
        faster = clearly_faster(timed, subject.own)
        precision = subject.precision(faster)
        opened = {
            team: subject.open("auto" if subject.of_file else precision, run_threads=team) for team in teams
        }
        of_ways = _timed({way: subject.run(opened[way[1]], way[0]) for way in ways}, rounds, tracked)
    precisions = [
        Measurement(
            each, DEFAULT_TOKEN_BUDGET, engine.threads, subject.threads // engine.threads, timed[each]
        )
        for each, engine in engines.items()
    ]
    batches = [Measurement(precision, way[0], opened[way[1]].threads, way[1], of_ways[way]) for way in ways]
    best = fastest_batches(batches)
    return Tuned(
        precision=precision,
        token_budget=best.token_budget,
        run_threads=best.run_threads,
        threads=subject.threads,
        clearly_faster=faster,
        num_pairs=len(subject.lengths),
        num_tokens=int(subject.lengths.sum()),
        precisions=tuple(precisions),
        batches=tuple(batches),
        left_out=left_out,
        versions=installed_versions(),
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _times_slower(run: Callable[[], None], own: Callable[[], None]) -> float:
    """How many times as long one run takes as another; torch's threads wait long for a busy core."""
    seconds = []
    for each in (own, run):
        each()
        start = time.perf_counter()
        each()
        seconds.append(time.perf_counter() - start)
    return seconds[1] / seconds[0]


def _timed(
    ways: Mapping[Any, Callable[[], None]], rounds: int, tracked: Track, pause_s: float = 0
) -> dict[Any, tuple[float, ...]]:
    """Seconds of each round of each way; each has run once before, unmeasured."""
    for run in ways.values():
        run()
    timings = interleave(
        {str(way): run for way, run in ways.items()}, rounds, lambda _: tracked.advance(), pause_s
    )
    return {way: tuple(timings[str(way)].wall_s) for way in ways}


@contextmanager
def _torch_threads(threads: int, is_used: bool) -> Iterator[None]:
    """Let torch take as many threads as the others, and then as many as before."""
    if not is_used:
        yield
        return
    torch: Any = require("torch", "torch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
