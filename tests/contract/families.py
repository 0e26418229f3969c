"""Every family of rerankers, each with one small factory: what the conformance suite runs over.

To add a family, add a line to `FAMILIES`. Its factory makes a new, tiny, real model at every call (random
weights, seconds at most, deterministic) and takes `progress` and `cache`, which it passes on where its class
has them. What a family cannot promise by its nature is said in its `Family`, beside the reason.
"""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from llm_families import asking, local

from crossrank.cache import ScoreCache
from crossrank.composition.cascade import Cascade
from crossrank.composition.early_exit import EarlyExit
from crossrank.composition.ensemble import Ensemble
from crossrank.composition.tournament import Tournament
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.export import export
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.llm import (
    ListwiseLLM,
    PairwiseLLM,
    PointwiseLLM,
    QueryLikelihood,
    Qwen3Reranker,
    SetwiseLLM,
)
from crossrank.models.load import load
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.pairwise import AllPairs, ComparisonPlan, Heap, Quickselect, SampledPairs
from crossrank.models.rank_t5 import RankT5
from crossrank.models.reranker import Reranker
from crossrank.retrieval.fusion import Fusion, WeightedSum
from crossrank.store.lance import Index
from crossrank.store.late_reranker import StoredLateInteraction
from crossrank.types import Document

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_T5 = Path(__file__).parent.parent / "golden_t5"
GOLDEN_LATE = Path(__file__).parent.parent / "models" / "golden_late"
LATE_LAYOUTS = ("pylate", "pylate_modernbert", "stanford", "multi_vector", "multi_vector_fixed")
TORCH = ("torch", "transformers")
OPENAI = ("openai",)


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


def built_in(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    return CrossEncoder(threads=2, progress=progress, cache=cache)


def late(layout: str, **options: object) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return LateInteraction(
            GOLDEN_LATE / layout, threads=2, progress=progress, long_query="truncate", **options
        )

    return build


@cache
def stored_vectors() -> Index:
    """An index that keeps token vectors of some documents; gone with the process."""
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    model = late("multi_vector")(progress=False)
    index = Index.create(Path(scratch.name) / "index", late_interaction=model, token_codec="int8")
    index.add(
        [
            Document("r", "the water of the river is blue", title="river"),
            Document("c", "a cat and a dog"),
            Document("o", "another text than the one that is asked about"),
        ]
    )
    return index


def stored(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    return StoredLateInteraction(stored_vectors(), late("multi_vector")(progress=progress))


def ensemble(fusion: str | Fusion) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        members = [cross_encoder(folder)(progress=progress) for folder in ("bert", "deberta_v3")]
        return Ensemble(members, fusion)

    return build


def cascade(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    first, second, third = (
        cross_encoder(folder)(progress=progress) for folder in ("bert", "roberta", "bert")
    )
    return Cascade(first, [(second, 4), (third, 2)])


def early_exit(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    model = cross_encoder("bert_exits")(progress=progress, cache=cache)
    return EarlyExit(model, 1, [(2, 6), (4, 3)], progress=progress)


class ScoreJudge:
    """Prefers the document with the higher score of a pointwise model."""

    name = "score-judge"

    def __init__(self, scorer: Reranker) -> None:
        self.scorer = scorer

    def prefer(self, comparisons: Sequence[tuple[str, str, str]]) -> np.ndarray:
        firsts = self.scorer.score([(query, first) for query, first, _ in comparisons])
        seconds = self.scorer.score([(query, second) for query, _, second in comparisons])
        return 1 / (1 + np.exp(seconds - firsts, dtype=np.float64))


def tournament(plan: ComparisonPlan) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        judge, first = (cross_encoder(folder)(progress=progress) for folder in ("roberta", "bert"))
        return Tournament(ScoreJudge(judge), first, depth=4, plan=plan, progress=progress)

    return build


def t5(kind: type[MonoT5 | RankT5 | DuoT5], folder: str, **options: object) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        return kind(GOLDEN_T5 / folder, threads=2, progress=progress, cache=cache, **options)

    return build


@cache
def exported_folder(folder: Path, declaration: str) -> Path:
    """A folder with an ONNX file in place of weights; gone with the process."""
    scratch = tempfile.TemporaryDirectory()
    atexit.register(scratch.cleanup)
    model = Path(scratch.name) / folder.name
    shutil.copytree(folder, model)
    if declaration:
        (model / "crossrank.json").write_text(declaration, encoding="utf-8")
    export(model, Path(scratch.name) / "onnx", threads=1)
    return Path(scratch.name) / "onnx"


def exported(folder: Path, declaration: str = "", **options: object) -> Factory:
    def build(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
        known = options if cache is None else {**options, "cache": cache}
        return load(exported_folder(folder, declaration), threads=2, progress=progress, **known)

    return build


def duo_after_mono(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    first = t5(MonoT5, "t5")(progress=progress, cache=cache)
    return t5(DuoT5, "mt5", pointwise=first, depth=4, plan=Quickselect(2))(progress=progress, cache=cache)


def several_families(*, progress: bool | None = None, cache: ScoreCache | None = None) -> Reranker:
    models = late("pylate"), t5(MonoT5, "t5"), t5(DuoT5, "t5_v1_1", plan=Heap(2))
    first, second, third = (build(progress=progress) for build in models)
    return Cascade(first, [(second, 5), (third, 3)])


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
    Family("CrossEncoder-torch", cross_encoder("roberta", device="cpu"), cached=True, requires=("torch",)),
    Family("CrossEncoder-exit", cross_encoder("bert_exits", exit_layer=2), cached=True),
    Family("CrossEncoder-words", cross_encoder("bert", exit_layer=0), cached=True),
    Family("CrossEncoder-int8", built_in, cached=True),
    Family("CrossEncoder-windows", cross_encoder("bert", long_documents="max"), cached=True),
    *(Family(f"MonoT5-{name}", t5(MonoT5, name), cached=True) for name in ("t5", "mt5")),
    Family("MonoT5-windows", t5(MonoT5, "t5_v1_1", max_length=100, long_documents="max"), cached=True),
    Family("MonoT5-torch", t5(MonoT5, "t5_v1_1", backend="torch", device="cpu"), cached=True, requires=TORCH),
    *(Family(f"RankT5-{name}", t5(RankT5, name), cached=True) for name in ("t5_v1_1", "t5_encoder")),
    Family("DuoT5", t5(DuoT5, "t5_v1_1"), pointwise=False, cached=True),
    Family("DuoT5-mono", duo_after_mono, pointwise=False, cached=True),
    Family("DuoT5-heap", t5(DuoT5, "t5", plan=Heap(3)), cached=True, pointwise=False),
    Family("DuoT5-sampled", t5(DuoT5, "mt5", plan=SampledPairs(2)), cached=True, pointwise=False),
    *(Family(f"LateInteraction-{layout}", late(layout)) for layout in LATE_LAYOUTS),
    Family("LateInteraction-torch", late("pylate", device="cpu"), requires=("torch",)),
    Family("LateInteraction-stored", stored, requires=("lancedb",)),
    Family("CrossEncoder-exported", exported(GOLDEN / "deberta_v3"), cached=True),
    Family("MonoT5-exported", exported(GOLDEN_T5 / "mt5", '{"kind": "mono_t5"}'), cached=True),
    Family("LateInteraction-exported", exported(GOLDEN_LATE / "stanford", long_query="truncate")),
    Family("PointwiseLLM", asking(PointwiseLLM), requires=OPENAI),
    Family(
        "PointwiseLLM-qwen3",
        local(PointwiseLLM, "qwen", template=Qwen3Reranker(max_length=512)),
        requires=TORCH,
    ),
    Family(
        "PointwiseLLM-gemma", local(PointwiseLLM, "gemma", template="bge-reranker-v2-gemma"), requires=TORCH
    ),
    Family("PointwiseLLM-local", local(PointwiseLLM, "llama"), requires=TORCH),
    Family("QueryLikelihood", local(QueryLikelihood, "llama"), requires=TORCH),
    Family("PairwiseLLM", asking(PairwiseLLM), pointwise=False, requires=OPENAI),
    Family("PairwiseLLM-local", local(PairwiseLLM, "qwen"), pointwise=False, requires=TORCH),
    Family("ListwiseLLM", asking(ListwiseLLM, window=4, step=2), pointwise=False, requires=OPENAI),
    Family("ListwiseLLM-consistent", asking(ListwiseLLM, permutations=3), pointwise=False, requires=OPENAI),
    Family("ListwiseLLM-zephyr", asking(ListwiseLLM, prompt="rank-zephyr"), pointwise=False, requires=OPENAI),
    Family("SetwiseLLM", asking(SetwiseLLM, set_size=3), pointwise=False, requires=OPENAI),
    Family("SetwiseLLM-bubble", asking(SetwiseLLM, sort="bubble"), pointwise=False, requires=OPENAI),
    Family("SetwiseLLM-local", local(SetwiseLLM, "gemma"), pointwise=False, requires=TORCH),
    # z-scores and ranks depend on the list a document is in
    Family("Ensemble-mean", ensemble("mean"), pointwise=False),
    Family("Ensemble-rrf", ensemble("rrf"), pointwise=False),
    Family("Ensemble-raw", ensemble(WeightedSum((0.25, 0.75), "none"))),
    Family("Cascade", cascade, pointwise=False, one_scale=False),
    Family("Cascade-families", several_families, pointwise=False, one_scale=False),
    Family("EarlyExit", early_exit, pointwise=False, one_scale=False),
    Family("Tournament", tournament(AllPairs()), pointwise=False),
    Family("Tournament-heap", tournament(Heap(top_k=3)), pointwise=False),
]


def parameters(wanted: Callable[[Family], bool] = lambda family: True) -> list[object]:
    """The families as parameters of a test, skipped where what they need is not installed."""
    rows = []
    for family in filter(wanted, FAMILIES):
        missing = [module for module in family.requires if importlib.util.find_spec(module) is None]
        marks = [pytest.mark.skip(reason=f"needs {', '.join(missing)}")] if missing else []
        rows.append(pytest.param(family, id=family.name, marks=marks))
    return rows
