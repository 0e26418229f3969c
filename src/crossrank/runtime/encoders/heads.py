"""Scores from sentence-transformers modules: pooling and Dense layers in place of a model's own head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossrank.errors import UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Encoder
from crossrank.runtime.graph import Graph
from crossrank.runtime.modules import Dense, LayerNorm, Module, Pooling

__all__ = ["write_modules"]


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
    for i, module in enumerate(modules[1:], start=1):
        if isinstance(module, Pooling):
            raise UnsupportedArchitectureError("modules.json: more than one Pooling module")
        if isinstance(module, Dense):
            x = _dense(graph, x, f"modules.{i}", module)
        elif isinstance(module, LayerNorm):
            scale = graph.weight(f"modules.{i}.weight", module.weight)
            bias = graph.weight(f"modules.{i}.bias", module.bias)
            x = graph.node("LayerNormalization", [x, scale, bias], epsilon=1e-5)
        else:
            norm = graph.node("ReduceL2", [x, graph.constant([1])], keepdims=1)
            x = graph.node("Div", [x, graph.node("Max", [norm, graph.constant(1e-12, np.float32)])])
    return x


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
