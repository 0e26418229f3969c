"""BERT and those that compute the same: MiniLM, ELECTRA, (XLM-)RoBERTa, CamemBERT, DistilBERT.

References: Devlin et al. 2019 (arXiv:1810.04805), Liu et al. 2019 (arXiv:1907.11692), Clark et al. 2020
(arXiv:2003.10555), Sanh et al. 2019 (arXiv:1910.01108); parity with transformers' modeling files, |Δ| < 1e-5
(tests/golden).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from onnx import TensorProto

from crossrank.errors import UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Frame, find_prefix, no_head, read_heads
from crossrank.runtime.graph import Graph
from crossrank.runtime.native import LayerNames, write_layer
from crossrank.runtime.settings import read_setting

__all__ = ["NAMES", "PREFIXES", "BertEncoder"]


class _Names(NamedTuple):
    """What an architecture calls its settings and tensors."""

    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    intermediate_size: str = "intermediate_size"
    activation: str = "hidden_act"
    layer: str = "encoder.layer"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    output_norm: str = "output.LayerNorm"


_BERT = _Names()
_DISTILBERT = _Names(
    hidden_size="dim",
    num_layers="n_layers",
    num_heads="n_heads",
    intermediate_size="hidden_dim",
    activation="activation",
    layer="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
NAMES = {"bert": _BERT, "electra": _BERT, "roberta": _BERT, "distilbert": _DISTILBERT}
PREFIXES = {"bert": "bert.", "electra": "electra.", "roberta": "roberta.", "distilbert": "distilbert."}


class BertEncoder:
    """Post-norm encoder with learned absolute positions.

    Args:
        graph: takes the nodes.
        config: the checkpoint's config.json.
        architecture: "bert", "electra", "roberta" or "distilbert".

    Raises:
        CheckpointError: the config lacks what the graph needs.
        UnsupportedArchitectureError: the config asks for a variant with another computation.
    """

    def __init__(self, graph: Graph, config: Mapping[str, Any], architecture: str) -> None:
        for key, plain in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if config.get(key, plain) not in (plain, None):
                raise UnsupportedArchitectureError(
                    f"config.json: {key} is {config[key]!r}; only {plain!r} has a graph here"
                )
        names = self._names = NAMES[architecture]
        self._graph = graph
        self._config = config
        self._architecture = architecture
        self.hidden_size = read_setting(config, names.hidden_size, int, least=1)
        self._num_heads = read_heads(config, names.num_heads, self.hidden_size)
        self.num_layers = read_setting(config, names.num_layers, int, least=1)
        self._inner_size = read_setting(config, names.intermediate_size, int, least=1)
        self._activation = read_setting(config, names.activation, str, "gelu")
        self._epsilon = 1e-12
        if architecture != "distilbert":
            self._epsilon = read_setting(config, "layer_norm_eps", float, 1e-12, least=0)
        prefixes = (PREFIXES[architecture], "")
        self._prefix = find_prefix(graph, prefixes, "embeddings.word_embeddings.weight")
        graph.check_layers(f"{self._prefix}{names.layer}", self.num_layers)
        self.frame = Frame(graph, self.hidden_size)

    def tokens(self) -> str:
        """Write the whole encoder; the vectors of all tokens, (batch × length, hidden)."""
        return self.layers(self.embeddings(), 0, self.num_layers)

    def first(self) -> str:
        """Write the encoder as far as the first token needs it; its vectors, (batch, hidden)."""
        return self.layers(self.embeddings(), 0, self.num_layers, first_only=True)

    def layers(self, x: str, start: int, stop: int, *, first_only: bool = False) -> str:
        """Write layers start to stop (from 0, stop excluded) after x; see `LayeredEncoder`."""
        self._graph.skips_padding = self._graph.operators is not None  # until a layer is not written whole
        for i in range(start, stop):
            x = self._layer(x, i, first_only=first_only and i == stop - 1)
        return x

    def logits(self, num_labels: int) -> str:
        """Write encoder and trained classification head; (batch, num_labels)."""
        return self.head(self.first(), num_labels)

    def head(self, first: str, num_labels: int) -> str:
        """Write the trained classification head; see `LayeredEncoder`."""
        # (dense, activation, classifier) of each architecture's ForSequenceClassification class.
        dense, activation, classifier = {
            "bert": (f"{self._prefix}pooler.dense", "tanh", "classifier"),
            "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
            "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
            "distilbert": ("pre_classifier", "relu", "classifier"),
        }[self._architecture]
        graph, hidden = self._graph, self.hidden_size
        for name in (dense, classifier):
            if not graph.has(f"{name}.weight"):
                raise no_head(self._architecture, f"{name}.weight")
        x = graph.head_linear(first, dense, (hidden, hidden))
        return graph.head_linear(graph.activation(x, activation), classifier, (num_labels, hidden))

    def embeddings(self) -> str:
        """Write what the first layer reads, (batch × length, hidden)."""
        graph, frame, config = self._graph, self.frame, self._config
        name = f"{self._prefix}embeddings"
        # ELECTRA's small models have narrower embeddings, projected up below.
        size = self.hidden_size
        if self._architecture == "electra":
            size = read_setting(config, "embedding_size", int, size, least=1)
        table_size = (read_setting(config, "vocab_size", int), size)
        x = graph.lookup(frame.ids, f"{name}.word_embeddings.weight", table_size)  # (batch, length, size)
        num_types = 0
        if self._architecture != "distilbert":
            num_types = read_setting(config, "type_vocab_size", int, 2, least=0)
        if num_types:
            types = graph.tensor(f"{name}.token_type_embeddings.weight", (num_types, size))
            # A table of one row leaves nothing to choose, whatever the tokenizer says.
            rows = graph.input("token_type_ids") if num_types > 1 else graph.constant([[0]])
            x = graph.node("Add", [x, graph.node("Gather", [types, rows])])
        x = graph.node("Add", [x, self._positions(name, size)])
        x = graph.reshape(x, (-1, size))
        x = graph.norm(x, f"{name}.LayerNorm", self._epsilon)
        if size != self.hidden_size:
            x = graph.linear(x, f"{self._prefix}embeddings_project", (self.hidden_size, size))
        return x

    def _positions(self, name: str, size: int) -> str:
        graph, frame = self._graph, self.frame
        shape = (read_setting(self._config, "max_position_embeddings", int, least=1), size)
        table = graph.tensor(f"{name}.position_embeddings.weight", shape)
        if self._architecture != "roberta":
            return graph.slice(table, graph.constant([0]), frame.length, 0)  # (length, size)
        # RoBERTa counts from pad_token_id + 1, and gives every padding token the row pad_token_id.
        padding = graph.constant(read_setting(self._config, "pad_token_id", int, 1, least=0))
        equal = graph.node("Equal", [frame.ids, padding])
        real = graph.node("Cast", [graph.node("Not", [equal])], to=TensorProto.INT64)
        count = graph.node("CumSum", [real, graph.constant(1)])
        rows = graph.node("Add", [graph.node("Mul", [count, real]), padding])
        return graph.node("Gather", [table, rows])  # (batch, length, size)

    def _layer(self, x: str, index: int, *, first_only: bool = False) -> str:
        graph, frame, names, hidden = self._graph, self.frame, self._names, self.hidden_size
        name = f"{self._prefix}{names.layer}.{index}"
        query_name, *key_value_names = (f"{name}.{part}" for part in (names.query, names.key, names.value))
        square = (hidden, hidden)
        if graph.operators is not None:
            layer = self._whole_layer(x, name, first_only=first_only)
            if layer is not None:
                return layer
            graph.skips_padding = False
        if first_only:
            key, value = graph.linear_many(x, key_value_names, square)
            x = frame.first(x)
            query = frame.single(graph.linear(x, query_name, square))
        else:
            query, key, value = graph.linear_many(x, [query_name, *key_value_names], square)
            query = frame.deep(query)
        attention = graph.microsoft(
            "MultiHeadAttention",
            [query, frame.deep(key), frame.deep(value), "", frame.lengths],
            num_heads=self._num_heads,
        )
        mixed = graph.linear(frame.flat(attention), f"{name}.{names.attention_output}", square)
        x, _ = graph.add_norm(mixed, x, f"{name}.{names.attention_norm}", self._epsilon)
        inner = graph.linear(x, f"{name}.{names.up}", (self._inner_size, hidden))
        inner = graph.activation(inner, self._activation)
        outer = graph.linear(inner, f"{name}.{names.down}", (hidden, self._inner_size))
        return graph.add_norm(outer, x, f"{name}.{names.output_norm}", self._epsilon)[0]

    def _whole_layer(self, x: str, name: str, *, first_only: bool) -> str | None:
        """Write a layer as one node where there is one for it."""
        graph, frame, names, hidden = self._graph, self.frame, self._names, self.hidden_size
        parts = (names.query, names.key, names.value, names.attention_output, names.up, names.down)
        linear = [f"{name}.{part}" for part in parts]
        outer = (hidden, self._inner_size)
        for each, size in zip(linear, [(hidden, hidden)] * 4 + [outer[::-1], outer], strict=True):
            graph.check_linear(each, size)
        return write_layer(
            graph,
            x,
            frame.shape,
            frame.lengths,
            LayerNames._make([*linear, f"{name}.{names.attention_norm}", f"{name}.{names.output_norm}"]),
            heads=self._num_heads,
            inner=self._inner_size,
            activation=self._activation,
            epsilon=self._epsilon,
            first_only=first_only,
        )
