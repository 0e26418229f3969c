"""BERT and those that compute the same, run by torch: MiniLM, ELECTRA, (XLM-)RoBERTa, CamemBERT, DistilBERT.

The same computation as `crossrank.runtime.encoders.bert`, over packed tokens. Parity with it and with
transformers, |Δ| < 1e-5 in float32 (tests/runtime/test_torch_engine.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from crossrank.runtime.encoders.bert import NAMES, PREFIXES
from crossrank.runtime.settings import read_setting
from crossrank.runtime.torch_backend.attention import Capability, TokenBatch, attend, choose_way
from crossrank.runtime.torch_backend.encoder import first_prefix
from crossrank.runtime.torch_backend.weights import Linear, Norm, Weights, activation

__all__ = ["BertEncoder"]


class _Layer(NamedTuple):
    query_key_value: Linear  # one product in place of three
    attention_output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm


class BertEncoder:
    """Post-norm encoder with learned absolute positions; see `crossrank.runtime.torch_backend.encoder`.

    Args:
        weights: checked.
        config: the checkpoint's config.json, checked.
        capability: of torch and the device.
        architecture: "bert", "electra", "roberta" or "distilbert".
    """

    def __init__(
        self, weights: Weights, config: Mapping[str, Any], capability: Capability, *, architecture: str
    ) -> None:
        names = NAMES[architecture]
        self.hidden_size: int = config[names.hidden_size]
        self.inner_size: int = config[names.intermediate_size]
        self.num_heads: int = config[names.num_heads]
        self._activation = activation(read_setting(config, names.activation, str, "gelu"))
        self._counts_from_padding = architecture == "roberta"
        self._padding: int = read_setting(config, "pad_token_id", int, 1 if self._counts_from_padding else 0)
        epsilon = 1e-12 if architecture == "distilbert" else config.get("layer_norm_eps", 1e-12)
        self._way = choose_way(capability, self.hidden_size // self.num_heads, window=False)
        self.ways = frozenset({self._way})

        prefix = first_prefix(weights, (PREFIXES[architecture], ""), "embeddings.word_embeddings.weight")
        name = f"{prefix}embeddings"
        self._words = weights.tensor(f"{name}.word_embeddings.weight")
        self._positions = weights.tensor(f"{name}.position_embeddings.weight")
        num_types = 0 if architecture == "distilbert" else config.get("type_vocab_size", 2)
        self._types = weights.tensor(f"{name}.token_type_embeddings.weight") if num_types else None
        self._norm = weights.norm(f"{name}.LayerNorm", epsilon)
        # ELECTRA's small models have narrower embeddings.
        narrow = self._words.shape[1] != self.hidden_size
        self._project = weights.linear(f"{prefix}embeddings_project") if narrow else None
        layers = (f"{prefix}{names.layer}.{i}" for i in range(config[names.num_layers]))
        self._layers = [
            _Layer(
                weights.linear(*(f"{layer}.{part}" for part in (names.query, names.key, names.value))),
                weights.linear(f"{layer}.{names.attention_output}"),
                weights.norm(f"{layer}.{names.attention_norm}", epsilon),
                weights.linear(f"{layer}.{names.up}"),
                weights.linear(f"{layer}.{names.down}"),
                weights.norm(f"{layer}.{names.output_norm}", epsilon),
            )
            for layer in layers
        ]

    def tokens(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of all tokens, (tokens, hidden)."""
        x = self._embeddings(batch)
        for layer in self._layers:
            x = self._layer(x, layer, batch)
        return x

    def first(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of each row's first token, (rows, hidden)."""
        x = self._embeddings(batch)
        for layer in self._layers[:-1]:
            x = self._layer(x, layer, batch)
        return self._layer(x, self._layers[-1], batch, first_only=True)

    def _embeddings(self, batch: TokenBatch) -> torch.Tensor:
        x = functional.embedding(batch.ids, self._words)
        if self._types is not None:
            # A table of one row leaves nothing to choose, whatever the tokenizer says.
            types = batch.types if len(self._types) > 1 else torch.zeros_like(batch.types)
            x = x + functional.embedding(types, self._types)
        x = x + functional.embedding(self._places(batch), self._positions)
        x = self._norm(x)
        return x if self._project is None else self._project(x)

    def _places(self, batch: TokenBatch) -> torch.Tensor:
        """The row of the position table of each token."""
        if not self._counts_from_padding:
            return batch.positions
        # RoBERTa counts from pad_token_id + 1, and gives every padding token the row pad_token_id.
        real = (batch.ids != self._padding).int()
        counts = real.cumsum(0, dtype=torch.int32)
        before = (counts - real).index_select(0, batch.firsts).index_select(0, batch.rows)
        return (counts - before) * real + self._padding

    def _layer(
        self, x: torch.Tensor, layer: _Layer, batch: TokenBatch, *, first_only: bool = False
    ) -> torch.Tensor:
        hidden, heads = self.hidden_size, self.num_heads
        if first_only:
            key, value = (
                layer.query_key_value.part(hidden, 3 * hidden)(x).view(len(x), 2, heads, -1).unbind(1)
            )
            x = x.index_select(0, batch.firsts)
            query = layer.query_key_value.part(0, hidden)(x).view(len(x), heads, -1)
        else:
            query, key, value = layer.query_key_value(x).view(len(x), 3, heads, -1).unbind(1)
        mixed = attend(self._way, batch, query, key, value)
        x = layer.attention_norm(layer.attention_output(mixed.reshape(len(x), hidden)) + x)
        return layer.output_norm(layer.down(self._activation(layer.up(x))) + x)
