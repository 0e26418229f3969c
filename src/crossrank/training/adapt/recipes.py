"""The two trainings of an adaptation as recipes, and how many steps a time gives."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.recipes import Recipe, recipe_of

if TYPE_CHECKING:
    from crossrank.training.guards import Progress

__all__ = ["PARTS", "Part", "recipe_for", "sized", "steps_within"]

Part = Literal["bi_encoder", "reranker"]

PARTS: tuple[Part, ...] = ("bi_encoder", "reranker")
"""What is trained, in this order."""

_BUDGET_SHARE: dict[Part, float] = {"bi_encoder": 1 / 3, "reranker": 2 / 3}
_MEASUREMENTS = 5  # while a model is trained
_MEASURED_QUERIES = 200
_MEASURED_DEPTH = 30
_TRIED_STEPS = 6
_SECONDS = 60


def recipe_for(
    part: Part,
    settings: AdaptationSettings,
    *,
    collection: Path,
    negatives: Path,
    output: Path,
    steps: int,
    most_tokens: int,
) -> Recipe:
    """Return the recipe of one of the two models.

    Args:
        part: which.
        settings: of the adaptation.
        collection: its pseudo-queries; those of "dev" choose the best weights.
        negatives: mined for those of "train".
        output: folder of the model.
        steps: updates.
        most_tokens: that the model takes.
    """
    size = settings.bi_encoder_training if part == "bi_encoder" else settings.reranker_training
    values: dict[str, Any] = {
        "student": {
            "kind": "bi_encoder" if part == "bi_encoder" else "cross_encoder",
            "base": settings.bi_encoder if part == "bi_encoder" else settings.reranker,
        },
        "data": [{"file": str(negatives)}],
        "loss": {"name": size.loss},
        "schedule": {
            "steps": steps,
            "learning_rate": size.learning_rate,
            "lists_per_step": size.lists_per_step,
            "list_size": size.list_size,
        },
        "lengths": {"max_length": min(settings.max_length, most_tokens)},
        "freeze": {"embeddings": True},  # some hundred steps teach rare words nothing
        "held_out": {
            "collection": str(collection),
            "split": "dev",
            "depth": min(settings.depth, _MEASURED_DEPTH),
            "queries": _MEASURED_QUERIES,
            "measure": settings.measure,
            "every": max(1, steps // _MEASUREMENTS),
        },
        # passages longer than what is read are no fault of the labels, and after a fall the best weights are
        # taken, or the old model's own
        "guards": {"truncated_positives": 1.0, "below_baseline": 1.0},
        "precision": settings.precision,
        "seed": settings.seed,
        "output": str(output),
    }
    return recipe_of(values)


def steps_within(settings: AdaptationSettings, part: Part, num_queries: int, seconds_a_step: float) -> int:
    """Return the steps that a part's share of the budget has time for, up to `max_epochs` and at least 1.

    Args:
        settings: with a budget.
        part: which.
        num_queries: to train with.
        seconds_a_step: as measured.
    """
    assert settings.budget_minutes is not None  # checked by the caller
    seconds = settings.budget_minutes * _SECONDS * _BUDGET_SHARE[part]
    return max(1, min(int(seconds / seconds_a_step), longest(settings, part, num_queries)))


def longest(settings: AdaptationSettings, part: Part, num_queries: int) -> int:
    """Return the steps that `max_epochs` allows."""
    size = settings.bi_encoder_training if part == "bi_encoder" else settings.reranker_training
    return max(1, math.ceil(settings.max_epochs * num_queries / size.lists_per_step))


def sized(
    settings: AdaptationSettings, make: Callable[[Part, Path, int], Recipe], num_queries: int
) -> dict[str, int]:
    """Return the steps of each part: as stated, or as the budget allows on this machine.

    Args:
        settings: of the adaptation.
        make: part, output and steps to a recipe.
        num_queries: to train with.
    """
    if settings.steps is not None:
        return {part: min(settings.steps, longest(settings, part, num_queries)) for part in PARTS}
    return {part: steps_within(settings, part, num_queries, _seconds_a_step(make, part)) for part in PARTS}


def _seconds_a_step(make: Callable[[Part, Path, int], Recipe], part: Part) -> float:
    """Train some steps into nowhere, and time all but the first."""
    from crossrank.training.train import train

    times: list[float] = []

    def note(told: Progress) -> None:
        times.append(time.monotonic())

    with tempfile.TemporaryDirectory() as nowhere:
        recipe = make(part, Path(nowhere) / "model", _TRIED_STEPS)
        train(replace(recipe, held_out=None), report=note)
    return max((times[-1] - times[0]) / max(len(times) - 1, 1), 1e-6)
