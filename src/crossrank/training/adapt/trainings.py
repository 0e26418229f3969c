"""The trainings of an adaptation: how long each may be, and each itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from crossrank.errors import TrainingStoppedError
from crossrank.evaluation.collections import Collection
from crossrank.training.adapt.lessons import is_distilled
from crossrank.training.adapt.recipes import DEV_QUERIES, PARTS, Part, recipe_for
from crossrank.training.adapt.sizing import Size, longest, sized, tried
from crossrank.training.adapt.workspace import CALIBRATED_DEPTH, Workspace
from crossrank.training.guards import Progress
from crossrank.training.recipes import Recipe
from crossrank.training.run_folder import RunFolder
from crossrank.training.train import train

__all__ = ["OnTraining", "size_trainings", "train_part"]

OnTraining: TypeAlias = Callable[[], AbstractContextManager[Callable[[Progress], None]]]

_INT8_PAIRS = 7000
"""Pairs that take as long to score as int8 forms to make and check."""

_FLOAT32_PAIR = 3
"""How many times as long a pair takes in float32, which the new reranker is in when it scores, as in int8."""

_TIMED_QUERIES = 4


def size_trainings(work: Workspace, judged: tuple[Path, str] | None) -> dict[str, Any]:
    """Say how long both models are trained; see `sizing`."""
    settings, num_queries = work.settings, int(work.stages["negatives"]["rows"])
    if settings.steps is not None:
        steps: dict[str, Any] = {
            part: min(settings.steps, longest(settings, part, num_queries)) for part in PARTS
        }
        return steps | {"dev_queries": dict.fromkeys(PARTS, DEV_QUERIES)}
    assert settings.budget_minutes is not None  # one of the two is there
    begun = time.monotonic()
    costs, later = tried(partial(_recipe, work)), _later_s(work, judged)
    spent = sum(work.seconds.values()) + time.monotonic() - begun
    left = max(0.0, 60 * settings.budget_minutes - spent - later)
    sizes = {part: sized(settings, part, num_queries, seconds=left, cost=costs[part]) for part in PARTS}
    return {
        **{part: size.steps for part, size in sizes.items()},
        "dev_queries": {part: size.dev_queries for part, size in sizes.items()},
        "costs": {part: asdict(cost) for part, cost in costs.items()},
        "for_trainings_s": left,
        "for_later_s": later,
    }


def train_part(work: Workspace, part: Part, on_training: OnTraining) -> dict[str, Any]:
    """Train a model, or go on with its training."""
    folder = work.model_folder(part)
    sizes = work.stages["steps"]
    recipe = _recipe(work, part, folder, Size(sizes[part], sizes["dev_queries"][part]))
    found = _whole(folder)
    if found is None:
        try:
            with on_training() as report:
                train(recipe, report=report)
        except TrainingStoppedError as error:
            return {"status": "stopped", "why": str(error), "steps": recipe.schedule.steps}
        found = _whole(folder)
    assert found is not None  # train leaves it
    return {
        "status": "trained" if found["best_step"] else "nothing better",
        "steps": found["num_steps"],
        "precision": found["precision"],
        "seconds": round(found["training_s"], 1),
        "dev_before": found["baseline"],
        "dev_best": found["best"],
        "best_step": found["best_step"],
    }


def _recipe(work: Workspace, part: Part, output: Path, size: Size) -> Recipe:
    return recipe_for(
        part,
        work.settings,
        collection=work.collection,
        negatives=work.taught if part == "bi_encoder" and work.taught.is_file() else work.negatives,
        output=output,
        steps=size.steps,
        dev_queries=size.dev_queries,
        exits=work.old_reranker.exit_layers if part == "reranker" else (),
        most_tokens=(
            work.old_bi_encoder.max_length if part == "bi_encoder" else work.old_reranker.settings.max_length
        ),
    )


def _later_s(work: Workspace, judged: tuple[Path, str] | None) -> float:
    """Reckon what comes beside the trainings: scoring the lists anew, int8 forms, measuring, calibrating.

    The corpus is encoded again by the new bi-encoder; each of three searches reranks all candidates.
    """
    collection = Collection.open(work.collection)
    asked = collection.queries("test")
    sample = dict([*asked.items()][:_TIMED_QUERIES])
    first = work.search.hybrid(work.old_bi_encoder)
    rankings = first.retrieve([*sample.values()], work.settings.depth)
    pairs = [
        (query, hit.document.full_text)
        for query, ranking in zip(sample.values(), rankings, strict=True)
        for hit in ranking
        if hit.document is not None
    ]
    begun = time.monotonic()
    work.old_reranker.score(pairs)
    pair_s = (time.monotonic() - begun) / max(1, len(pairs))
    queries, encoded = len(asked), 1.0
    if judged is not None:
        folder, split = judged
        other = Collection.open(folder)
        queries += len(other.queries(split))
        encoded += 2 * sum(1 for _ in other.documents()) / len(work.documents)
    num_pairs = 3 * work.settings.depth * queries + _INT8_PAIRS
    num_pairs += CALIBRATED_DEPTH * len(collection.queries("dev"))
    if is_distilled(work):
        negatives = work.stages["negatives"]
        listed: int = negatives["rows"] + sum(negatives["negatives"].values())
        num_pairs += listed * (_FLOAT32_PAIR if work.old_reranker.precision == "int8" else 1)
    return encoded * work.seconds.get("queries", 0.0) + num_pairs * pair_s


def _whole(folder: Path) -> dict[str, Any] | None:
    """Return what a training ended with; None where it has not ended."""
    run = RunFolder(folder)
    record = run.record() if run.has_begun else {}
    return record["result"] if record.get("finished") else None
