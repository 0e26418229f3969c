"""DeBERTa-v2 and v3, run by torch: disentangled attention over content and log-bucketed relative positions.

The same computation as `crossrank.runtime.encoders.deberta`. Linear layers see packed tokens; attention is
over rows padded to the longest, since no kernel of torch takes what positions add to each pair of tokens
without it. Parity with that file and with transformers, |Δ| < 1e-5 in float32
(tests/runtime/test_torch_engine.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from crossrank.runtime.encoders.deberta import distance_rows, position_kinds
from crossrank.runtime.settings import read_setting
from crossrank.runtime.torch_backend.attention import Capability, TokenBatch, Way
from crossrank.runtime.torch_backend.encoder import first_prefix
from crossrank.runtime.torch_backend.weights import Linear, Norm, Weights, activation

__all__ = ["DebertaEncoder"]


class _Layer(NamedTuple):
    query_key_value: Linear
    content_to_position: torch.Tensor | None  # (heads, size, rows of the table), scaled
    position_to_content: torch.Tensor | None
    attention_output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class DebertaEncoder:
    """Post-norm encoder with disentangled attention; see `crossrank.runtime.torch_backend.encoder`.

    Args:
        weights: checked.
        config: the checkpoint's config.json, checked.
        capability: not read: there is one way.
    """

    ways: frozenset[Way] = frozenset({"padded"})

    def __init__(self, weights: Weights, config: Mapping[str, Any], capability: Capability) -> None:
        self.hidden_size: int = config["hidden_size"]
        self.inner_size: int = config["intermediate_size"]
        self.num_heads: int = config["num_attention_heads"]
        self._activation = activation(read_setting(config, "hidden_act", str, "gelu"))
        epsilon = config.get("layer_norm_eps", 1e-7)
        kinds = position_kinds(config)
        # Content and each kind of position add a term of variance: the scale keeps their sum at one.
        terms = 1 + len({"c2p", "p2c"} & {*kinds})
        self._scale = float(1.0 / np.sqrt(self.hidden_size // self.num_heads * terms))
        prefix = first_prefix(weights, ("deberta.", ""), "embeddings.word_embeddings.weight")
        relative = None
        if read_setting(config, "relative_attention", bool, False):
            relative = self._read_distances(weights, config, prefix, epsilon)
        else:
            kinds = []

        name = f"{prefix}embeddings"
        self._words = weights.tensor(f"{name}.word_embeddings.weight")
        absolute = read_setting(config, "position_biased_input", bool, True)
        self._positions = weights.tensor(f"{name}.position_embeddings.weight") if absolute else None
        num_types = read_setting(config, "type_vocab_size", int, 0)
        self._types = weights.tensor(f"{name}.token_type_embeddings.weight") if num_types else None
        narrow = self._words.shape[1] != self.hidden_size
        self._project = weights.linear(f"{name}.embed_proj") if narrow else None
        self._norm = weights.norm(f"{name}.LayerNorm", epsilon)
        shared = read_setting(config, "share_att_key", bool, False)
        self._layers = []
        for i in range(config["num_hidden_layers"]):
            layer = f"{prefix}encoder.layer.{i}"
            attention = f"{layer}.attention.self"
            of_keys = f"{attention}.{'key_proj' if shared else 'pos_key_proj'}"
            of_queries = f"{attention}.{'query_proj' if shared else 'pos_query_proj'}"
            self._layers.append(
                _Layer(
                    weights.linear(*(f"{attention}.{part}_proj" for part in ("query", "key", "value"))),
                    self._table(weights, of_keys, relative) if "c2p" in kinds else None,
                    self._table(weights, of_queries, relative) if "p2c" in kinds else None,
                    weights.linear(f"{layer}.attention.output.dense"),
                    weights.norm(f"{layer}.attention.output.LayerNorm", epsilon),
                    weights.linear(f"{layer}.intermediate.dense"),
                    weights.linear(f"{layer}.output.dense"),
                    weights.norm(f"{layer}.output.LayerNorm", epsilon),
                )
            )

    def tokens(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of all tokens, (tokens, hidden)."""
        return self._run(batch, first_only=False)

    def first(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of each row's first token, (rows, hidden)."""
        return self._run(batch, first_only=True)

    def _run(self, batch: TokenBatch, *, first_only: bool) -> torch.Tensor:
        x = functional.embedding(batch.ids, self._words)
        if self._positions is not None:
            x = x + functional.embedding(batch.positions, self._positions)
        if self._types is not None:
            types = batch.types if len(self._types) > 1 else torch.zeros_like(batch.types)
            x = x + functional.embedding(types, self._types)
        x = self._norm(x if self._project is None else self._project(x))
        for layer in self._layers[:-1]:
            x = self._layer(x, layer, batch)
        return self._layer(x, self._layers[-1], batch, first_only=first_only)

    def _layer(
        self, x: torch.Tensor, layer: _Layer, batch: TokenBatch, *, first_only: bool = False
    ) -> torch.Tensor:
        joined = layer.query_key_value(x).view(len(x), 3, self.num_heads, -1)
        query, key, value = (batch.spread(part) for part in joined.unbind(1))
        if first_only:
            query = query[:, :, :1]
            x = x.index_select(0, batch.firsts)
        mask = self._position_scores(layer, query, key)
        if batch.key_mask is not None:
            hidden = torch.zeros_like(batch.key_mask, dtype=x.dtype).masked_fill(~batch.key_mask, -torch.inf)
            mask = hidden if mask is None else mask + hidden
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self._scale)
        mixed = mixed[:, :, 0] if first_only else batch.gather(mixed)
        x = layer.attention_norm(layer.attention_output(mixed.reshape(len(x), self.hidden_size)) + x)
        return layer.output_norm(layer.down(self._activation(layer.up(x))) + x)

    # --- relative positions ---------------------------------------------------------------------------

    def _read_distances(
        self, weights: Weights, config: Mapping[str, Any], prefix: str, epsilon: float
    ) -> torch.Tensor:
        """Read which row of the position tables each distance has; the tables' embeddings, float32."""
        count: int = config["max_position_embeddings"]
        span = read_setting(config, "max_relative_positions", int, -1)
        span = span if span > 0 else count
        buckets = read_setting(config, "position_buckets", int, -1)
        rows = distance_rows(np.arange(-count, count + 1), buckets, span)
        self._middle = count  # the place of distance 0
        self._rows = weights.copied(rows, torch.int64)
        table = weights.tensor(f"{prefix}encoder.rel_embeddings.weight", torch.float32)
        if "layer_norm" in read_setting(config, "norm_rel_ebd", str, "none").lower():
            table = weights.norm(f"{prefix}encoder.LayerNorm", epsilon, torch.float32)(table)
        return table

    def _table(self, weights: Weights, name: str, relative: torch.Tensor | None) -> torch.Tensor | None:
        """Projected and scaled position embeddings, (heads, size, rows)."""
        if relative is None:
            return None
        projected = weights.linear(name, dtype=torch.float32)(relative) * self._scale
        by_head = projected.view(len(relative), self.num_heads, -1).permute(1, 2, 0)
        return by_head.to(weights.dtype).contiguous()

    def _position_scores(self, layer: _Layer, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """What positions add to attention, scaled; (rows, heads, queries, longest), or None for nothing.

        Query i, key j has query i · position(i - j) for "c2p" and key j · position(i - j) for "p2c".
        """
        if layer.content_to_position is None and layer.position_to_content is None:
            return None
        places = torch.arange(key.shape[2], device=key.device)
        distances = places[: query.shape[2], None] - places  # i - j
        table_rows = self._rows[distances + self._middle].expand(*query.shape[:2], -1, -1)
        scores = None
        if layer.content_to_position is not None:
            scores = (query @ layer.content_to_position).gather(3, table_rows)
        if layer.position_to_content is not None:
            inverse = (key @ layer.position_to_content).gather(3, table_rows.transpose(2, 3)).transpose(2, 3)
            scores = inverse if scores is None else scores + inverse
        return scores
