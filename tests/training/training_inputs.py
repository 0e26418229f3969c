"""A task that a tiny model learns in seconds: what is relevant has the word "light"."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).parents[1] / "golden"
CROSS_ENCODER = GOLDEN / "bert"
BI_ENCODER = GOLDEN / "sbert_bi_encoder"
WORDS = ["cat", "dog", "bird", "river", "mountain", "city", "water", "blue", "old", "new"]


def lists(count: int, *, seed: int = 0, negatives: int = 3, teacher: bool = False) -> list[dict[str, Any]]:
    """Rows of lists: a positive and negatives, in an order that says nothing."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        first = rng.randrange(negatives + 1)
        labels = [int(j == first) for j in range(negatives + 1)]
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 7))) for _ in labels]
        texts = [f"{text} light" if label else text for text, label in zip(texts, labels, strict=True)]
        row = {
            "query_id": f"q{seed}-{i}",
            "query": f"what is {rng.choice(WORDS)} {rng.choice(WORDS)} {rng.choice(WORDS)}",
            "documents": texts,
            "labels": labels,
        }
        if teacher:
            row["teacher_scores"] = [4.0 * label + 0.1 * j for j, label in enumerate(labels)]
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for a few steps of the tiny cross-encoder, with its data written to the folder."""
    train, dev = folder / "train.jsonl", folder / "dev.jsonl"
    if not train.exists():
        write_jsonl(train, lists(32, teacher=True))
        write_jsonl(dev, lists(10, seed=1))
    values: dict[str, Any] = {
        "student": {"kind": "cross_encoder", "base": str(CROSS_ENCODER)},
        "data": [{"file": str(train)}],
        "loss": {"name": "lce"},
        "schedule": {"steps": 6, "lists_per_step": 4, "learning_rate": 0.001, "token_budget": 128},
        "lengths": {"max_length": 64},
        "precision": "float32",
        "held_out": {"file": str(dev), "every": 2},
        "guards": {"below_baseline": 1.0, "constant_scores": 0.0},
        "output": str(folder / "model"),
    }
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            values[key] = {**values[key], **value}
        else:
            values[key] = value
    return {key: value for key, value in values.items() if value is not None or key == "held_out"}


def write_recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(folder, **changes), sort_keys=False), encoding="utf-8")
    return path
