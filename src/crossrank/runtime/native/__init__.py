"""A whole int8 layer of a BERT encoder as one operator, from a library of our own for ONNX Runtime.

`bert_layer.c` is compiled as the package is built, where there is a C compiler: hatch_build.py. Without it,
or on a processor without AVX-512 VNNI, layers are written of ONNX Runtime's own operators (int8.py). Both sum
the same integers, and what lies between is float32 in another order, but that the library's attention rounds
what it multiplies to 14 bits: scores are no further from float32 for that (docs/architecture.md).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import InputError
from crossrank.runtime.graph import Graph
from crossrank.runtime.processor import processor

__all__ = ["DOMAIN", "VARIABLE", "LayerNames", "left_out", "library", "write_layer"]

DOMAIN = "crossrank"
"""Of the operator."""

VARIABLE = "CROSSRANK_NATIVE"
"""Environment variable: "off" leaves the library out, "auto" (the default) takes it where it runs."""

_SOURCE = Path(__file__).with_name("bert_layer.c")
_NEEDS = {"fma", "avx512f", "avx512_vnni"}  # whoever has VNNI in 512 bits has BW, DQ and VL, too
_PANEL = 64  # as in the library: features of a product that are computed together
_LINEAR_FIELDS, _LAYER_FIELDS = 10, 9  # numbers in its structs
_ALIGNMENT = 64
_is_left_out = ContextVar("_is_left_out", default=False)

Array = npt.NDArray[Any]

_logger = logging.getLogger(__name__)


class LayerNames(NamedTuple):
    """Prefixes of one layer's tensors in the checkpoint."""

    query: str
    key: str
    value: str
    mix: str
    up: str
    down: str
    attention_norm: str
    output_norm: str


@contextmanager
def left_out() -> Iterator[None]:
    """Models opened within run ONNX Runtime's own operators alone, as files do that other programs run."""
    token = _is_left_out.set(True)
    try:
        yield
    finally:
        _is_left_out.reset(token)


def library() -> Path | None:
    """The compiled library, where there is one that runs on this processor and is not switched off.

    Raises:
        InputError: the environment variable says something else than "auto" or "off".
    """
    wanted = os.environ.get(VARIABLE, "auto") or "auto"
    if wanted not in ("auto", "off"):
        raise InputError(f"{VARIABLE} is {wanted!r}; choose 'auto' or 'off'")
    return _runs_here() if wanted == "auto" and not _is_left_out.get() else None


@cache
def _runs_here() -> Path | None:
    """The library of this very source, if it was compiled: one of other source has other structs."""
    if not _NEEDS.issubset(processor().features or ()):
        return None
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    compiled = _SOURCE.with_name(f"{_SOURCE.stem}-{digest}.so")
    if not compiled.is_file():
        return None
    try:
        ctypes.CDLL(str(compiled))
    except OSError as error:  # another C library, a file system without execution
        _logger.warning("%s cannot be loaded, so int8 runs without it: %s", compiled, error)
        return None
    return compiled


def write_layer(
    graph: Graph,
    x: str,
    shape: str,
    lengths: str,
    names: LayerNames,
    *,
    heads: int,
    inner: int,
    activation: str,
    epsilon: float,
    first_only: bool,
) -> str | None:
    """Write a post-norm encoder layer as one node, where its weights and settings are what the node computes.

    Args:
        graph: takes the node.
        x: (batch × length, hidden) float32.
        shape: int64 (3,): batch, length, hidden.
        lengths: int32 (batch,), tokens of each row that are no padding; "" where rows have none.
        names: of the layer's tensors.
        heads: of attention.
        inner: features between the feed-forward layers.
        activation: as configs call it.
        epsilon: of the norms.
        first_only: whether the first token of each row is all that is wanted.

    Returns:
        (batch × length, hidden) or (batch, hidden); None where the layer is not one of these.
    """
    hidden = graph.array(f"{names.query}.weight").shape[1]
    linear = names[:6]
    fits = (
        activation in ("gelu", "gelu_python")
        and hidden % _PANEL == inner % _PANEL == 0
        and hidden // heads % 16 == 0
        and all(graph.has(f"{name}.input_scale") and graph.has(f"{name}.bias") for name in linear)
    )
    if not fits:
        return None
    blob = _pack(graph, names, (hidden, inner, heads, first_only), epsilon)
    weight = graph.weight(f"{names.query}.layer{'.first' if first_only else ''}", blob)
    return graph.node("BertLayer", [x, shape, weight, lengths], domain=DOMAIN)


def _round_alike(graph: Graph, one: str, other: str) -> bool:
    """Whether two layers round their inputs in the same way."""
    for part in ("input_scale", "input_zero_point", "input_smooth", "by_row"):
        here, there = f"{one}.{part}", f"{other}.{part}"
        if graph.has(here) != graph.has(there):
            return False
        if graph.has(here) and not np.array_equal(graph.array(here), graph.array(there)):
            return False
    return True


def _pack(graph: Graph, names: LayerNames, sizes: Sequence[int], epsilon: float) -> Array:
    """The bytes that the library's struct `Layer` describes; it begins with `sizes`."""
    head = np.zeros(_LAYER_FIELDS + 6 * _LINEAR_FIELDS, np.int64)
    parts: list[Array] = [head]
    size = 0

    def add(array: Array) -> int:
        nonlocal size
        parts.append(array)
        size += _aligned(parts[-2].nbytes)
        return size

    head[:4] = sizes
    head[4] = _round_alike(graph, names.value, names.key)
    head[5] = _round_alike(graph, names.query, names.value)
    head[6] = add(np.array([epsilon], np.float32))
    for place, name in enumerate((names.attention_norm, names.output_norm), 7):
        head[place] = add(np.stack(graph.norm_arrays(name)).astype(np.float32))
    for number, name in enumerate(names[:6]):
        fields = _linear(graph, name)
        start = _LAYER_FIELDS + number * _LINEAR_FIELDS
        head[start : start + _LINEAR_FIELDS] = [
            each if isinstance(each, int) else add(each) for each in fields.values()
        ]
    size += _aligned(parts[-1].nbytes)
    space = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -space.ctypes.data % _ALIGNMENT
    blob, at = space[start : start + size], 0
    for part in parts:
        blob[at : at + part.nbytes] = part.reshape(-1).view(np.uint8)
        at += _aligned(part.nbytes)
    return blob


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _linear(graph: Graph, name: str) -> Mapping[str, int | Array]:
    """What the library's struct `Linear` has, in its order; arrays stand for their offsets."""
    weight = graph.array(f"{name}.weight")
    rows, columns = weight.shape
    scale, zero_point = graph.array(f"{name}.input_scale"), int(graph.array(f"{name}.input_zero_point")[0])
    smooth = graph.array(f"{name}.input_smooth") if graph.has(f"{name}.input_smooth") else np.ones(columns)
    by_row = graph.has(f"{name}.by_row")
    factor = smooth.astype(np.float32) if by_row else smooth.astype(np.float32) / np.float32(scale[0])
    panels = weight.reshape(rows // _PANEL, _PANEL, columns // 4, 4).transpose(0, 2, 1, 3)
    bias = graph.array(f"{name}.bias") + graph.array(f"{name}.bias_correction")
    return {
        "in": columns,
        "out": rows,
        "zero_point": zero_point,
        "by_row": int(by_row),
        "weights": np.ascontiguousarray(panels),
        "start": -zero_point * weight.astype(np.int32).sum(axis=1, dtype=np.int32),
        "scale": (np.float32(scale[0]) * graph.array(f"{name}.weight_scale")).astype(np.float32),
        "bias": bias.astype(np.float32),
        "factor": factor,
        "step": scale.astype(np.float32),
    }
