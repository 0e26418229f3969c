"""A checkpoint's tensors on a device, and the layers made of them.

Shapes, missing tensors and those that have no place are checked beforehand, by writing the checkpoint's graph
(`crossrank.runtime.engine.build_graph`): what is refused there is refused here, in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch.nn import functional

from crossrank.errors import UnsupportedArchitectureError

__all__ = ["Activation", "Linear", "Norm", "Weights", "activation"]

Activation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Linear:
    """x @ weight.T + bias.

    Attributes:
        weight: (out, in).
        bias: (out,), or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to (..., in)."""
        return functional.linear(x, self.weight, self.bias)

    def part(self, start: int, stop: int) -> Linear:
        """The layer that gives the outputs from start to stop alone; it shares this one's weights."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last axis.

    Attributes:
        weight: (features,).
        bias: (features,), or None.
        epsilon: added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it to (..., features)."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Weights:
    """Makes layers of a checkpoint's tensors; each is copied to the device once.

    Args:
        tensors: by their names in the checkpoint; read, not kept.
        device: where they go.
        dtype: of the encoder's layers. Those of heads are float32.
    """

    def __init__(
        self, tensors: Mapping[str, npt.NDArray[Any]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.device = device
        self.dtype = dtype
        self._tensors = tensors

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self._tensors

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of the checkpoint on the device."""
        return self.copied(self._tensors[name], dtype or self.dtype)

    def copied(self, array: npt.NDArray[Any], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An array on the device."""
        return torch.tensor(array, dtype=dtype, device=self.device)

    def linear(self, *names: str, dtype: torch.dtype | None = None) -> Linear:
        """A linear layer; of several names, one that gives the outputs of all, end to end."""
        weight = torch.cat([self.tensor(f"{name}.weight", dtype) for name in names])
        if not self.has(f"{names[0]}.bias"):
            return Linear(weight, None)
        return Linear(weight, torch.cat([self.tensor(f"{name}.bias", dtype) for name in names]))

    def head_linear(self, name: str) -> Linear:
        """A linear layer of a head, in float32: close scores must not become ties."""
        return self.linear(name, dtype=torch.float32)

    def norm(self, name: str, epsilon: float, dtype: torch.dtype | None = None) -> Norm:
        """A LayerNorm; checkpoints converted from the first BERT releases say gamma and beta."""
        scale, shift = ("gamma", "beta") if self.has(f"{name}.gamma") else ("weight", "bias")
        bias = self.tensor(f"{name}.{shift}", dtype) if self.has(f"{name}.{shift}") else None
        return Norm(self.tensor(f"{name}.{scale}", dtype), bias, epsilon)


def _quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


_TANH_GELU = partial(functional.gelu, approximate="tanh")
_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": functional.gelu,  # the exact, error-function form
    "gelu_python": functional.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_fast": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
    "gelu_accurate": _TANH_GELU,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": _identity,
    "identity": _identity,
}


def activation(kind: str) -> Activation:
    """An activation by the name configs use ("gelu", "gelu_new", "relu", "silu", ...).

    Raises:
        UnsupportedArchitectureError: no such activation here.
    """
    if kind not in _ACTIVATIONS:
        raise UnsupportedArchitectureError(
            f"activation {kind!r} cannot be run by torch here; supported: {', '.join(sorted(_ACTIVATIONS))}"
        )
    return _ACTIVATIONS[kind]
