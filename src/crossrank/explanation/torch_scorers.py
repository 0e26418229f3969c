"""Pointwise rerankers as torch functions of embeddings, opened by transformers from the reranker's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, InputError, require
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.rank_t5 import RankT5
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.tokenization import Tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["TorchScorer", "open_scorer"]

Types = npt.NDArray[np.int64]


class TorchScorer(Protocol):
    """A model whose score can be differentiated."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Joins a pair as the reranker does."""
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, hidden) of ids (tokens,)."""
        ...

    def scores(self, embeddings: torch.Tensor, types: Types) -> torch.Tensor:
        """Scores (n,) of embeddings (n, tokens, hidden), with the token types (tokens,) of all."""
        ...


def open_scorer(reranker: Any) -> TorchScorer:
    """Open a reranker's model in torch, float32.

    Raises:
        InputError: a reranker of another kind, or one with several labels and none chosen.
        CheckpointError: weights that transformers does not take for this architecture.
        MissingExtraError: torch or transformers is not installed.
    """
    name = getattr(reranker, "name", type(reranker).__name__)
    if not isinstance(reranker, CrossEncoder):
        raise InputError(
            f"integrated gradients need a CrossEncoder, MonoT5 or RankT5, which {name} is not; occlusion "
            "explains any reranker that scores pairs"
        )
    if reranker.label_position is None:
        raise InputError(
            f"{name} gives {len(reranker.labels)} scores ({', '.join(reranker.labels)}); open it with label= "
            "the one to explain"
        )
    if reranker.exit_layer is not None:
        raise InputError(
            f"{name} is cut after layer {reranker.exit_layer}, and integrated gradients are of whole models; "
            "occlusion explains any reranker that scores pairs"
        )
    checkpoint = Checkpoint.open(reranker.folder)
    if checkpoint.is_modular_cross_encoder or not checkpoint.has_weights:
        raise InputError(
            f"{name} is no plain classifier or T5 with safetensors, which integrated gradients need; "
            "occlusion explains any reranker that scores pairs"
        )
    require("torch", "torch")
    if isinstance(reranker, (MonoT5, RankT5)):
        return _T5(checkpoint, reranker)
    return _Classifier(checkpoint, reranker.label_position)


class _Classifier:
    """A sequence classifier."""

    def __init__(self, checkpoint: Checkpoint, label: int) -> None:
        self.tokenizer = Tokenizer(checkpoint)
        self._label = label
        self._model = _opened(checkpoint, "AutoModelForSequenceClassification")

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self._model.get_input_embeddings()(ids)
        return vectors

    def scores(self, embeddings: torch.Tensor, types: Types) -> torch.Tensor:
        import torch

        inputs: dict[str, Any] = {"inputs_embeds": embeddings, "attention_mask": _ones(embeddings)}
        if types.any():
            inputs["token_type_ids"] = torch.from_numpy(types).expand(embeddings.shape[:2])
        logits: torch.Tensor = self._model(**inputs).logits  # (n, labels)
        return logits[:, self._label]


class _T5:
    """A T5 whose score is read off the first step of its decoder."""

    def __init__(self, checkpoint: Checkpoint, reranker: MonoT5 | RankT5) -> None:
        self.tokenizer = PromptTokenizer(checkpoint, reranker.prompt, ("query", "document"))
        self._tokens = list(reranker.token_ids if isinstance(reranker, MonoT5) else [reranker.token_id])
        self._model = _opened(checkpoint, "AutoModelForSeq2SeqLM")
        self._start: int = self._model.config.decoder_start_token_id

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self._model.get_input_embeddings()(ids)
        return vectors

    def scores(self, embeddings: torch.Tensor, types: Types) -> torch.Tensor:
        import torch

        logits: torch.Tensor = self._model(
            inputs_embeds=embeddings,
            attention_mask=_ones(embeddings),
            decoder_input_ids=torch.full((len(embeddings), 1), self._start),
            use_cache=False,
        ).logits[:, 0, self._tokens]  # (n, false and true) or (n, 1)
        return logits.log_softmax(dim=-1)[:, 1] if len(self._tokens) == 2 else logits[:, 0]


def _ones(embeddings: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.ones(embeddings.shape[:2], dtype=torch.int64)


def _opened(checkpoint: Checkpoint, auto_class: str) -> Any:
    """The model with the weights of the folder, float32, for derivatives of its inputs alone."""
    torch, transformers = require("torch", "torch"), require("transformers", "torch")
    folder = str(checkpoint.transformer_folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = getattr(transformers, auto_class)
    if checkpoint.weight_files:
        with _no_bar(transformers.utils.logging):
            model, info = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
            )
        missing = sorted(info["missing_keys"])
    else:  # the float32 form of int8 weights
        model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager")
        state = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint.tensors().items()}
        missing = sorted(model.load_state_dict(state, strict=False).missing_keys)
    if missing:
        raise CheckpointError(
            f"{checkpoint.folder} lacks weights that transformers needs for {type(model).__name__}: "
            f"{', '.join(missing[:3])}"
        )
    return model.eval().requires_grad_(False)


@contextmanager
def _no_bar(logging: Any) -> Iterator[None]:
    """Keep transformers' own bar away while weights are read."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
