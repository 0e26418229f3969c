"""A text's vector: a transformer, pooling, and what a sentence-transformers folder puts after it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_list, check_count, check_text, check_texts
from crossrank.errors import (
    CheckpointError,
    CrossrankError,
    InputError,
    ModelOutputError,
    UnsupportedArchitectureError,
)
from crossrank.models.hub import DEFAULT_MODELS, resolve
from crossrank.models.pooling import apply_modules, l2_normalised, run_pooled
from crossrank.models.prompts import stated_prompts
from crossrank.progress import Track, track
from crossrank.runtime.backends import Backend, Precision, open_backend
from crossrank.runtime.batching import plan, text_blocks
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Source
from crossrank.runtime.modules import Module, Pooling, PoolingMode
from crossrank.runtime.overlap import in_turn
from crossrank.runtime.settings import settings_digest
from crossrank.runtime.tokenization import Tokenizer
from crossrank.types import Document

__all__ = ["BiEncoder"]

_BLOCK_TEXTS = 8192  # texts sorted by length and encoded at a time ...
_BLOCK_CHARACTERS = 8_000_000  # ... and at most about so many characters: bounds what their tokens take

_logger = logging.getLogger(__name__)


class BiEncoder:
    """Gives queries and documents vectors whose inner product says how well they match.

    Opens sentence-transformers folders (mean, CLS, last-token, max, weighted-mean pooling; Dense, LayerNorm
    and Normalize modules; prompts) and plain transformers ones where `pooling` is given. Vectors are
    those of sentence-transformers' encode_query and encode_document, to float32 rounding.

    A text's vector depends on the text alone, not on the other texts of a call, their order or the token
    budget (float32: within 1e-5). Texts are sorted by length, a bounded block at a time, so memory beyond
    the vectors does not grow with their number. A text that is too long is cut at its end; each call in
    which that happens logs one WARNING (logger "crossrank.models.bi_encoder") that says how many were cut.
    Safe to use from many threads.

    Prompts: a folder's "query" prompt is put before queries, and the first of its "document", "passage" and
    "corpus" prompts before documents. If it states none for one of them, not even an empty one, its default
    prompt is, unless that is one of those named. (The last two differ from sentence-transformers 6.2, where
    "passage" gives way to an empty "document" that the folder never stated, and the default prompt is left
    out of encode_query and encode_document. `query_prompt` and `document_prompt` settle it either way.)

    Args:
        model: a folder, a name on the Hugging Face hub, or None for the model that ships with crossrank.
        revision: commit, tag or branch; for models from the hub only.
        precision: "float32", "int8" where the model has an int8 form that passed its parity gate, "bf16" with
            torch, or "auto" for the fastest form there is where it runs.
        backend: "onnx" (ONNX Runtime on the CPU), "torch" (for GPUs; extra "torch"), or "auto" for torch
            where there is a GPU that it can use. See `crossrank.runtime.backends`.
        device: of torch: "cpu", "cuda", "cuda:1", "mps"; None takes the first GPU, else the CPU.
        source: "weights" computes with the safetensors, "onnx" with the folder's own ONNX file, "auto" with
            the weights where there are any and crossrank knows the architecture, else with the file.
        dimensions: keep the first so many (for models trained for it: Matryoshka); None keeps all.
        max_length: most tokens of a text, prompt and special tokens included; None takes the folder's.
        pooling: "cls", "mean", "max", "lasttoken", "weightedmean" or "mean_sqrt_len_tokens": for a folder
            that does not say. Its model card does.
        query_prompt: put before each query in place of the folder's; "" for none.
        document_prompt: put before each document in place of the folder's; "" for none.
        token_budget: tokens of one forward, padding included; on a GPU forwards are joined to larger ones.
            None takes what `crossrank tune` found to be the fastest here, else 1024.
        threads: batches that run at a time, 1 to 1024; None takes the cores this process may use. Of ONNX
            Runtime.
        progress: whether long calls show a progress bar; None shows it on a terminal.

    Attributes:
        name: the model's name, as given.
        dimensions: of the vectors.
        max_length: most tokens of a text, prompt and special tokens included.
        precision: "float32", "int8" or "bf16".
        query_prompt: put before each query.
        document_prompt: put before each document.

    Raises:
        CheckpointError: the folder cannot be opened, is not a bi-encoder, or does not say how to pool and
            `pooling` is not given.
        InputError: dimensions or max_length beyond the model's, a `pooling` that is not the folder's, or
            another option that cannot be used with this model.

    Source:
        Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084. Dimensions: Kusupati et al. 2022,
        "Matryoshka Representation Learning", arXiv:2205.13147.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        precision: Precision = "auto",
        backend: Backend = "auto",
        device: str | None = None,
        source: Source = "auto",
        dimensions: int | None = None,
        max_length: int | None = None,
        pooling: PoolingMode | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        token_budget: int | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> None:
        self.name = DEFAULT_MODELS["bi-encoder"] if model is None else str(model)
        if token_budget is not None:
            check_count(token_budget, "token_budget")
        folder = resolve(model, kind="bi-encoder", revision=revision, source=source)
        self._checkpoint = Checkpoint.open(folder)
        self._pooling, self._after = _modules(self._checkpoint, pooling)
        self._tokenizer = Tokenizer(self._checkpoint)
        self._engine = open_backend(
            self._checkpoint,
            output="tokens",
            backend=backend,
            device=device,
            precision=precision,
            threads=threads,
            source=source,
        )
        self.precision = self._engine.precision
        self._token_budget = self._engine.batch_tokens if token_budget is None else token_budget
        self._progress = progress
        self.max_length = self._checked_max_length(max_length)
        stated_query, stated_document = stated_prompts(self._checkpoint)
        self.query_prompt = stated_query if query_prompt is None else query_prompt
        self.document_prompt = stated_document if document_prompt is None else document_prompt
        self._query_role = self._role("queries", self.query_prompt)
        self._document_role = self._role("documents", self.document_prompt)
        self.dimensions = self._checked_dimensions(dimensions)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides a vector; computed when first asked for.

        Weights, tokenizer and configs, precision, pooling, prompts, dimensions and max_length.
        """
        settings = {
            "engine": self._engine.fingerprint,
            "pooling": [*self._pooling.modes, self._pooling.include_prompt],
            "prompts": [self.query_prompt, self.document_prompt],
            "dimensions": self.dimensions,
            "max_length": self.max_length,
        }
        return settings_digest(settings)

    def encode_queries(
        self, texts: Sequence[str | Document], normalize: bool = True
    ) -> npt.NDArray[np.float32]:
        """Return (len(texts), dimensions) float32: a vector for each query, in their order.

        Args:
            texts: may be empty. A text without tokens, such as an empty string, is a text like any other: its
                vector is that of the prompt and the special tokens alone, which says nothing about relevance.
            normalize: whether vectors have length 1, so that inner products are cosines. False leaves them as
                the model's own modules make them, which may end with a normalisation.

        Raises:
            InputError: a text that is not a string or has a lone surrogate; names its position.
            ModelOutputError: the model gave NaN or infinity; names the text's position.
        """
        return self._encode(texts, self._query_role, normalize)

    def encode_documents(
        self, texts: Sequence[str | Document], normalize: bool = True
    ) -> npt.NDArray[np.float32]:
        """Return (len(texts), dimensions) float32: a vector for each document, in their order.

        Args:
            texts: strings, or documents, of which title and text are read (`Document.full_text`).
            normalize: see `encode_queries`.

        Raises:
            InputError: a text that is not a string or has a lone surrogate; names its position.
            ModelOutputError: the model gave NaN or infinity; names the text's position.
        """
        return self._encode(texts, self._document_role, normalize)

    def _encode(
        self, texts: Sequence[str | Document], role: _Role, normalize: bool
    ) -> npt.NDArray[np.float32]:
        strings = [
            text.full_text if isinstance(text, Document) else text for text in as_list(texts, role.name)
        ]
        check_texts(strings, role.name)
        vectors = np.empty((len(strings), self.dimensions), dtype=np.float32)
        cut: list[int] = []
        with track(len(strings), f"Encoding {role.name}", progress=self._progress) as tracked:

            def encode(block: slice) -> tuple[slice, npt.NDArray[np.float32], list[int]]:
                tokens = self._tokenizer.encode([role.prompt + text for text in strings[block]])
                ids = [each.ids[: self._room] for each in tokens]
                pooled = self._run(ids, role, block.start, tracked)[:, : self.dimensions]
                return block, pooled, [len(each.ids) for each in tokens if len(each.ids) > self._room]

            blocks = text_blocks(strings, most_texts=_BLOCK_TEXTS, most_characters=_BLOCK_CHARACTERS)
            for block, pooled, lengths in in_turn(self._engine, encode, blocks):
                vectors[block] = l2_normalised(pooled) if normalize else pooled
                cut += lengths
        if cut:
            _logger.warning(
                "%d of %d %s have more than max_length=%d tokens and were cut at the end; the longest has %d",
                len(cut),
                len(strings),
                role.name,
                self.max_length,
                max(cut) + self._tokenizer.num_single_special_tokens,
            )
        return vectors

    def _run(
        self, ids: Sequence[npt.NDArray[np.int32]], role: _Role, first: int = 0, tracked: Track | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (len(ids), width) float32, in their order; `first` is the position of the first text."""
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        lengths += self._tokenizer.num_single_special_tokens
        pooled: npt.NDArray[np.float32] | None = None
        engine, positions = self._engine, self._checkpoint.max_positions
        batches = plan(lengths, self._token_budget, positions, engine.threads, grouping=engine.grouping)
        inputs = (
            self._tokenizer.single_inputs([ids[row] for row in batch.rows], batch.length) for batch in batches
        )
        outputs = run_pooled(self._engine, inputs, self._pooling.modes, role.skip)
        for batch, output in zip(batches, outputs, strict=True):
            vectors = apply_modules(output, self._after)
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            if bad.size:
                raise ModelOutputError(
                    f"{self.name} gave NaN or infinity for {role.name}[{first + batch.rows[bad[0]]}]; "
                    "its weights may be damaged, or its precision too low"
                )
            if pooled is None:
                pooled = np.empty((len(ids), vectors.shape[1]), dtype=np.float32)
            pooled[batch.rows] = vectors
            if tracked is not None:
                tracked.advance(len(batch.rows))
        assert pooled is not None  # callers give at least one text
        return pooled

    @property
    def _room(self) -> int:
        return self.max_length - self._tokenizer.num_single_special_tokens

    def _checked_max_length(self, max_length: int | None) -> int:
        positions = self._checkpoint.max_positions
        if max_length is None:
            return self._checkpoint.max_length
        check_count(max_length, "max_length")
        least = self._tokenizer.num_single_special_tokens + 1
        if max_length < least or (positions is not None and max_length > positions):
            raise InputError(
                f"max_length is {max_length}; {self.name} takes at least {least}"
                + (f" and at most {positions} tokens" if positions is not None else " tokens")
            )
        return int(max_length)

    def _checked_dimensions(self, dimensions: int | None) -> int:
        """Run an empty text to see how long vectors are, and whether the layers fit one another."""
        try:
            nothing = self._tokenizer.encode([""])[0].ids
            width = int(self._run([nothing], self._document_role._replace(name="probe")).shape[1])
        except CrossrankError:
            raise
        except ValueError as error:  # numpy: shapes that do not fit
            raise CheckpointError(
                f"{self._checkpoint.folder}: a module does not fit the vectors it gets from the one before "
                f"it: {error}"
            ) from error
        if dimensions is None:
            return width
        check_count(dimensions, "dimensions")
        if dimensions > width:
            raise InputError(
                f"dimensions is {dimensions}; vectors of {self.name} have {width}, so ask for 1 to {width}"
            )
        return int(dimensions)

    def _role(self, name: str, prompt: str) -> _Role:
        check_text(prompt, f"the prompt for {name}")
        tokens = self._tokenizer.encode([prompt])[0]
        if len(tokens.ids) >= self._room:
            raise InputError(
                f"the prompt for {name} has {len(tokens.ids)} tokens, which leaves no room for a text within "
                f"max_length={self.max_length}; raise max_length or pass a shorter prompt"
            )
        if self._pooling.include_prompt or not prompt:
            return _Role(name, prompt, 0)
        # As sentence-transformers counts: the prompt by itself, with the special tokens before it.
        wrapped, _ = self._tokenizer.wrap(tokens)
        before = next(
            start
            for start in range(len(wrapped))
            if np.array_equal(wrapped[start : start + len(tokens.ids)], tokens.ids)
        )
        return _Role(name, prompt, before + len(tokens.ids))


class _Role(NamedTuple):
    """What texts are encoded as.

    Attributes:
        name: for messages: "queries".
        prompt: put before each text.
        skip: tokens at the beginning that do not count in the pooling.
    """

    name: str
    prompt: str
    skip: int


def _refuse_rerankers(checkpoint: Checkpoint) -> None:
    """Say what a folder is where it says so itself: no pooling makes it a bi-encoder."""
    from crossrank.models.load import kind_of

    try:
        kind = kind_of(checkpoint.folder)
    except CheckpointError:
        if checkpoint.architecture != "t5":
            return
        raise CheckpointError(
            f"{checkpoint.folder} is a T5 without a Pooling module, and so no bi-encoder; rerankers made of "
            "T5s are opened with MonoT5, RankT5 or DuoT5"
        ) from None
    if kind != "bi_encoder":
        words = kind.replace("_t5", " T5").replace("_", "-")
        raise CheckpointError(f"{checkpoint.folder} is a {words} and no bi-encoder; crossrank.load opens it")


def _modules(checkpoint: Checkpoint, pooling: PoolingMode | None) -> tuple[Pooling, list[Module]]:
    """Return the pooling and the modules after it."""
    if checkpoint.is_modular_cross_encoder:
        raise CheckpointError(f"{checkpoint.folder} is a cross-encoder; open it with CrossEncoder")
    if checkpoint.is_multi_vector:
        raise CheckpointError(
            f"{checkpoint.folder} is a late-interaction model, which gives a vector for each token; open it "
            "with LateInteraction"
        )
    stated = checkpoint.pooling
    if stated is None:
        if pooling is None:
            _refuse_rerankers(checkpoint)
            raise CheckpointError(
                f"{checkpoint.folder} does not say how token vectors become one (no Pooling module in "
                "modules.json); pass the pooling its model card names, such as pooling='mean' or 'cls'"
            )
        if pooling not in get_args(PoolingMode):
            raise InputError(f"pooling must be one of {', '.join(get_args(PoolingMode))}, not {pooling!r}")
        return Pooling((pooling,)), list(checkpoint.modules)
    if pooling is not None and stated.modes != (pooling,):
        raise InputError(
            f"pooling is {pooling!r}, but {checkpoint.folder} states {' + '.join(stated.modes)}; leave it out"
        )
    place = checkpoint.modules.index(stated)
    if place != 0:
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder} has a {type(checkpoint.modules[0]).__name__} module before its pooling, "
            "which is not supported"
        )
    return stated, list(checkpoint.modules[1:])
