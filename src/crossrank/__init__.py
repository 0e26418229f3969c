"""Two-stage search and reranking: a fast first stage finds candidates, an accurate second orders them.

The names below are all a user needs. They are loaded at first use, so `import crossrank` costs next to
nothing and never brings in an optional package by itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from crossrank.errors import CrossrankError
from crossrank.types import Document, Hit, Pair, Qrels, Ranking, Run

if TYPE_CHECKING:
    from crossrank.cache import ScoreCache
    from crossrank.composition.cascade import Cascade
    from crossrank.composition.early_exit import EarlyExit
    from crossrank.composition.ensemble import Ensemble
    from crossrank.composition.tournament import Tournament
    from crossrank.context import Context
    from crossrank.depths import Margin, TimeBudget
    from crossrank.evaluation.collections import Collection
    from crossrank.evaluation.measures import Evaluation, evaluate
    from crossrank.evaluation.trec import read_qrels, read_run, write_qrels, write_run
    from crossrank.explanation.explain import explain
    from crossrank.explanation.result import Explanation
    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.duo_t5 import DuoT5
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.models.llm.endpoint import Endpoint
    from crossrank.models.llm.listwise import ListwiseLLM
    from crossrank.models.llm.local import CausalLM
    from crossrank.models.llm.pairwise import PairwiseLLM
    from crossrank.models.llm.pointwise import PointwiseLLM
    from crossrank.models.llm.query_likelihood import QueryLikelihood
    from crossrank.models.llm.setwise import SetwiseLLM
    from crossrank.models.load import load
    from crossrank.models.mono_t5 import MonoT5
    from crossrank.models.rank_t5 import RankT5
    from crossrank.models.reranker import Reranker
    from crossrank.pipeline import Searcher
    from crossrank.retrieval.bm25 import BM25
    from crossrank.retrieval.dense import Dense
    from crossrank.retrieval.from_index import index_retriever
    from crossrank.retrieval.fusion import RRF, Borda, WeightedSum
    from crossrank.retrieval.hybrid import Hybrid
    from crossrank.retrieval.retriever import Retriever
    from crossrank.store.lance import Index
    from crossrank.store.late_reranker import StoredLateInteraction
    from crossrank.store.readers import DocumentReader
    from crossrank.store.store import Store

    __version__: str

__all__ = [
    "BM25",
    "RRF",
    "BiEncoder",
    "Borda",
    "Cascade",
    "CausalLM",
    "Collection",
    "Context",
    "CrossEncoder",
    "CrossrankError",
    "Dense",
    "Document",
    "DocumentReader",
    "DuoT5",
    "EarlyExit",
    "Endpoint",
    "Ensemble",
    "Evaluation",
    "Explanation",
    "Hit",
    "Hybrid",
    "Index",
    "LateInteraction",
    "ListwiseLLM",
    "Margin",
    "MonoT5",
    "Pair",
    "PairwiseLLM",
    "PointwiseLLM",
    "Qrels",
    "QueryLikelihood",
    "RankT5",
    "Ranking",
    "Reranker",
    "Retriever",
    "Run",
    "ScoreCache",
    "Searcher",
    "SetwiseLLM",
    "Store",
    "StoredLateInteraction",
    "TimeBudget",
    "Tournament",
    "WeightedSum",
    "evaluate",
    "explain",
    "index_retriever",
    "load",
    "read_qrels",
    "read_run",
    "write_qrels",
    "write_run",
]

_LAZY = {
    "BM25": "crossrank.retrieval.bm25",
    "BiEncoder": "crossrank.models.bi_encoder",
    "Borda": "crossrank.retrieval.fusion",
    "Cascade": "crossrank.composition.cascade",
    "CausalLM": "crossrank.models.llm.local",
    "Collection": "crossrank.evaluation.collections",
    "Context": "crossrank.context",
    "CrossEncoder": "crossrank.models.cross_encoder",
    "Dense": "crossrank.retrieval.dense",
    "DocumentReader": "crossrank.store.readers",
    "DuoT5": "crossrank.models.duo_t5",
    "EarlyExit": "crossrank.composition.early_exit",
    "Endpoint": "crossrank.models.llm.endpoint",
    "Ensemble": "crossrank.composition.ensemble",
    "Evaluation": "crossrank.evaluation.measures",
    "Explanation": "crossrank.explanation.result",
    "Hybrid": "crossrank.retrieval.hybrid",
    "Index": "crossrank.store.lance",
    "ListwiseLLM": "crossrank.models.llm.listwise",
    "Margin": "crossrank.depths",
    "MonoT5": "crossrank.models.mono_t5",
    "PairwiseLLM": "crossrank.models.llm.pairwise",
    "PointwiseLLM": "crossrank.models.llm.pointwise",
    "QueryLikelihood": "crossrank.models.llm.query_likelihood",
    "LateInteraction": "crossrank.models.late_interaction",
    "RRF": "crossrank.retrieval.fusion",
    "RankT5": "crossrank.models.rank_t5",
    "Reranker": "crossrank.models.reranker",
    "Retriever": "crossrank.retrieval.retriever",
    "ScoreCache": "crossrank.cache",
    "Searcher": "crossrank.pipeline",
    "SetwiseLLM": "crossrank.models.llm.setwise",
    "Store": "crossrank.store.store",
    "TimeBudget": "crossrank.depths",
    "Tournament": "crossrank.composition.tournament",
    "StoredLateInteraction": "crossrank.store.late_reranker",
    "WeightedSum": "crossrank.retrieval.fusion",
    "evaluate": "crossrank.evaluation.measures",
    "explain": "crossrank.explanation.explain",
    "index_retriever": "crossrank.retrieval.from_index",
    "load": "crossrank.models.load",
    "read_qrels": "crossrank.evaluation.trec",
    "read_run": "crossrank.evaluation.trec",
    "write_qrels": "crossrank.evaluation.trec",
    "write_run": "crossrank.evaluation.trec",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("crossrank")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
