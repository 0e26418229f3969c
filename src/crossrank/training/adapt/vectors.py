"""A bi-encoder that encodes a text once a run: vectors stay in a file until the run is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from crossrank.cache import ScoreCache, score_key
from crossrank.models.bi_encoder import BiEncoder
from crossrank.types import Document

__all__ = ["RememberedEncoder"]

_AT_A_TIME = 2048
"""Texts that are encoded and written down at a time. A killed run has lost no more than these, and encodes
them again in the batches that it would have had, so that it gets the same bits."""

Vectors = npt.NDArray[np.float32]


class RememberedEncoder:
    """Encodes as a bi-encoder does, and keeps what it gave.

    Args:
        bi_encoder: the model.
        vectors: where rows are kept; may be shared by several bi-encoders.
    """

    def __init__(self, bi_encoder: BiEncoder, vectors: ScoreCache) -> None:
        self._bi_encoder, self._vectors = bi_encoder, vectors

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Return (len(texts), dim) float32."""
        return self._encode("query", list(texts), self._bi_encoder.encode_queries)

    def encode_documents(self, texts: Sequence[str | Document]) -> Vectors:
        """Return (len(texts), dim) float32."""
        strings = [text.full_text if isinstance(text, Document) else text for text in texts]
        return self._encode("document", strings, self._bi_encoder.encode_documents)

    def _encode(self, role: str, texts: list[str], encode: Callable[[list[str]], Vectors]) -> Vectors:
        keys = [score_key(self._bi_encoder.fingerprint, role, text) for text in texts]
        found: list[Vectors] = []
        for start in range(0, len(texts), _AT_A_TIME):
            block = texts[start : start + _AT_A_TIME]
            found += self._vectors.get_or_compute(
                keys[start : start + _AT_A_TIME],
                lambda missing, block=block: [*encode([block[i] for i in missing])],  # type: ignore[misc]
            )
        if not found:
            return encode([])
        return np.stack(found)
