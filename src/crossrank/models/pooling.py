"""Token vectors to one vector a text: pooling and the layers that may follow it.

Source: sentence-transformers 6 (sentence_transformer/modules/pooling.py, base/modules/dense.py, normalize.py;
sentence_transformer/modules/layer_norm.py); tested against its numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crossrank.runtime.engine import Engine
from crossrank.runtime.modules import Dense, LayerNorm, Module, Normalize, PoolingMode
from crossrank.runtime.tokenization import ModelInputs

__all__ = ["PoolingEngine", "apply_modules", "l2_normalised", "pool", "run_pooled"]

Vectors = npt.NDArray[np.float32]


def pool(
    vectors: Vectors, lengths: npt.NDArray[np.int64], modes: Sequence[PoolingMode], skip: int = 0
) -> Vectors:
    """Return (batch, len(modes) × hidden) float32: each mode's vector, joined in the order of the modes.

    Only the tokens [skip, length) of a row count; what stands in its padding does not matter, and neither do
    the other rows. A row without any such token gives zeros.

    Args:
        vectors: (batch, length, hidden) float32 token vectors, padded on the right.
        lengths: (batch,) tokens of each row, special tokens included.
        modes: "cls" (the first token), "lasttoken", "mean", "max", "weightedmean" (weights 1, 2, 3, ... from
            the first token of the row) or "mean_sqrt_len_tokens" (sum / sqrt(tokens)).
        skip: how many tokens at the beginning of each row do not count: a prompt's.
    """
    positions = np.arange(vectors.shape[1])
    counts = (positions >= skip) & (positions < lengths[:, None])  # (batch, length)
    real = np.where(counts[:, :, None], vectors, np.float32(0))
    none = ~counts.any(axis=1)
    rows = np.arange(len(vectors))
    num_tokens = np.maximum(counts.sum(axis=1), 1).astype(np.float32)[:, None]

    def summed(weights: npt.NDArray[np.float32]) -> Vectors:
        # A product per row, so that a row's sum is the same in any batch.
        return np.asarray(np.matmul(weights[:, None, :], real)[:, 0, :])

    parts = []
    for mode in modes:
        if mode == "cls":
            part = real[rows, np.minimum(skip, lengths - 1)]
        elif mode == "lasttoken":
            part = real[rows, lengths - 1]
        elif mode == "max":
            part = np.where(counts[:, :, None], vectors, np.float32(-np.inf)).max(axis=1)
            part[none] = 0
        elif mode == "weightedmean":
            weights = (counts * (positions + 1)).astype(np.float32)
            part = summed(weights) / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        else:
            total = summed(counts.astype(np.float32))
            part = total / (num_tokens if mode == "mean" else np.sqrt(num_tokens))
        parts.append(part)
    return np.concatenate(parts, axis=1)


@runtime_checkable
class PoolingEngine(Protocol):
    """An engine that pools token vectors where they are: on a device they would be long on their way."""

    def run_pooled(
        self, batches: Iterable[ModelInputs], modes: Sequence[PoolingMode], skip: int
    ) -> Iterator[Vectors]:
        """Run batches and pool, as `pool` does."""
        ...


def run_pooled(
    engine: Engine, batches: Iterable[ModelInputs], modes: Sequence[PoolingMode], skip: int = 0
) -> Iterator[Vectors]:
    """Run batches on an engine that gives token vectors, and pool each row's.

    Args:
        engine: opened for "tokens".
        batches: see `Engine.run_all`.
        modes: see `pool`.
        skip: see `pool`.

    Yields:
        (batch, len(modes) × hidden) float32 for each batch, in order.
    """
    if isinstance(engine, PoolingEngine):
        yield from engine.run_pooled(batches, modes, skip)
        return
    lengths: deque[npt.NDArray[np.int64]] = deque()

    def taken() -> Iterator[ModelInputs]:
        for batch in batches:
            lengths.append(batch.attention_mask.sum(axis=1))
            yield batch

    for output in engine.run_all(taken()):
        yield pool(output, lengths.popleft(), modes, skip)


def apply_modules(vectors: Vectors, modules: Sequence[Module]) -> Vectors:
    """Return what the modules after the pooling make of (batch, dim) vectors, float32."""
    for module in modules:
        if isinstance(module, Dense):
            linear = vectors @ module.weight.T
            if module.bias is not None:
                linear = linear + module.bias
            result = _ACTIVATIONS[module.activation](linear)
            if isinstance(module.residual, np.ndarray):
                result = result + vectors @ module.residual.T
            elif module.residual == "identity":
                result = result + vectors
            vectors = result.astype(np.float32, copy=False)
        elif isinstance(module, LayerNorm):
            centred = vectors - vectors.mean(axis=1, keepdims=True)
            deviation = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(1e-5))
            vectors = centred / deviation * module.weight + module.bias
        elif isinstance(module, Normalize):
            vectors = l2_normalised(vectors)
    return vectors


def l2_normalised(vectors: Vectors) -> Vectors:
    """Return the vectors at length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.float32(1e-12)))


def _sigmoid(x: Vectors) -> Vectors:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))  # no overflow at either end


_erf = np.vectorize(math.erf, otypes=[np.float32])

_ACTIVATIONS: Mapping[str, Callable[[Vectors], Vectors]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
}
