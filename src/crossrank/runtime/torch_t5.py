"""A T5 run by torch and transformers: for GPUs, and in bfloat16."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, InputError, require
from crossrank.runtime.batching import DEFAULT_TOKEN_BUDGET, Grouping
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import T5Decoder, T5Encoder, TokenScore
from crossrank.runtime.engine import check_batch, engine_fingerprint
from crossrank.runtime.graph import Graph
from crossrank.runtime.tokenization import ModelInputs

__all__ = ["TorchT5Engine"]


class TorchT5Engine:
    """One score an input, read off the first step of the decoder; see `crossrank.runtime.engine.Engine`.

    The score itself is computed in float32 from the decoder's last vector, whatever the model runs in, so
    that close scores do not become ties. In bfloat16 a batch may change a score in its last digits.

    Args:
        checkpoint: the model.
        score: what is read.
        bf16: whether the model runs in bfloat16.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU where there is one.
        identity: what else the fingerprint is to tell apart.

    Raises:
        MissingExtraError: torch or transformers is not installed (extra "torch").
        CheckpointError: the checkpoint has no decoder.
        InputError: there is no such device.
    """

    threads = 1
    grouping: Grouping = "steps"  # a GPU wants many rows more than it minds padding
    batch_tokens = DEFAULT_TOKEN_BUDGET

    def __init__(
        self, checkpoint: Checkpoint, score: TokenScore, *, bf16: bool, device: str | None, identity: str
    ) -> None:
        self._torch: Any = require("torch", "torch")
        transformers: Any = require("transformers", "torch")
        torch = self._torch
        self.precision = "bf16" if bf16 else "float32"
        self._checkpoint = checkpoint
        self._score = score
        self._identity = identity
        graph = Graph(checkpoint.tensors())
        decoder = T5Decoder(graph, checkpoint.config, T5Encoder(graph, checkpoint.config))
        try:
            self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self._weights = torch.from_numpy(score.weights(decoder)).to(self._device)
        except (RuntimeError, AssertionError) as error:  # what torch raises differs from device to device
            raise InputError(f"device is {device!r}, which torch cannot use here: {error}") from error
        self._start = decoder.start
        kind = {"t5": "T5ForConditionalGeneration", "mt5": "MT5ForConditionalGeneration"}
        model_class = getattr(transformers, kind[str(checkpoint.config["model_type"])])
        try:
            model = model_class.from_pretrained(
                checkpoint.transformer_folder,
                dtype=torch.bfloat16 if bf16 else torch.float32,
                local_files_only=True,
                use_safetensors=True,
            )
        except OSError as error:
            raise CheckpointError(f"{checkpoint.folder} cannot be opened by transformers: {error}") from error
        self._model = model.to(self._device).eval()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides an output; computed when first asked for."""
        source = f"{self._device.type}{self._identity}"
        return engine_fingerprint(self._checkpoint, f"torch {self.precision}", source)

    def run(
        self,
        input_ids: npt.NDArray[np.int64],
        attention_mask: npt.NDArray[np.int64],
        token_type_ids: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        """Run one batch; see `Engine.run`. Gives (batch, 1)."""
        check_batch(input_ids, attention_mask, token_type_ids, self._checkpoint.max_positions)
        torch, device = self._torch, self._device
        ids = torch.from_numpy(np.ascontiguousarray(input_ids)).to(device)
        mask = torch.from_numpy(np.ascontiguousarray(attention_mask)).to(device)
        start = torch.full((len(input_ids), 1), self._start, dtype=torch.long, device=device)
        with torch.inference_mode():
            vectors = self._model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            step = self._model.decoder(
                input_ids=start,
                encoder_hidden_states=vectors,
                encoder_attention_mask=mask,
                use_cache=False,
            ).last_hidden_state[:, 0]
            score = step.float() @ self._weights
            if self._score.log_probability:
                score = torch.nn.functional.logsigmoid(score)
            found: npt.NDArray[np.float32] = score[:, None].cpu().numpy()
        return found

    def run_all(self, batches: Iterable[ModelInputs]) -> Iterator[npt.NDArray[np.float32]]:
        """Run batches, one after the other; see `Engine.run_all`."""
        return (self.run(*arrays) for arrays in batches)
