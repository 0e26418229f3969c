"""Every family of rerankers, each with one small factory: what the conformance suite runs over.

To add a family, add a line to `FAMILIES`. Its factory makes a new, tiny, real model at every call (random
weights, seconds at most, deterministic) and takes `progress` and `cache`, which it passes on where its class
has them. What a family cannot promise by its nature is said in its `Family`, beside the reason.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from crossrank.cache import ScoreCache
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.reranker import Reranker

GOLDEN = Path(__file__).parent.parent / "golden"


class Factory(Protocol):
    """Makes a new reranker of a family."""

    def __call__(self, *, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker: ...


@dataclass(frozen=True)
class Family:
    """A family of rerankers and what it promises.

    Attributes:
        name: of the family, in the names of tests.
        build: makes a new one.
        pointwise: a document's score depends on query and document alone, so there is `score`, and equal
            documents keep their order. False where documents are compared with one another.
        one_scale: a ranking's scores fall with its ranks. False for several stages one after another.
        cached: takes a `ScoreCache`.
        reports_progress: tells `crossrank.progress` how far a call is.
        tolerance: what batches may change in a score (the order of float32 additions).
        requires: modules without which the family is skipped.
    """

    name: str
    build: Factory
    pointwise: bool = True
    one_scale: bool = True
    cached: bool = False
    reports_progress: bool = True
    tolerance: float = 1e-5
    requires: tuple[str, ...] = ()


def cross_encoder(folder: str, **options: object) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return CrossEncoder(GOLDEN / folder, threads=2, progress=progress, cache=cache, **options)

    return build


def late_interaction(folder: str) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return LateInteraction(
            GOLDEN.parent / "models" / "golden_late" / folder,
            threads=2,
            progress=progress,
            long_query="truncate",
        )

    return build


FAMILIES = [
    *(
        Family(f"CrossEncoder-{folder}", cross_encoder(folder), cached=True)
        for folder in (
            *("bert", "roberta", "xlm_roberta", "distilbert", "electra", "deberta_v2", "deberta_v3"),
            *("modernbert", "modernbert_mean", "sbert_modular_cross_encoder"),
        )
    ),
    Family("CrossEncoder-onnx", cross_encoder("bert_onnx", source="onnx"), cached=True),
    Family("CrossEncoder-label", cross_encoder("camembert", label="entailment"), cached=True),
    Family("CrossEncoder-windows", cross_encoder("bert", long_documents="max"), cached=True),
    *(
        Family(f"LateInteraction-{folder}", late_interaction(folder))
        for folder in ("multi_vector", "pylate", "stanford")
    ),
]


def parameters(wanted: Callable[[Family], bool] = lambda family: True) -> list[object]:
    """The families as parameters of a test, skipped where what they need is not installed."""
    rows = []
    for family in filter(wanted, FAMILIES):
        missing = [module for module in family.requires if importlib.util.find_spec(module) is None]
        marks = [pytest.mark.skip(reason=f"needs {', '.join(missing)}")] if missing else []
        rows.append(pytest.param(family, id=family.name, marks=marks))
    return rows
