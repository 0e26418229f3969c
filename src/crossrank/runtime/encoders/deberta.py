"""DeBERTa-v2 and v3: disentangled attention over content and log-bucketed relative positions.

Reference: He et al. 2021 (arXiv:2006.03654, arXiv:2111.09543); parity with transformers'
modeling_deberta_v2.py, |Δ| < 1e-5 (tests/golden).

Two things are done otherwise than there, with the same result. The projections of the relative positions do
not depend on the input, so they are computed once, while the graph is written. And where the reference
gathers a score for each pair of tokens, here the table is laid out by distance first: the scores of a row are
then a shifted stretch of it, and all rows are aligned by two reshapes (`_align`), which copy, not search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.errors import UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Frame, find_prefix, no_head, read_heads
from crossrank.runtime.graph import Graph
from crossrank.runtime.settings import read_setting

__all__ = ["DebertaEncoder", "distance_rows", "position_kinds"]


class DebertaEncoder:
    """Post-norm encoder with disentangled attention.

    Args:
        graph: takes the nodes.
        config: the checkpoint's config.json.

    Raises:
        CheckpointError: the config lacks what the graph needs.
        UnsupportedArchitectureError: the config asks for a variant with another computation.
    """

    def __init__(self, graph: Graph, config: Mapping[str, Any]) -> None:
        if read_setting(config, "conv_kernel_size", int, 0) > 0:
            raise UnsupportedArchitectureError(
                "config.json: conv_kernel_size is set; DeBERTa-v2 with a convolution (xlarge, xxlarge) "
                "has no graph here"
            )
        self._graph = graph
        self._config = config
        self.hidden_size = read_setting(config, "hidden_size", int, least=1)
        self._num_heads = read_heads(config, "num_attention_heads", self.hidden_size)
        self._num_layers = read_setting(config, "num_hidden_layers", int, least=1)
        self._inner_size = read_setting(config, "intermediate_size", int, least=1)
        self._num_positions = read_setting(config, "max_position_embeddings", int, least=1)
        self._activation = read_setting(config, "hidden_act", str, "gelu")
        self._epsilon = read_setting(config, "layer_norm_eps", float, 1e-7, least=0)
        self._kinds = position_kinds(config)
        head_size = self.hidden_size // self._num_heads
        # Content and each kind of position add a term of variance: the scale keeps their sum at one.
        self._scale = 1.0 / np.sqrt(head_size * (1 + len({"c2p", "p2c"} & {*self._kinds})))
        self._prefix = find_prefix(graph, ("deberta.", ""), "embeddings.word_embeddings.weight")
        graph.check_layers(f"{self._prefix}encoder.layer", self._num_layers)
        self.frame = Frame(graph, self.hidden_size)
        if read_setting(config, "relative_attention", bool, False):
            self._prepare_distances()
        else:
            self._kinds = []

    def tokens(self) -> str:
        """Write the whole encoder; the vectors of all tokens, (batch × length, hidden)."""
        x = self._embeddings()
        for i in range(self._num_layers):
            x = self._layer(x, i)
        return x

    def first(self) -> str:
        """Write the encoder as far as the first token needs it; its vectors, (batch, hidden)."""
        x = self._embeddings()
        for i in range(self._num_layers - 1):
            x = self._layer(x, i)
        return self._layer(x, self._num_layers - 1, first_only=True)

    def logits(self, num_labels: int) -> str:
        """Write encoder and trained classification head; (batch, num_labels)."""
        graph, hidden = self._graph, self.hidden_size
        for name in ("pooler.dense.weight", "classifier.weight"):
            if not graph.has(name):
                raise no_head("deberta-v2", name)
        x = graph.head_linear(self.first(), "pooler.dense", (hidden, hidden))
        x = graph.activation(x, read_setting(self._config, "pooler_hidden_act", str, "gelu"))
        return graph.head_linear(x, "classifier", (num_labels, hidden))

    def _embeddings(self) -> str:
        graph, frame, config = self._graph, self.frame, self._config
        name = f"{self._prefix}embeddings"
        size = read_setting(config, "embedding_size", int, None, least=1) or self.hidden_size
        table_size = (read_setting(config, "vocab_size", int), size)
        x = graph.lookup(frame.ids, f"{name}.word_embeddings.weight", table_size)  # (batch, length, size)
        if read_setting(config, "position_biased_input", bool, True):
            table = graph.tensor(f"{name}.position_embeddings.weight", (self._num_positions, size))
            x = graph.node("Add", [x, graph.slice(table, graph.constant([0]), frame.length, 0)])
        if num_types := read_setting(config, "type_vocab_size", int, 0, least=0):
            types = graph.tensor(f"{name}.token_type_embeddings.weight", (num_types, size))
            rows = graph.input("token_type_ids") if num_types > 1 else graph.constant([[0]])
            x = graph.node("Add", [x, graph.node("Gather", [types, rows])])
        x = graph.reshape(x, (-1, size))
        if size != self.hidden_size:
            x = graph.linear(x, f"{name}.embed_proj", (self.hidden_size, size), bias=False)
        return graph.norm(x, f"{name}.LayerNorm", self._epsilon)

    def _layer(self, x: str, index: int, *, first_only: bool = False) -> str:
        graph, frame, hidden = self._graph, self.frame, self.hidden_size
        name = f"{self._prefix}encoder.layer.{index}"
        attention = f"{name}.attention.self"
        names = [f"{attention}.{part}_proj" for part in ("query", "key", "value")]
        square = (hidden, hidden)
        if first_only:
            key, value = graph.linear_many(x, names[1:], square)
            x = frame.first(x)
            query = frame.single(graph.linear(x, names[0], square))
        else:
            query, key, value = graph.linear_many(x, names, square)
            query = frame.deep(query)
        key = frame.deep(key)
        mixed = graph.microsoft(
            "MultiHeadAttention",
            [
                query,
                key,
                frame.deep(value),
                "",
                frame.lengths,
                self._position_scores(query, key, attention, first_only),
            ],
            num_heads=self._num_heads,
            scale=float(self._scale),
        )
        mixed = graph.linear(frame.flat(mixed), f"{name}.attention.output.dense", square)
        x, _ = graph.add_norm(mixed, x, f"{name}.attention.output.LayerNorm", self._epsilon)
        inner = graph.linear(x, f"{name}.intermediate.dense", (self._inner_size, hidden))
        inner = graph.activation(inner, self._activation)
        outer = graph.linear(inner, f"{name}.output.dense", (hidden, self._inner_size))
        return graph.add_norm(outer, x, f"{name}.output.LayerNorm", self._epsilon)[0]

    # --- relative positions ---------------------------------------------------------------------------

    def _prepare_distances(self) -> None:
        """Write, once for all layers, which rows of a position table each distance within a batch has."""
        graph, config, count = self._graph, self._config, self._num_positions
        span = read_setting(config, "max_relative_positions", int, -1)
        span = span if span > 0 else count
        buckets = read_setting(config, "position_buckets", int, -1)
        self._span = buckets if buckets > 0 else span
        table = graph.array(
            f"{self._prefix}encoder.rel_embeddings.weight", (2 * self._span, self.hidden_size)
        )
        if "layer_norm" in read_setting(config, "norm_rel_ebd", str, "none").lower():
            norm = f"{self._prefix}encoder.LayerNorm"
            weight, bias = graph.array(f"{norm}.weight"), graph.array(f"{norm}.bias")
            table = _layer_norm(table, weight, bias, self._epsilon)
        self._relative = table
        rows = distance_rows(np.arange(count - 1, -count - 1, -1), buckets, span)
        falling = graph.weight("distances.falling", rows)  # of distance count - 1, ..., 0, ..., -count
        rising = graph.weight(
            "distances.rising", distance_rows(np.arange(1 - count, count + 1), buckets, span)
        )
        length, middle = self.frame.length, graph.constant([count])
        low, high = graph.node("Sub", [middle, length]), graph.node("Add", [middle, length])
        self._falling = graph.slice(falling, low, high, 0)  # (2 × length,)
        self._rising = graph.slice(rising, low, high, 0)
        zero = graph.constant([count - 1])
        self._from_first = graph.slice(falling, zero, graph.node("Add", [zero, length]), 0)  # (length,)
        # For _align: cut (length - 1, length - 1 + length × (2 × length - 1)) out of each flattened table.
        one = graph.constant([1])
        self._cut_start = graph.node("Sub", [length, one])
        width = graph.node("Add", [length, self._cut_start])
        self._cut_end = graph.node("Add", [self._cut_start, graph.node("Mul", [length, width])])
        self._cut_shape = graph.node("Concat", [graph.constant([0, 0]), length, width], axis=0)

    def _position_scores(self, query: str, key: str, name: str, first_only: bool) -> str:
        """What positions add to attention, scaled; (batch, heads, queries, length), or "" for nothing.

        Row i, column j has query i · position(i - j) for "c2p" and key j · position(i - j) for "p2c".
        """
        graph = self._graph
        shared = read_setting(self._config, "share_att_key", bool, False)
        scores = ""
        if "c2p" in self._kinds:
            table = self._table(name, "key_proj" if shared else "pos_key_proj")
            rows = self._from_first if first_only else self._falling
            rows = graph.node("Gather", [table, rows], axis=1)  # (heads, 2 × length, size)
            scores = graph.microsoft("FusedMatMul", [self._heads(query), rows], transB=1)
            scores = scores if first_only else self._align(scores)
        if "p2c" in self._kinds:
            table = self._table(name, "query_proj" if shared else "pos_query_proj")
            rows = self._from_first if first_only else self._rising
            rows = graph.node("Gather", [table, rows], axis=1)
            if first_only:  # one distance a key: a dot product each
                product = graph.node("Mul", [self._heads(key), rows])
                inverse = graph.node("ReduceSum", [product, graph.constant([3])], keepdims=0)
                inverse = graph.node("Unsqueeze", [inverse, graph.constant([2])])
            else:
                inverse = graph.microsoft("FusedMatMul", [self._heads(key), rows], transB=1)
                inverse = self._align(inverse)
                inverse = graph.node("Transpose", [inverse], perm=[0, 1, 3, 2])
            scores = graph.node("Add", [scores, inverse]) if scores else inverse
        return scores

    def _heads(self, x: str) -> str:
        """(batch, length, hidden) -> (batch, heads, length, size)."""
        split = self._graph.reshape(x, (0, 0, self._num_heads, self.hidden_size // self._num_heads))
        return self._graph.node("Transpose", [split], perm=[0, 2, 1, 3])

    def _table(self, name: str, projection: str) -> str:
        """Projected and scaled position embeddings, (heads, 2 × span, size)."""
        graph, hidden = self._graph, self.hidden_size
        weight = graph.array(f"{name}.{projection}.weight", (hidden, hidden))
        bias = graph.array(f"{name}.{projection}.bias", (hidden,))
        projected = (self._relative @ weight.T + bias) * np.float32(self._scale)
        table = projected.reshape(2 * self._span, self._num_heads, -1).transpose(1, 0, 2)
        return graph.weight(f"{name}.{projection}.positions", table)

    def _align(self, x: str) -> str:
        """(..., length, 2 × length) -> (..., length, length): row i loses its first length - 1 - i columns.

        Read flat, moving the start by length - 1 and shortening rows by one shifts each row by one more.
        """
        graph = self._graph
        flat = graph.reshape(x, (0, 0, -1))
        cut = graph.slice(flat, self._cut_start, self._cut_end, 2)
        rows = graph.node("Reshape", [cut, self._cut_shape])  # (..., length, 2 × length - 1)
        return graph.slice(rows, graph.constant([0]), self.frame.length, 3)


def position_kinds(config: Mapping[str, Any]) -> list[str]:
    """What positions add to attention: "c2p" (content to position), "p2c" (position to content)."""
    stated = config.get("pos_att_type")
    if isinstance(stated, str):  # as older configs have it: "c2p|p2c"
        stated = stated.split("|")
    else:
        stated = read_setting(config, "pos_att_type", list, None) or []
    return [str(kind).strip() for kind in stated]


def distance_rows(distances: npt.NDArray[np.int64], buckets: int, span: int) -> npt.NDArray[np.int64]:
    """Row of the relative position table for each distance between two tokens.

    Args:
        distances: position of the query minus position of the key.
        buckets: near distances have a row each, far ones share rows logarithmically; 0 or less: no sharing.
        span: the largest distance told apart.

    Source: make_log_bucket_position in transformers' modeling_deberta_v2.py; in float32, as there.
    """
    rows = distances
    if buckets > 0:
        middle = buckets // 2
        size = np.where(np.abs(distances) < middle, middle - 1, np.abs(distances))
        ratio = np.log((size / middle).astype(np.float32)) / np.log(np.float32((span - 1) / middle))
        far = np.ceil(ratio * np.float32(middle - 1)) + middle
        rows = np.where(size <= middle, distances, far * np.sign(distances)).astype(np.int64)
    half = buckets if buckets > 0 else span
    clipped: npt.NDArray[np.int64] = np.clip(rows + half, 0, 2 * half - 1)
    return clipped


def _layer_norm(
    x: npt.NDArray[Any], weight: npt.NDArray[Any], bias: npt.NDArray[Any], epsilon: float
) -> npt.NDArray[np.float32]:
    centred = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normed: npt.NDArray[np.float32] = (centred / np.sqrt(variance + epsilon) * weight + bias).astype(
        np.float32
    )
    return normed
