"""Writes an ONNX graph node by node; weights stay outside it.

Activations are kept two-dimensional, (batch × length, features), so that a linear layer is one `Gemm` that
reads the weight as checkpoints store it, (out, in): nothing is transposed or copied, and a memory-mapped
float32 checkpoint is handed to ONNX Runtime as it lies on disk. Only attention sees (batch, length,
features).

Weights are declared as external data and given to the session as arrays (`Graph.weights`): the graph itself
stays a few kilobytes, far from protobuf's 2 GB limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from crossrank.errors import CheckpointError, UnsupportedArchitectureError

__all__ = ["Float32Linear", "Graph", "LinearForm"]

_INLINE_BYTES = 1024
"""Smaller constants go into the graph itself: shapes and axes must be known while it is optimised."""

_OPSET = 20
_IR_VERSION = 10  # what ONNX Runtime 1.20, the oldest supported, reads

_CONTRIB_ACTIVATIONS = {
    "gelu_new": "FastGelu",  # the tanh form
    "gelu_fast": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "gelu_accurate": "FastGelu",
}
_STANDARD_ACTIVATIONS = {
    "gelu": "Gelu",  # the exact, error-function form; 15 % faster than ONNX Runtime's own operator
    "gelu_python": "Gelu",
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "mish": "Mish",
}


class LinearForm(Protocol):
    """How linear layers are written: float32 `Gemm`, or something faster that a parity gate has passed.

    Attributes:
        operators: library of operators that are whole encoder layers in this form; None where there is none.
    """

    operators: Path | None

    def linear(self, graph: Graph, x: str, name: str) -> str:
        """Write x @ weight.T + bias.

        Args:
            graph: takes the nodes.
            x: a value of shape (rows, in) float32.
            name: prefix of the layer's tensors in the checkpoint: `name + ".weight"` of shape (out, in) and,
                where the architecture has one, `name + ".bias"` (out,). The graph has checked both.

        Returns:
            A value of shape (rows, out) float32.
        """
        ...

    def linear_many(self, graph: Graph, x: str, names: Sequence[str]) -> list[str]:
        """Write several layers that read the same x: what is done to x can be done once."""
        ...


class Float32Linear:
    """The reference form: one float32 `Gemm` a layer."""

    operators: Path | None = None

    def linear(self, graph: Graph, x: str, name: str) -> str:
        """Write x @ weight.T + bias as one Gemm."""
        inputs = [x, graph.tensor(f"{name}.weight")]
        if graph.has(f"{name}.bias"):
            inputs.append(graph.tensor(f"{name}.bias"))
        return graph.node("Gemm", inputs, transB=1)

    def linear_many(self, graph: Graph, x: str, names: Sequence[str]) -> list[str]:
        """Write one Gemm each: joining the weights would copy them, and measured no faster."""
        return [self.linear(graph, x, name) for name in names]


class Graph:
    """An ONNX graph under construction.

    Values are named by strings: every method that writes nodes takes the names of its inputs and gives the
    name of its output.

    Args:
        tensors: the checkpoint's weights by their names there; float32.
        form: how linear layers are written.
        padded: whether rows may have padding; without, nothing reads the attention mask.

    Attributes:
        skips_padding: whether padding costs next to nothing, and rows have the same bits whatever is behind.
    """

    def __init__(
        self,
        tensors: Mapping[str, npt.NDArray[Any]],
        form: LinearForm | None = None,
        *,
        padded: bool = True,
    ) -> None:
        self.tensors = tensors
        self.padded = padded
        self.skips_padding = False
        self.weights: dict[str, npt.NDArray[Any]] = {}
        self._form: LinearForm = form or Float32Linear()
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[Any, ...], str] = {}
        self._domains: dict[str, None] = {}
        self._num_values = 0

    @property
    def operators(self) -> Path | None:
        """The library of operators that are whole encoder layers, where the form has one."""
        return self._form.operators

    # --- the edges of the graph -----------------------------------------------------------------------

    def input(
        self,
        name: str,
        dtype: int = TensorProto.INT64,
        shape: Sequence[str | int] = ("batch", "length"),
    ) -> str:
        """Declare (once) a graph input."""
        if name not in self._inputs:
            self._inputs[name] = helper.make_tensor_value_info(name, dtype, shape)
        return name

    def output(
        self, value: str, name: str, shape: Sequence[str | int], dtype: int = TensorProto.FLOAT
    ) -> None:
        """Make a value an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order they were declared."""
        return tuple(value.name for value in self._outputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order they were declared."""
        return tuple(self._inputs)

    def model(self) -> onnx.ModelProto:
        """The finished model; `weights` has the arrays its external initialisers stand for."""
        graph = helper.make_graph(
            self._nodes,
            "crossrank",
            list(self._inputs.values()),
            self._outputs,
            initializer=list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", _OPSET), *(helper.make_opsetid(name, 1) for name in self._domains)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="crossrank"
        )

    # --- weights and constants ------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self.tensors

    def array(self, name: str, shape: Sequence[int] | None = None) -> npt.NDArray[Any]:
        """A tensor of the checkpoint, for computing with it while the graph is written.

        Raises:
            CheckpointError: it is missing, or its shape is not the expected one.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"the checkpoint has no tensor {name!r}, which its config.json calls for; "
                "the weights and the config do not belong together, or the weights are incomplete"
            )
        array = self.tensors[name]
        if shape is not None and array.shape != tuple(shape):
            raise CheckpointError(
                f"tensor {name!r} has shape {array.shape}, but config.json calls for {tuple(shape)}; "
                "the weights and the config do not belong together"
            )
        return array

    def tensor(self, name: str, shape: Sequence[int] | None = None) -> str:
        """A tensor of the checkpoint as a value of the graph, under its own name.

        Raises:
            CheckpointError: it is missing, or its shape is not the expected one.
        """
        return self.weight(name, self.array(name, shape))

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """An array as a value of the graph, held outside it (small ones inside)."""
        if name in self._initializers:
            return name
        array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
        if array.nbytes < _INLINE_BYTES:
            self._initializers[name] = numpy_helper.from_array(array, name)
            return name
        proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        proto.dims.extend(array.shape)
        proto.data_location = TensorProto.EXTERNAL
        location = proto.external_data.add()
        location.key, location.value = "location", "given to the session as an array"
        self._initializers[name] = proto
        self.weights[name] = array
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A small constant; equal ones are shared."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    # --- nodes ----------------------------------------------------------------------------------------

    def node(self, op: str, inputs: Sequence[str], *, domain: str = "", **attributes: Any) -> str:
        """Write a node with one output. An empty input name leaves an optional input out."""
        return self.nodes(op, inputs, 1, domain=domain, **attributes)[0]

    def nodes(
        self, op: str, inputs: Sequence[str], count: int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Write a node with `count` outputs."""
        outputs = [f"{op}_{self._num_values + i}" for i in range(count)]
        self._num_values += count
        if domain:
            self._domains[domain] = None
        self._nodes.append(helper.make_node(op, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def microsoft(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Write a node of ONNX Runtime's own operators."""
        return self.node(op, inputs, domain="com.microsoft", **attributes)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape to a fixed shape; 0 keeps a dimension, -1 takes what is left."""
        return self.node("Reshape", [x, self.constant(shape)])

    def slice(self, x: str, start: str, end: str, axis: int) -> str:
        """x[start:end] along one axis; start and end are values of shape (1,)."""
        return self.node("Slice", [x, start, end, self.constant([axis])])

    def dimension(self, x: str, axis: int) -> str:
        """The size of one axis as a value of shape (1,) int64."""
        return self.node("Shape", [x], start=axis, end=axis + 1)

    def lookup(self, ids: str, name: str, size: tuple[int, int]) -> str:
        """Rows of an embedding table, which may be stored as int8 with a scale a row.

        Args:
            ids: row numbers, of any shape.
            name: the table's tensor in the checkpoint.
            size: (rows, features), which the table must have.
        """
        rows = self.node("Gather", [self.tensor(name, size), ids])
        scale = f"{name}_scale"
        if not self.has(scale):
            return rows
        scales = self.node("Gather", [self.tensor(scale, (size[0], 1)), ids])
        return self.node("Mul", [self.node("Cast", [rows], to=TensorProto.FLOAT), scales])

    def linear(self, x: str, name: str, size: tuple[int, int], *, bias: bool = True) -> str:
        """A linear layer of the checkpoint, in the graph's form.

        Args:
            x: (rows, in).
            name: prefix of the layer's tensors in the checkpoint.
            size: (out, in), which the weight must have.
            bias: whether the layer has a bias: the architecture says so, not what the weights happen to have.
        """
        self.check_linear(name, size, bias)
        return self._form.linear(self, x, name)

    def linear_many(
        self, x: str, names: Sequence[str], size: tuple[int, int], *, bias: bool = True
    ) -> list[str]:
        """Several linear layers of one size that read the same x; see `linear`."""
        for name in names:
            self.check_linear(name, size, bias)
        return self._form.linear_many(self, x, names)

    def head_linear(self, x: str, name: str, size: tuple[int, int], *, bias: bool = True) -> str:
        """A linear layer always in float32: heads see one row a pair, and precision is all there."""
        self.check_linear(name, size, bias)
        return Float32Linear().linear(self, x, name)

    def check_linear(self, name: str, size: tuple[int, int], bias: bool = True) -> None:
        """Refuse a linear layer that is not there or has another size; see `linear`."""
        self.array(f"{name}.weight", size)
        if bias:
            self.array(f"{name}.bias", size[:1])
        else:
            self._refuse(f"{name}.bias")

    def _refuse(self, name: str) -> None:
        if self.has(name):
            raise CheckpointError(
                f"the checkpoint has a tensor {name!r}, for which there is no place in the model of its "
                "config.json; the weights and the config do not belong together"
            )

    def check_layers(self, name: str, count: int) -> None:
        """Refuse weights that have more layers than the config.

        Args:
            name: what the tensors of all layers begin with: those of the first with `name + ".0."`.
            count: layers of the config.

        Raises:
            CheckpointError: there is a tensor of a further layer.
        """
        for tensor in self.tensors:
            number, _, part = tensor.removeprefix(f"{name}.").partition(".")
            if part and number.isdecimal() and int(number) >= count:
                raise CheckpointError(
                    f"the checkpoint has a tensor {tensor!r}, but config.json calls for {count} layers only; "
                    "the weights and the config do not belong together"
                )

    def norm(self, x: str, name: str, epsilon: float, *, bias: bool = True) -> str:
        """LayerNorm over the last axis; `bias` says whether the architecture's norms have one."""
        return self.node("LayerNormalization", [x, *self._norm_tensors(name, bias)], epsilon=epsilon)

    def rms_norm(self, x: str, name: str, epsilon: float) -> str:
        """Root-mean-square norm over the last axis: no mean is taken off, and there is no bias.

        Source: Zhang and Sennrich 2019, arXiv:1910.07467.
        """
        self._refuse(f"{name}.bias")
        return self.node("SimplifiedLayerNormalization", [x, self.tensor(f"{name}.weight")], epsilon=epsilon)

    def add_norm(self, x: str, skip: str, name: str, epsilon: float, *, bias: bool = True) -> tuple[str, str]:
        """LayerNorm(x + skip), and x + skip itself.

        Two nodes on purpose: ONNX Runtime's fused SkipLayerNormalization takes 7 times as long on a CPU
        (1.9 against 0.26 ms for 1024 × 384, version 1.31), so sessions also leave that fusion out.
        """
        total = self.node("Add", [x, skip])
        return self.norm(total, name, epsilon, bias=bias), total

    def _norm_tensors(self, name: str, bias: bool) -> list[str]:
        scale, shift = self._norm_names(name)
        if bias:
            return [self.tensor(f"{name}.{scale}"), self.tensor(f"{name}.{shift}")]
        self._refuse(f"{name}.{shift}")
        return [self.tensor(f"{name}.{scale}")]

    def norm_arrays(self, name: str) -> list[npt.NDArray[Any]]:
        """Scale and shift of a LayerNorm, for computing with them while the graph is written."""
        return [self.array(f"{name}.{part}") for part in self._norm_names(name)]

    def _norm_names(self, name: str) -> tuple[str, str]:
        # Checkpoints converted from the first BERT releases still say gamma and beta.
        return ("gamma", "beta") if self.has(f"{name}.gamma") else ("weight", "bias")

    def activation(self, x: str, kind: str) -> str:
        """An activation by the name configs use ("gelu", "gelu_new", "relu", "silu", ...).

        Raises:
            UnsupportedArchitectureError: no such activation here.
        """
        if kind in _CONTRIB_ACTIVATIONS:
            return self.microsoft(_CONTRIB_ACTIVATIONS[kind], [x])
        if kind in _STANDARD_ACTIVATIONS:
            return self.node(_STANDARD_ACTIVATIONS[kind], [x])
        if kind in ("silu", "swish"):
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if kind == "quick_gelu":
            return self.microsoft("QuickGelu", [x], alpha=1.702)
        if kind in ("linear", "identity"):
            return x
        known = sorted({*_CONTRIB_ACTIVATIONS, *_STANDARD_ACTIVATIONS, "silu", "quick_gelu", "identity"})
        raise UnsupportedArchitectureError(
            f"activation {kind!r} has no graph here; supported: {', '.join(known)}"
        )
