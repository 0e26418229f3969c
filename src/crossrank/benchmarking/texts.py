"""Texts of chosen lengths: what reranking costs depends on little else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.runtime.tokenization import Tokenizer

__all__ = ["PROFILES", "cut", "english", "lengths"]

PROFILES = {
    "short": "titles and sentences, mean 15 tokens",
    "marco": "like MS MARCO's passages, mean 75",
    "nq": "like Natural Questions', mean 170 with a long tail",
    "fixed": "75 tokens always: nobody gains by sorting or loses by padding",
}
"""Name -> which texts are of such lengths."""

_LENGTHS = {  # mean, sigma of the log-normal, least, most
    "short": (15, 0.40, 4, 40),
    "marco": (75, 0.45, 15, 230),
    "nq": (170, 0.75, 20, 480),
    "fixed": (75, 0.0, 75, 75),
}


def lengths(profile: str, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Lengths of texts in tokens, like those of passages people search.

    Args:
        profile: one of `PROFILES`.
        count: how many.
        seed: of the draw.

    Raises:
        InputError: no such profile.
    """
    if profile not in _LENGTHS:
        raise InputError(f"there is no profile {profile!r}; choose from {', '.join(_LENGTHS)}")
    mean, sigma, low, high = _LENGTHS[profile]
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.rint(drawn), low, high).astype(np.int64)


def english() -> list[str]:
    """English prose that is on every machine with Python: the reference that `help()` shows.

    Raises:
        InputError: this Python came without it.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise InputError(
            "this Python has no pydoc_data, whose texts are measured with; give texts of your own"
        ) from error
    return [" ".join(topics[name].split()) for name in sorted(topics)]


def cut(sources: Sequence[str], targets: Sequence[int], tokenizer: Tokenizer, seed: int = 0) -> list[str]:
    """Cut different texts of exactly these numbers of tokens from long ones; each begins with a sentence.

    Args:
        sources: long texts.
        targets: tokens of each text wanted.
        tokenizer: that counts them.
        seed: of the order in which places are tried.

    Raises:
        InputError: the sources have too few such places.
    """
    offsets: list[npt.NDArray[np.int32]] = []
    starts: list[tuple[int, int]] = []  # source, token
    for number, (text, tokens) in enumerate(
        zip(sources, tokenizer.encode(sources, offsets=True), strict=True)
    ):
        assert tokens.offsets is not None  # asked for
        offsets.append(tokens.offsets)
        characters = tokens.offsets[:, 0].tolist()
        starts += [(number, token) for token, at in enumerate(characters) if text[at - 2 : at] == ". "]
    order = np.random.default_rng(seed).permutation(len(starts))
    found: dict[str, None] = {}
    tried = 0
    for target in targets:
        while True:
            if tried == 100 * len(starts):
                raise InputError(f"the texts to cut from have too few places for {target} tokens")
            number, first = starts[order[tried % len(order)]]
            tried += 1
            text, places, last = sources[number], offsets[number], first + int(target)
            # Cut only before a space: elsewhere the cut text might have other tokens.
            if last < len(places) and text[places[last, 0] - 1] == " ":
                piece = text[places[first, 0] : places[last, 0] - 1]
                if piece not in found:
                    found[piece] = None
                    break
    return list(found)
