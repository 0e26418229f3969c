"""A BERT's forward pass as training on a CPU wants it, and batches of texts of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import BertModel


def batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Rows of like length together, as many as fit the budget with their padding; the shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= token_budget:
            stop += 1
        yield order[start:stop]
        start = stop


def hidden_states(
    bert: BertModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None = None,
    *,
    last_for_first_token: bool = False,
) -> Iterator[torch.Tensor]:
    """Give the hidden states after each layer, (rows, tokens, width).

    Attention is written out: scaled_dot_product_attention's backward pass is slow on a CPU.

    Args:
        bert: without dropout.
        input_ids: (rows, tokens), padded.
        attention_mask: likewise, 0 for padding.
        token_type_ids: likewise; None for texts alone.
        last_for_first_token: have the last layer compute the first token alone, which a classifier reads.
    """
    hidden = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
    rows, _, width = hidden.shape
    heads = bert.config.num_attention_heads
    bias = None
    if not bool(attention_mask.all()):
        padding = ~attention_mask[:, None, None, :].bool()
        bias = torch.zeros(padding.shape, dtype=torch.bfloat16).masked_fill(padding, -1e4)
    layers = bert.encoder.layer
    for layer in layers:
        attention = layer.attention.self
        source = hidden[:, :1] if last_for_first_token and layer is layers[-1] else hidden
        query, key, value = (
            linear(x).view(rows, -1, heads, width // heads).transpose(1, 2)
            for linear, x in (
                (attention.query, source),
                (attention.key, hidden),
                (attention.value, hidden),
            )
        )
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
        if bias is not None:
            scores = scores + bias
        mixed = torch.matmul(torch.softmax(scores, -1), value).transpose(1, 2).reshape(rows, -1, width)
        attended = layer.attention.output(mixed, source)
        hidden = layer.output(layer.intermediate(attended), attended)
        yield hidden
