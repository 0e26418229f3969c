"""Where a model runs: ONNX Runtime on the CPU, or torch on a GPU (or wherever it is told to).

Nothing here imports torch unless a GPU may be there or torch is asked for: that takes seconds.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError, require
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Engine, Source, open_engine
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE, passed_parity
from crossrank.runtime.limits import num_threads

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812 (a class that torch writes in small letters)

__all__ = [
    "BACKEND_VARIABLE",
    "Backend",
    "Precision",
    "choose_backend",
    "default_precision",
    "open_backend",
    "open_device",
]

Backend = Literal["auto", "onnx", "torch"]
Precision = Literal["auto", "float32", "int8", "bf16"]

BACKEND_VARIABLE = "CROSSRANK_BACKEND"
"""Environment variable: what `backend="auto"` takes where both can run a model: "onnx", "torch", "auto"."""

_TORCH_ARCHITECTURES = ("bert", "electra", "roberta", "distilbert", "deberta-v2", "modernbert")
_DEVICES = "'cpu', 'cuda', 'cuda:1' (the second GPU), ... or 'mps'"
# What a driver for GPUs that torch calls "cuda" puts into a system: NVIDIA's library, AMD's device.
_DRIVER_LIBRARIES = {"win32": ("nvml.dll", "nvcuda.dll")}.get(
    sys.platform, ("libnvidia-ml.so.1", "libcuda.so.1")
)
_AMD_DEVICE = Path("/dev/kfd")

_logger = logging.getLogger(__name__)


def open_backend(
    checkpoint: Checkpoint,
    *,
    output: Literal["logits", "tokens"],
    backend: Backend = "auto",
    device: str | None = None,
    precision: Precision = "auto",
    threads: int | None = None,
    source: Source = "auto",
    vectors_of_padding: bool = False,
    may_change_precision: bool = False,
) -> Engine:
    """Open a checkpoint for running where it is asked for, or where it is fastest.

    Args:
        checkpoint: the opened folder.
        output: "logits" for a classifier's raw scores, "tokens" for the last layer's token vectors.
        backend: "onnx" for ONNX Runtime on the CPU, "torch" for torch (extra "torch"); "auto" takes torch
            where a GPU that it can use is there or a device is named, else ONNX Runtime.
        device: of torch: "cpu", "cuda", "cuda:1", "mps"; None takes the first GPU, else the CPU.
        precision: "float32"; "int8" of ONNX Runtime; "bf16" of torch; "auto" for ONNX Runtime takes int8
            where it passed its parity gate, and for torch bf16 on GPUs that compute in it, else float32.
        threads: of ONNX Runtime; torch has its own (`torch.set_num_threads`).
        source: see `crossrank.runtime.engine.open_engine`.
        vectors_of_padding: whether vectors of tokens that are not attended to are wanted.
        may_change_precision: see `crossrank.runtime.engine.open_engine`.

    Raises:
        InputError: an option that is none, options that do not go together, or a device that is not there.
        MissingExtraError: torch is asked for and not installed.
        CheckpointError: the checkpoint cannot give this output or precision.
        DeviceMemoryError: the weights do not fit the device.
    """
    chosen = choose_backend(backend, device, precision=precision, source=source, checkpoint=checkpoint)
    if chosen == "onnx":
        assert precision != "bf16"  # refused by choose_backend
        return open_engine(
            checkpoint,
            output=output,
            precision=precision,
            threads=threads,
            source=source,
            may_change_precision=may_change_precision,
        )
    num_threads(threads)  # not read, but a number that is none should not pass either
    torch: Any = require("torch", "torch")
    on = open_device(torch, device)
    if precision == "auto":
        _check_int8_weights(checkpoint)
    dtype = default_precision(torch, on) if precision == "auto" else precision
    assert dtype != "int8"  # refused by choose_backend
    if dtype == "float32" and on.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        _logger.warning(
            "torch.get_float32_matmul_precision() is %r: matrix products are not computed in full float32",
            torch.get_float32_matmul_precision(),
        )
    from crossrank.runtime.torch_backend.engine import TorchEngine

    return TorchEngine(checkpoint, output, device=on, precision=dtype, vectors_of_padding=vectors_of_padding)


def choose_backend(
    backend: Backend,
    device: str | None,
    *,
    precision: Precision,
    source: Source,
    checkpoint: Checkpoint,
    torch_architectures: Sequence[str] = _TORCH_ARCHITECTURES,
) -> Literal["onnx", "torch"]:
    """Say what a model runs on; see `open_backend`.

    Args:
        backend: see `open_backend`.
        device: see `open_backend`.
        precision: see `open_backend`.
        source: see `open_backend`.
        checkpoint: see `open_backend`.
        torch_architectures: what the caller's torch form runs.

    Raises:
        InputError: an option that is none, or options that do not go together.
        UnsupportedArchitectureError: torch is asked for, and does not run this architecture.
    """
    for name, value, choices in (("backend", backend, Backend), ("precision", precision, Precision)):
        if value not in get_args(choices):
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(get_args(choices))}")
    has_torch_form = checkpoint.architecture in torch_architectures and checkpoint.has_weights
    if backend == "auto":
        if device is not None or precision == "bf16":
            backend = "torch"
        elif not has_torch_form or precision == "int8" or source == "onnx":
            return "onnx"
        else:
            backend = _stated_backend()
    if backend == "auto":
        return "torch" if _gpu_is_there() else "onnx"
    if backend == "onnx":
        if device is not None:
            raise InputError("device is of backend='torch'; leave it out")
        if precision == "bf16":
            raise InputError(
                "precision 'bf16' needs backend='torch'; ONNX Runtime has no such kernels for CPUs"
            )
        return "onnx"
    if precision == "int8":
        raise InputError("precision 'int8' is of backend='onnx'; with torch choose 'float32' or 'bf16'")
    if source == "onnx":
        raise InputError("source 'onnx' is of backend='onnx'; torch computes with the weights")
    if not checkpoint.has_weights:
        raise CheckpointError(
            f"{checkpoint.transformer_folder} has no safetensors weights, which torch computes with; "
            "use backend='onnx'"
        )
    if not has_torch_form:
        raise UnsupportedArchitectureError(
            f"{checkpoint.folder}: {checkpoint.architecture!r} is not run by torch here; "
            f"{', '.join(torch_architectures)} are. Use backend='onnx'"
        )
    return "torch"


def open_device(torch: Any, device: str | None) -> Device:
    """Find a device of torch's.

    Args:
        torch: the module.
        device: see `open_backend`.

    Raises:
        InputError: it is none, or is not there; says what to do.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found: Device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {device!r}; choose {_DEVICES}") from error
    if found.type == "cpu":
        return found
    if found.type == "cuda":
        if not torch.cuda.is_available():
            why = (
                "this torch was built without CUDA: install one that has it (https://pytorch.org)"
                if torch.version.cuda is None and getattr(torch.version, "hip", None) is None
                else "torch sees no GPU: see nvidia-smi, and CUDA_VISIBLE_DEVICES"
            )
            raise InputError(f"device is {device!r}, but {why}; or use device='cpu'")
        count = torch.cuda.device_count()
        if found.index is not None and found.index >= count:
            there = ", ".join(f"cuda:{i}" for i in range(count))
            raise InputError(f"device is {device!r}, which is not there; torch sees {there}")
        if found.index is None:
            found = torch.device("cuda", torch.cuda.current_device())
        return found
    if found.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("device is 'mps', which is of Apple's GPUs; torch sees none: use device='cpu'")
        return found
    raise InputError(f"device is {device!r}; choose {_DEVICES}")


def default_precision(torch: Any, device: Device) -> Literal["float32", "bf16"]:
    """What to compute in where nobody says: bf16 on a GPU whose matrix units take it, else float32."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "float32"


def _stated_backend() -> Backend:
    stated = os.environ.get(BACKEND_VARIABLE, "").strip() or "auto"
    for choice in get_args(Backend):
        if stated == choice:
            return choice  # type: ignore[no-any-return]
    raise InputError(
        f"the environment variable {BACKEND_VARIABLE} is {stated!r}; set it to one of "
        f"{', '.join(get_args(Backend))}, or unset it"
    )


def _gpu_is_there() -> bool:
    """Whether torch is installed and can use a GPU; imports it only where a driver for one is."""
    if importlib.util.find_spec("torch") is None:
        return False
    if "torch" not in sys.modules and not _driver_is_there():
        return False
    torch: Any = require("torch", "torch")
    return bool(torch.cuda.is_available())


def _driver_is_there() -> bool:
    if _AMD_DEVICE.exists():
        return True
    for library in _DRIVER_LIBRARIES:
        try:
            ctypes.CDLL(library)  # loaded, not started: that would be felt in processes forked later
        except OSError:
            continue
        return True
    return False


def _check_int8_weights(checkpoint: Checkpoint) -> None:
    """Refuse rounded weights that nothing vouches for, as ONNX Runtime's engine does."""
    if checkpoint.weight_files or checkpoint.int8_file is None:
        return
    if not passed_parity(checkpoint.int8_file.parent, lambda: checkpoint.int8_digest):
        raise CheckpointError(
            f"{checkpoint.folder} has weights in {INT8_FILE} alone, and {PARITY_FILE} does not say that they "
            "passed the parity gate; fetch both again, or compute with them all the same with "
            "precision='float32'"
        )
