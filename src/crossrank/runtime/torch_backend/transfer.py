"""Packed batches to the device, in one copy, and what is computed of them back.

On CUDA both go through pinned memory and are asked for, not waited for: the host goes on preparing the next
batch, and waits once, for an event behind the copy back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from crossrank.runtime.torch_backend.attention import TokenBatch
from crossrank.runtime.torch_backend.packing import Packed

__all__ = ["fetch", "stage", "token_batch"]

Floats = npt.NDArray[np.float32]


class _Sizes(NamedTuple):
    tokens: int
    rows: int

    @property
    def parts(self) -> list[int]:
        """Of ids, types, positions, rows, starts, attended."""
        return [self.tokens] * 4 + [self.rows + 1, self.rows]


def stage(packed: Packed, *, pinned: bool) -> torch.Tensor:
    """Put all that the device needs to know of a batch into one array on the host, int32."""
    sizes = _Sizes(len(packed.ids), len(packed.lengths))
    staged = torch.empty(sum(sizes.parts), dtype=torch.int32, pin_memory=pinned)
    parts = [packed.ids, packed.types, packed.positions, packed.rows, packed.starts, packed.attended]
    np.concatenate(parts, out=staged.numpy())
    return staged


def token_batch(staged: torch.Tensor, packed: Packed) -> TokenBatch:
    """Read a staged array, by now on the device, as the batch it was made of."""
    sizes = _Sizes(len(packed.ids), len(packed.lengths))
    ids, types, positions, rows, starts, attended = torch.split(staged, sizes.parts)
    partly = packed.attended is not packed.lengths and bool((packed.attended < packed.lengths).any())
    return TokenBatch(ids, types, positions, rows, starts, attended, packed.longest, partly)


def fetch(values: torch.Tensor) -> Callable[[], Floats]:
    """Ask for values; what is returned waits for them and gives them as an array on the host."""
    values = values.float()
    if values.device.type != "cuda":
        found: Floats = values.cpu().numpy()
        return lambda: found
    host = torch.empty(values.shape, dtype=torch.float32, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event: torch.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> Floats:
        event.synchronize()
        array: Floats = host.numpy()
        return array

    return wait
