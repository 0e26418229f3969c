"""ModernBERT: pre-norm, rotary positions, gated feed-forward, local attention between global layers.

Reference: Warner et al. 2024 (arXiv:2412.13663); parity with transformers' modeling_modernbert.py, |Δ| < 1e-5
(tests/golden).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Frame, find_prefix, no_head, read_heads
from crossrank.runtime.graph import Graph
from crossrank.runtime.settings import bad_setting, read_setting

__all__ = ["LOCAL", "ModernBertEncoder", "layer_types", "rotation_angles"]

_GLOBAL, LOCAL = "full_attention", "sliding_attention"
_THETAS = {_GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
_FAR = -1e9  # added to the attention of tokens outside the window: their weight becomes exactly 0


class ModernBertEncoder:
    """Pre-norm encoder with rotary positions.

    Args:
        graph: takes the nodes.
        config: the checkpoint's config.json.

    Raises:
        CheckpointError: the config lacks what the graph needs.
        UnsupportedArchitectureError: the config asks for a variant with another computation.
    """

    def __init__(self, graph: Graph, config: Mapping[str, Any]) -> None:
        self._graph = graph
        self._config = config
        self.hidden_size = read_setting(config, "hidden_size", int, least=1)
        self._num_heads = read_heads(config, "num_attention_heads", self.hidden_size)
        self._num_layers = read_setting(config, "num_hidden_layers", int, least=1)
        self._inner_size = read_setting(config, "intermediate_size", int, least=1)
        self._epsilon = read_setting(config, "norm_eps", float, 1e-5, least=0)
        self._activation = read_setting(config, "hidden_activation", str, "gelu")
        self._attention_bias = read_setting(config, "attention_bias", bool, False)
        self._mlp_bias = read_setting(config, "mlp_bias", bool, False)
        self._norm_bias = read_setting(config, "norm_bias", bool, False)
        self._layer_types = layer_types(config, self._num_layers)
        self._prefix = find_prefix(graph, ("model.", ""), "embeddings.tok_embeddings.weight")
        graph.check_layers(f"{self._prefix}layers", self._num_layers)
        self.frame = Frame(graph, self.hidden_size)
        self._rotations = {kind: self._rotation(kind) for kind in sorted(set(self._layer_types))}
        self._window = self._local_window() if LOCAL in self._layer_types else ""

    def tokens(self) -> str:
        """Write the whole encoder; the vectors of all tokens, (batch × length, hidden)."""
        return self._write(first_only=False)

    def first(self) -> str:
        """Write the encoder as far as the first token needs it; its vectors, (batch, hidden)."""
        return self._write(first_only=True)

    def logits(self, num_labels: int) -> str:
        """Write encoder and trained classification head; (batch, num_labels)."""
        graph, hidden = self._graph, self.hidden_size
        for name in ("head.dense.weight", "classifier.weight"):
            if not graph.has(name):
                raise no_head("modernbert", name)
        pooling = read_setting(self._config, "classifier_pooling", str, "cls")
        if pooling not in ("cls", "mean"):
            raise bad_setting("config.json", "classifier_pooling", pooling, "'cls' or 'mean'")
        x = self.first() if pooling == "cls" else self.frame.mean(self.tokens())
        has_bias = read_setting(self._config, "classifier_bias", bool, False)
        x = graph.head_linear(x, "head.dense", (hidden, hidden), bias=has_bias)
        x = graph.activation(x, read_setting(self._config, "classifier_activation", str, "gelu"))
        x = graph.norm(x, "head.norm", self._epsilon, bias=self._norm_bias)
        return graph.head_linear(x, "classifier", (num_labels, hidden))

    def _write(self, *, first_only: bool) -> str:
        graph, prefix = self._graph, self._prefix
        shape = (read_setting(self._config, "vocab_size", int), self.hidden_size)
        words = graph.lookup(self.frame.ids, f"{prefix}embeddings.tok_embeddings.weight", shape)
        x = self.frame.flat(words)
        x = graph.norm(x, f"{prefix}embeddings.norm", self._epsilon, bias=self._norm_bias)
        normed = x  # the first layer has no norm of its own: the embeddings' stands in
        for i in range(self._num_layers):
            last = i == self._num_layers - 1
            name = f"{prefix}layers.{i}"
            attention = self._attention(normed, name, self._layer_types[i], first_only and last)
            if first_only and last:
                x = self.frame.first(x)
            inner, x = self._add_norm(attention, x, f"{name}.mlp_norm")
            following = f"{prefix}final_norm" if last else f"{prefix}layers.{i + 1}.attn_norm"
            outer = self._feed_forward(inner, f"{name}.mlp")
            normed, x = self._add_norm(outer, x, following)
        return normed

    def _add_norm(self, x: str, skip: str, name: str) -> tuple[str, str]:
        return self._graph.add_norm(x, skip, name, self._epsilon, bias=self._norm_bias)

    def _attention(self, x: str, name: str, kind: str, first_only: bool) -> str:
        graph, frame, hidden = self._graph, self.frame, self.hidden_size
        joined = graph.linear(x, f"{name}.attn.Wqkv", (3 * hidden, hidden), bias=self._attention_bias)
        query, key, value = graph.nodes("Split", [joined], 3, axis=-1, num_outputs=3)
        # The rotation of position 0 changes nothing.
        query = frame.single(frame.first(query)) if first_only else self._rotate(frame.deep(query), kind)
        key = self._rotate(frame.deep(key), kind)
        window = ""
        if kind == LOCAL:
            zero, one = graph.constant([0]), graph.constant([1])
            window = graph.slice(self._window, zero, one, 2) if first_only else self._window
        mixed = graph.microsoft(
            "MultiHeadAttention",
            [query, key, frame.deep(value), "", frame.lengths, window],
            num_heads=self._num_heads,
        )
        out = f"{name}.attn.Wo"
        return graph.linear(frame.flat(mixed), out, (hidden, hidden), bias=self._attention_bias)

    def _feed_forward(self, x: str, name: str) -> str:
        graph, hidden, inner = self._graph, self.hidden_size, self._inner_size
        both = graph.linear(x, f"{name}.Wi", (2 * inner, hidden), bias=self._mlp_bias)
        value, gate = graph.nodes("Split", [both], 2, axis=-1, num_outputs=2)
        gated = graph.node("Mul", [graph.activation(value, self._activation), gate])
        return graph.linear(gated, f"{name}.Wo", (hidden, inner), bias=self._mlp_bias)

    def _rotate(self, x: str, kind: str) -> str:
        cosines, sines = self._rotations[kind]
        start = self._graph.constant([0])
        return self._graph.microsoft("RotaryEmbedding", [x, start, cosines, sines])

    def _rotation(self, kind: str) -> tuple[str, str]:
        """Tables of cosines and sines, (positions, head size / 2)."""
        graph = self._graph
        angles = rotation_angles(self._config, kind, self.hidden_size // self._num_heads)
        return graph.weight(f"{kind}.cos", np.cos(angles)), graph.weight(f"{kind}.sin", np.sin(angles))

    def _local_window(self) -> str:
        """What local layers add to attention: 0 near by, very low outside; (1, 1, length, length)."""
        graph = self._graph
        zero, one = graph.constant(0), graph.constant(1)
        length = graph.node("Squeeze", [self.frame.length])
        positions = graph.node("Range", [zero, length, one])
        rows = graph.node("Unsqueeze", [positions, graph.constant([1])])
        distance = graph.node("Abs", [graph.node("Sub", [rows, positions])])
        half = graph.constant(read_setting(self._config, "local_attention", int, 128, least=1) // 2)
        far = graph.node("Greater", [distance, half])
        low, nothing = graph.constant(_FAR, np.float32), graph.constant(0, np.float32)
        window = graph.node("Where", [far, low, nothing])
        return graph.node("Unsqueeze", [window, graph.constant([0, 1])])


def rotation_angles(config: Mapping[str, Any], kind: str, head_size: int) -> npt.NDArray[np.float32]:
    """The angles by which each position turns each pair of features, (positions, head size / 2)."""
    exponents = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    frequencies = 1.0 / _theta(config, kind) ** exponents
    # transformers multiplies in float32; so do we, to get its angles at far positions.
    positions = np.arange(read_setting(config, "max_position_embeddings", int, least=1), dtype=np.float32)
    angles: npt.NDArray[np.float32] = positions[:, None] * frequencies.astype(np.float32)[None, :]
    return angles


def layer_types(config: Mapping[str, Any], num_layers: int) -> list[str]:
    """Whether each layer attends to all tokens or to those near by: "full_attention", "sliding_attention"."""
    types = read_setting(config, "layer_types", list, None)
    if types is None:
        every = read_setting(config, "global_attn_every_n_layers", int, 3, least=1)
        types = [LOCAL if i % every else _GLOBAL for i in range(num_layers)]
    if len(types) != num_layers or any(kind not in (_GLOBAL, LOCAL) for kind in types):
        expected = f"{_GLOBAL!r} or {LOCAL!r} for each of {num_layers} layers"
        raise bad_setting("config.json", "layer_types", types, expected)
    return types


def _theta(config: Mapping[str, Any], kind: str) -> float:
    key, default = _THETAS[kind]
    stated = read_setting(config, "rope_parameters", dict, None) or {}
    parameters = read_setting(stated, kind, dict, None, source="config.json: rope_parameters") or {}
    if parameters.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise UnsupportedArchitectureError("config.json: scaled rotary positions have no graph here")
    if "rope_theta" in parameters:
        source = f"config.json: rope_parameters: {kind}"
        return read_setting(parameters, "rope_theta", float, source=source, least=1)
    # Older configs have flat keys, and a null local theta stands for the global one.
    if config.get(key, default) is None:
        key, default = _THETAS[_GLOBAL]
    return read_setting(config, key, float, default, least=1)
