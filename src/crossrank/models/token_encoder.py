"""Texts to token vectors: tokens, batches, projection, which tokens count."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.errors import ModelOutputError
from crossrank.models.maxsim import TokenVectors
from crossrank.models.pooling import apply_modules
from crossrank.models.token_settings import TextForm
from crossrank.progress import Track
from crossrank.runtime.batching import plan, text_blocks
from crossrank.runtime.engine import Engine
from crossrank.runtime.modules import Module
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

__all__ = ["EncodedTexts", "ProjectingEngine", "TokenEncoder", "encoded_at_once"]

Ids = npt.NDArray[np.int32]

_BLOCK_TEXTS = 1024  # texts encoded at a time: bounds what their vectors take ...
_BLOCK_CHARACTERS = 1_000_000  # ... and at most about so many characters


class EncodedTexts(NamedTuple):
    """What encoding n texts gives.

    Attributes:
        tokens: their vectors, float32.
        cut: int32 (n,), tokens of each text that were not read.
        num_own: int32 (n,), tokens of each text itself, without prompt, marker and special tokens.
    """

    tokens: TokenVectors
    cut: npt.NDArray[np.int32]
    num_own: npt.NDArray[np.int32]


@runtime_checkable
class ProjectingEngine(Protocol):
    """An engine that projects token vectors where they are: what comes back is smaller."""

    def run_projected(
        self, batches: Iterable[ModelInputs], modules: Sequence[Module]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Run batches, and modules on each token's vector: (batch, length, dimensions) each, in order."""
        ...


class TokenEncoder:
    """A model that gives a vector for each token; safe to use from many threads at once.

    Args:
        tokenizer: the model's.
        engine: the model, giving token vectors.
        modules: what is done to each token vector after the transformer.
        max_positions: the longest row the model can take; None for no limit.
        token_budget: tokens of one forward, padding included.
        name: of the model, for messages.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine,
        modules: Sequence[Module],
        *,
        max_positions: int | None,
        token_budget: int,
        name: str,
    ) -> None:
        self._tokenizer = tokenizer
        self._engine = engine
        self._modules = tuple(modules)
        self._max_positions = max_positions
        self._token_budget = token_budget
        self._name = name

    def encode(
        self,
        texts: Sequence[str],
        form: TextForm,
        tracked: Track | None = None,
        name: Callable[[int], str] = str,
    ) -> EncodedTexts:
        """Encode texts that are encoded at once (see `encoded_at_once`); a long one is cut at its end.

        Args:
            texts: at least one.
            form: how they are read.
            tracked: advanced by the texts that are done.
            name: what the caller calls the text at a position, for messages.

        Raises:
            ModelOutputError: the model gave NaN or infinity; names the text.
        """
        room = form.max_length - self._tokenizer.num_single_special_tokens - len(form.marker)
        encoded = [each.ids for each in self._tokenizer.encode([form.prompt + text for text in texts])]
        marker = np.array(form.marker, dtype=np.int32)
        ids = [np.concatenate([marker, each[:room]]) for each in encoded]
        num_prompt = len(self._tokenizer.encode([form.prompt])[0].ids) if form.prompt else 0
        vectors = self._run(ids, form, tracked, name)
        width = next(iter(vectors)).shape[1]
        lengths = np.array([len(each) for each in encoded], dtype=np.int32)
        return EncodedTexts(
            TokenVectors.of(vectors, width),
            np.maximum(lengths - room, 0),
            np.maximum(lengths - num_prompt, 0),
        )

    def spans(self, text: str, form: TextForm) -> npt.NDArray[np.int32]:
        """Return where the tokens lie whose vectors `encode` gives for a text.

        Returns:
            int32 (tokens, 2), characters [start, end) in the text; (0, 0) for a token that stands for none of
            them: special ones, marker, prompt, expansion.
        """
        tokens = self._tokenizer.encode([form.prompt + text], offsets=True)[0]
        assert tokens.offsets is not None  # asked for above
        room = form.max_length - self._tokenizer.num_single_special_tokens - len(form.marker)
        marker = np.array(form.marker, dtype=np.int32)
        ids = np.concatenate([marker, tokens.ids[:room]])
        length = len(ids) + self._tokenizer.num_single_special_tokens
        whole = length if form.expansion is None else max(length, form.expansion.length)
        arrays = self._tokenizer.single_inputs([ids], whole)
        if form.expansion is not None:
            _expand(arrays, np.array([length]), np.array([whole]), form)
        # an id that no token has shows where the template puts the text's own
        own = self._tokenizer.single_inputs([np.full_like(ids, -1)], whole).input_ids[0] == -1
        spans = np.zeros((whole, 2), dtype=np.int32)
        spans[np.flatnonzero(own)[len(marker) :]] = np.maximum(tokens.offsets[:room] - len(form.prompt), 0)
        return spans[~np.isin(arrays.input_ids[0], form.skipped)]

    def _run(
        self, ids: Sequence[Ids], form: TextForm, tracked: Track | None, name: Callable[[int], str]
    ) -> list[npt.NDArray[np.float32]]:
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        lengths += self._tokenizer.num_single_special_tokens
        expanded = lengths if form.expansion is None else np.maximum(lengths, form.expansion.length)
        running: deque[ModelInputs] = deque()

        def inputs(rows: npt.NDArray[np.int64], length: int) -> ModelInputs:
            arrays = self._tokenizer.single_inputs([ids[row] for row in rows], length)
            if form.expansion is not None:
                _expand(arrays, lengths[rows], expanded[rows], form)
            running.append(arrays)
            return arrays

        vectors: list[npt.NDArray[np.float32]] = [np.empty((0, 0), np.float32)] * len(ids)
        engine = self._engine
        batches = plan(
            expanded, self._token_budget, self._max_positions, engine.threads, grouping=engine.grouping
        )
        arrays = (inputs(batch.rows, batch.length) for batch in batches)
        left = self._modules
        if isinstance(engine, ProjectingEngine):
            outputs, left = engine.run_projected(arrays, self._modules), ()
        else:
            outputs = engine.run_all(arrays)
        for batch, output in zip(batches, outputs, strict=True):
            input_ids = running.popleft().input_ids
            counts = np.arange(batch.length) < expanded[batch.rows, None]  # (batch, length)
            if form.skipped:
                counts &= ~np.isin(input_ids, form.skipped)
            flat = apply_modules(output[counts], left)  # (tokens that count, dimensions)
            owners = np.repeat(batch.rows, counts.sum(axis=1))
            bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
            if bad.size:
                raise ModelOutputError(
                    f"{self._name} gave NaN or infinity for {name(int(owners[bad[0]]))}; "
                    "its weights may be damaged, or its precision too low"
                )
            parts = np.split(flat, np.cumsum(counts.sum(axis=1))[:-1])
            for row, part in zip(batch.rows.tolist(), parts, strict=True):
                vectors[row] = part
            if tracked is not None:
                tracked.advance(len(batch.rows))
        return vectors


def _expand(
    arrays: ModelInputs,
    lengths: npt.NDArray[np.int64],
    expanded: npt.NDArray[np.int64],
    form: TextForm,
) -> None:
    """Write the expansion behind each row's own tokens, in place."""
    assert form.expansion is not None  # callers have looked
    positions = np.arange(arrays.input_ids.shape[1])
    added = (positions >= lengths[:, None]) & (positions < expanded[:, None])
    arrays.input_ids[added] = form.expansion.token_id
    if form.expansion.attended:
        arrays.attention_mask[added] = 1


def encoded_at_once(texts: Sequence[str]) -> Iterator[slice]:
    """Cut texts into blocks whose vectors may be in memory together."""
    return text_blocks(texts, most_texts=_BLOCK_TEXTS, most_characters=_BLOCK_CHARACTERS)
