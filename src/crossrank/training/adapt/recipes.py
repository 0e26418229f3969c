"""The two trainings of an adaptation as recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from crossrank.training.adapt.settings import AdaptationSettings
from crossrank.training.recipes import Recipe, recipe_of

__all__ = ["DEV_QUERIES", "MEASURED_DEPTH", "MEASUREMENTS", "PARTS", "Part", "recipe_for"]

Part = Literal["bi_encoder", "reranker"]

PARTS: tuple[Part, ...] = ("bi_encoder", "reranker")
"""What is trained; the reranker first, which the other learns from."""

MEASUREMENTS = 5
"""While a model is trained, at most, beside that of the base."""

DEV_QUERIES = 200
"""That are measured on, at most."""

MEASURED_DEPTH = 30
"""Candidates of each."""


def recipe_for(
    part: Part,
    settings: AdaptationSettings,
    *,
    collection: Path,
    negatives: Path,
    output: Path,
    steps: int,
    most_tokens: int,
    dev_queries: int = DEV_QUERIES,
    exits: Sequence[int] = (),
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
        dev_queries: that it is measured on while it is trained, at most.
        exits: layers after which the old reranker has heads; the new one keeps them.
    """
    size = settings.bi_encoder_training if part == "bi_encoder" else settings.reranker_training
    values: dict[str, Any] = {
        "student": {
            "kind": "bi_encoder" if part == "bi_encoder" else "cross_encoder",
            "base": settings.bi_encoder if part == "bi_encoder" else settings.reranker,
            **({"exits": [*exits]} if exits else {}),
        },
        "data": [{"file": str(negatives)}],
        "loss": {"name": size.loss, **size.loss_options},
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
            "depth": min(settings.depth, MEASURED_DEPTH),
            "queries": dev_queries,
            "measure": settings.measure,
            "every": math.ceil(steps / MEASUREMENTS),
        },
        # passages longer than what is read are no fault of the labels, and after a fall the best weights are
        # taken, or the old model's own
        "guards": {"truncated_positives": 1.0, "below_baseline": 1.0},
        "precision": settings.precision,
        "seed": settings.seed,
        "output": str(output),
    }
    return recipe_of(values)
