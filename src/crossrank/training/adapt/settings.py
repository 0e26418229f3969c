"""What an adaptation is made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from crossrank.checks import as_number, check_count
from crossrank.errors import InputError
from crossrank.evaluation.measures import parse_measure
from crossrank.models.hub import DEFAULT_MODELS
from crossrank.training.adapt.pseudo_queries import SOURCES, check_sources

__all__ = ["AdaptationSettings", "TrainingSize"]


@dataclass(frozen=True)
class TrainingSize:
    """How one of the two models is trained.

    Attributes:
        learning_rate: the highest.
        lists_per_step: queries an update.
        list_size: documents a query.
        loss: of `crossrank.training.losses.table`. "kl" learns from a reranker's scores of the mined lists
            (as in GPL; Wang et al. 2022, arXiv:2112.07577), which are the new reranker's when the bi-encoder
            is trained; the contrastive ones from which document a query was made of.
        loss_options: what else the recipe's loss has.
    """

    learning_rate: float
    lists_per_step: int
    list_size: int
    loss: str
    loss_options: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptationSettings:
    """Everything that changes what an adaptation ends with, beside the documents.

    Attributes:
        reranker: the cross-encoder to start from: a built-in model, a folder, a hub name.
        bi_encoder: the bi-encoder to start from.
        sources: where pseudo-queries come from: see `crossrank.training.adapt.pseudo_queries`.
        per_document: the most pseudo-queries of a document.
        max_queries: the most of all.
        near_duplicates: the similarity of terms from which one of two queries is dropped.
        round_trip_top: first hits of the present search among which a query's document must be.
        language: of the documents; None for no stemming, stop words and questions.
        dev_share: of the documents: their queries choose the best weights, and calibrate.
        test_share: of the documents: their queries are measured before and after, and decide.
        bm25_negatives, dense_negatives, random_negatives: mined for each query.
        depth: candidates of a query that are reranked.
        steps: updates of each model; None with `budget_minutes`.
        budget_minutes: minutes for everything on this machine, from making queries to calibrating: trainings
            get what the rest is reckoned to leave, and at least some steps. None with `steps`.
        max_epochs: times over the pseudo-queries, whatever the budget.
        max_length: tokens that are read while training, where the model takes as many.
        precision: of training: see `crossrank.training.recipes.Recipe`.
        bi_encoder_training: see `TrainingSize`.
        reranker_training: see `TrainingSize`.
        measure: what decides.
        significance: a new model is kept where it is better with a p-value below this.
        seed: of all draws.

    Raises:
        InputError: a value that is out of its range.
    """

    reranker: str = DEFAULT_MODELS["cross-encoder"]
    bi_encoder: str = DEFAULT_MODELS["bi-encoder"]
    sources: tuple[str, ...] = SOURCES
    per_document: int = 2
    max_queries: int = 3000
    near_duplicates: float = 0.8
    round_trip_top: int = 20
    language: str | None = "english"
    dev_share: float = 0.1
    test_share: float = 0.15
    bm25_negatives: int = 3
    dense_negatives: int = 3
    random_negatives: int = 1
    depth: int = 50
    steps: int | None = 150
    budget_minutes: float | None = None
    max_epochs: float = 3.0
    max_length: int = 256
    precision: Literal["float32", "bf16", "auto"] = "auto"
    bi_encoder_training: TrainingSize = TrainingSize(1e-5, 8, 4, "kl", {"teacher_temperature": 2.0})
    reranker_training: TrainingSize = TrainingSize(1e-5, 8, 8, "lce")
    measure: str = "nDCG@10"
    significance: float = 0.05
    seed: int = 13

    def __post_init__(self) -> None:
        check_sources(self.sources)
        for name in ("per_document", "max_queries", "round_trip_top", "depth", "max_length"):
            check_count(getattr(self, name), name)
        for name in ("bm25_negatives", "dense_negatives", "random_negatives"):
            if getattr(self, name):
                check_count(getattr(self, name), name)
        if not self.bm25_negatives + self.dense_negatives + self.random_negatives:
            raise InputError("there is nothing to train against: ask for one negative or more")
        if (self.steps is None) == (self.budget_minutes is None):
            raise InputError("give one of steps and budget_minutes")
        if self.steps is not None:
            check_count(self.steps, "steps")
        else:
            as_number(self.budget_minutes, "budget_minutes", 0)
        as_number(self.max_epochs, "max_epochs", 1e-6)
        as_number(self.near_duplicates, "near_duplicates", 1e-6, 1)
        as_number(self.significance, "significance", 0, 1)
        for name in ("dev_share", "test_share"):
            as_number(getattr(self, name), name, 1e-6, 0.5)
        parse_measure(self.measure)
