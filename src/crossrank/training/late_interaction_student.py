"""Late-interaction models in training: sentence-transformers' `MultiVectorEncoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError, InputError, require
from crossrank.models.hub import Kind
from crossrank.models.maxsim import TokenVectors, maxsim
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.training.bases import check_base
from crossrank.training.recipes import Lengths, StudentChoice
from crossrank.training.tokens import TokenizerLengths, set_max_length

__all__ = ["LateInteractionStudent"]

_DIMENSIONS = 128
_SAMPLE_TEXTS, _SAMPLE_TOKENS = 512, 32


class LateInteractionStudent:
    """See `crossrank.training.students.Student`."""

    kind = "late_interaction"
    family = "multi_vector"
    joins_texts = False
    hub_kind: Kind = "late-interaction"
    hub_library = "sentence-transformers"
    options: tuple[str, ...] = ("dimensions",)

    def open(self, choice: StudentChoice, folder: Path, lengths: Lengths) -> Any:
        """Return a `MultiVectorEncoder`; a bi-encoder or a plain transformer gets a projection.

        The projection begins as the principal axes of the base's own token vectors, which lose less of what
        the base knows than axes drawn at random. The vectors are those of texts made of the tokens of its
        vocabulary, drawn from torch's global generator.
        """
        check_base(choice.base, folder, ("late_interaction", "bi_encoder"), "a late-interaction model")
        require("sentence_transformers", "train")
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.base.modules import Dense, Normalize, Transformer
        from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
        from torch.nn import Identity

        checkpoint = Checkpoint.open(folder)
        options = {"model_kwargs": {"dtype": "float32"}}
        try:
            if checkpoint.is_multi_vector:
                if choice.dimensions is not None:
                    raise InputError(
                        "student.dimensions: the base has a projection, whose size is what it is"
                    )
                model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True, **options)
            else:
                transformer = Transformer(str(checkpoint.transformer_folder), **options)
                dimensions = choice.dimensions or _DIMENSIONS
                width = transformer.get_embedding_dimension()
                if dimensions > width:
                    raise InputError(f"student.dimensions is {dimensions}; the base has {width}")
                projection = Dense(
                    width,
                    dimensions,
                    bias=False,
                    activation_function=Identity(),
                    init_weight=_principal_axes(transformer, dimensions),
                    module_input_name="token_embeddings",
                )
                normalize = Normalize(module_input_name="token_embeddings")
                modules = [transformer, projection, MultiVectorMask(), normalize]
                model = MultiVectorEncoder(modules=modules, device="cpu")
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{choice.base} cannot be trained as a late-interaction model: {error}"
            ) from error
        set_max_length(model, folder, lengths, choice.base)
        return model

    def trainer(self) -> tuple[type[Any], type[Any]]:
        """Return sentence-transformers' classes."""
        require("sentence_transformers", "train")
        from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

        return MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments

    def text_lengths(self, model: Any) -> TokenizerLengths:
        """Return what counts tokens of single texts; a document's length holds for both."""
        tokenizer, length = model.tokenizer, int(model.max_seq_length)
        stated = model[0].document_length
        return TokenizerLengths(
            tokenizer,
            length if stated is None else min(length, int(stated)),
            tokenizer.num_special_tokens_to_add(pair=False),
            model.prompts,
        )

    def preprocess_options(self) -> Mapping[str, Any]:
        """Return nothing: texts are read alone."""
        return {}

    def score_lists(
        self, model: Any, queries: Sequence[str], documents: Sequence[Sequence[str]], token_budget: int
    ) -> list[npt.NDArray[np.float32]]:
        """Return MaxSim; every text is encoded once."""
        unique = [*dict.fromkeys(text for texts in documents for text in texts)]
        batch_size = max(1, token_budget // int(model.max_seq_length))
        options = {"batch_size": batch_size, "convert_to_numpy": True, "show_progress_bar": False}
        was_training = model.training
        model.eval()
        try:
            query_vectors = model.encode_query([*queries], **options)
            of = dict(zip(unique, model.encode_document(unique, **options), strict=True))
        finally:
            model.train(was_training)
        dimensions = int(model.get_embedding_dimension())
        is_mean = model.similarity_fn_name == "meanmaxsim"
        scores: list[npt.NDArray[np.float32]] = []
        for vectors, texts in zip(query_vectors, documents, strict=True):
            found = maxsim([vectors], TokenVectors.of([of[text] for text in texts], dimensions))[:, 0]
            scores.append(np.asarray(found / len(vectors) if is_mean else found, dtype=np.float32))
        return scores

    def export(self, model: Any, folder: Path) -> None:
        """Write what sentence-transformers and crossrank open; transformers gives the unprojected vectors."""
        model.save_pretrained(str(folder), create_model_card=False)


def _principal_axes(transformer: Any, dimensions: int) -> Any:
    """Return (dimensions, hidden): the axes along which normalised token vectors spread most."""
    import torch

    tokenizer = transformer.tokenizer
    special = set(tokenizer.all_special_ids)
    ids = torch.randint(len(tokenizer), (_SAMPLE_TEXTS, _SAMPLE_TOKENS)).tolist()
    texts = [tokenizer.decode([each for each in row if each not in special]) for row in ids]
    total = torch.zeros((), dtype=torch.float64)
    was_training = transformer.training
    transformer.eval()
    with torch.no_grad():
        for start in range(0, len(texts), 32):
            output = transformer(transformer.preprocess(texts[start : start + 32]))
            tokens = output["token_embeddings"][output["attention_mask"].bool()]
            tokens = torch.nn.functional.normalize(tokens, dim=-1).double()
            total = total + tokens.T @ tokens
    transformer.train(was_training)
    _, axes = torch.linalg.eigh(total)  # eigenvalues rise
    return axes[:, -dimensions:].flip(1).T.float().contiguous()
