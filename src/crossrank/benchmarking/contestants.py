"""Contestants as processes: each library alone in its own, so that memory and threads are its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.benchmarking import export_onnx, worker
from crossrank.benchmarking.rounds import Measured
from crossrank.errors import CrossrankError

__all__ = ["NEED_ONNX_FILES", "Contestant", "ContestantError", "add_onnx_files", "installed", "padding_waste"]

Pairs = Sequence[tuple[str, str]]

_TOKENS, _CHARACTERS = "tokens", "characters"
_SORTED_BY = {  # contestants that sort pairs, longest first, before they cut them into batches
    "sentence-transformers": _CHARACTERS,
    "sentence-transformers onnx": _CHARACTERS,
    "sentence-transformers openvino": _CHARACTERS,
    "onnxruntime dynamic int8": _TOKENS,
    "onnxruntime fused dynamic int8": _TOKENS,
}
_WINDOW = 4  # batches within which infinity sorts, shortest first
NEED_ONNX_FILES = (
    "onnxruntime dynamic int8",
    "onnxruntime fused dynamic int8",
    "flashrank",
    "fastembed",
    "infinity optimum",
)
"""Contestants that read what `add_onnx_files` makes."""


class ContestantError(CrossrankError):
    """A contestant cannot be loaded or run."""


class Contestant:
    """A library that has a model loaded, in a process of its own.

    Args:
        name: one of `worker.CONTESTANTS`.
        folder: the model.
        threads: for everything that the library runs on.
        max_length: tokens of a pair.
        interpreter: Python of the environment that has the library; this one by default.

    Attributes:
        variants: its batch sizes, the library's default first.
        environment: "versions" of its libraries, "python", "load_s" (seconds to load the model) and
            "idle_mb" (memory with the model loaded, all variants).

    Raises:
        ContestantError: it cannot be loaded; the message is the library's.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        threads: int,
        max_length: int,
        interpreter: str | Path = sys.executable,
    ) -> None:
        self.name = name
        self._died = ""
        self._again = partial(
            Contestant, name, folder, threads=threads, max_length=max_length, interpreter=interpreter
        )
        self._process = subprocess.Popen(
            [str(interpreter), str(Path(worker.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        try:
            options = {
                "contestant": name,
                "folder": str(folder),
                "threads": threads,
                "max_length": max_length,
            }
            loaded = self._ask(options)
        except BaseException:
            self.close()
            raise
        self.variants: list[str] = loaded["variants"]
        self.environment: dict[str, Any] = {
            name: loaded[name] for name in ("versions", "python", "load_s", "idle_mb")
        }

    def give(self, variant: str, pairs: Pairs) -> npt.NDArray[np.float32]:
        """Hand over the pairs that are scored from now on; their scores (n,)."""
        asked = {"variant": variant, "pairs": [list(pair) for pair in pairs], "keep_scores": True}
        return np.array(self._ask(asked)["scores"], np.float32)

    def run(self, variant: str) -> Measured:
        """Score the pairs that were given last."""
        found = self._ask({"variant": variant})
        return Measured(found["wall_s"], found["cpu_s"], found["peak_mb"])

    def peak_mb(self, variant: str, pairs: Pairs) -> float | None:
        """Most memory, in MB, of a new process that runs nothing else; None where it cannot be told."""
        with self._again() as fresh:
            fresh.give(variant, pairs)
            return fresh.run(variant).peak_mb

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # a process that died has left what it was sent unread
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, value: dict[str, Any]) -> dict[str, Any]:
        if self._died:
            raise ContestantError(self._died)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(value) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            why = ": it was killed, most likely for want of memory" if code == -9 else ""  # SIGKILL
            self._died = f"{self.name}: its process ended (exit code {code}){why}"
            raise ContestantError(self._died)
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise ContestantError(f"{self.name}: {found['error']}")
        return found


def installed(*, with_onnx_files: bool = False) -> list[str]:
    """The contestants whose libraries are installed here, crossrank first.

    Args:
        with_onnx_files: with those that read the files of `add_onnx_files`.
    """
    left_out = () if with_onnx_files else NEED_ONNX_FILES
    return [name for name in worker.CONTESTANTS if name not in left_out and worker.is_installed(name)]


def add_onnx_files(folder: Path, interpreter: str | Path) -> None:
    """Export a model for the contestants that read ONNX files.

    Args:
        folder: the float32 model; the files are put into it.
        interpreter: Python of an environment with torch, transformers, onnx and onnxruntime.

    Raises:
        ContestantError: it does not work; the message is the last line of what was said.
    """
    command = [str(interpreter), str(Path(export_onnx.__file__)), str(folder)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ContestantError(f"{interpreter} cannot be run: {error.strerror or error}") from error
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"it ends with {ran.returncode}"])[-1]
        raise ContestantError(f"{interpreter} cannot export the model to ONNX: {last}")


def padding_waste(name: str, variant: str, num_tokens: Sequence[int], num_characters: Sequence[int]) -> float:
    """Tokens that a contestant computes for each real one: 1.0 where it pads nothing.

    Args:
        name: the contestant.
        variant: "batches of 32", "unsorted batches of 32" or "one batch"; anything for crossrank.
        num_tokens: of each pair.
        num_characters: of each pair.
    """
    lengths = np.asarray(num_tokens, np.int64)
    if name.startswith("crossrank"):
        return 1.0
    size = len(lengths) if variant == worker.ONE_BATCH else int(variant.rpartition(" ")[2])
    order = np.arange(len(lengths))
    if name in _SORTED_BY and not variant.startswith(worker.UNSORTED):
        keys = lengths if _SORTED_BY[name] == _TOKENS else np.asarray(num_characters)
        order = np.argsort(-keys, kind="stable")
    elif name.startswith("infinity"):
        order = np.lexsort((np.asarray(num_characters), order // (_WINDOW * size)))
    batches = [lengths[order[start : start + size]] for start in range(0, len(order), size)]
    return sum(len(batch) * int(batch.max()) for batch in batches) / int(lengths.sum())
