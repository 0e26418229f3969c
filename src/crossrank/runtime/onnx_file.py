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

__all__ = ["ONNX_FILE", "ONNX_FOLDER", "OnnxFacts", "TwoPaths", "onnx_digest", "read_facts", "write_onnx"]

ONNX_FOLDER = "onnx"
"""Name of the folder for ONNX files in a model folder, as on the Hugging Face hub."""

ONNX_FILE = "model.onnx"
"""Name of the file in it. Weights beside it are in `model.onnx_data`."""

_MOST_BYTES_INSIDE = 2_000_000_000  # protobuf takes no more than 2 GiB, graph included
_PAGE = 4096  # where weights may begin in their file, to be mapped into memory
_TYPES = "token_type_ids"


class TwoPaths:
    """One graph of two: for batches without padding that which reads no mask, for others that which does.

    Attention without a mask is another kernel, with other rounding: so a file gives, for rows of one length,
    the same bits as the graphs that crossrank runs itself.

    Args:
        padded: of the two, the graph for batches with padding.
        exact: the other, with the same weights and outputs.

    Attributes:
        weights: see `Graph`.
    """

    def __init__(self, padded: Graph, exact: Graph) -> None:
        self._padded = padded
        self._exact = exact
        self._shared = {
            name
            for name, array in padded.weights.items()
            if name in exact.weights and np.array_equal(array, exact.weights[name])
        }
        self.weights = {name: padded.weights[name] for name in self._shared}
        for branch, graph in (("padded", padded), ("exact", exact)):
            for name in graph.weights.keys() - self._shared:
                self.weights[f"{branch}_{name}"] = graph.weights[name]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order they were declared."""
        return self._padded.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order they were declared."""
        return self._padded.output_names

    def model(self) -> onnx.ModelProto:
        """The finished model; see `Graph.model`."""
        model = self._padded.model()
        whole = model.graph
        exact = self._branch(self._exact.model().graph, "exact")
        padded = self._branch(whole, "padded")
        large = {proto.name: proto for branch in (exact, padded) for proto in _outside(branch)}
        for branch in (exact, padded):
            small = [proto for proto in branch.initializer if proto.name not in large]
            del branch.initializer[:]
            branch.initializer.extend(small)
        del whole.node[:], whole.initializer[:]
        whole.initializer.extend(large.values())
        given = [value.name for value in whole.output]
        whole.node.extend(
            [
                helper.make_node("ReduceMin", ["attention_mask"], ["least"], keepdims=0),
                helper.make_node("Cast", ["least"], ["no_padding"], to=TensorProto.BOOL),
                helper.make_node("If", ["no_padding"], given, then_branch=exact, else_branch=padded),
            ]
        )
        return model

    def _branch(self, graph: onnx.GraphProto, name: str) -> onnx.GraphProto:
        """One of the graphs as a branch: what is not shared has a name of its own."""
        branch = onnx.GraphProto()
        branch.CopyFrom(graph)
        branch.name = name
        outer = {value.name for value in branch.input} | self._shared | {""}
        del branch.input[:]
        for proto in branch.initializer:
            if proto.name not in outer:
                proto.name = f"{name}_{proto.name}"
        for node in branch.node:
            for values in (node.input, node.output):
                values[:] = [value if value in outer else f"{name}_{value}" for value in values]
        for value in branch.output:
            value.name = f"{name}_{value.name}"
        return branch


class OnnxFacts(NamedTuple):
    """What a file that crossrank wrote says of itself.

    Attributes:
        output: what it gives: "logits", "tokens", or a head in words.
        precision: of its linear layers: "float32" or "int8".
    """

    output: str
    precision: str


def write_onnx(path: Path, graph: TwoPaths, facts: OnnxFacts, *, reads_types: bool = True) -> list[Path]:
    """Write a graph with its weights.

    Args:
        path: the file; its folder is there.
        graph: what the file is to have.
        facts: what the file is to say of itself.
        reads_types: whether the model was trained with token types. If not, the file does not ask for them:
            who runs it would give those of the tokenizer, and get other scores.

    Returns:
        The files written.
    """
    model = graph.model()
    if not reads_types:
        _without_types(model)
    stated = {**facts._asdict(), "version": version("crossrank")}
    helper.set_model_props(model, {f"crossrank.{key}": value for key, value in stated.items()})
    weights = graph.weights
    if sum(array.nbytes for array in weights.values()) <= _MOST_BYTES_INSIDE:
        for proto in _outside(model.graph):
            proto.ClearField("external_data")
            proto.data_location = TensorProto.DEFAULT
            proto.raw_data = weights[proto.name].tobytes()
        path.write_bytes(model.SerializeToString())
        return [path]
    data = path.with_name(f"{path.name}_data")
    with data.open("wb") as file:
        for proto in _outside(model.graph):
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


def _outside(graph: onnx.GraphProto) -> list[TensorProto]:
    """The weights that are not in the graph yet."""
    return [proto for proto in graph.initializer if proto.data_location == TensorProto.EXTERNAL]


def _without_types(model: onnx.ModelProto) -> None:
    """Compute the token types as zeros, in place of asking for them."""
    asked = [value for value in model.graph.input if value.name == _TYPES]
    for value in asked:
        model.graph.input.remove(value)
        model.graph.node.insert(0, helper.make_node("Sub", ["input_ids", "input_ids"], [_TYPES]))
