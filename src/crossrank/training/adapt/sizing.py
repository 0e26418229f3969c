"""How long the trainings of an adaptation may be: as many steps as stated, or as a time has room for.

A time is for the whole command. What was done before the trainings has taken what it took; what comes after
them is reckoned from it, and what is left is theirs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crossrank.training.adapt.recipes import DEV_QUERIES, MEASUREMENTS, PARTS, Part
from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.recipes import Recipe

if TYPE_CHECKING:
    from crossrank.training.guards import Progress

__all__ = ["Cost", "Size", "longest", "sized", "tried"]

_SHARES: dict[Part, float] = {"bi_encoder": 1 / 3, "reranker": 2 / 3}
_MEASURED_SHARE = 0.25  # of a training's time, at most, where that leaves a few queries
_FEWEST_QUERIES = 20
_FEWEST_STEPS = 10  # fewer teach nothing; a time too short for them is exceeded

_TRIED_STEPS = 6
_TRIED_QUERIES = 8


@dataclass(frozen=True)
class Cost:
    """What a training takes on this machine.

    Attributes:
        step_s: seconds of a step.
        query_s: seconds to measure a dev query with its candidates.
    """

    step_s: float
    query_s: float


@dataclass(frozen=True)
class Size:
    """How long a training is.

    Attributes:
        steps: updates.
        dev_queries: that it is measured on, at most.
    """

    steps: int
    dev_queries: int


def longest(settings: AdaptationSettings, part: Part, num_queries: int) -> int:
    """Return the steps that `max_epochs` allows."""
    size = settings.bi_encoder_training if part == "bi_encoder" else settings.reranker_training
    return max(1, math.ceil(settings.max_epochs * num_queries / size.lists_per_step))


def sized(settings: AdaptationSettings, part: Part, num_queries: int, *, seconds: float, cost: Cost) -> Size:
    """Return the size of a training that its share of a time has room for.

    Args:
        settings: of the adaptation.
        part: which.
        num_queries: to train with.
        seconds: for both trainings, with their measurements.
        cost: of this one.
    """
    share = seconds * _SHARES[part]
    one_query = (MEASUREMENTS + 2) * cost.query_s  # the base, and the best once more to compare them
    dev_queries = min(DEV_QUERIES, max(_FEWEST_QUERIES, int(_MEASURED_SHARE * share / one_query)))
    steps = max(_FEWEST_STEPS, int((share - dev_queries * one_query) / cost.step_s))
    return Size(min(steps, longest(settings, part, num_queries)), dev_queries)


def tried(make: Callable[[Part, Path, Size], Recipe]) -> dict[Part, Cost]:
    """Train each model for some steps into nowhere, and time what comes after the first one.

    Args:
        make: part, output and size to a recipe.
    """
    return {part: _cost(make, part) for part in PARTS}


def _cost(make: Callable[[Part, Path, Size], Recipe], part: Part) -> Cost:
    from crossrank.training.train import train

    steps: list[float] = []
    measured = 0.0

    def note(told: Progress) -> None:
        nonlocal measured
        if told.measured is None:
            steps.append(time.monotonic())
        else:
            measured = time.monotonic()

    with tempfile.TemporaryDirectory() as nowhere:
        recipe = make(part, Path(nowhere) / "model", Size(_TRIED_STEPS, _TRIED_QUERIES))
        assert recipe.held_out is not None  # all have one
        train(replace(recipe, held_out=replace(recipe.held_out, every=_TRIED_STEPS)), report=note)
    # the last step is reported after the measurement that follows it
    step_s = max((steps[-2] - steps[0]) / (len(steps) - 2), 1e-6)
    return Cost(step_s, max(measured - steps[-2] - step_s, 1e-6) / _TRIED_QUERIES)
