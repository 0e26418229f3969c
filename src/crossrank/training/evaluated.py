"""What a model in training gives for texts or pairs, without gradients: for held-out measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from crossrank.training.losses.gradient_cache import packed_outputs

__all__ = ["evaluated"]

_BLOCK = 2048
"""Inputs that are tokenised at a time."""


def evaluated(
    model: Any, inputs: Sequence[Any], name: str, token_budget: int, **preprocess_options: Any
) -> npt.NDArray[np.float32]:
    """Return what a model of sentence-transformers gives, in evaluation mode and packed mini-batches.

    Args:
        model: its mode is restored.
        inputs: texts, or pairs of texts; one or more.
        name: of the output: "scores" or "sentence_embedding".
        token_budget: padded tokens of one forward pass.
        preprocess_options: for `model.preprocess`.

    Returns:
        float32 (inputs, n).
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            parts = []
            for start in range(0, len(inputs), _BLOCK):
                features = model.preprocess([*inputs[start : start + _BLOCK]], **preprocess_options)
                parts.append(packed_outputs(model, features, name, token_budget).float().cpu())
    finally:
        model.train(was_training)
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)
