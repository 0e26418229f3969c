"""How long texts are for a model in training, counted by its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossrank.errors import InputError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.training.recipes import Lengths

__all__ = ["TokenizerLengths", "set_max_length"]

_BLOCK = 1024


class TokenizerLengths:
    """Counts and cuts with a fast tokenizer of transformers.

    Args:
        tokenizer: of the model.
        max_length: tokens of an input, special ones included.
        num_special: special tokens of an input.
        prompts: name -> text, of a model that reads queries and documents alone: what it puts before them.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, num_special: int, prompts: Mapping[str, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self.max_length = max_length
        query, document = self.count([(prompts or {}).get(name) or "" for name in ("query", "document")])
        self.num_special = num_special + document
        self.num_query_special = num_special + query

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, without special ones, uncut."""
        counts: list[int] = []
        for start in range(0, len(texts), _BLOCK):
            block = [*texts[start : start + _BLOCK]]
            ids = self._tokenizer(block, add_special_tokens=False, truncation=False, verbose=False)[
                "input_ids"
            ]
            counts += [len(each) for each in ids]
        return counts

    def cut(self, text: str, num_tokens: int) -> str:
        """Return the beginning of a text that has this many tokens at most."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
        )
        offsets = encoded["offset_mapping"]
        if len(offsets) <= num_tokens:
            return text
        cut = text[: offsets[num_tokens - 1][1]]
        # a word that is cut may have more tokens than it had as part of the whole
        while num_tokens > 1 and self.count([cut])[0] > num_tokens:
            num_tokens -= 1
            cut = text[: offsets[num_tokens - 1][1]]
        return cut


def set_max_length(model: Any, folder: Path, lengths: Lengths, base: str) -> None:
    """Give a model of sentence-transformers the recipe's length.

    Args:
        model: is changed.
        folder: its base, of an architecture that crossrank runs.
        lengths: of the recipe.
        base: the name of the base, for messages.

    Raises:
        InputError: the base has fewer positions.
        UnsupportedArchitectureError: crossrank could not run what is trained.
    """
    limit = Checkpoint.open(folder).max_positions
    if lengths.max_length is None:
        return
    if limit is not None and lengths.max_length > limit:
        raise InputError(f"lengths.max_length is {lengths.max_length}; {base} takes {limit} tokens at most")
    model.max_seq_length = lengths.max_length
