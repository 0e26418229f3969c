"""Graphs give what transformers gave: the values beside each checkpoint of tests/golden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import ARCHITECTURES, Engine, open_engine

GOLDEN = Path(__file__).parent.parent / "golden"
CLASSIFIERS = sorted(
    path.parent.name for path in GOLDEN.glob("*/expected.npz") if path.parent.name != "sbert_bi_encoder"
)
# The file of bert_onnx gives logits only; the sbert cross-encoders store no token vectors.
WITHOUT_VECTORS = {"bert_onnx", "sbert_cross_encoder", "sbert_modular_cross_encoder"}
ENCODERS = [*sorted({*CLASSIFIERS} - WITHOUT_VECTORS), "sbert_bi_encoder"]
TOLERANCE = 1e-5


@cache
def engine(name: str, output: str) -> Engine:
    return open_engine(Checkpoint.open(GOLDEN / name), output=output, threads=1)


def expected(name: str) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return rows, dict(arrays)


def run(name: str, output: str, rows: Sequence[dict[str, Any]], length: int | None = None) -> np.ndarray:
    """Run rows as one batch, padded to the longest or to a given length."""
    length = length or max(len(row["ids"]) for row in rows)
    checkpoint = Checkpoint.open(GOLDEN / name)
    ids = np.full((len(rows), length), checkpoint.config["pad_token_id"], np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, row in enumerate(rows):
        size = len(row["ids"])
        ids[i, :size], mask[i, :size], types[i, :size] = row["ids"], 1, row["types"]
    return engine(name, output).run(ids, mask, types)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_of_each_pair_alone(name: str) -> None:
    rows, arrays = expected(name)
    logits = np.concatenate([run(name, "logits", [row]) for row in rows])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_do_not_depend_on_batch_and_padding(name: str) -> None:
    rows, arrays = expected(name)
    np.testing.assert_allclose(run(name, "logits", rows), arrays["logits"], rtol=0, atol=TOLERANCE)
    backwards = run(name, "logits", rows[::-1], length=90)[::-1]
    np.testing.assert_allclose(backwards, arrays["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ENCODERS)
def test_token_vectors_alone_and_in_a_batch(name: str) -> None:
    rows, arrays = expected(name)
    batch = run(name, "tokens", rows, length=93)
    for i, row in enumerate(rows):
        size = len(row["ids"])
        alone = run(name, "tokens", [row])
        np.testing.assert_allclose(alone[0], arrays[f"tokens_{i}"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(batch[i, :size], arrays[f"tokens_{i}"], rtol=0, atol=TOLERANCE)


def test_every_architecture_has_a_golden_checkpoint() -> None:
    # Those of T5, which has no classification head, are in tests/golden_t5.
    architectures = {Checkpoint.open(GOLDEN / name).architecture for name in CLASSIFIERS}
    assert architectures | {"t5"} == set(ARCHITECTURES)
