"""Weights part of the way back to those that training started from.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Interpolation"]


class Interpolation:
    """Mixes a model's weights with those it has now, before it is trained.

    Args:
        model: of sentence-transformers; what takes no gradient is left alone.
        base_share: of the weights it has now, in [0, 1); 0 leaves what is trained as it is.
    """

    def __init__(self, model: Any, base_share: float) -> None:
        self._share = base_share
        self._base = _copy(_trained(model)) if base_share else {}

    def apply(self, model: Any) -> None:
        """Mix the weights, in place."""
        if not self._share:
            return
        with torch.no_grad():
            for name, weight in _trained(model).items():
                weight.lerp_(self._base[name].to(weight.device), self._share)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Mix the weights for as long as the context lasts; afterwards they have their bits again."""
        if not self._share:
            yield
            return
        weights = _trained(model)
        kept = _copy(weights)
        self.apply(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(kept[name])


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _copy(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in weights.items()}
