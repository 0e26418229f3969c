"""What every encoder run by torch offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from crossrank.runtime.torch_backend.attention import Capability, TokenBatch, Way
from crossrank.runtime.torch_backend.weights import Weights

__all__ = ["Encoder", "OpenEncoder", "first_prefix"]


class Encoder(Protocol):
    """An architecture with its weights: made with (weights, config, capability); safe to call from threads.

    Attributes:
        hidden_size: features of a token.
        inner_size: features between the feed-forward layers.
        num_heads: attention heads, which share the features evenly.
        ways: how its layers' attention is computed.
    """

    hidden_size: int
    inner_size: int
    num_heads: int
    ways: frozenset[Way]

    def tokens(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of all tokens, (tokens, hidden)."""
        ...

    def first(self, batch: TokenBatch) -> torch.Tensor:
        """The vectors of each row's first token, (rows, hidden).

        Exact: in the last layer only keys and values are computed for all tokens.
        """
        ...


class OpenEncoder(Protocol):
    """How an encoder is made."""

    def __call__(self, weights: Weights, config: Mapping[str, Any], capability: Capability) -> Encoder:
        """Make it of checked weights."""
        ...


def first_prefix(weights: Weights, prefixes: tuple[str, ...], tensor: str) -> str:
    """The prefix a checkpoint gives its encoder's tensors: bare models have none, models with a head do."""
    return next(prefix for prefix in prefixes if weights.has(prefix + tensor))
