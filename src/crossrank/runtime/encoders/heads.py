"""Scores from sentence-transformers modules: pooling and Dense layers in place of a model's own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper

from crossrank.errors import UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Encoder, Frame
from crossrank.runtime.graph import Graph
from crossrank.runtime.modules import Dense, LayerNorm, Module, Pooling, PoolingMode

__all__ = ["write_layers", "write_modules", "write_pooling", "write_unit_length"]


def write_modules(graph: Graph, encoder: Encoder, modules: Sequence[Module]) -> str:
    """Write an encoder and the modules of a modular cross-encoder behind it.

    Args:
        graph: takes the nodes.
        encoder: not written yet.
        modules: Pooling first, a Dense layer that gives the scores last.

    Returns:
        Logits (batch, labels).

    Raises:
        UnsupportedArchitectureError: a pooling mode, or an order of modules, without a graph.

    Source: sentence-transformers 6, cross_encoder/model.py; parity |Δ| < 1e-5.
    """
    if not modules or not isinstance(modules[0], Pooling):
        raise UnsupportedArchitectureError("modules.json: scores need a Pooling module after the Transformer")
    if modules[0].modes == ("cls",):
        x = encoder.first()
    elif modules[0].modes == ("mean",):
        x = encoder.frame.mean(encoder.tokens())
    else:
        raise UnsupportedArchitectureError(
            f"modules.json: pooling {'+'.join(modules[0].modes)} has no graph for scores; "
            "supported: cls, mean"
        )
    return write_layers(graph, x, modules[1:])


def write_layers(graph: Graph, x: str, modules: Sequence[Module]) -> str:
    """Write the modules that make a vector of a vector, (rows, in) -> (rows, out).

    Raises:
        UnsupportedArchitectureError: a Pooling module among them.
    """
    for i, module in enumerate(modules, start=1):
        if isinstance(module, Pooling):
            raise UnsupportedArchitectureError("modules.json: more than one Pooling module")
        if isinstance(module, Dense):
            x = _dense(graph, x, f"modules.{i}", module)
        elif isinstance(module, LayerNorm):
            scale = graph.weight(f"modules.{i}.weight", module.weight)
            bias = graph.weight(f"modules.{i}.bias", module.bias)
            x = graph.node("LayerNormalization", [x, scale, bias], epsilon=1e-5)
        else:
            x = write_unit_length(graph, x)
    return x


def write_unit_length(graph: Graph, x: str) -> str:
    """Write rows (rows, features) at length 1; zeros stay zeros."""
    norm = graph.node("ReduceL2", [x, graph.constant([1])], keepdims=1)
    return graph.node("Div", [x, graph.node("Max", [norm, graph.constant(1e-12, np.float32)])])


def write_pooling(graph: Graph, frame: Frame, x: str, modes: Sequence[PoolingMode]) -> str:
    """Write what `models.pooling.pool` computes, prompts included.

    Args:
        graph: takes the nodes.
        frame: of the encoder.
        x: vectors of all tokens, (batch × length, hidden).
        modes: of the pooling; their results are joined in this order.

    Returns:
        (batch, len(modes) × hidden).
    """
    parts = [_POOLED[mode](graph, frame, x) for mode in modes]
    return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=1)


def _mask(graph: Graph, frame: Frame) -> str:
    """1 for tokens and 0 for padding, (batch, length)."""
    if frame.mask:
        return frame.mask
    one = helper.make_tensor("value", TensorProto.INT64, [1], [1])
    return graph.node("ConstantOfShape", [graph.node("Shape", [frame.ids])], value=one)


def _lengths(graph: Graph, frame: Frame, dtype: int) -> str:
    """Tokens of each row, (batch,)."""
    mask = graph.node("Cast", [_mask(graph, frame)], to=dtype)
    return graph.node("ReduceSum", [mask, graph.constant([1])], keepdims=0)


def _last(graph: Graph, frame: Frame, x: str) -> str:
    lengths = _lengths(graph, frame, TensorProto.INT64)
    places = graph.node("Unsqueeze", [graph.node("Sub", [lengths, graph.constant(1)]), graph.constant([1])])
    return graph.node("GatherND", [frame.deep(x), places], batch_dims=1)


def _max(graph: Graph, frame: Frame, x: str) -> str:
    real = graph.node(
        "Unsqueeze", [graph.node("Cast", [_mask(graph, frame)], to=TensorProto.BOOL), graph.constant([2])]
    )
    lowest = graph.constant(-np.inf, np.float32)
    return graph.node(
        "ReduceMax", [graph.node("Where", [real, frame.deep(x), lowest]), graph.constant([1])], keepdims=0
    )


def _sum_over_root(graph: Graph, frame: Frame, x: str) -> str:
    lengths = _lengths(graph, frame, TensorProto.FLOAT)
    root = graph.node("Unsqueeze", [graph.node("Sqrt", [lengths]), graph.constant([1])])
    return graph.node("Mul", [frame.mean(x), root])


def _weighted(graph: Graph, frame: Frame, x: str) -> str:
    # Tokens count 1, 2, 3, ...: padding is on the right.
    mask = _mask(graph, frame)
    counted = graph.node("CumSum", [mask, graph.constant(1)])
    weights = graph.node("Cast", [graph.node("Mul", [counted, mask])], to=TensorProto.FLOAT)
    deep = graph.node("Unsqueeze", [weights, graph.constant([2])])
    axis = graph.constant([1])
    total = graph.node("ReduceSum", [graph.node("Mul", [frame.deep(x), deep]), axis], keepdims=0)
    return graph.node("Div", [total, graph.node("ReduceSum", [deep, axis], keepdims=0)])


_POOLED: Mapping[PoolingMode, Callable[[Graph, Frame, str], str]] = {
    "cls": lambda graph, frame, x: frame.first(x),
    "lasttoken": _last,
    "mean": lambda graph, frame, x: frame.mean(x),
    "max": _max,
    "mean_sqrt_len_tokens": _sum_over_root,
    "weightedmean": _weighted,
}


def _dense(graph: Graph, x: str, name: str, module: Dense) -> str:
    inputs = [x, graph.weight(f"{name}.weight", module.weight)]
    if module.bias is not None:
        inputs.append(graph.weight(f"{name}.bias", module.bias))
    y = graph.activation(graph.node("Gemm", inputs, transB=1), module.activation)
    if module.residual is None:
        return y
    if isinstance(module.residual, str):
        return graph.node("Add", [y, x])
    residual = graph.weight(f"{name}.residual", module.residual)
    return graph.node("Add", [y, graph.node("Gemm", [x, residual], transB=1)])
