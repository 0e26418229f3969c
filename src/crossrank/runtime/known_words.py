"""The token ids of texts by their words, each of which is tokenised once.

BERT's tokenizers drop every space and treat what is between two alone, and most words of a text were words of
texts before: what the library made of them is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import tokenizers

from crossrank.runtime.segments import keeps_probe, kinds_of

__all__ = ["KnownWords"]

_MOST_BYTES = 16_000_000
"""Of what is kept; then it starts anew, with the words that are used now."""
_BYTES_OF_A_WORD = 200
"""What a word of a few letters takes."""

_LONGEST_KEPT = 64
"""Characters of a word; longer ones, as whole lines of scripts without spaces are, hardly come again."""

_SPACE = re.compile(" ")
_PART = re.compile("[A-Za-z0-9]+|[^A-Za-z0-9]")


class KnownWords:
    """What a tokenizer has made of words; see `of`.

    Safe to use from many threads at once.

    Args:
        tokenizer: one that `of` takes.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}  # words are added, never taken away: other threads may be reading
        self._num_bytes = 0
        self._lowercases = bool(json.loads(tokenizer.normalizer.__getstate__())["lowercase"])
        # Printable ASCII, but for words that may have an added token in them, such as "[SEP]".
        starts = {text[:1] for text in _added(tokenizer)}
        plain = "".join(chr(code) for code in range(33, 127) if chr(code).lower() not in starts)
        self._plain = re.compile(f"[{re.escape(plain)}]+" if plain else r"(?!)")
        model = tokenizer.model
        is_word_piece = isinstance(model, tokenizers.models.WordPiece)
        self._longest_whole = model.max_input_chars_per_word if is_word_piece else 0

    @classmethod
    def of(cls, tokenizer: tokenizers.Tokenizer) -> KnownWords | None:
        """Return those of a tokenizer; None unless a text's tokens are those of its words one after another.

        So it is with BERT's own normaliser, which looks at one character with its combining marks, and its
        pre-tokeniser, which ends words at spaces and keeps none. The claim is also tried out on a probe.
        """
        if kinds_of(tokenizer.normalizer, "normalizers") != ["BertNormalizer"]:
            return None
        if kinds_of(tokenizer.pre_tokenizer, "pretokenizers") != ["BertPreTokenizer"]:
            return None
        if any(" " in text for text in _added(tokenizer)):
            return None
        return cls(tokenizer) if keeps_probe(tokenizer, _SPACE) else None

    def ids(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """The token ids of each text, without special tokens: int32 (n,)."""
        words = [text.split(" ") for text in texts]
        known = self._known
        try:
            return [_joined(each, known) for each in words]
        except KeyError:
            known = self._with(set().union(*words), known)
            return [_joined(each, known) for each in words]

    def _with(self, words: set[str], known: dict[str, bytes]) -> dict[str, bytes]:
        """The ids of these words, and of others: what is known, unless some of them are not kept."""
        if self._num_bytes > _MOST_BYTES:
            self._known = known = {}
            self._num_bytes = 0
        parts = {word: self._parts(word) for word in words if word not in known}
        new = [part for part in set().union(*parts.values()) if part not in known]
        found = dict(zip(new, self._encoded(new), strict=True))
        self._keep(found, known)
        long = [word for word in parts if len(word) > _LONGEST_KEPT]
        for word in long:
            each = parts.pop(word)
            found[word] = b"".join([found[part] if part in found else known[part] for part in each])
        self._keep({word: b"".join(map(known.__getitem__, each)) for word, each in parts.items()}, known)
        return {word: found[word] if word in found else known[word] for word in words} if long else known

    def _keep(self, found: dict[str, bytes], known: dict[str, bytes]) -> None:
        if max(map(len, found), default=0) > _LONGEST_KEPT:
            found = {word: ids for word, ids in found.items() if len(word) <= _LONGEST_KEPT}
        known.update(found)
        self._num_bytes += _BYTES_OF_A_WORD * len(found) + 4 * sum(map(len, found))

    def _parts(self, word: str) -> list[str]:
        """Words that have the same tokens, one after another: "fox" and "," for "Fox,".

        In ASCII, each character that is no letter or digit is a word of its own.
        """
        if not self._plain.fullmatch(word):
            return [word]
        return _PART.findall(word.lower() if self._lowercases else word)

    def _encoded(self, words: list[str]) -> list[bytes]:
        found = dict.fromkeys(words, b"")
        others = []
        for word in words:
            # WordPiece looks for the longest token that a word begins with, so first of all for the word.
            token = self._tokenizer.token_to_id(word) if self._is_part(word) else None
            if token is None:
                others.append(word)
            else:
                found[word] = _as_bytes([token])
        encodings = self._tokenizer.encode_batch_fast(others, add_special_tokens=False)
        found.update((word, _as_bytes(each.ids)) for word, each in zip(others, encodings, strict=True))
        return list(found.values())

    def _is_part(self, word: str) -> bool:
        """Whether this is one word to the model, as it stands."""
        if len(word) > self._longest_whole or not self._plain.fullmatch(word):
            return False
        return self._parts(word) == [word]


def _added(tokenizer: tokenizers.Tokenizer) -> set[str]:
    """What texts are searched for before they are split, in lower case: the added tokens, normalised, too."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return {text.lower() for token in added for text in (token, tokenizer.normalizer.normalize_str(token))}


def _as_bytes(ids: list[int]) -> bytes:
    return np.array(ids, np.int32).tobytes()


def _joined(words: Sequence[str], known: dict[str, bytes]) -> npt.NDArray[np.int32]:
    return np.frombuffer(bytearray().join(map(known.__getitem__, words)), np.int32)
