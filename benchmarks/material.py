"""What the benchmarks run on: one set of weights in several forms, and texts of chosen lengths."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crossrank.benchmarking.forms import Forms, write_forms
from crossrank.benchmarking.texts import cut, lengths
from crossrank.models.hub import Kind
from crossrank.models.quantize import calibration_inputs
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

__all__ = ["SAMPLE", "articles", "corpus", "folders", "lengths", "queries", "texts"]

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
_CALIBRATION_TEXTS = 384


def folders(weights: Path | None, kind: Kind, scratch: Path) -> Forms:
    """Write a model out so that every contestant runs the same weights; see `write_forms`.

    Args:
        weights: a model folder; None for the built-in model.
        kind: what the model is.
        scratch: where to write.
    """
    return write_forms(weights, kind, scratch, partial(_calibration_inputs, kind=kind))


def texts(targets: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Cut different texts of exactly these lengths from the sample corpus; each begins with a sentence."""
    return cut(articles(), targets, tokenizer)


def articles() -> list[str]:
    """The articles of the sample collection, whose paragraphs are its documents."""
    by_title: dict[str, list[str]] = {}
    for row in _rows("corpus.jsonl.gz"):
        by_title.setdefault(row["title"], []).append(row["text"])
    return [" ".join(paragraphs) for paragraphs in by_title.values()]


def corpus() -> list[str]:
    """The texts of the sample collection."""
    return [row["text"] for row in _rows("corpus.jsonl.gz")]


def queries(count: int) -> list[str]:
    """The first questions of the sample collection."""
    return [row["text"] for row in _rows("queries.jsonl.gz")[:count]]


def _calibration_inputs(checkpoint: Checkpoint, *, kind: Kind) -> list[ModelInputs]:
    tokenizer = Tokenizer(checkpoint)
    passages = texts(lengths("marco", _CALIBRATION_TEXTS).tolist(), tokenizer)
    pairs = list(zip(itertools.cycle(queries(_CALIBRATION_TEXTS)), passages, strict=False))
    return calibration_inputs(checkpoint, kind, pairs)


def _rows(name: str) -> list[dict[str, str]]:
    with gzip.open(SAMPLE / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
