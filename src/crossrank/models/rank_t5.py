"""RankT5: a T5 trained on lists, whose score is a number and not an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossrank.cache import ScoreCache
from crossrank.errors import CheckpointError, InputError
from crossrank.models.calibration import may_change_precision
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.declaration import Declaration, read_declaration
from crossrank.models.pair_settings import LongQuery
from crossrank.models.t5_families import RANK_PROMPT, RANK_TOKENS
from crossrank.models.t5_opening import (
    check_kind,
    open_step,
    stated_prompt,
    token_id,
)
from crossrank.runtime.backends import Backend, Precision
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.engine import Engine, Source, open_engine
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.tokenization import Tokenizer
from crossrank.runtime.windows import DEFAULT_OVERLAP, MEAN_TOP_K, LongDocuments

__all__ = ["RankT5", "sentinel_id"]


class RankT5(CrossEncoder):
    """A T5 whose score is the logit of one token, or of a dense layer on the encoder's first vector.

    The form is the checkpoint's own. A whole T5 is read by the first step of its decoder, at the token that
    training used. An encoder with sentence-transformers modules behind it (Pooling of the first token or the
    mean, then Dense) gives scores without a decoder. Verbs and promises are those of `CrossEncoder`.

    Args:
        model: a local folder, or a hub name.
        revision: commit, tag or branch; for hub models only.
        token: whose logit is the score, as the vocabulary spells it or by its id; for whole T5s only.
            Default: what crossrank.json or the model's card states, or "<extra_id_10>", as in the paper's
            code.
        prompt: words around "{query}" and "{document}". Default: what the folder states, or
            "Query: {query} Document: {document}".
        precision: see `MonoT5`; "bf16" for whole T5s only.
        backend: see `MonoT5`; "torch" for whole T5s only.
        device: see `MonoT5`.
        max_length: see `MonoT5`.
        max_query_length, long_query, long_documents, window_tokens, window_overlap, top_windows,
            token_budget, threads, cache, progress: see `CrossEncoder`.

    Raises:
        CheckpointNotFoundError: there is no such model.
        CheckpointError: it is no T5 of either form, or says it is another kind of reranker.
        InputError: an option that cannot be used with this model.
        MissingExtraError: torch is asked for and not installed.

    Source: Zhuang et al. 2023, "RankT5: Fine-Tuning T5 for Text Ranking with Ranking Losses",
    arXiv:2210.10634; parity with transformers' forward pass, |Δ| < 1e-5.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | int | None = None,
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
        self._asked_token, self._asked_prompt = token, prompt
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

    @property
    def token_score(self) -> TokenScore | None:
        """What the score is read off; None for an encoder with a dense layer behind it."""
        return None if self.token_id is None else TokenScore(self.token_id)

    def _read_labels(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        if checkpoint.is_modular_cross_encoder and checkpoint.num_labels > 1:
            raise CheckpointError(
                f"{checkpoint.folder} gives {checkpoint.num_labels} scores; a RankT5 gives one"
            )
        return ("relevance",)

    def _open_tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        declared = read_declaration(checkpoint.folder)
        check_kind(checkpoint, declared, "rank_t5")
        self.prompt = self._asked_prompt or stated_prompt(declared) or RANK_PROMPT
        tokenizer = PromptTokenizer(checkpoint, self.prompt, ("query", "document"))
        self.token_id: int | None = None
        if checkpoint.is_modular_cross_encoder:
            if self._asked_token is not None:
                raise InputError(
                    f"token has no effect: {self.name} is an encoder with a dense layer behind it"
                )
            return tokenizer
        self.token_id = sentinel_id(tokenizer, checkpoint, self._asked_token, declared)
        return tokenizer

    def _open_engine(
        self, checkpoint: Checkpoint, precision: Precision, threads: int | None, source: Source
    ) -> Engine:
        score = self.token_score
        running = self._running
        if score is not None:
            return open_step(
                checkpoint,
                score,
                threads=threads,
                identity=self.prompt,
                may_change_precision=may_change_precision(self.folder),
                **running,
            )
        on_cpu = running["backend"] in ("auto", "onnx") and running["device"] is None
        if not on_cpu or running["precision"] == "bf16":
            raise InputError(
                f"{self.name} is an encoder with a dense layer behind it, which runs on backend='onnx'"
            )
        return open_engine(
            checkpoint,
            output="logits",
            precision=running["precision"],
            threads=threads,
            identity=f" {self.prompt}",
            may_change_precision=may_change_precision(self.folder),
        )


def sentinel_id(
    tokenizer: Tokenizer, checkpoint: Checkpoint, token: str | int | None, declared: Declaration
) -> int:
    """The id of the token whose logit is the score.

    Args:
        tokenizer: the model's.
        checkpoint: for messages.
        token: asked for; None takes the one that the folder states, or "<extra_id_10>".
        declared: what the folder states.

    Raises:
        InputError: the token asked for is not in the vocabulary.
        CheckpointError: that of the folder is not, or it states none and there is no "<extra_id_10>".
    """
    if token is not None:
        return token_id(tokenizer, checkpoint, token)
    stated = declared.settings.get("token")
    if stated is None:
        found = [each for each in map(tokenizer.token_id, RANK_TOKENS) if each is not None]
        if not found:
            raise CheckpointError(
                f"{checkpoint.folder} does not say which token its score is read off, and its vocabulary has "
                f"no {RANK_TOKENS[0]}; give token="
            )
        return found[0]
    try:
        return token_id(tokenizer, checkpoint, stated)
    except InputError as reason:
        raise CheckpointError(f"{declared.source}: token: {reason}") from None
