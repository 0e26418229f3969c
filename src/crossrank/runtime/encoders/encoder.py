"""What every encoder offers, and the parts they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from onnx import TensorProto

from crossrank.errors import CheckpointError
from crossrank.runtime.graph import Graph
from crossrank.runtime.settings import bad_setting, read_setting

__all__ = ["Encoder", "Frame", "LayeredEncoder", "find_prefix", "no_head", "read_heads"]


class Encoder(Protocol):
    """An architecture written into a graph: made with (graph, config), then asked once for one output."""

    hidden_size: int
    frame: Frame

    def tokens(self) -> str:
        """Write the whole encoder; the vectors of all tokens, (batch × length, hidden)."""
        ...

    def first(self) -> str:
        """Write the encoder as far as the first token needs it; its vectors, (batch, hidden).

        Exact: in the last layer only keys and values are computed for all tokens.
        """
        ...

    def logits(self, num_labels: int) -> str:
        """Write encoder and trained classification head; (batch, num_labels).

        Raises:
            CheckpointError: the checkpoint has no such head.
        """
        ...


@runtime_checkable
class LayeredEncoder(Encoder, Protocol):
    """An encoder that can also be written in parts, cut between two layers."""

    num_layers: int

    def embeddings(self) -> str:
        """Write what the first layer reads, (batch × length, hidden)."""
        ...

    def layers(self, x: str, start: int, stop: int, *, first_only: bool = False) -> str:
        """Write layers start to stop (from 0, stop excluded) after x, (batch × length, hidden).

        Returns:
            The vectors of all tokens, or with `first_only` those of the first, (batch, hidden).
        """
        ...

    def head(self, first: str, num_labels: int) -> str:
        """Write the trained classification head after the first token's vectors; (batch, num_labels).

        Raises:
            CheckpointError: the checkpoint has no such head.
        """
        ...


class Frame:
    """The changes of shape around an encoder whose activations are (batch × length, hidden).

    Args:
        graph: takes the nodes.
        hidden_size: features of a token.

    Attributes:
        mask: (batch, length), or "" where rows have no padding.
        lengths: tokens of each row, (batch,), or "" likewise: attention that reads none has a faster kernel.
    """

    def __init__(self, graph: Graph, hidden_size: int) -> None:
        self._graph = graph
        self._hidden_size = hidden_size
        self._rows = ""
        self.mask = self.lengths = ""
        if graph.padded:
            self.mask = graph.input("attention_mask")
            # Padding is on the right: lengths say it all, and attention is faster on them than on a mask.
            mask = graph.node("Cast", [self.mask], to=TensorProto.INT32)
            self.lengths = graph.node("ReduceSum", [mask, graph.constant([1])], keepdims=0)

    def begin_after(self, hidden: str) -> str:
        """Take sizes from states after a layer, (batch, length, hidden), not from ids; gives them flat."""
        self._rows = hidden
        return self.flat(hidden)

    @property
    def ids(self) -> str:
        """The token ids, (batch, length); a graph that begins after a layer has none."""
        return self._graph.input("input_ids")

    @cached_property
    def length(self) -> str:
        """How many tokens the rows have, padding included, (1,)."""
        return self._graph.dimension(self._rows or self.ids, 1)

    @cached_property
    def shape(self) -> str:
        """Rows, tokens and features of the states, int64 (3,)."""
        if self._rows:
            return self._graph.node("Shape", [self._rows])
        sizes = [self._graph.node("Shape", [self.ids]), self._graph.constant([self._hidden_size])]
        return self._graph.node("Concat", sizes, axis=0)

    def flat(self, x: str) -> str:
        """(batch, length, hidden) -> (batch × length, hidden)."""
        return self._graph.reshape(x, (-1, self._hidden_size))

    def deep(self, x: str) -> str:
        """(batch × length, hidden) -> (batch, length, hidden)."""
        return self._graph.node("Reshape", [x, self.shape])

    def first(self, x: str) -> str:
        """(batch × length, hidden) -> the first token of each row, (batch, hidden)."""
        return self._graph.node("Gather", [self.deep(x), self._graph.constant(0)], axis=1)

    def mean(self, x: str) -> str:
        """(batch × length, hidden) -> the mean over each row's real tokens, (batch, hidden)."""
        graph = self._graph
        if not self.mask:
            return graph.node("ReduceMean", [self.deep(x), graph.constant([1])], keepdims=0)
        mask = graph.node("Cast", [self.mask], to=TensorProto.FLOAT)
        weights = graph.node("Unsqueeze", [mask, graph.constant([2])])  # (batch, length, 1)
        masked = graph.node("Mul", [self.deep(x), weights])
        axis = graph.constant([1])
        total = graph.node("ReduceSum", [masked, axis], keepdims=0)
        return graph.node("Div", [total, graph.node("ReduceSum", [weights, axis], keepdims=0)])

    def single(self, x: str) -> str:
        """(batch, hidden) -> (batch, 1, hidden)."""
        return self._graph.node("Unsqueeze", [x, self._graph.constant([1])])


def read_heads(config: Mapping[str, Any], key: str, hidden_size: int) -> int:
    """The number of attention heads, which share the features evenly.

    Raises:
        CheckpointError: it is missing, no number, or does not divide `hidden_size`.
    """
    num_heads = read_setting(config, key, int, least=1)
    if hidden_size % num_heads:
        raise bad_setting("config.json", key, num_heads, f"a divisor of the hidden size {hidden_size}")
    return num_heads


def find_prefix(graph: Graph, prefixes: tuple[str, ...], tensor: str) -> str:
    """The prefix a checkpoint gives its encoder's tensors: bare models have none, models with a head do.

    Raises:
        CheckpointError: the tensor is there under none of them.
    """
    for prefix in prefixes:
        if graph.has(prefix + tensor):
            return prefix
    raise CheckpointError(
        f"the weights have no tensor {prefixes[0] + tensor!r}; "
        "they are not of the architecture that config.json states"
    )


def no_head(architecture: str, tensor: str) -> CheckpointError:
    """The error for scores asked of a checkpoint that was never trained to give them."""
    return CheckpointError(
        f"this {architecture} checkpoint has no trained classification head (no tensor {tensor!r}), so it "
        "cannot score pairs; open a checkpoint fine-tuned as a cross-encoder or sequence classifier, or use "
        "this one as a bi-encoder"
    )
