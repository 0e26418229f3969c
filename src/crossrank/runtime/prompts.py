"""Prompts in words around a query and documents: "Query: {query} Document: {document} Relevant:".

The words of a prompt and the texts in it are tokenised apart, so a query is tokenised once for all its
documents, and a cut can only fall into a text: never into the prompt. SentencePiece tokenizers make a word's
tokens from the word alone, so the ids are those of the whole prompt; that is checked when a prompt is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crossrank.checks import check_text
from crossrank.errors import CheckpointError, InputError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.templates import Template
from crossrank.runtime.tokenization import ModelInputs, Tokenizer

__all__ = ["PromptTokenizer"]

Ids = npt.NDArray[np.int32]

_FIELD = re.compile(r"\{(\w+)\}")
_PROBES = (
    ("what is a cat", "The cat (Felis catus), 3.5 kg; a pet.", "Dogs: 'man's best friend'?"),
    ("7 + 5?", "twelve", "x"),
    ("a", "", "b"),
)


class PromptTokenizer(Tokenizer):
    """A checkpoint's tokenizer that puts texts into a prompt, in place of its own template of pairs.

    Args:
        checkpoint: the model folder.
        prompt: words with the fields in braces, each standing alone between spaces.
        fields: the names of the fields, in the order they must stand in: ("query", "document").

    Attributes:
        prompt: see above.

    Raises:
        CheckpointError: the tokenizer gives other ids for the whole prompt than for its parts.
        InputError: a prompt that lacks a field, or has another.
    """

    def __init__(self, checkpoint: Checkpoint, prompt: str, fields: Sequence[str]) -> None:
        super().__init__(checkpoint)
        check_text(prompt, "prompt")
        self.prompt = prompt
        words = _FIELD.split(prompt)
        if tuple(words[1::2]) != tuple(fields):
            wanted = " then ".join(f"{{{field}}}" for field in fields)
            raise InputError(f"the prompt {prompt!r} must have {wanted}, each once, in this order")
        parts = [tokens.ids.astype(np.int64) for tokens in self.encode([part.strip() for part in words[::2]])]
        before, after = self._single.fixed
        parts[0] = np.concatenate([before, parts[0]])
        parts[-1] = np.concatenate([parts[-1], after])
        self._pair = Template(tuple(parts), tuple(map(np.zeros_like, parts)), (0,) * len(fields))
        self._num_special_tokens = self._pair.num_special_tokens
        self._check(words, checkpoint)

    def inputs(self, rows: Sequence[Sequence[Ids]], length: int) -> ModelInputs:
        """Put each row's texts into the prompt and pad them: the rows of one batch.

        Args:
            rows: for each row the int32 ids of its texts, in the order of the fields.
            length: what rows are padded to; at least the longest row's length.
        """
        return ModelInputs(*self._pair.fill_batch(rows, length, self.pad_id))

    def _check(self, words: Sequence[str], checkpoint: Checkpoint) -> None:
        """Try out that the parts have the tokens of the whole; `words` has fields' names between words."""
        num_texts = len(words) // 2
        for texts in _PROBES:
            whole = "".join(texts[place // 2] if place % 2 else part for place, part in enumerate(words))
            expected = self._tokenizer.encode(whole).ids
            ids, _ = self._pair.fill([tokens.ids for tokens in self.encode(texts[:num_texts])])
            if ids.tolist() != expected:
                raise CheckpointError(
                    f"{checkpoint.tokenizer_file} gives {whole!r} other tokens ({expected}) than its parts "
                    f"({ids.tolist()}), so texts cannot be cut to fit; separate the fields of the prompt by "
                    "spaces, or use the tokenizer the model was trained with"
                )
