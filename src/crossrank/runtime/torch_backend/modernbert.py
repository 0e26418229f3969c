"""ModernBERT, run by torch: pre-norm, rotary positions, gated feed-forward, local and global attention.

The same computation as `crossrank.runtime.encoders.modernbert`, over packed tokens. Parity with it and with
transformers, |Δ| < 1e-5 in float32 (tests/runtime/test_torch_engine.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from crossrank.runtime.encoders.modernbert import LOCAL, layer_types, rotation_angles
from crossrank.runtime.settings import read_setting
from crossrank.runtime.torch_backend.attention import Capability, TokenBatch, Way, attend, choose_way
from crossrank.runtime.torch_backend.encoder import first_prefix
from crossrank.runtime.torch_backend.weights import Linear, Norm, Weights, activation

__all__ = ["ModernBertEncoder"]


class _Layer(NamedTuple):
    kind: str
    way: Way
    window: int | None
    attention_norm: Norm | None  # the first layer has none: the embeddings' stands in
    query_key_value: Linear
    attention_output: Linear
    feed_forward_norm: Norm
    up: Linear  # value and gate in one
    down: Linear


class _Rotation(NamedTuple):
    """Turns features by their tokens' positions: a feature of the first half with that of the second.

    Attributes:
        cosines: (positions or tokens, head size).
        sines: (positions or tokens, head size), negative in the first half.
    """

    cosines: torch.Tensor
    sines: torch.Tensor

    @classmethod
    def of(cls, angles: torch.Tensor, dtype: torch.dtype) -> _Rotation:
        """The rotation by angles (positions, head size / 2)."""
        cosines, sines = angles.cos(), angles.sin()
        tables = (torch.cat([cosines, cosines], dim=1), torch.cat([-sines, sines], dim=1))
        return cls(*(table.to(dtype) for table in tables))

    def at(self, positions: torch.Tensor) -> _Rotation:
        """The rotation of tokens at these positions."""
        return _Rotation(*(table.index_select(0, positions) for table in self))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (tokens, kinds, heads, size).

        In the numbers' own precision and three kernels: moving memory is all that this costs.
        """
        cosines, sines = (table[:, None, None] for table in self)
        return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines)


class ModernBertEncoder:
    """Pre-norm encoder with rotary positions; see `crossrank.runtime.torch_backend.encoder`.

    Args:
        weights: checked.
        config: the checkpoint's config.json, checked.
        capability: of torch and the device.
    """

    def __init__(self, weights: Weights, config: Mapping[str, Any], capability: Capability) -> None:
        self.hidden_size: int = config["hidden_size"]
        self.inner_size: int = config["intermediate_size"]
        self.num_heads: int = config["num_attention_heads"]
        self._activation = activation(read_setting(config, "hidden_activation", str, "gelu"))
        epsilon = config.get("norm_eps", 1e-5)
        half_window = read_setting(config, "local_attention", int, 128) // 2
        kinds = layer_types(config, config["num_hidden_layers"])
        head_size = self.hidden_size // self.num_heads
        angles = {
            kind: weights.copied(rotation_angles(config, kind, head_size)) for kind in sorted(set(kinds))
        }
        self._rotations = {kind: _Rotation.of(each, weights.dtype) for kind, each in angles.items()}
        prefix = first_prefix(weights, ("model.", ""), "embeddings.tok_embeddings.weight")
        self._words = weights.tensor(f"{prefix}embeddings.tok_embeddings.weight")
        self._norm = weights.norm(f"{prefix}embeddings.norm", epsilon)
        self._final_norm = weights.norm(f"{prefix}final_norm", epsilon)
        self._layers = []
        for i, kind in enumerate(kinds):
            name, window = f"{prefix}layers.{i}", half_window if kind == LOCAL else None
            self._layers.append(
                _Layer(
                    kind,
                    choose_way(capability, head_size, window=window is not None),
                    window,
                    weights.norm(f"{name}.attn_norm", epsilon) if i else None,
                    weights.linear(f"{name}.attn.Wqkv"),
                    weights.linear(f"{name}.attn.Wo"),
                    weights.norm(f"{name}.mlp_norm", epsilon),
                    weights.linear(f"{name}.mlp.Wi"),
                    weights.linear(f"{name}.mlp.Wo"),
                )
            )
        self.ways = frozenset(layer.way for layer in self._layers)

    def tokens(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of all tokens, (tokens, hidden)."""
        return self._run(batch, first_only=False)

    def first(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of each row's first token, (rows, hidden)."""
        return self._run(batch, first_only=True)

    def _run(self, batch: TokenBatch, *, first_only: bool) -> torch.Tensor:
        turns = {kind: rotation.at(batch.positions) for kind, rotation in self._rotations.items()}
        x = self._norm(functional.embedding(batch.ids, self._words))
        for layer in self._layers[:-1]:
            x = self._layer(x, layer, batch, turns[layer.kind])
        last = self._layers[-1]
        return self._final_norm(self._layer(x, last, batch, turns[last.kind], first_only=first_only))

    def _layer(
        self, x: torch.Tensor, layer: _Layer, batch: TokenBatch, turn: _Rotation, *, first_only: bool = False
    ) -> torch.Tensor:
        normed = x if layer.attention_norm is None else layer.attention_norm(x)
        joined = layer.query_key_value(normed).view(len(x), 3, self.num_heads, -1)
        query, key = turn(joined[:, :2]).unbind(1)
        # Kernels count a window from the last query, so first tokens alone would be at the wrong end of it.
        early = first_only and layer.window is None
        if early:
            query = query.index_select(0, batch.firsts)
        mixed = attend(layer.way, batch, query, key, joined[:, 2], window=layer.window)
        if first_only:
            x = x.index_select(0, batch.firsts)
            mixed = mixed if early else mixed.index_select(0, batch.firsts)
        x = x + layer.attention_output(mixed.reshape(len(x), self.hidden_size))
        up, gate = layer.up(layer.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + layer.down(self._activation(up) * gate)
