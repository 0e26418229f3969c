"""The loss of models that compare two documents of a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ComparisonLoss"]


class ComparisonLoss(nn.Module):
    """Cross-entropy of "the first is the more relevant one", with the positive first, and second.

    Source: Pradeep et al. 2021, duoT5, arXiv:2101.05667, section 3.3: log p(true) for the relevant document
    first, log p(false) for it second.

    Args:
        model: gives a logit for (query, document, document).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs: Sequence[Sequence[str]],
        labels: Tensor | None = None,
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Return the mean over both orders of all rows.

        Args:
            inputs: queries, positives, negatives.
            labels: none are read.
            prompt: for `model.preprocess`.
            task: for `model.preprocess`.
        """
        rows = [*zip(*inputs, strict=True)]
        both = rows + [(query, negative, positive) for query, positive, negative in rows]
        features = self.model.preprocess(both, prompt=prompt, task=task)
        device = self.model.device
        features = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()
        }
        logits = self.model(features)["scores"].view(-1).float()
        first_wins = torch.arange(len(both), device=device) < len(rows)
        return functional.binary_cross_entropy_with_logits(logits, first_wins.float())
