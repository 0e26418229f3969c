"""How token vectors are kept: float16, int8, or a centroid and a few bits for each dimension.

A codec turns each vector into a row of bytes of one size, so a document's vectors are its rows end to end,
and how many there are follows from their size.

Source: residuals are those of Santhanam et al. 2022, "ColBERTv2", arXiv:2112.01488, sec. 3.3: the number of
the nearest centroid, and what is left in 1, 2 or 4 bits a dimension, with quantiles as borders between the
values and the middle quantile of each part as its value.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from crossrank.checks import as_vectors, check_count
from crossrank.errors import CheckpointError, InputError

__all__ = ["CODECS", "Float16Codec", "Int8Codec", "ResidualCodec", "TokenCodec"]

Codes = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

_ROUNDS = 8  # of k-means
_BLOCK_ROWS = 1 << 14  # vectors compared with all centroids at a time


class TokenCodec(Protocol):
    """Turns vectors into bytes and back.

    Attributes:
        name: of the form: "float16", "int8", "residual-2bit".
    """

    name: str

    @property
    def fingerprint(self) -> str:
        """Changes whenever the bytes would mean something else."""
        ...

    def bytes_per_token(self, dimensions: int) -> int:
        """Return the bytes of one vector."""
        ...

    def encode(self, vectors: Vectors) -> Codes:
        """Return (tokens, bytes per token) uint8."""
        ...

    def decode(self, codes: Codes) -> Vectors:
        """Return (tokens, dimensions) float32."""
        ...


class Float16Codec:
    """Half precision: 2 bytes a dimension."""

    name = "float16"
    fingerprint = "float16"

    def bytes_per_token(self, dimensions: int) -> int:
        """Return the bytes of one vector."""
        return 2 * dimensions

    def encode(self, vectors: Vectors) -> Codes:
        """Return (tokens, 2 × dimensions) uint8."""
        return np.ascontiguousarray(vectors, dtype="<f2").view(np.uint8)

    def decode(self, codes: Codes) -> Vectors:
        """Return (tokens, dimensions) float32."""
        return np.ascontiguousarray(codes).view("<f2").astype(np.float32)


class Int8Codec:
    """A byte a dimension, and a scale of its own (float16) for each token."""

    name = "int8"
    fingerprint = "int8"

    def bytes_per_token(self, dimensions: int) -> int:
        """Return the bytes of one vector."""
        return dimensions + 2

    def encode(self, vectors: Vectors) -> Codes:
        """Return (tokens, dimensions + 2) uint8: the scale, then the values."""
        largest = np.abs(vectors).max(axis=1, initial=0.0, keepdims=True)
        # Rounded up, so that no value is beyond 127; tiny ones do not become 0.
        scales = np.nextafter((largest / 127).astype("<f2"), np.float16(np.inf), dtype=np.float16)
        values = np.clip(np.rint(vectors / scales.astype(np.float32)), -127, 127).astype(np.int8)
        parts = [scales.astype("<f2").view(np.uint8), values.view(np.uint8)]
        return np.concatenate(parts, axis=1)

    def decode(self, codes: Codes) -> Vectors:
        """Return (tokens, dimensions) float32."""
        scales = np.ascontiguousarray(codes[:, :2]).view("<f2").astype(np.float32)
        return np.multiply(codes[:, 2:].view(np.int8), scales, dtype=np.float32)


class ResidualCodec:
    """The nearest centroid's number (2 bytes) and `bits` bits a dimension for what is left.

    Made by `train`. Vectors come back at the length they had, which is 1 for most models.

    Args:
        centroids: (n, dimensions) float32, at most 65,536.
        borders: (2^bits - 1,) float32, ascending: where one value of a residual ends and the next begins.
        values: (2^bits,) float32: what a residual in each of these parts is taken for.

    Raises:
        InputError: arrays that do not fit one another, or dimensions that do not fill whole bytes.
    """

    def __init__(self, centroids: Vectors, borders: Vectors, values: Vectors) -> None:
        self.centroids = as_vectors(centroids, "centroids")
        self.borders = np.asarray(borders, dtype=np.float32)
        self.values = np.asarray(values, dtype=np.float32)
        self.bits = int(self.values.size).bit_length() - 1
        if self.bits not in (1, 2, 4) or self.values.size != 1 << self.bits:
            raise InputError(f"a residual has 1, 2 or 4 bits, which is 2, 4 or 16 values, not {values.size}")
        if self.borders.shape != (self.values.size - 1,) or len(self.centroids) > 1 << 16:
            raise InputError("borders, values and centroids do not belong together")
        self._per_byte = 8 // self.bits
        if self.centroids.shape[1] % self._per_byte:
            raise InputError(
                f"{self.centroids.shape[1]} dimensions do not fill bytes of {self._per_byte} values each; "
                "use more bits"
            )
        self.name = f"residual-{self.bits}bit"

    @classmethod
    def train(
        cls, vectors: Vectors, *, bits: int = 2, num_centroids: int | None = None, seed: int = 0
    ) -> ResidualCodec:
        """Find centroids (spherical k-means) and the values of residuals.

        Args:
            vectors: (tokens, dimensions) of length 1: a sample of what is to be kept, 100 times as many as
                centroids or more. Others of the same model come back less exactly the less they are like it.
            bits: 1, 2 or 4 a dimension.
            num_centroids: None takes the power of 2 below 16 × sqrt(tokens), at most a 32nd of the tokens
                and 4,096.
            seed: of the first centroids.

        Raises:
            InputError: too few vectors, or another number of bits.
        """
        vectors = as_vectors(vectors, "token vectors")
        if bits not in (1, 2, 4):
            raise InputError(f"bits must be 1, 2 or 4, not {bits!r}")
        if num_centroids is None:
            most = min(16 * np.sqrt(len(vectors)), len(vectors) / 32, 4096)
            num_centroids = 1 << max(0, int(most).bit_length() - 1)
        check_count(num_centroids, "num_centroids")
        if len(vectors) < num_centroids or num_centroids > 1 << 16:
            raise InputError(
                f"{len(vectors)} token vectors cannot have {num_centroids} centroids; give more texts, or "
                "ask for fewer"
            )
        centroids = _k_means(vectors, int(num_centroids), seed)
        residuals = vectors - centroids[_nearest(vectors, centroids)]
        parts = 1 << bits
        borders = np.quantile(residuals, np.arange(1, parts) / parts).astype(np.float32)
        values = np.quantile(residuals, (np.arange(parts) + 0.5) / parts).astype(np.float32)
        return cls(centroids, borders, values)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of centroids, borders and values."""
        digest = hashlib.sha256(self.name.encode())
        for array in (self.centroids, self.borders, self.values):
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return digest.hexdigest()

    def bytes_per_token(self, dimensions: int) -> int:
        """Return the bytes of one vector."""
        return 2 + dimensions // self._per_byte

    def encode(self, vectors: Vectors) -> Codes:
        """Return (tokens, 2 + dimensions × bits / 8) uint8: the centroid, then the residual."""
        nearest = _nearest(vectors, self.centroids)
        buckets = np.searchsorted(self.borders, vectors - self.centroids[nearest]).astype(np.uint8)
        packed = np.zeros((len(vectors), vectors.shape[1] // self._per_byte), dtype=np.uint8)
        for place in range(self._per_byte):
            packed |= buckets[:, place :: self._per_byte] << np.uint8(place * self.bits)
        return np.concatenate([nearest.astype("<u2")[:, None].view(np.uint8), packed], axis=1)

    def decode(self, codes: Codes) -> Vectors:
        """Return (tokens, dimensions) float32, of length 1."""
        nearest = np.ascontiguousarray(codes[:, :2]).view("<u2")[:, 0]
        # A table of what each byte stands for: (256, values in a byte).
        residuals = self._table[codes[:, 2:]].reshape(len(codes), -1)
        vectors = self.centroids[nearest] + residuals
        lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))
        return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12))[:, None], dtype=np.float32)

    @cached_property
    def _table(self) -> Vectors:
        shifts = np.arange(self._per_byte) * self.bits
        return np.asarray(self.values[(np.arange(256)[:, None] >> shifts) & (self.values.size - 1)])

    def save(self, path: Path) -> None:
        """Write the codec to a safetensors file."""
        import safetensors.numpy

        arrays = {"centroids": self.centroids, "borders": self.borders, "values": self.values}
        safetensors.numpy.save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> ResidualCodec:
        """Read a codec that `save` wrote.

        Raises:
            CheckpointError: there is no such file, or it is damaged.
        """
        import safetensors.numpy

        try:
            arrays = safetensors.numpy.load_file(path)
            return cls(arrays["centroids"], arrays["borders"], arrays["values"])
        except Exception as error:  # the library raises errors of its own
            raise CheckpointError(f"{path} is no file of token centroids: {error}") from error


CODECS: dict[str, type[Float16Codec] | type[Int8Codec]] = {
    "float16": Float16Codec,
    "int8": Int8Codec,
}
"""The codecs that need no training, by name."""


def _k_means(vectors: Vectors, count: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centroids = vectors[np.sort(rng.choice(len(vectors), count, replace=False))].copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(vectors, centroids)
        order = np.argsort(nearest, kind="stable")
        found, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids[found] = sums / np.maximum(lengths, np.float32(1e-12))
    return np.asarray(centroids)


def _nearest(vectors: Vectors, centroids: Vectors) -> npt.NDArray[np.int64]:
    nearest = np.empty(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        nearest[start : start + len(block)] = (block @ centroids.T).argmax(axis=1)
    return nearest
