"""Texts to token ids, and token ids to the arrays a model reads.

Queries and documents are tokenised apart, without special tokens, and joined afterwards by the tokenizer's
own template: a query is tokenised once for all its documents, and a document once for all its windows. The
library joins finished encodings too, so the ids are the same as those of a joint encoding.

A literal special token in a text ("[SEP]") is that special token to the model, as in the reference libraries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from crossrank.checks import check_texts
from crossrank.errors import CheckpointError
from crossrank.runtime.batching import text_blocks
from crossrank.runtime.known_words import KnownWords
from crossrank.runtime.segments import segments, splits_at_spaces
from crossrank.runtime.settings import bad_setting, read_setting, settings_digest
from crossrank.runtime.templates import derive_templates
from crossrank.runtime.weights import file_digest

if TYPE_CHECKING:
    from crossrank.runtime.checkpoint import Checkpoint

__all__ = ["ModelInputs", "Tokenizer", "Tokens"]

Ids = npt.NDArray[np.int32]
Row = npt.NDArray[np.int64]

_SPECIAL_TOKENS = ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
_BLOCK_CHARACTERS = 1_000_000  # of one call into the library: its encodings take about 100 bytes a token


class Tokens(NamedTuple):
    """The tokens of one text, without special tokens.

    Attributes:
        ids: int32 (n,).
        offsets: int32 (n, 2), [start, end) in Unicode code points of the text; None when not asked for.
    """

    ids: Ids
    offsets: npt.NDArray[np.int32] | None = None


class ModelInputs(NamedTuple):
    """What a model reads for one batch; int64 (batch, length) each, padded on the right."""

    input_ids: Row
    attention_mask: Row
    token_type_ids: Row


class Tokenizer:
    """The tokenizer of a checkpoint: a private copy with truncation and padding off.

    Safe to use from many threads at once.

    Args:
        checkpoint: the model folder; its `tokenizer.json` is read.

    Attributes:
        pad_id: id that fills rows.
        fingerprint: SHA-256 (hex) of everything that decides what `encode` gives, the library's version
            included.

    Raises:
        CheckpointError: a `tokenizer.json` that cannot be read, whose pair template cannot be derived, or
            that does not belong to the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        path = checkpoint.tokenizer_file
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config, config_file = checkpoint.config, path.with_name("config.json")
        pad_id = read_setting(config, "pad_token_id", int, None, source=config_file, least=0)
        # PyLate names the mask token as the padding token, to fill up queries with it.
        special = dict(checkpoint.tokenizer_config)
        if special.get("pad_token") == special.get("mask_token"):
            special.pop("pad_token", None)
        self._check_special_tokens(special, path, pad_id)
        self.pad_id = pad_id or 0
        self._lowercase = checkpoint.lowercase
        self.fingerprint = settings_digest(
            {
                "tokenizer": file_digest(path),
                "lowercase": self._lowercase,
                "library": tokenizers.__version__,
            }
        )
        # A model with one token type has no embedding for a second; a tokenizer that does not list the
        # types among the model's inputs means that the model was trained with zeros.
        num_types = read_setting(config, "type_vocab_size", int, 2, source=config_file, least=0)
        has_types = num_types > 1 and checkpoint.uses_token_types
        self._single, self._pair = derive_templates(self._tokenizer, has_types=has_types, source=str(path))
        self._num_special_tokens = self._pair.num_special_tokens  # asked for once a pair
        self._can_split = splits_at_spaces(self._tokenizer)
        self._words = KnownWords.of(self._tokenizer)

    @property
    def num_special_tokens(self) -> int:
        """Special tokens of a pair."""
        return self._num_special_tokens

    @property
    def num_leading_special_tokens(self) -> int:
        """Special tokens before a single text."""
        return len(self._single.fixed[0])

    @property
    def num_single_special_tokens(self) -> int:
        """Special tokens of a single text."""
        return self._single.num_special_tokens

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary has it ("▁true"); None where it has none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def encode(self, texts: Sequence[str], *, offsets: bool = False) -> list[Tokens]:
        """Tokenise each text by itself, without special tokens and without truncation.

        Long texts are tokenised in segments where that provably gives the same tokens (see `segments`), so
        memory stays bounded. Words that came before are not tokenised again where that, too, gives the same
        (see `known_words`).

        Args:
            texts: strings; empty ones have no tokens.
            offsets: also return where each token lies in its text (slower).

        Raises:
            InputError: a text is no valid string; names its position.
        """
        owners: list[int] = []
        starts: list[int] = []
        pieces: list[str] = []
        try:
            lowered = [text.lower() for text in texts] if self._lowercase else texts
            for owner, text in enumerate(lowered):
                for start, end in segments(text) if self._can_split else ((0, len(text)),):
                    owners.append(owner)
                    starts.append(start)
                    pieces.append(text if end - start == len(text) else text[start:end])
            encoded = self._encode_pieces(pieces, starts, offsets)
        except (TypeError, AttributeError):  # what anything that is no UTF-8 string leads to
            check_texts(texts, "texts")
            raise
        if len(pieces) > len(texts):
            merged: list[list[Tokens]] = [[] for _ in texts]
            for owner, tokens in zip(owners, encoded, strict=True):
                merged[owner].append(tokens)
            encoded = [_concatenate(parts) for parts in merged]
        if self._lowercase and offsets:
            encoded = [_unlower(tokens, text) for tokens, text in zip(encoded, texts, strict=True)]
        return encoded

    def pair_length(self, num_query_tokens: int, num_document_tokens: int) -> int:
        """Tokens of a pair, special tokens included."""
        return num_query_tokens + num_document_tokens + self._num_special_tokens

    def join(self, query: Tokens, document: Tokens) -> tuple[Row, Row]:
        """Join a query and a document into (input_ids, token_type_ids), int64 (length,) each."""
        return self._pair.fill((query.ids, document.ids))

    def wrap(self, tokens: Tokens) -> tuple[Row, Row]:
        """Put a single text into its template: (input_ids, token_type_ids), int64 (length,) each."""
        return self._single.fill((tokens.ids,))

    def pair_inputs(self, pairs: Sequence[tuple[Ids, Ids]], length: int) -> ModelInputs:
        """Join pairs and pad them: the rows of one batch.

        Args:
            pairs: int32 ids of each row's query and of its document (or a window of it).
            length: what rows are padded to; at least the longest pair's length.
        """
        return ModelInputs(*self._pair.fill_batch(pairs, length, self.pad_id))

    def single_inputs(self, texts: Sequence[Ids], length: int) -> ModelInputs:
        """Wrap single texts and pad them: the rows of one batch."""
        return ModelInputs(*self._single.fill_batch([(ids,) for ids in texts], length, self.pad_id))

    def _encode_pieces(self, pieces: list[str], starts: list[int], offsets: bool) -> list[Tokens]:
        encode = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        encoded: list[Tokens] = []
        for block in text_blocks(pieces, most_texts=len(pieces), most_characters=_BLOCK_CHARACTERS):
            if self._words is not None and not offsets:
                encoded += map(Tokens, self._words.ids(pieces[block]))
                continue
            encodings = encode(pieces[block], add_special_tokens=False)
            for start, encoding in zip(starts[block], encodings, strict=True):
                spans = None
                if offsets:
                    spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2) + np.int32(start)
                encoded.append(Tokens(np.array(encoding.ids, dtype=np.int32), spans))
        return encoded

    def _check_special_tokens(self, settings: dict[str, Any], path: Path, pad_id: int | None) -> None:
        """Refuse the tokenizer of another model family: its special tokens are not the model's."""
        source = path.with_name("tokenizer_config.json")
        for key in _SPECIAL_TOKENS:
            stated = settings.get(key)
            token = stated.get("content") if isinstance(stated, dict) else stated
            if token is None:
                continue
            if not isinstance(token, str):
                raise bad_setting(source, key, stated, "a token")
            found = self._tokenizer.token_to_id(token)
            if found is None:
                raise CheckpointError(
                    f"{path} does not belong to this model: it has no token {token!r}, which {source.name} "
                    f"names as {key}; use the tokenizer the model was trained with"
                )
            if key == "pad_token" and pad_id is not None and found != pad_id:
                raise CheckpointError(
                    f"{path} does not belong to this model: its padding token {token!r} has id {found}, "
                    f"config.json says pad_token_id {pad_id}; use the tokenizer the model was trained with"
                )


def _concatenate(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return Tokens(np.concatenate([part.ids for part in parts]), np.concatenate(offsets) if offsets else None)


def _unlower(tokens: Tokens, text: str) -> Tokens:
    """Move offsets in `text.lower()` back to the text: lower-casing lengthens a few characters."""
    if tokens.offsets is None or len(text.lower()) == len(text):
        return tokens
    widths = [len(character.lower()) for character in text]
    origin = np.append(np.repeat(np.arange(len(text)), widths), len(text)).astype(np.int32)
    starts, ends = tokens.offsets[:, 0], tokens.offsets[:, 1]
    return Tokens(tokens.ids, np.stack([origin[starts], origin[np.maximum(ends, 1) - 1] + 1], axis=1))
