"""What torch and a device can, found out when a model is opened: a kernel is tried before it is used."""

from __future__ import annotations

import inspect
import logging

import numpy as np
import torch

from crossrank.runtime.torch_backend.attention import Capability, attend, choose_way
from crossrank.runtime.torch_backend.packing import Packed
from crossrank.runtime.torch_backend.transfer import stage, token_batch

__all__ = ["find_capability"]

_HEAD_SIZE, _WINDOW, _LENGTHS = 32, 8, (5, 1, 70, 140)  # what the kernel is tried on
_MOST_ERROR = 0.02  # relative: bf16 has 8 bits

_logger = logging.getLogger(__name__)


def find_capability(device: torch.device, dtype: torch.dtype) -> Capability:
    """Find out what decides how attention is computed on a device."""
    compute = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        varlen = windows = False
    else:
        varlen, windows = True, "window_size" in inspect.signature(varlen_attn).parameters
    half = dtype in (torch.bfloat16, torch.float16)
    stated = Capability(device.type, half, (compute[0], compute[1]), varlen, windows)
    if choose_way(stated, _HEAD_SIZE, window=False) != "varlen":
        return stated
    varlen = _kernel_works(device, dtype, None)
    windows = varlen and windows and _kernel_works(device, dtype, _WINDOW)
    return stated._replace(varlen=varlen, varlen_windows=windows)


def _kernel_works(device: torch.device, dtype: torch.dtype, window: int | None) -> bool:
    """Whether the variable-length kernel gives what padding and a mask give, of a small batch."""
    lengths = np.array(_LENGTHS, dtype=np.int32)
    tokens = np.zeros(lengths.sum(), dtype=np.int32)
    packed = Packed(tokens, tokens, lengths, lengths, int(lengths.max()))
    batch = token_batch(stage(packed, pinned=False).to(device), packed)
    generator = torch.Generator().manual_seed(0)
    joined = torch.randn(len(tokens), 3, 2, _HEAD_SIZE, generator=generator).to(device, dtype)
    query, key, value = joined.unbind(1)  # as encoders have them
    with torch.no_grad():
        try:
            found = attend("varlen", batch, query, key, value, window=window)
        except RuntimeError as error:
            _logger.warning("the variable-length kernel fails on %s, another way is taken: %s", device, error)
            return False
        wanted = attend("padded", batch, query.float(), key.float(), value.float(), window=window)
        error_part = float((found.float() - wanted).norm() / wanted.norm())
    if not error_part < _MOST_ERROR:  # a NaN is no match either
        _logger.warning(
            "the variable-length kernel is wrong on %s (relative error %.2g); another way is taken",
            device,
            error_part,
        )
        return False
    return True
