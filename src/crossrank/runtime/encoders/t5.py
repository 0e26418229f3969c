"""T5 and its kin (v1.1, Flan, mT5): the encoder, and one step of the decoder.

Pre-norm without means or biases, positions as a bias of attention by distance, attention without scaling, a
plain or gated feed-forward. Reference: Raffel et al. 2020 (arXiv:1910.10683); parity with transformers'
modeling_t5.py and modeling_mt5.py, |Δ| < 1e-5 (tests/runtime/test_t5.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from crossrank.errors import CheckpointError, UnsupportedArchitectureError
from crossrank.runtime.encoders.encoder import Encoder, Frame
from crossrank.runtime.graph import Graph
from crossrank.runtime.settings import bad_setting, read_setting

__all__ = ["T5Decoder", "T5Encoder", "TokenScore", "distance_buckets"]

_FAR = -1e9  # added to the attention to padding: its weight becomes exactly 0


class _Sizes:
    """What encoder and decoder read of config.json."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.hidden = read_setting(config, "d_model", int, least=1)
        self.heads = read_setting(config, "num_heads", int, least=1)
        self.head = read_setting(config, "d_kv", int, least=1)
        self.attention = self.heads * self.head
        self.inner = read_setting(config, "d_ff", int, least=1)
        self.vocabulary = read_setting(config, "vocab_size", int, least=1)
        self.epsilon = read_setting(config, "layer_norm_epsilon", float, 1e-6, least=0)
        self.layers = read_setting(config, "num_layers", int, least=1)
        stated = read_setting(config, "num_decoder_layers", int, None, least=1)
        self.decoder_layers = self.layers if stated is None else stated
        kind = read_setting(config, "feed_forward_proj", str, "relu")
        gate, _, name = kind.rpartition("-")
        if gate not in ("", "gated"):
            raise bad_setting("config.json", "feed_forward_proj", kind, "an activation or 'gated-' and one")
        self.is_gated = gate == "gated"
        # The first gated checkpoints say gelu and mean its tanh form.
        self.activation = "gelu_new" if kind == "gated-gelu" else name


class T5Encoder:
    """The encoder of a T5.

    Args:
        graph: takes the nodes.
        config: the checkpoint's config.json.

    Raises:
        CheckpointError: the config lacks what the graph needs.
        UnsupportedArchitectureError: the weights are those of a variant with another computation.
    """

    def __init__(self, graph: Graph, config: Mapping[str, Any]) -> None:
        self._graph = graph
        self._config = config
        self._sizes = _Sizes(config)
        self.hidden_size = self._sizes.hidden
        self.embedding = next(
            (name for name in ("shared.weight", "encoder.embed_tokens.weight") if graph.has(name)), ""
        )
        if not self.embedding:
            raise CheckpointError(
                "the weights have no tensor 'shared.weight'; they are not of the T5 that config.json states"
            )
        if graph.has(f"{_block('encoder', 1)}.layer.0.SelfAttention.relative_attention_bias.weight"):
            raise UnsupportedArchitectureError(
                "a T5 with a table of relative positions in every layer (UMT5) has no graph here"
            )
        graph.check_layers("encoder.block", self._sizes.layers)
        self.frame = Frame(graph, self.hidden_size)
        same = self._sizes.attention == self.hidden_size
        self._attention_frame = self.frame if same else Frame(graph, self._sizes.attention)
        self._bias = self._position_bias()

    def tokens(self) -> str:
        """Write the whole encoder; the vectors of all tokens, (batch × length, hidden)."""
        return self._write(first_only=False)

    def first(self) -> str:
        """Write the encoder as far as the first token needs it; its vectors, (batch, hidden)."""
        return self._write(first_only=True)

    def logits(self, num_labels: int) -> str:
        """Refuse: an encoder has no scores of its own, and T5 rerankers have other classes.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            "a T5 has no classification head, and is no cross-encoder without one; open a reranker as what "
            "it was trained as: MonoT5, RankT5 or DuoT5"
        )

    def _write(self, *, first_only: bool) -> str:
        graph, sizes = self._graph, self._sizes
        words = graph.lookup(self.frame.ids, self.embedding, (sizes.vocabulary, sizes.hidden))
        x = self.frame.flat(words)
        for i in range(sizes.layers):
            last = first_only and i == sizes.layers - 1
            block = _block("encoder", i)
            normed = graph.rms_norm(x, f"{block}.layer.0.layer_norm", sizes.epsilon)
            mixed = self._attention(normed, f"{block}.layer.0.SelfAttention", last)
            x = graph.node("Add", [self.frame.first(x) if last else x, mixed])
            normed = graph.rms_norm(x, f"{block}.layer.1.layer_norm", sizes.epsilon)
            inner = _feed_forward(graph, normed, f"{block}.layer.1.DenseReluDense", sizes)
            x = graph.node("Add", [x, inner])
        return graph.rms_norm(x, "encoder.final_layer_norm", sizes.epsilon)

    def _attention(self, x: str, name: str, first_only: bool) -> str:
        graph, frame, sizes = self._graph, self._attention_frame, self._sizes
        names = [f"{name}.{part}" for part in "qkv"]
        query, key, value = graph.linear_many(x, names, (sizes.attention, sizes.hidden), bias=False)
        query = frame.single(frame.first(query)) if first_only else frame.deep(query)
        bias = self._bias
        if first_only:
            bias = graph.slice(bias, graph.constant([0]), graph.constant([1]), 2)
        mixed = graph.microsoft(
            "MultiHeadAttention",
            [query, frame.deep(key), frame.deep(value), "", frame.lengths, bias],
            num_heads=sizes.heads,
            scale=1.0,
        )
        return graph.linear(frame.flat(mixed), f"{name}.o", (sizes.hidden, sizes.attention), bias=False)

    def _position_bias(self) -> str:
        """What every layer adds to attention, (1, heads, length, length)."""
        graph = self._graph
        num_buckets = read_setting(self._config, "relative_attention_num_buckets", int, 32, least=4)
        # Farther tokens are as the farthest.
        far = read_setting(self._config, "relative_attention_max_distance", int, 128, least=num_buckets)
        name = f"{_block('encoder', 0)}.layer.0.SelfAttention.relative_attention_bias.weight"
        table = graph.array(name, (num_buckets, self._sizes.heads))
        buckets = distance_buckets(np.arange(-far, far + 1), num_buckets, far)
        by_distance = graph.weight("position_bias", np.ascontiguousarray(table[buckets].T))
        length = graph.node("Squeeze", [self.frame.length])
        positions = graph.node("Range", [graph.constant(0), length, graph.constant(1)])
        queries = graph.node("Unsqueeze", [positions, graph.constant([1])])
        distances = graph.node("Sub", [positions, queries])  # of the key from the query
        nearest = graph.node("Clip", [distances, graph.constant(-far), graph.constant(far)])
        places = graph.node("Add", [nearest, graph.constant(far)])
        bias = graph.node("Gather", [by_distance, places], axis=1)  # (heads, length, length)
        return graph.node("Unsqueeze", [bias, graph.constant([0])])


class T5Decoder:
    """The first step of a T5's decoder: what it makes of the encoder's vectors before it has said anything.

    The step reads one token, which attends to itself alone, so self-attention is its value. Attention to the
    encoder is computed in the encoder's own space, since there is one query only: (W_k h) · q = h · (W_kᵀ q),
    and Σ a W_v h = W_v Σ a h. That saves projecting every token in every layer (a seventh of a model's time),
    and gives the same numbers but for their rounding. The step is always float32.

    Args:
        graph: takes the nodes.
        config: the checkpoint's config.json.
        encoder: of the same graph, not written yet.

    Attributes:
        start: the token that the step reads.

    Raises:
        CheckpointError: the checkpoint has no decoder, or its config lacks what the graph needs.
    """

    def __init__(self, graph: Graph, config: Mapping[str, Any], encoder: T5Encoder) -> None:
        self._graph = graph
        self._config = config
        self._encoder = encoder
        self._sizes = _Sizes(config)
        if not graph.has("decoder.final_layer_norm.weight"):
            raise CheckpointError(
                "the weights have no decoder (no tensor 'decoder.final_layer_norm.weight'); this is an "
                "encoder alone"
            )
        graph.check_layers("decoder.block", self._sizes.decoder_layers)
        start = read_setting(config, "decoder_start_token_id", int, None, least=0)
        self.start = read_setting(config, "pad_token_id", int, 0, least=0) if start is None else start

    def logits(self, weights: npt.NDArray[np.float32]) -> str:
        """Write encoder and decoder step.

        Args:
            weights: (outputs, hidden), rows of `vocabulary_weights` or differences of them.

        Returns:
            The logits of these rows, (batch, outputs).
        """
        graph, frame, sizes = self._graph, self._encoder.frame, self._sizes
        vectors = frame.deep(self._encoder.tokens())
        unread = ""
        if frame.mask:
            mask = graph.node("Cast", [frame.mask], to=TensorProto.FLOAT)
            one, far = graph.constant(1, np.float32), graph.constant(_FAR, np.float32)
            unread = graph.node("Mul", [graph.node("Sub", [one, mask]), far])
            unread = graph.node("Unsqueeze", [unread, graph.constant([1])])  # (batch, 1, length)
        table = graph.array(self._encoder.embedding, (sizes.vocabulary, sizes.hidden))
        x = graph.weight("decoder_start", np.array(table[self.start : self.start + 1]))  # (1, hidden)
        for i in range(sizes.decoder_layers):
            block = _block("decoder", i)
            normed = graph.rms_norm(x, f"{block}.layer.0.layer_norm", sizes.epsilon)
            value = self._linear(normed, f"{block}.layer.0.SelfAttention.v", inward=True)
            x = graph.node("Add", [x, self._linear(value, f"{block}.layer.0.SelfAttention.o")])
            normed = graph.rms_norm(x, f"{block}.layer.1.layer_norm", sizes.epsilon)
            read = self._read(normed, f"{block}.layer.1.EncDecAttention", vectors, unread)
            x = graph.node("Add", [x, read])
            normed = graph.rms_norm(x, f"{block}.layer.2.layer_norm", sizes.epsilon)
            inner = _feed_forward(graph, normed, f"{block}.layer.2.DenseReluDense", sizes, is_head=True)
            x = graph.node("Add", [x, inner])
        x = graph.rms_norm(x, "decoder.final_layer_norm", sizes.epsilon)
        return graph.node("Gemm", [x, graph.weight("wanted_tokens", weights)], transB=1)

    def vocabulary_weights(self, token: int) -> npt.NDArray[np.float32]:
        """What the decoder's last vector is multiplied with for a token's logit, (hidden,).

        T5 v1.0 has its embeddings here, and scales by hidden^-0.5. Later versions have weights of their own
        and no scale; transformers 5 writes `tie_word_embeddings` for both, and `scale_decoder_outputs`.

        Raises:
            CheckpointError: there is no such token.
        """
        sizes, config = self._sizes, self._config
        if not 0 <= token < sizes.vocabulary:
            raise CheckpointError(f"there is no token {token}: the model has {sizes.vocabulary:,} tokens")
        own = "lm_head.weight"
        name = own if self._graph.has(own) else self._encoder.embedding
        row = np.array(self._graph.array(name, (sizes.vocabulary, sizes.hidden))[token], dtype=np.float32)
        tied = read_setting(config, "tie_word_embeddings", bool, True)
        scales = read_setting(config, "scale_decoder_outputs", bool, tied)
        if config.get("model_type") == "mt5":
            scales = False
        return row * np.float32(sizes.hidden**-0.5) if scales else row

    def _read(self, x: str, name: str, vectors: str, unread: str) -> str:
        """Attention to the encoder's vectors (batch, length, hidden); x is (batch or 1, hidden).

        What `unread` (batch, 1, length) has, or "" for nothing, is added to the scores.
        """
        graph, sizes = self._graph, self._sizes
        by_head = (sizes.heads, sizes.head, sizes.hidden)
        query = self._linear(x, f"{name}.q", inward=True)
        keys = self._weight_by_head(f"{name}.k", by_head)
        values = self._weight_by_head(f"{name}.v", by_head)
        query = graph.node("Transpose", [graph.reshape(query, (-1, sizes.heads, sizes.head))], perm=[1, 0, 2])
        asked = graph.node("Transpose", [graph.node("MatMul", [query, keys])], perm=[1, 0, 2])
        scores = graph.microsoft("FusedMatMul", [asked, vectors], transB=1)  # (batch, heads, length)
        if unread:
            scores = graph.node("Add", [scores, unread])
        weights = graph.node("Softmax", [scores], axis=-1)
        mixed = graph.node("MatMul", [weights, vectors])  # (batch, heads, hidden)
        mixed = graph.node("Transpose", [mixed], perm=[1, 0, 2])
        mixed = graph.microsoft("FusedMatMul", [mixed, values], transB=1)  # (heads, batch, head)
        mixed = graph.reshape(graph.node("Transpose", [mixed], perm=[1, 0, 2]), (-1, sizes.attention))
        return self._linear(mixed, f"{name}.o")

    def _weight_by_head(self, name: str, shape: tuple[int, int, int]) -> str:
        size = (self._sizes.attention, self._sizes.hidden)
        return self._graph.weight(f"{name}.by_head", self._graph.array(f"{name}.weight", size).reshape(shape))

    def _linear(self, x: str, name: str, *, inward: bool = False) -> str:
        size = (self._sizes.hidden, self._sizes.attention)
        return self._graph.head_linear(x, name, size[::-1] if inward else size, bias=False)


@dataclass(frozen=True)
class TokenScore:
    """A score read off the first step of the decoder: a head for `open_engine`.

    Attributes:
        token: whose logit is the score.
        against: a token whose logit is taken off it.
        log_probability: whether the score is the log of the token's probability, if it is one of the two.
    """

    token: int
    against: int | None = None
    log_probability: bool = False

    def __str__(self) -> str:
        against = "" if self.against is None else f" against token {self.against}"
        kind = "log-probability" if self.log_probability else "logit"
        return f"the {kind} of token {self.token}{against}"

    def weights(self, decoder: T5Decoder) -> npt.NDArray[np.float32]:
        """What the decoder's last vector is multiplied with, (hidden,)."""
        weights = decoder.vocabulary_weights(self.token)
        return weights if self.against is None else weights - decoder.vocabulary_weights(self.against)

    def __call__(self, graph: Graph, config: Mapping[str, Any], encoder: Encoder) -> str:
        """Write encoder, decoder step and score, (batch, 1); see `Head`."""
        if not isinstance(encoder, T5Encoder):
            raise CheckpointError("it has no decoder to read a score off: it is no T5")
        decoder = T5Decoder(graph, config, encoder)
        score = decoder.logits(self.weights(decoder)[None, :])
        if not self.log_probability:
            return score
        return _log_sigmoid(graph, score)


def _log_sigmoid(graph: Graph, x: str) -> str:
    """min(x, 0) - log(1 + exp(-|x|)): log softmax([a, b])[b] for x = b - a.

    Log of 1 + y is written as 2 artanh(y / (2 + y)), which keeps its digits where y is small: high scores
    would tie otherwise, as they do with ONNX Runtime's Softplus.
    """
    zero, two = graph.constant(0, np.float32), graph.constant(2, np.float32)
    y = graph.node("Exp", [graph.node("Neg", [graph.node("Abs", [x])])])
    ratio = graph.node("Div", [y, graph.node("Add", [y, two])])
    log = graph.node("Mul", [graph.node("Atanh", [ratio]), two])
    return graph.node("Sub", [graph.node("Min", [x, zero]), log])


def distance_buckets(
    distances: npt.NDArray[np.int64], num_buckets: int, max_distance: int
) -> npt.NDArray[np.int64]:
    """The row of the table of relative positions for distances of a key from its query.

    Half of the rows are for keys after the query. Of each half, half are single distances, and the others
    take in ever more, up to `max_distance`.
    """
    half = num_buckets // 2
    exact = half // 2
    apart = np.abs(distances)
    # In float32, as the reference: a border between two buckets may lie on a whole number.
    ratio = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + steps.astype(np.int64), half - 1)
    buckets: npt.NDArray[np.int64] = np.where(distances > 0, half, 0) + np.where(apart < exact, apart, far)
    return buckets


def _block(stack: str, number: int) -> str:
    return f"{stack}.block.{number}"


def _feed_forward(graph: Graph, x: str, name: str, sizes: _Sizes, *, is_head: bool = False) -> str:
    def linear(value: str, part: str, size: tuple[int, int]) -> str:
        write = graph.head_linear if is_head else graph.linear
        return write(value, f"{name}.{part}", size, bias=False)

    size = (sizes.inner, sizes.hidden)
    if sizes.is_gated:
        gate = graph.activation(linear(x, "wi_0", size), sizes.activation)
        inner = graph.node("Mul", [gate, linear(x, "wi_1", size)])
    else:
        inner = graph.activation(linear(x, "wi", size), sizes.activation)
    return linear(inner, "wo", size[::-1])
