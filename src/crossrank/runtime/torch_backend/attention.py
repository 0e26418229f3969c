"""Attention among the tokens of each row of a packed batch: three ways, by what torch and the device can.

varlen  torch's variable-length kernel (`torch.nn.attention.varlen`): no padding, any GPU graph. CUDA from
        compute capability 8.0, bf16, torch 2.10 or newer; windows from 2.11 on.
nested  scaled_dot_product_attention over jagged nested tensors: no padding either, but it takes no window.
padded  scaled_dot_product_attention over rows padded to the longest, with a mask. Runs anywhere.

All three compute softmax(q kᵀ · scale) v among a row's tokens, nothing across rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch.nn import functional

__all__ = ["Capability", "TokenBatch", "Way", "attend", "choose_way"]

Way = Literal["varlen", "nested", "padded"]

_VARLEN_COMPUTE = (8, 0)
_HEAD_STEP, _LARGEST_HEAD = 8, 256  # the sizes of a head that the varlen kernel takes


class Capability(NamedTuple):
    """What decides how attention can be computed.

    Attributes:
        device: "cuda", "cpu", "mps".
        half: whether numbers have 16 bits.
        compute: CUDA's compute capability; (0, 0) elsewhere.
        varlen: whether this torch has `varlen_attn`.
        varlen_windows: whether it takes a window.
    """

    device: str
    half: bool
    compute: tuple[int, int]
    varlen: bool
    varlen_windows: bool


def choose_way(capability: Capability, head_size: int, *, window: bool) -> Way:
    """Choose how a layer's attention is computed.

    Args:
        capability: of torch and the device.
        head_size: features of an attention head.
        window: whether tokens attend to those near by only.
    """
    if capability.device != "cuda":
        return "padded"  # elsewhere torch takes nested tensors apart and pads them itself
    kernel = (
        capability.varlen
        and capability.half
        and capability.compute >= _VARLEN_COMPUTE
        and head_size % _HEAD_STEP == 0
        and head_size <= _LARGEST_HEAD
    )
    if kernel and (capability.varlen_windows or not window):
        return "varlen"
    return "padded" if window else "nested"


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """A packed batch on its device.

    Attributes:
        ids: (tokens,) int32.
        types: (tokens,) int32.
        positions: (tokens,) int32, the place of each token in its row.
        rows: (tokens,) int32, the row of each token.
        starts: (rows + 1,) int32, where rows begin, and the end.
        attended: (rows,) int32, how many tokens of each row are attended to.
        longest: tokens of the longest row, or a bound of it.
        partly_attended: whether that can be less than all.
    """

    ids: torch.Tensor
    types: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    starts: torch.Tensor
    attended: torch.Tensor
    longest: int
    partly_attended: bool

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self.attended)

    @cached_property
    def firsts(self) -> torch.Tensor:
        """Where each row's first token is, (rows,); an empty row at the end has the last token's place."""
        return self.starts[:-1].clamp(max=len(self.ids) - 1)

    @cached_property
    def places(self) -> torch.Tensor:
        """Where each token lies in (rows × longest), int64."""
        return self.rows.long() * self.longest + self.positions

    @cached_property
    def is_full(self) -> bool:
        """Whether all rows have the longest's length."""
        return len(self.ids) == self.num_rows * self.longest and not self.partly_attended

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, size) -> (rows, heads, longest, size), zeros in the padding."""
        if len(x) != self.num_rows * self.longest:
            padded = x.new_zeros(self.num_rows * self.longest, *x.shape[1:])
            x = padded.index_copy_(0, self.places, x)
        return x.view(self.num_rows, self.longest, *x.shape[1:]).transpose(1, 2)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, heads, longest, size) -> (tokens, heads, size)."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if len(flat) == len(self.ids) else flat.index_select(0, self.places)

    @cached_property
    def key_mask(self) -> torch.Tensor | None:
        """What may be attended to, (rows, 1, 1, longest) bool; None for everything."""
        if self.is_full:
            return None
        positions = torch.arange(self.longest, device=self.ids.device)
        return (positions < self.attended[:, None])[:, None, None]

    def mask(self, window: int | None) -> torch.Tensor | None:
        """`key_mask` without tokens further apart than the window: (rows or 1, 1, longest, longest)."""
        if window is None:
            return self.key_mask
        if window not in self._windows:
            positions = torch.arange(self.longest, device=self.ids.device)
            near = ((positions[:, None] - positions).abs() <= window)[None, None]
            self._windows[window] = near if self.key_mask is None else near & self.key_mask
        return self._windows[window]

    @cached_property
    def _windows(self) -> dict[int, torch.Tensor]:
        return {}


def attend(
    way: Way,
    batch: TokenBatch,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None = None,
) -> torch.Tensor:
    """Compute attention among each row's tokens.

    Args:
        way: what `choose_way` says; rows that are attended to in part are padded whatever it says.
        batch: says where rows are.
        query: (tokens, heads, size), or (rows, heads, size) of each row's first token alone, without window.
        key: (tokens, heads, size).
        value: (tokens, heads, size).
        window: how far apart tokens may be that attend to one another; None for any distance.

    Returns:
        What each query gives, in the shape of the queries.
    """
    return _WAYS["padded" if batch.partly_attended else way](batch, query, key, value, window)


def _varlen(
    batch: TokenBatch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = batch.starts, batch.longest
    if len(query) != len(key):  # first tokens alone
        starts, longest = _ones(batch), 1
    # Without a window it is not mentioned: torch 2.10 does not know it. The kernel cuts no row's keys into
    # parts (it does in decoding alone), so what a row gives does not depend on its neighbours.
    windows: dict[str, Any] = {} if window is None else {"window_size": (window, window)}
    found: Any = varlen_attn(query, key, value, starts, batch.starts, longest, batch.longest, **windows)
    mixed: torch.Tensor = found
    return mixed


def _nested(
    batch: TokenBatch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    if window is not None:
        return _padded(batch, query, key, value, window)

    def jagged(x: torch.Tensor, starts: torch.Tensor, longest: int) -> torch.Tensor:
        nested = torch.nested.nested_tensor_from_jagged(x.contiguous(), starts.long(), max_seqlen=longest)
        return nested.transpose(1, 2)

    firsts_only = len(query) != len(key)
    queries = jagged(query, _ones(batch), 1) if firsts_only else jagged(query, batch.starts, batch.longest)
    found = functional.scaled_dot_product_attention(
        queries, jagged(key, batch.starts, batch.longest), jagged(value, batch.starts, batch.longest)
    )
    values: torch.Tensor = found.transpose(1, 2).values()
    return values


def _padded(
    batch: TokenBatch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
) -> torch.Tensor:
    firsts_only = len(query) != len(key)
    queries = query[:, :, None] if firsts_only else batch.spread(query)  # (rows, heads, 1 or longest, size)
    mask = batch.mask(window)
    found = functional.scaled_dot_product_attention(
        queries, batch.spread(key), batch.spread(value), attn_mask=mask
    )
    return found[:, :, 0] if firsts_only else batch.gather(found)


def _ones(batch: TokenBatch) -> torch.Tensor:
    """The starts of rows of one token."""
    return torch.arange(batch.num_rows + 1, dtype=torch.int32, device=batch.ids.device)


_WAYS: dict[
    Way,
    Callable[[TokenBatch, torch.Tensor, torch.Tensor, torch.Tensor, int | None], torch.Tensor],
] = {"varlen": _varlen, "nested": _nested, "padded": _padded}
