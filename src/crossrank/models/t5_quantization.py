"""What `quantize` does otherwise for MonoT5 and RankT5: opening them, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from crossrank.errors import InputError
from crossrank.models.load import kind_of
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Output
from crossrank.runtime.prompts import PromptTokenizer

__all__ = ["T5Kind", "open_t5", "t5_kind", "t5_output", "t5_tokenizer"]

T5Kind = Literal["mono_t5", "rank_t5"]

_CLASSES: dict[T5Kind, Callable[..., MonoT5 | RankT5]] = {"mono_t5": MonoT5, "rank_t5": RankT5}


def t5_kind(folder: Path, name: str) -> T5Kind:
    """Say which of the T5 rerankers that score pairs a folder is.

    Args:
        folder: of a T5.
        name: what it was asked for by.

    Raises:
        CheckpointError: the folder does not say what it is.
        InputError: it is no reranker that scores pairs.
    """
    kind = kind_of(folder, name)
    for known in _CLASSES:
        if kind == known:
            return known
    raise InputError(
        f"{name} is of the kind {kind!r}, of which no int8 form is made: the parity gate compares scores of "
        "pairs, and of T5s MonoT5 and RankT5 give these"
    )


def open_t5(kind: T5Kind, model: str | Path, precision: Literal["float32", "int8"], **options: Any) -> Any:
    """Open a model as the gate compares it: too long queries are cut.

    Args:
        kind: see `t5_kind`.
        model: a folder or a hub name; a published model's name says which tokens it answers with.
        precision: what the linear layers compute in.
        options: others of the class.
    """
    return _CLASSES[kind](model, precision=precision, long_query="truncate", **options)


def t5_output(model: MonoT5 | RankT5) -> Output:
    """What layers are fitted to: the score the model reads, as its graph has it."""
    return "logits" if model.token_score is None else model.token_score


def t5_tokenizer(model: MonoT5 | RankT5, checkpoint: Checkpoint) -> PromptTokenizer:
    """Return what puts pairs into the model's prompt."""
    return PromptTokenizer(checkpoint, model.prompt, ("query", "document"))
