"""Weights from safetensors files: checked, memory-mapped, as float32 NumPy arrays.

The format (https://huggingface.co/docs/safetensors) is an 8-byte little-endian header length, a JSON header
with each tensor's dtype, shape and byte range, and the bytes. It is read here rather than by the safetensors
package because NumPy has no bfloat16, which that package's NumPy form therefore refuses, and because a file
that an interrupted download cut short should be named as such.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crossrank.errors import CheckpointError

__all__ = ["Tensors", "file_digest", "open_tensors", "weight_files"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # decoded by hand: the upper half of a float32
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class _Entry(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    end: int


class Tensors(Mapping[str, npt.NDArray[Any]]):
    """The tensors of one or several safetensors files, by name.

    Floating-point tensors come as float32 (float16, bfloat16 and float64 are converted on access), others as
    stored. A float32 tensor is a read-only view of the file: nothing is read until it is used.

    Args:
        entries: where each tensor lies.
    """

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = dict(entries)
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"{entry.file}: tensor {name!r} has dtype {entry.dtype}, which is not supported; "
                f"save the model in one of {', '.join(_DTYPES)}"
            )
        if entry.file not in self._maps:
            self._maps[entry.file] = np.memmap(entry.file, dtype=np.uint8, mode="r")
        raw = self._maps[entry.file][entry.start : entry.end].view(np.ndarray)
        dtype = _DTYPES[entry.dtype]
        if entry.start % dtype.itemsize:
            raw = raw.copy()  # NumPy can view only aligned bytes safely
        array = raw.view(dtype).reshape(entry.shape)
        if entry.dtype == "BF16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        if entry.dtype in ("F16", "F64"):
            return array.astype(np.float32)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._entries[name].shape


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder: one, or the shards its index names.

    Raises:
        CheckpointError: a shard is missing, the index is damaged, or there are only pickled weights.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return (single,)
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not an index of safetensors shards: {error}") from error
        if any(str(name) != Path(str(name)).name for name in names):
            raise CheckpointError(f"{index} names shards outside its own folder: {names}")
        missing = [name for name in names if not (folder / str(name)).is_file()]
        if missing or not names:
            raise CheckpointError(
                f"{index} names weights that are not there: {', '.join(map(str, missing)) or 'none at all'}; "
                "the download was likely interrupted: fetch the model again"
            )
        return tuple(folder / str(name) for name in names)
    return ()


def open_tensors(files: tuple[Path, ...]) -> Tensors:
    """Read and check the headers of safetensors files.

    Raises:
        CheckpointError: a file is cut short, damaged, or not safetensors at all.
    """
    entries: dict[str, _Entry] = {}
    for file in files:
        entries.update(_read_header(file))
    return Tensors(entries)


def file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_header(file: Path) -> dict[str, _Entry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if first == b"version ":
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not weights; run 'git lfs pull' in its repository"
            )
        if len(first) < 8 or (length <= _MAX_HEADER_BYTES and 8 + length > size):
            raise CheckpointError(_truncated(file, size, 8 + length))
        if length > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{file} is not a safetensors file, or is damaged; fetch the model again")
        text = stream.read(length)
    try:
        header = json.loads(text)
        entries = {
            name: _Entry(
                file,
                str(info["dtype"]),
                tuple(int(size) for size in info["shape"]),
                8 + length + int(info["data_offsets"][0]),
                8 + length + int(info["data_offsets"][1]),
            )
            for name, info in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{file} has a damaged safetensors header ({error}); fetch the model again"
        ) from error
    for name, entry in entries.items():
        dtype = _DTYPES.get(entry.dtype)
        num_bytes = entry.end - entry.start
        if entry.start < 8 + length or (dtype and num_bytes != prod(entry.shape) * dtype.itemsize):
            raise CheckpointError(
                f"{file}: tensor {name!r} of shape {entry.shape} and dtype {entry.dtype} cannot take "
                f"{num_bytes} bytes; the file is damaged: fetch the model again"
            )
    needed = max((entry.end for entry in entries.values()), default=0)
    if needed > size:
        raise CheckpointError(_truncated(file, size, needed))
    return entries


def _truncated(file: Path, size: int, needed: int) -> str:
    return (
        f"{file} is cut short: it has {size:,} bytes and should have at least {needed:,}; "
        "the download was likely interrupted: delete the file and fetch the model again"
    )
