"""What `quantize` does otherwise for MonoT5, RankT5 and DuoT5: opening them, inputs, a DuoT5's scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.load import kind_of
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Output
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.tokenization import ModelInputs
from crossrank.types import Pair

__all__ = [
    "T5Kind",
    "comparison_inputs",
    "comparison_scores",
    "open_t5",
    "t5_kind",
    "t5_output",
    "t5_tokenizer",
]

T5Kind = Literal["mono_t5", "rank_t5", "duo_t5"]

_CLASSES: dict[T5Kind, Callable[..., MonoT5 | RankT5 | DuoT5]] = {
    "mono_t5": MonoT5,
    "rank_t5": RankT5,
    "duo_t5": DuoT5,
}


def t5_kind(folder: Path, name: str) -> T5Kind:
    """Say which of the T5 rerankers a folder is.

    Args:
        folder: of a T5.
        name: what it was asked for by.

    Raises:
        CheckpointError: the folder does not say what it is.
        InputError: it is another kind of model.
    """
    kind = kind_of(folder, name)
    for known in _CLASSES:
        if kind == known:
            return known
    raise InputError(
        f"{name} is of the kind {kind!r}, of which no int8 form is made: of T5s it is made of "
        "MonoT5, RankT5 and DuoT5"
    )


def open_t5(kind: T5Kind, model: str | Path, precision: Literal["float32", "int8"], **options: Any) -> Any:
    """Open a model as the gate compares it: too long queries are cut.

    Args:
        kind: see `t5_kind`.
        model: a folder or a hub name; a published model's name says which tokens it answers with.
        precision: what the linear layers compute in.
        options: others of the class.
    """
    return _CLASSES[kind](model, precision=precision, backend="onnx", long_query="truncate", **options)


def t5_output(model: MonoT5 | RankT5 | DuoT5) -> Output:
    """What layers are fitted to: the score the model reads, as its graph has it."""
    return "logits" if model.token_score is None else model.token_score


def t5_tokenizer(model: MonoT5 | RankT5 | DuoT5, checkpoint: Checkpoint) -> PromptTokenizer:
    """Return what puts texts into the model's prompt."""
    documents = ("document0", "document1") if isinstance(model, DuoT5) else ("document",)
    return PromptTokenizer(checkpoint, model.prompt, ("query", *documents))


def comparison_inputs(
    tokenizer: PromptTokenizer, pairs: Sequence[Pair | tuple[str, str]], limit: int
) -> list[ModelInputs]:
    """Turn pairs into a DuoT5's inputs: each document before the next one of its query, or else of any.

    Args:
        tokenizer: of the model.
        pairs: unlabelled.
        limit: tokens of an input; both documents may take half of what the query leaves.
    """
    texts: dict[str, list[str]] = {}
    for query, text in pairs:
        texts.setdefault(query, []).append(text)
    places = dict.fromkeys(texts, 0)
    inputs = []
    for number, (query, text) in enumerate(pairs):
        of_query = texts[query]
        places[query] += 1
        alone = len(of_query) == 1
        other = pairs[(number + 1) % len(pairs)][1] if alone else of_query[places[query] % len(of_query)]
        asked, first, second = (tokens.ids for tokens in tokenizer.encode([query, text, other]))
        room = limit - tokenizer.num_special_tokens
        asked = asked[: min(limit // 2, room - 2)]
        share = (room - len(asked)) // 2
        row = asked, first[:share], second[:share]
        inputs.append(tokenizer.inputs([row], sum(map(len, row)) + tokenizer.num_special_tokens))
    return inputs


def comparison_scores(
    model: DuoT5, candidates: Iterable[tuple[str, Sequence[str]]]
) -> list[npt.NDArray[np.float32]]:
    """Score each query's documents by comparing each with its neighbours in the list, in both orders.

    What a comparison adds is its log-odds: to the one that is shown first, and taken off the other one. The
    last document is a neighbour of the first; a document that is alone scores 0.

    Args:
        model: what compares.
        candidates: query and texts.
    """
    asked: list[tuple[str, str, str]] = []
    shown: list[tuple[int, int, int]] = []  # number of the query, first and second document
    sizes = []
    for number, (query, texts) in enumerate(candidates):
        sizes.append(len(texts))
        ring = {frozenset((place, (place + 1) % len(texts))) for place in range(len(texts))}
        for i, j in sorted(tuple(sorted(met)) for met in ring if len(met) == 2):
            for first, second in ((i, j), (j, i)):
                asked.append((query, texts[first], texts[second]))
                shown.append((number, first, second))
    scores = [np.zeros(size, dtype=np.float32) for size in sizes]
    for (number, first, second), margin in zip(shown, model.margins(asked).tolist(), strict=True):
        scores[number][first] += margin
        scores[number][second] -= margin
    return scores
