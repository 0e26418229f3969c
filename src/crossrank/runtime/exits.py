"""Heads at earlier layers ("exits"), and a model cut there.

Beside model.safetensors, `exits.safetensors` has for each layer n (counted from 1) after which there is a
head: `n.0.weight` (hidden, hidden) and `n.0.bias` (hidden,), a dense layer with tanh over the first token's
vector, then `n.1.weight` (labels, hidden) and `n.1.bias` (labels,), which give the logits. That is the form
of BertForSequenceClassification's own head. Other libraries load the folder and leave the file alone. In int8
the heads are float32, like the last layer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Encoder, LayeredEncoder
from crossrank.runtime.graph import Graph

if TYPE_CHECKING:
    from crossrank.runtime.checkpoint import Checkpoint

__all__ = ["EXITS_FILE", "HIDDEN_IN", "HIDDEN_OUT", "Exits", "exit_identity"]

EXITS_FILE = "exits.safetensors"
"""Name of the heads' weights in a model folder."""

HIDDEN_IN, HIDDEN_OUT = "states_before", "states_after"
"""What a part of a model reads in place of token ids, and gives besides logits: (batch, length, hidden)."""

_NAME = re.compile(r"(?P<layer>[1-9]\d*)\.(?P<part>[01])\.(?P<tensor>weight|bias)")
_TENSORS_OF_A_HEAD = 4


def exit_identity(layer: int) -> str:
    """Return what the fingerprint of a model that is cut after a layer tells it by."""
    return f" exit {layer}"


class Exits:
    """The layers of a checkpoint after which there are scores.

    Args:
        checkpoint: with or without exits.

    Attributes:
        layers: those with a head of their own, ascending; the last layer is not among them.
        num_layers: of the model.

    Raises:
        CheckpointError: the file has other tensors than heads of these layers.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._tensors = checkpoint.exit_tensors()
        self.layers: tuple[int, ...] = ()
        if not self._tensors:
            self.num_layers = checkpoint.num_layers or 0
            return
        file = checkpoint.exits_file
        if checkpoint.num_layers is None:
            raise CheckpointError(f"{file}: the config does not say how many layers the model has")
        self.num_layers = checkpoint.num_layers
        counts: dict[int, int] = {}
        for name in self._tensors:
            found = _NAME.fullmatch(name)
            layer = int(found["layer"]) if found else 0
            if not 1 <= layer < self.num_layers:
                raise CheckpointError(
                    f"{file} has a tensor {name!r}; there can be heads 'n.0' and 'n.1' after layers n from 1 "
                    f"to {self.num_layers - 1}, since the last layer's is with the model's own weights"
                )
            counts[layer] = counts.get(layer, 0) + 1
        for layer, count in counts.items():
            if count != _TENSORS_OF_A_HEAD:
                raise CheckpointError(f"{file} lacks a weight or bias of the head after layer {layer}")
        self.layers = tuple(sorted(counts))

    def check(self, layer: Any) -> None:
        """Raise InputError unless there is a head after this layer."""
        if isinstance(layer, (int, np.integer)) and not isinstance(layer, bool) and layer in self._all:
            return
        known = ", ".join(map(str, self._all)) or "its last"
        raise InputError(
            f"there is no head after layer {layer!r}; {self._checkpoint.folder.name} has scores after layer "
            f"{known}" + (" (its last)" if self._all else "")
        )

    @property
    def _all(self) -> tuple[int, ...]:
        return (*self.layers, self.num_layers) if self.num_layers else ()

    def cut(self, layer: int) -> Callable[[Graph, Mapping[str, Any], Encoder], str]:
        """Return what writes the model up to a layer and its head: see `engine.Head`.

        Only the first token is computed in that layer, as in the last one of the whole model. Writing raises
        UnsupportedArchitectureError for an encoder that cannot be cut, and CheckpointError for a head that
        does not fit the model.

        Args:
            layer: with a head of its own.
        """
        return partial(self._write_cut, layer)

    def _write_cut(self, layer: int, graph: Graph, config: Mapping[str, Any], encoder: Encoder) -> str:
        layered = self._layered(encoder)
        first = layered.layers(layered.embeddings(), 0, layer, first_only=True)
        return self._head(graph, layered, first, layer)

    def part(self, start: int, stop: int) -> Callable[[Graph, Mapping[str, Any], Encoder], str]:
        """Return what writes the layers after `start` up to `stop`, and the head there: see `engine.Head`.

        Of layer `stop` only the first token is computed, as in `cut`; what goes on from there begins with
        that layer. So a part that goes on starts one layer before the end of the part before.

        The graph reads token ids where `start` is 0, else as `HIDDEN_IN` what the part before gives as
        `HIDDEN_OUT`: the states before layer `stop`. It gives logits and, where another part can go on from
        more than the token ids, `HIDDEN_OUT`.

        Args:
            start: 0, or the layer before one with a head.
            stop: a layer with a head, or the last.
        """
        return partial(self._write_part, start, stop)

    def _write_part(
        self, start: int, stop: int, graph: Graph, config: Mapping[str, Any], encoder: Encoder
    ) -> str:
        layered = self._layered(encoder)
        shape = ("batch", "length", layered.hidden_size)
        if start:
            x = layered.frame.begin_after(graph.input(HIDDEN_IN, TensorProto.FLOAT, shape))
        else:
            x = layered.embeddings()
        x = layered.layers(x, start, stop - 1)
        if 1 < stop < self.num_layers:
            graph.output(layered.frame.deep(x), HIDDEN_OUT, shape)
        first = layered.layers(x, stop - 1, stop, first_only=True)
        if stop == self.num_layers:
            return self._last_head(layered, first)
        return self._head(graph, layered, first, stop)

    def _layered(self, encoder: Encoder) -> LayeredEncoder:
        if isinstance(encoder, LayeredEncoder):
            return encoder
        raise UnsupportedArchitectureError(
            f"{self._checkpoint.architecture} cannot be cut after a layer here; models of the BERT family can"
        )

    def _head(self, graph: Graph, encoder: LayeredEncoder, first: str, layer: int) -> str:
        hidden, labels = encoder.hidden_size, self._checkpoint.num_labels
        x = self._linear(graph, first, f"{layer}.0", (hidden, hidden))
        return self._linear(graph, graph.activation(x, "tanh"), f"{layer}.1", (labels, hidden))

    def _last_head(self, encoder: LayeredEncoder, first: str) -> str:
        checkpoint = self._checkpoint
        if checkpoint.is_modular_cross_encoder:
            raise UnsupportedArchitectureError(
                f"{checkpoint.folder}: a model whose scores come from modules of sentence-transformers is "
                "not cut into parts"
            )
        return encoder.head(first, checkpoint.num_labels)

    def _linear(self, graph: Graph, x: str, name: str, size: tuple[int, int]) -> str:
        inputs = [x]
        for part, shape in (("weight", size), ("bias", size[:1])):
            array = self._tensors[f"{name}.{part}"]
            if array.shape != shape:
                raise CheckpointError(
                    f"{self._checkpoint.exits_file}: tensor '{name}.{part}' has shape {array.shape}, but the "
                    f"model calls for {shape}; the file is another model's"
                )
            inputs.append(graph.weight(f"exits.{name}.{part}", array))
        return graph.node("Gemm", inputs, transB=1)
