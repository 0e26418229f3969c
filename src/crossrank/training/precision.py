"""Which arithmetic a training runs in: bf16 where it is faster on this machine, float32 elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["PrecisionChoice", "faster_precision"]

Precision = Literal["float32", "bf16"]

_ROUNDS = 3
_MARGIN = 1.05
"""bf16 loses digits: it must be faster by more than the clock's noise."""


@dataclass(frozen=True)
class PrecisionChoice:
    """What was chosen, and the seconds that it rests on.

    Attributes:
        precision: the faster one.
        float32_s: the shortest step in float32.
        bf16_s: the shortest step under bf16 autocast.
    """

    precision: Precision
    float32_s: float
    bf16_s: float


def faster_precision(
    model: Any, loss_of: Callable[[], torch.Tensor], device: torch.device
) -> PrecisionChoice:
    """Time forward and backward passes in both, in turns, and return the faster one.

    Gradients are thrown away, and the generators end in the state they were in.

    Args:
        model: whose gradients are thrown away.
        loss_of: runs a typical step forward.
        device: where it runs.
    """
    shortest: dict[Precision, float] = {}
    generators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=generators):
        for turn in range(_ROUNDS + 1):  # the first one warms up
            for precision in ("float32", "bf16"):
                seconds = _seconds(loss_of, device, precision == "bf16")
                model.zero_grad(set_to_none=True)
                if turn:
                    shortest[precision] = min(seconds, shortest.get(precision, seconds))
    is_faster = shortest["bf16"] * _MARGIN < shortest["float32"]
    return PrecisionChoice("bf16" if is_faster else "float32", shortest["float32"], shortest["bf16"])


def _seconds(loss_of: Callable[[], torch.Tensor], device: torch.device, autocast: bool) -> float:
    start = time.perf_counter()
    with torch.autocast(device.type, dtype=torch.bfloat16) if autocast else nullcontext():
        loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
