"""A cross-encoder that reads most documents with its first layers alone, and the best with all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from crossrank.checks import as_list
from crossrank.composition.cascade import rank_in_stages
from crossrank.depths import Depth, check_depths
from crossrank.errors import InputError
from crossrank.models.calibration import Calibration
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.requests import RankVerbs, Requests
from crossrank.progress import track
from crossrank.stage_runner import StageRunner
from crossrank.stages import Stage
from crossrank.types import Ranking

__all__ = ["EarlyExit"]

_BLOCK_PAIRS = 256
"""Pairs whose hidden states are held at a time: enough for full batches."""


class EarlyExit(RankVerbs):
    """Scores all documents after an early layer and lets only the best of them go on to later layers.

    A `Cascade` within one model that was trained with heads at earlier layers (`exits.safetensors`; see
    `crossrank.runtime.exits`): who goes on is not read again from the beginning, but takes up where it was,
    at the layer of the head (see `crossrank.runtime.staged_engine`).

    Documents that reach the last layer have the scores of the whole model. The others keep order and score of
    where they left, below all that went on; as in a cascade a hit's `stage` says which layer that was
    ("NAME@2"), since the scores of two layers are not to be compared, and `stage_scores` has all of a hit's
    scores. `rank` and `rank_many` raise what those of the model do; many queries are ranked a few at a time.

    Safe to use from many threads at once.

    Args:
        model: the whole model, with heads after the layers named here. Its weights are opened once more, in
            parts.
        first: the layer after which all documents are scored. 0 compares word embeddings before the first
            layer, which needs no heads (see `crossrank.models.word_similarity`).
        then: (layer, depth) in ascending order; `model.num_layers` is the last layer. A depth is a number of
            documents, which may not grow, or a rule that decides for each query: `Margin`, `TimeBudget` (see
            `crossrank.depths`).
        name: of this reranker.
        progress: a progress bar over many queries; None shows one on a terminal.
        clock: seconds on a clock that never goes back; for timings and budgets.

    Attributes:
        model: see above.
        layers: after which there are scores.
        depths: how many documents reach each of them but the first.
        calibration: gives hits that reach the last of these layers their `probability`; the others have
            none. It is the model's where that layer is the model's last, and None elsewhere.
        why_uncalibrated: why there is none, in words; "" where there is one.

    Raises:
        InputError: something that is no cross-encoder, a layer without a head, layers that do not ascend, or
            a depth that is below 1 or grows.
        UnsupportedArchitectureError: a model that cannot be cut into parts.

    Source:
        Heads and an order of stages as in Soldaini and Moschitti 2020, "The Cascade Transformer",
        arXiv:2005.02534, and Xin et al. 2020, "Early Exiting BERT for Efficient Document Ranking".

    Example:
        >>> model = CrossEncoder()
        >>> early = EarlyExit(model, 0, [(model.num_layers, 2)])
        >>> texts = ["The omelette was perfect.", "Shakespeare's Hamlet", "Hamlet is by Shakespeare."]
        >>> [hit.stage for hit in early.rank("who wrote Hamlet", texts)]
        ['crossrank-mini', 'crossrank-mini', 'crossrank-mini@0']
    """

    def __init__(
        self,
        model: CrossEncoder,
        first: int,
        then: Sequence[tuple[int, Depth]],
        *,
        name: str = "early-exit",
        progress: bool | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not isinstance(model, CrossEncoder):
            raise InputError(
                f"early exits are of a CrossEncoder, not of {type(model).__name__}; for several models one "
                "after another, take Cascade"
            )
        steps = as_list(then, "then")
        for step in steps:
            if not isinstance(step, (tuple, list)) or len(step) != 2:
                raise InputError(f"then is a list of (layer, depth), not of {type(step).__name__}")
        self.model = model
        self.layers: tuple[int, ...] = (first, *(layer for layer, _ in steps))
        self.depths: tuple[Depth, ...] = tuple(depth for _, depth in steps)
        check_depths(self.depths)
        self.name = name
        self._begin = model.staged(self.layers)
        last = self._begin()[-1]
        self.calibration: Calibration | None = last.calibration
        self.why_uncalibrated: str = last.why_uncalibrated
        self._progress = progress
        self._clock = clock
        self._runner = StageRunner(self.name, "raise", clock)

    def _rank(self, requests: Requests, top_k: int | None) -> list[Ranking]:
        blocks = list(_blocks(requests))
        rankings: list[Ranking] = []
        total = sum(map(len, requests.documents))
        bar = track(total, "Scoring pairs", progress=self._progress) if len(blocks) > 1 else nullcontext()
        with bar as tracked:
            for block in blocks:
                stages = [
                    Stage(reranker.name, reranker, depth)
                    for reranker, depth in zip(self._begin(), (sys.maxsize, *self.depths), strict=True)
                ]
                rankings += rank_in_stages(stages, self._runner, self._clock, block, top_k)
                if tracked is not None:
                    tracked.advance(sum(map(len, block.documents)))
        return rankings

    def __repr__(self) -> str:
        then = "".join(
            f", then {layer} of {depth!r}" for layer, depth in zip(self.layers[1:], self.depths, strict=True)
        )
        return f"EarlyExit({self.model.name!r}, after layer {self.layers[0]}{then})"


def _blocks(requests: Requests) -> Iterator[Requests]:
    """Cut requests into some of few pairs each."""
    start = num_pairs = 0
    for number, documents in enumerate(requests.documents):
        if number > start and num_pairs + len(documents) > _BLOCK_PAIRS:
            yield _part(requests, start, number)
            start, num_pairs = number, 0
        num_pairs += len(documents)
    if start < len(requests.documents):
        yield _part(requests, start, len(requests.documents))


def _part(requests: Requests, start: int, stop: int) -> Requests:
    return Requests(
        requests.queries[start:stop],
        requests.documents[start:stop],
        requests.texts[start:stop],
        requests.many,
    )
