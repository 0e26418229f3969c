"""Bi-encoders in training: sentence-transformers' `SentenceTransformer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, require
from crossrank.models.hub import Kind
from crossrank.training.bases import check_base
from crossrank.training.recipes import Lengths, StudentChoice
from crossrank.training.tokens import TokenizerLengths, set_max_length

__all__ = ["BiEncoderStudent"]


class BiEncoderStudent:
    """See `crossrank.training.students.Student`."""

    kind = "bi_encoder"
    family = "encoder"
    joins_texts = False
    hub_kind: Kind = "bi-encoder"
    hub_library = "sentence-transformers"
    options: tuple[str, ...] = ()

    def open(self, choice: StudentChoice, folder: Path, lengths: Lengths) -> Any:
        """Return a `SentenceTransformer`; a plain transformer gets mean pooling."""
        check_base(choice.base, folder, ("bi_encoder",), "a bi-encoder")
        sentence_transformer = require("sentence_transformers", "train").SentenceTransformer
        try:
            model = sentence_transformer(
                str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{choice.base} cannot be trained as a bi-encoder: {error}") from error
        set_max_length(model, folder, lengths, choice.base)
        return model

    def trainer(self) -> tuple[type[Any], type[Any]]:
        """Return sentence-transformers' classes."""
        module = require("sentence_transformers.sentence_transformer", "train")
        return module.SentenceTransformerTrainer, module.SentenceTransformerTrainingArguments

    def text_lengths(self, model: Any) -> TokenizerLengths:
        """Return what counts tokens of single texts."""
        tokenizer = model.tokenizer
        num_special = tokenizer.num_special_tokens_to_add(pair=False)
        return TokenizerLengths(tokenizer, int(model.max_seq_length), num_special, model.prompts)

    def preprocess_options(self) -> Mapping[str, Any]:
        """Return nothing: texts are read alone."""
        return {}

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return cosines; every text is encoded once."""
        query_vectors = _vectors(model, queries, token_budget, model.prompts.get("query"))
        unique = [*dict.fromkeys(text for texts in documents for text in texts)]
        prompt = model.prompts.get("document")
        of = dict(zip(unique, _vectors(model, unique, token_budget, prompt), strict=True))
        return [
            np.asarray([of[text] @ vector for text in texts], dtype=np.float32)
            for vector, texts in zip(query_vectors, documents, strict=True)
        ]

    def export(self, model: Any, folder: Path) -> None:
        """Write what sentence-transformers and crossrank open; transformers gives the token vectors."""
        model.save_pretrained(str(folder), create_model_card=False)


def _vectors(
    model: Any, texts: Sequence[str], token_budget: int, prompt: str | None
) -> npt.NDArray[np.float32]:
    """Return L2-normalised vectors, (texts, dimensions)."""
    from crossrank.training.evaluated import evaluated

    vectors = evaluated(model, texts, "sentence_embedding", token_budget, prompt=prompt or None)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
