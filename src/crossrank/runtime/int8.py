"""Static int8: linear layers whose activation scales are fixed beforehand, so a pair's score is its own.

Dynamic quantisation takes the scale of a whole batch's activations, and with it a pair's score depends on its
neighbours. Here scales come from a calibration (quantization.py) and are stored with the weights: each linear
layer is QuantizeLinear (uint8, one scale) and an integer product with one weight scale an output feature
(int8). Heads, norms, attention and activation functions stay float32.

A quantised checkpoint is one file, `model.int8.safetensors`, beside config.json and tokenizer.json. For a
layer `name` it has `name.weight` (out, in) int8, `name.weight_scale` (out,), `name.bias` (out,) where the
float32 layer has one, `name.bias_correction` (out,), which is added to it in int8, `name.input_scale` (1,),
`name.input_zero_point` (1,) and, where smoothing helped, `name.input_smooth` (in,): inputs are multiplied by
it. With `name.by_row` (1,) the scale is for inputs divided by the largest |value| of their row, which keeps
it a row's own. A table `name` of word embeddings has `name` (rows, size) int8 and `name_scale` (rows, 1).

Beside it, `parity.json` is the record of the parity gate: "passed", and the "sha256" of the very file that
was measured, so that it says nothing about any other; for scores after earlier layers (exits.py), also the
"exits_sha256" of the heads that were measured with it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from crossrank.runtime.exits import EXITS_FILE
from crossrank.runtime.graph import Float32Linear, Graph
from crossrank.runtime.processor import processor
from crossrank.runtime.settings import read_object, read_setting
from crossrank.runtime.weights import file_digest

__all__ = ["INT8_FILE", "PARITY_FILE", "Dequantized", "Int8Linear", "passed_parity", "write_parity"]

INT8_FILE = "model.int8.safetensors"
"""Name of the quantised weights in a model folder."""

PARITY_FILE = "parity.json"
"""Name of the parity gate's record beside them."""

Array = npt.NDArray[Any]


class Int8Linear:
    """The form of linear layers that reads `model.int8.safetensors`; layers without a scale stay float32.

    Args:
        anywhere: write the products that are exact on every processor, and not those that are the fastest of
            the exact ones on this one. The numbers are the same.
        operators: library of operators that are whole encoder layers (native/); None writes every layer.
    """

    def __init__(self, *, anywhere: bool = False, operators: Path | None = None) -> None:
        self.operators = operators
        self._written: dict[tuple[Any, ...], str] = {}
        self._signed = not anywhere and _multiplies_exactly()

    def linear(self, graph: Graph, x: str, name: str) -> str:
        """Write QuantizeLinear and MatMulIntegerToFloat."""
        if not graph.has(f"{name}.input_scale"):
            return Float32Linear().linear(graph, x, name)
        scale, zero_point = graph.array(f"{name}.input_scale"), graph.array(f"{name}.input_zero_point")
        x = self._smooth(graph, x, name)
        largest = self._largest(graph, x) if graph.has(f"{name}.by_row") else ""
        rounded = self._round(graph, x, name, largest)
        bias = graph.array(f"{name}.bias_correction")
        if graph.has(f"{name}.bias"):
            bias = graph.array(f"{name}.bias") + bias
        weight = np.ascontiguousarray(graph.array(f"{name}.weight").T)  # (in, out)
        offset = ""  # zeros given as an offset would be computed with
        if not self._signed:
            weight = (weight.astype(np.int16) + 128).astype(np.uint8)
            offset = graph.constant(np.full(weight.shape[1], 128), np.uint8)
        bias_value = graph.weight(f"{name}.bias", bias)
        product = graph.microsoft(
            "MatMulIntegerToFloat",
            [
                rounded,
                graph.weight(f"{name}.weight", weight),
                graph.constant(scale[0], np.float32),
                graph.tensor(f"{name}.weight_scale"),
                graph.constant(zero_point[0], np.uint8),
                offset,
                "" if largest else bias_value,
            ],
        )
        if not largest:
            return product
        by_row = graph.node("Unsqueeze", [largest, graph.constant([1])])
        return graph.node("Add", [graph.node("Mul", [product, by_row]), bias_value])

    def linear_many(self, graph: Graph, x: str, names: Sequence[str]) -> list[str]:
        """Write one product each; an input they share is rounded once."""
        return [self.linear(graph, x, name) for name in names]

    def _smooth(self, graph: Graph, x: str, name: str) -> str:
        if not graph.has(f"{name}.input_smooth"):
            return x
        factors = graph.array(f"{name}.input_smooth")
        tensor = f"{name}.input_smooth"
        return self._once(
            (x, factors.tobytes()), lambda: graph.node("Mul", [x, graph.weight(tensor, factors)])
        )

    def _largest(self, graph: Graph, x: str) -> str:
        """The largest |value| of each row, (rows,)."""

        def write() -> str:
            axis = graph.constant([1])
            largest = graph.node("ReduceMax", [graph.node("Abs", [x]), axis], keepdims=0)
            return graph.node("Max", [largest, graph.constant(1e-12, np.float32)])

        return self._once((x, "largest"), write)

    def _round(self, graph: Graph, x: str, name: str, largest: str) -> str:
        """Inputs as uint8; `largest` is empty, or divides them."""
        scale, zero_point = graph.array(f"{name}.input_scale"), graph.array(f"{name}.input_zero_point")

        def write() -> str:
            step = graph.constant(scale[0], np.float32)
            zero = graph.constant(zero_point[0], np.uint8)
            if not largest:
                return graph.node("QuantizeLinear", [x, step, zero])
            steps = graph.node("Mul", [largest, step])
            zeros = graph.node("Expand", [zero, graph.node("Shape", [steps])])
            return graph.node("QuantizeLinear", [x, steps, zeros], axis=0)

        return self._once((x, largest, scale.tobytes(), zero_point.tobytes()), write)

    def _once(self, key: tuple[Any, ...], write: Callable[[], str]) -> str:
        if key not in self._written:
            self._written[key] = write()
        return self._written[key]


class Dequantized(Mapping[str, Array]):
    """The tensors of an int8 file as float32, under the names of the float32 checkpoint.

    Args:
        stored: the file's tensors.

    Attributes:
        stored: the same.
    """

    def __init__(self, stored: Mapping[str, Array]) -> None:
        self.stored = stored
        added = (
            "weight_scale",
            ".input_scale",
            ".input_zero_point",
            ".input_smooth",
            ".bias_correction",
            ".by_row",
        )
        self._names = {name: None for name in stored if not name.endswith(added)}  # in order

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        array = self.stored[name]
        if f"{name}_scale" not in self.stored:
            return array
        weight = array.astype(np.float32) * self.stored[f"{name}_scale"].reshape(-1, 1)
        smooth = f"{name.removesuffix('.weight')}.input_smooth"
        return weight * self.stored[smooth] if smooth in self.stored else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def passed_parity(folder: Path, digest: Callable[[], str] | None = None, exits_digest: str = "") -> bool:
    """Whether a folder's int8 weights, and no others, have a record of passing the parity gate.

    Args:
        folder: has both files.
        digest: gives the SHA-256 (hex) of the weights where that is kept; None computes it.
        exits_digest: SHA-256 (hex) of the heads at earlier layers, which must have passed, too; "" where it
            is the last layer's scores that matter.

    Raises:
        CheckpointError: the record cannot be read.
    """
    path = folder / PARITY_FILE
    if not path.is_file():
        return False
    record = read_object(path)
    if not read_setting(record, "passed", bool, source=path):
        return False
    if exits_digest and read_setting(record, "exits_sha256", str, "", source=path) != exits_digest:
        return False
    measured = read_setting(record, "sha256", str, source=path)
    return measured == (digest() if digest else file_digest(folder / INT8_FILE))


def write_parity(folder: Path, record: Mapping[str, Any], digest: str | None = None) -> None:
    """Write the parity gate's record beside the int8 weights it is about.

    Their SHA-256 is added, and that of heads at earlier layers where the folder has some.

    Args:
        folder: has the int8 weights.
        record: what was measured; `passed` says whether the weights may be used.
        digest: of the weights; None takes that of `INT8_FILE`.
    """
    record = {**record, "sha256": digest or file_digest(folder / INT8_FILE)}
    if (folder / EXITS_FILE).is_file():
        record["exits_sha256"] = file_digest(folder / EXITS_FILE)
    (folder / PARITY_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@cache
def _multiplies_exactly() -> bool:
    """Whether uint8 × int8 products are exact here.

    x86 without VNNI adds pairs of them in 16 bits and saturates; there uint8 weights, offset by 128, give the
    same integers by a slower instruction.
    """
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    return not {"avx512_vnni", "avx_vnni"}.isdisjoint(processor().features or ())
