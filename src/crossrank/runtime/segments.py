"""Where a long text may be cut so that its pieces have exactly the tokens of the whole.

Tokenising a text of 2 MB at once takes hundreds of megabytes. Most tokenizers first split a text into words
and then treat each word alone, so a cut between two words changes nothing. A cut is made only before a
single space that stands between two ASCII letters or digits, and only for tokenizers whose normaliser and
pre-tokeniser are on the lists below, for which that place is always a border between words:

- Normalisers on the list work on one character with its combining marks, on runs of two or more spaces, or
  on the ends of the text; none reaches over a single space between letters.
- Pre-tokenisers on the list always start a new word there, with the space dropped or as the new word's head.

Any other tokenizer gets its texts whole. The claim is also tried out on a probe when a tokenizer is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

__all__ = ["keeps_probe", "kinds_of", "segments", "splits_at_spaces"]

_SEGMENT_CHARACTERS = 100_000

_CUT = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")
_ADDED_TOKEN_ACROSS_CUT = re.compile(r"(?:^|[A-Za-z0-9]) (?:[A-Za-z0-9]|$)")
_PROBE = "The quick  brown fox, it's 3.5 km from naïve Zoe\u0301 to 東京 x and\n\ttabs don't A1 B2 end . ab"

_SPLITTING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace"}
_NEUTRAL = {"Punctuation", "Digits"}  # split further, never join
_LOCAL = {
    "BertNormalizer",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Strip",
    "StripAccents",
}


def segments(text: str, size: int = _SEGMENT_CHARACTERS) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of consecutive pieces of a text, cut at spaces, of a little over `size` characters.

    A text without such spaces stays whole.
    """
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield start, cut.start()
        start = cut.start()
    yield start, len(text)


def splits_at_spaces(tokenizer: tokenizers.Tokenizer) -> bool:
    """Say whether every cut of `segments` leaves this tokenizer's tokens as they are."""
    pre_tokenizers = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    normalizers = _parts(tokenizer.normalizer, "normalizers")
    if not all(map(_keeps_words, pre_tokenizers)) or not any(
        part["type"] in _SPLITTING for part in pre_tokenizers
    ):
        return False
    if not all(map(_is_local, normalizers)):
        return False
    for token in tokenizer.get_added_tokens_decoder().values():
        at_letters = (token.lstrip and token.content[:1].isalnum()) or (
            token.rstrip and token.content[-1:].isalnum()
        )
        if at_letters or _ADDED_TOKEN_ACROSS_CUT.search(token.content):
            return False

    return keeps_probe(tokenizer, _CUT)


def keeps_probe(tokenizer: tokenizers.Tokenizer, cuts: re.Pattern[str]) -> bool:
    """Try it out on a text: whether this tokenizer's tokens stay as they are wherever it is cut so."""

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    whole = ids(_PROBE)
    return all(
        ids(_PROBE[: cut.start()]) + ids(_PROBE[cut.start() :]) == whole for cut in cuts.finditer(_PROBE)
    )


def kinds_of(component: Any, key: str) -> list[str]:
    """The steps of a normaliser or pre-tokeniser, of whose sequences tokenizer.json says `key`, by name."""
    return [part["type"] for part in _parts(component, key)]


def _keeps_words(part: dict[str, Any]) -> bool:
    kind = part["type"]
    if kind == "ByteLevel":
        return bool(part.get("use_regex", True))
    if kind == "Metaspace":
        return bool(part.get("split", True))
    return kind in _SPLITTING or kind in _NEUTRAL


def _is_local(part: dict[str, Any]) -> bool:
    if part["type"] == "Replace":  # runs of spaces, and the quotes of SentencePiece conversions
        return part["pattern"] in ({"Regex": " {2,}"}, {"String": "``"}, {"String": "''"})
    return part["type"] in _LOCAL


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The flat list of steps of a normaliser or pre-tokeniser, as their settings in tokenizer.json."""
    return [] if component is None else _flatten(json.loads(component.__getstate__()), key)


def _flatten(state: dict[str, Any], key: str) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state[key] for step in _flatten(part, key)]
