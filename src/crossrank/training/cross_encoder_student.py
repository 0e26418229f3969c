"""Cross-encoders in training: sentence-transformers' `CrossEncoder` with a classification head."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, require
from crossrank.models.hub import Kind
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.exits import EXITS_FILE, Exits
from crossrank.training.recipes import Lengths, StudentChoice
from crossrank.training.tokens import TokenizerLengths, set_max_length

__all__ = ["CrossEncoderStudent", "score_pairs"]

_logger = logging.getLogger(__name__)


class CrossEncoderStudent:
    """See `crossrank.training.students.Student`."""

    kind = "cross_encoder"
    family = "scorer"
    joins_texts = True
    hub_kind: Kind = "cross-encoder"
    hub_library = "sentence-transformers"
    options: tuple[str, ...] = ("classes",)

    def open(self, choice: StudentChoice, folder: Path, lengths: Lengths) -> Any:
        """Return a `CrossEncoder`; a base without a head gets a new one."""
        cross_encoder = require("sentence_transformers", "train").CrossEncoder
        classes = choice.classes
        try:
            model = cross_encoder(
                str(folder),
                device="cpu",
                num_labels=len(classes) if classes else 1,
                max_length=lengths.max_length,
                local_files_only=True,
                # classes of one's own get a head of their own, whatever the base was trained for
                model_kwargs={"dtype": "float32", "ignore_mismatched_sizes": classes is not None},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{choice.base} cannot be trained as a cross-encoder: {error}") from error
        if classes:
            config = model.transformers_model.config
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: i for i, name in enumerate(classes)}
        set_max_length(model, folder, lengths, choice.base)
        if choice.exits:
            from crossrank.training.exits import add_exits

            add_exits(model, choice.exits, folder)
        elif (folder / EXITS_FILE).is_file():
            layers = [*Exits(Checkpoint.open(folder)).layers]
            _logger.warning(
                "%s has heads after layers %s, and what is trained from it will have none; student.exits: %s "
                "trains them, too",
                *(choice.base, ", ".join(map(str, layers)), layers),
            )
        return model

    def trainer(self) -> tuple[type[Any], type[Any]]:
        """Return sentence-transformers' classes."""
        module = require("sentence_transformers.cross_encoder", "train")
        return module.CrossEncoderTrainer, module.CrossEncoderTrainingArguments

    def text_lengths(self, model: Any) -> TokenizerLengths:
        """Return what counts tokens of pairs."""
        tokenizer = model.tokenizer
        return TokenizerLengths(
            tokenizer, int(model.max_seq_length), tokenizer.num_special_tokens_to_add(pair=True)
        )

    def preprocess_options(self) -> Mapping[str, Any]:
        """Cut the document alone, as crossrank does when it reranks."""
        return {"processing_kwargs": {"text": {"truncation": "only_second"}}}

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return raw logits; pairs of all lists share forward passes."""
        pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
        scores = score_pairs(model, pairs, token_budget, self.preprocess_options())
        bounds = np.cumsum([len(texts) for texts in documents])[:-1]
        return [part[:, 0] if part.shape[1] == 1 else part for part in np.split(scores, bounds)]

    def export(self, model: Any, folder: Path) -> None:
        """Write what transformers, sentence-transformers and crossrank open."""
        from crossrank.training.exits import exits_of, save_exits

        if not exits_of(model):
            model.save_pretrained(str(folder), create_model_card=False)
            return
        transformer = model.transformers_model
        exits = transformer.exits
        del transformer.exits  # model.safetensors stays what every library expects
        try:
            model.save_pretrained(str(folder), create_model_card=False)
        finally:
            transformer.exits = exits
        save_exits(model, folder)


def score_pairs(
    model: Any, pairs: Sequence[tuple[str, ...]], token_budget: int, preprocess_options: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Return the raw outputs of a `CrossEncoder` for pairs, in evaluation mode: float32 (pairs, labels).

    Args:
        model: its mode is restored.
        pairs: of query and document.
        token_budget: padded tokens of one forward pass.
        preprocess_options: for `model.preprocess`.
    """
    from crossrank.training.evaluated import evaluated

    return evaluated(model, pairs, "scores", token_budget, **preprocess_options)
