"""MonoT5: a T5 that reads query and document and says whether the document is relevant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.cache import ScoreCache
from crossrank.models.calibration import may_change_precision
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.declaration import read_declaration
from crossrank.models.pair_settings import LongQuery
from crossrank.models.t5_families import MONO_PROMPT
from crossrank.models.t5_opening import (
    answer_ids,
    check_kind,
    find_family,
    open_step,
    stated_prompt,
)
from crossrank.runtime.backends import Backend, Precision
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.engine import Engine, Source
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.tokenization import Tokenizer
from crossrank.runtime.windows import DEFAULT_OVERLAP, MEAN_TOP_K, LongDocuments

__all__ = ["MonoT5"]


class MonoT5(CrossEncoder):
    """A T5 (v1.0, v1.1, Flan, mT5) whose score is the log-probability of "true", if it is that or "false".

    It has the verbs of `CrossEncoder`, and keeps its promises: a pair's score depends on the pair alone, the
    query is never cut to keep a document, and "Relevant:" and the end of the input are always read. The
    encoder and one step of the decoder run as one graph, without torch, and of the vocabulary's weights only
    the two tokens' are used.

    Args:
        model: a local folder, or a hub name.
        revision: commit, tag or branch; for hub models only.
        tokens: (false, true), each as the vocabulary spells it ("▁false") or by its id. Default: those that
            crossrank.json or the model's card states, or those of its family.
        family: "t5", "mt5", "mt5-true", "ptt5" or "monoptt5": see `crossrank.models.t5_families`. Default:
            that of the published model of this name, else the one named like the model type.
        prompt: words around "{query}" and "{document}". Default: what the folder states, or the family's:
            "Query: {query} Document: {document} Relevant:".
        precision: "float32", "int8" where the folder has a form that passed its parity gate, "auto" for the
            faster of these there is ("float32" with torch), or "bf16" with torch.
        backend: "onnx" (no torch needed), "torch" for GPUs and bf16 (extra "torch"), or "auto" for torch
            where there is a GPU that it can use, or a device or bf16 is asked for.
        device: of torch: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
        max_length: tokens of an input, prompt included. Default: what the configs allow, 512 for T5.
        max_query_length, long_query, long_documents, window_tokens, window_overlap, top_windows,
            token_budget, threads, cache, progress: see `CrossEncoder`.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it is no T5 with a decoder, or says it is another kind of reranker.
        InputError: an option that cannot be used with this model.
        MissingExtraError: torch is asked for and not installed.

    Source: Nogueira et al. 2020, "Document Ranking with a Pretrained Sequence-to-Sequence Model",
    arXiv:2003.06713; parity with transformers' forward pass, |Δ| < 1e-5.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        tokens: Sequence[str | int] | None = None,
        family: str | None = None,
        prompt: str | None = None,
        precision: Precision = "auto",
        backend: Backend = "auto",
        device: str | None = None,
        max_length: int | None = None,
        max_query_length: int | None = None,
        long_query: LongQuery = "error",
        long_documents: LongDocuments = "truncate",
        window_tokens: int | None = None,
        window_overlap: float = DEFAULT_OVERLAP,
        top_windows: int = MEAN_TOP_K,
        token_budget: int | None = None,
        threads: int | None = None,
        cache: ScoreCache | None = None,
        progress: bool | None = None,
    ) -> None:
        self._asked_tokens, self._asked_family, self._asked_prompt = tokens, family, prompt
        self._running: dict[str, Any] = {"precision": precision, "backend": backend, "device": device}
        super().__init__(
            model,
            revision=revision,
            max_length=max_length,
            max_query_length=max_query_length,
            long_query=long_query,
            long_documents=long_documents,
            window_tokens=window_tokens,
            window_overlap=window_overlap,
            top_windows=top_windows,
            activation="identity",
            prompt="",
            token_budget=token_budget,
            threads=threads,
            cache=cache,
            progress=progress,
        )
        self.activation = "exp"

    @property
    def token_score(self) -> TokenScore:
        """What the score is read off."""
        false, true = self.token_ids
        return TokenScore(true, against=false, log_probability=True)

    def activate(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
        """Turn log-probabilities into probabilities, as float64: in float32 the highest would tie."""
        return np.exp(np.asarray(logits, dtype=np.float64))

    def _read_labels(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        return ("relevance",)

    def _open_tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        declared = read_declaration(checkpoint.folder)
        check_kind(checkpoint, declared, "mono_t5")
        family = find_family(self.name, checkpoint, self._asked_family)
        self.prompt = self._asked_prompt or stated_prompt(declared) or family.prompt or MONO_PROMPT
        tokenizer = PromptTokenizer(checkpoint, self.prompt, ("query", "document"))
        self.token_ids = answer_ids(tokenizer, checkpoint, self._asked_tokens, declared, family)
        return tokenizer

    def _open_engine(
        self, checkpoint: Checkpoint, precision: Precision, threads: int | None, source: Source
    ) -> Engine:
        return open_step(
            checkpoint,
            self.token_score,
            threads=threads,
            identity=self.prompt,
            may_change_precision=may_change_precision(self.folder),
            **self._running,
        )
