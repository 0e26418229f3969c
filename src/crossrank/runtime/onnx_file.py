"""A graph as an ONNX file: written with its weights, and what the file says of itself read back.

The file is what ONNX Runtime needs and nothing else: another program, in another language, runs it without
crossrank. It uses ONNX Runtime's own operators (com.microsoft), so other runtimes cannot read it.

Weights are in the file, or, where they would be more than protobuf's 2 GB, in one file beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from crossrank.runtime.graph import Graph
from crossrank.runtime.weights import file_digest

__all__ = ["ONNX_FILE", "ONNX_FOLDER", "OnnxFacts", "onnx_digest", "read_facts", "write_onnx"]

ONNX_FOLDER = "onnx"
"""Name of the folder for ONNX files in a model folder, as on the Hugging Face hub."""

ONNX_FILE = "model.onnx"
"""Name of the file in it. Weights beside it are in `model.onnx_data`."""

_MOST_BYTES_INSIDE = 2_000_000_000  # protobuf takes no more than 2 GiB, graph included
_PAGE = 4096  # where weights may begin in their file, to be mapped into memory
_TYPES = "token_type_ids"


class OnnxFacts(NamedTuple):
    """What a file that crossrank wrote says of itself.

    Attributes:
        output: what it gives: "logits", "tokens", or a head in words.
        precision: of its linear layers: "float32" or "int8".
    """

    output: str
    precision: str


def write_onnx(path: Path, graph: Graph, facts: OnnxFacts, *, reads_types: bool = True) -> list[Path]:
    """Write a graph with its weights.

    Args:
        path: the file; its folder is there.
        graph: finished.
        facts: what the file is to say of itself.
        reads_types: whether the model was trained with token types. If not, the file does not ask for them:
            who runs it would give those of the tokenizer, and get other scores.

    Returns:
        The files written.
    """
    model = graph.model()
    if not reads_types:
        _without_types(model)
    helper.set_model_props(
        model, {**{f"crossrank.{key}": value for key, value in facts._asdict().items()}, **_made_by()}
    )
    weights = graph.weights
    if sum(array.nbytes for array in weights.values()) <= _MOST_BYTES_INSIDE:
        for proto in _outside(model):
            proto.ClearField("external_data")
            proto.data_location = TensorProto.DEFAULT
            proto.raw_data = weights[proto.name].tobytes()
        path.write_bytes(model.SerializeToString())
        return [path]
    data = path.with_name(f"{path.name}_data")
    with data.open("wb") as file:
        for proto in _outside(model):
            array = np.ascontiguousarray(weights[proto.name])
            file.write(bytes(-file.tell() % _PAGE))
            place = {"location": data.name, "offset": file.tell(), "length": array.nbytes}
            proto.ClearField("external_data")
            for key, value in place.items():
                entry = proto.external_data.add()
                entry.key, entry.value = key, str(value)
            file.write(array.data)
    path.write_bytes(model.SerializeToString())
    return [path, data]


def read_facts(stated: Mapping[str, str]) -> OnnxFacts | None:
    """Read what a file says of itself in its metadata; None for a file that is not crossrank's."""
    values = [stated.get(f"crossrank.{key}") for key in OnnxFacts._fields]
    known = [value for value in values if value is not None]
    return OnnxFacts(*known) if len(known) == len(values) else None


def onnx_digest(file: Path) -> str:
    """SHA-256 (hex) of an ONNX file, and of the weights beside it where there are any."""
    digest = file_digest(file)
    data = file.with_name(f"{file.name}_data")
    if not data.is_file():
        return digest
    return hashlib.sha256(f"{digest} {file_digest(data)}".encode()).hexdigest()


def _made_by() -> dict[str, str]:
    return {"crossrank.version": version("crossrank")}


def _outside(model: onnx.ModelProto) -> list[TensorProto]:
    """The weights that are not in the graph yet."""
    return [proto for proto in model.graph.initializer if proto.data_location == TensorProto.EXTERNAL]


def _without_types(model: onnx.ModelProto) -> None:
    """Compute the token types as zeros, in place of asking for them."""
    asked = [value for value in model.graph.input if value.name == _TYPES]
    for value in asked:
        model.graph.input.remove(value)
        model.graph.node.insert(0, helper.make_node("Sub", ["input_ids", "input_ids"], [_TYPES]))
