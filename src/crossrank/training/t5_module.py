"""A T5 as the one module of a sentence-transformers model: texts in a prompt, a score off the decoder's step.

Inputs are made by the tokenizer and the prompt that read them when the model reranks, and are cut as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from crossrank.runtime.encoders.t5 import TokenScore
from crossrank.runtime.prompts import PromptTokenizer

__all__ = ["T5Scores"]


class T5Scores(InputModule):  # type: ignore[misc]
    """Scores a query with a document, or with two.

    Args:
        model: a T5 or mT5 of transformers, with its decoder.
        tokenizer: puts (query, document) or (query, document, document) into the prompt.
        score: the token that is read, and the one it is read against; always as a difference of logits.
        max_length: tokens of an input, prompt included.
        tokenizer_files: name -> content of the base's, which go with the trained model as they are.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PromptTokenizer,
        score: TokenScore,
        max_length: int,
        *,
        tokenizer_files: Mapping[str, bytes],
    ) -> None:
        super().__init__()
        self.tokenizer_files = dict(tokenizer_files)
        self.model = model
        self.prompt_tokenizer = tokenizer
        self.score = score
        self.max_seq_length = max_length
        self.num_labels = 1

    def preprocess(
        self, inputs: Sequence[Sequence[str]], prompt: str | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Return token ids and their mask, padded to the longest; documents share what the query leaves."""
        tokenizer = self.prompt_tokenizer
        texts = list(dict.fromkeys(text for each in inputs for text in each))
        encoded = {text: each.ids for text, each in zip(texts, tokenizer.encode(texts), strict=True)}
        rows = []
        for query, *documents in inputs:
            room = self.max_seq_length - tokenizer.num_special_tokens - len(encoded[query])
            share = max(0, room) // len(documents)
            rows.append((encoded[query], *(encoded[text][:share] for text in documents)))
        longest = max(sum(map(len, row)) for row in rows) + tokenizer.num_special_tokens
        arrays = tokenizer.inputs(rows, longest)
        return {
            "input_ids": torch.from_numpy(arrays.input_ids),
            "attention_mask": torch.from_numpy(arrays.attention_mask),
        }

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Add "scores", (rows, 1)."""
        ids, mask = features["input_ids"], features["attention_mask"]
        config = self.model.config
        start = torch.full_like(ids[:, :1], config.decoder_start_token_id)
        vectors = self.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        step = self.model.decoder(
            input_ids=start, encoder_hidden_states=vectors, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state[:, 0]
        weights = self.model.get_output_embeddings().weight
        row = weights[self.score.token]
        if self.score.against is not None:
            row = row - weights[self.score.against]
        if getattr(config, "scale_decoder_outputs", False):
            row = row * config.d_model**-0.5
        return {**features, "scores": (step.float() @ row.float())[:, None]}

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write transformers' files; the student adds the tokenizer and says what the model is."""
        self.model.save_pretrained(Path(output_path))
