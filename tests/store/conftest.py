"""A bi-encoder without weights, and a small corpus."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest

from crossrank.types import Document


class HashingEncoder:
    """Texts with common words get close vectors: each word adds a direction drawn by its checksum."""

    def __init__(self, dimensions: int = 16, name: str = "hashing", fingerprint: str = "f" * 64) -> None:
        self.dimensions = dimensions
        self.name = name
        self.fingerprint = fingerprint
        self.num_encoded = 0

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.num_encoded += len(texts)
        return self._encode(texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in ["", *text.lower().split()]:
                seed = zlib.crc32(word.encode())
                vectors[row] += np.random.default_rng(seed).normal(size=self.dimensions).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def encoder() -> HashingEncoder:
    return HashingEncoder()


@pytest.fixture
def encoder_type() -> type[HashingEncoder]:
    return HashingEncoder


WORDS = (
    *("fox", "whale", "river", "mountain", "music", "train", "winter"),
    *("copper", "garden", "letter", "engine", "forest", "glass", "bridge"),
)


@pytest.fixture
def corpus() -> list[Document]:
    """120 documents with titles, years, languages, prices and some other metadata."""
    rng = np.random.default_rng(7)
    return [
        Document(
            f"d{number:03d}",
            " ".join(rng.choice(WORDS, size=int(rng.integers(3, 30)))),
            title=str(rng.choice(WORDS)).title() if number % 3 else "",
            metadata={
                "year": 1900 + number,
                "lang": ["en", "de", "fr"][number % 3],
                "source": {"page": number},
            },
        )
        for number in range(120)
    ]
