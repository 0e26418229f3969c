"""Attention while a model is trained: which of its two forms is faster on a CPU.

Torch's fused attention holds no matrix of every token with every other, and on CPUs its backward pass in
bf16 takes longer than two plain products with a softmax between them: 32 against 9 ms for 6 rows of 160
tokens in 12 heads of 32, on one core of an AMD EPYC (torch 2.13). In float32 the fused form is the faster
one. So bf16 rows that are not too long are computed by the plain form, and everything else as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

__all__ = ["PLAIN_LENGTH", "faster_attention"]

PLAIN_LENGTH = 256
"""Tokens of a row up to which the plain form is taken: what it holds for the backward pass, heads times
length numbers a token, is then no more than what a layer's other parts hold."""

_NAME = "crossrank_cpu"


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' functions do: (rows, heads, tokens, size) to (rows, tokens, heads, size)."""
    is_causal = options.get("is_causal")
    is_plain = (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.shape == key.shape
        and key.shape[2] <= PLAIN_LENGTH
        and not (getattr(module, "is_causal", True) if is_causal is None else is_causal)
        and options.get("position_bias") is None
    )
    if not is_plain:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = functional.dropout(weights, dropout) @ value
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def faster_attention(model: Any) -> Iterator[None]:
    """Let a model attend in the form that is faster, for as long as the context lasts.

    Args:
        model: of sentence-transformers; one whose transformer does not use torch's fused attention is left
            as it is.
    """
    transformer = model.transformers_model
    is_fused = getattr(transformer.config, "_attn_implementation", None) == "sdpa"
    if not is_fused:
        yield
        return
    transformer.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        transformer.set_attn_implementation("sdpa")
