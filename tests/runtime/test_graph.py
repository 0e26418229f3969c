"""Graph: nodes against NumPy, weights outside the model, forms of linear layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from crossrank.errors import CheckpointError, UnsupportedArchitectureError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.deberta import distance_rows
from crossrank.runtime.engine import build_graph, open_session
from crossrank.runtime.graph import Float32Linear, Graph

GOLDEN = Path(__file__).parent.parent / "golden"
X = np.array([[-3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 3.0, 30.0]], np.float32)


def evaluate(graph: Graph, value: str) -> npt.NDArray[np.float32]:
    graph.output(value, "out", ["rows", "features"])
    session, _kept = open_session(graph, threads=1)
    result: npt.NDArray[np.float32] = session.run(None, {})[0]
    return result


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("gelu", gelu),
        ("gelu_new", gelu_tanh),
        ("gelu_pytorch_tanh", gelu_tanh),
        ("relu", lambda x: max(x, 0.0)),
        ("tanh", math.tanh),
        ("silu", lambda x: x / (1 + math.exp(-x))),
        ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x))),
        ("mish", lambda x: x * math.tanh(math.log1p(math.exp(x)))),
        ("identity", lambda x: x),
    ],
)
def test_activations(kind: str, formula: object) -> None:
    graph = Graph({})
    result = evaluate(graph, graph.activation(graph.constant(X, np.float32), kind))
    assert callable(formula)
    np.testing.assert_allclose(result, [[formula(float(x)) for x in X[0]]], atol=1e-6)


def test_an_unknown_activation_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"'xielu' .* supported: .*gelu.*relu"):
        Graph({}).activation("x", "xielu")


def test_norms() -> None:
    rng = np.random.default_rng(0)
    x, skip, weight, bias = (
        rng.standard_normal(shape).astype(np.float32) for shape in [(3, 8), (3, 8), 8, 8]
    )
    total = x + skip
    plain = (total - total.mean(1, keepdims=True)) / np.sqrt(total.var(1, keepdims=True) + 1e-5)
    cases = [
        ({"n.weight": weight, "n.bias": bias}, plain * weight + bias),
        ({"n.gamma": weight, "n.beta": bias}, plain * weight + bias),  # names of the first BERT releases
        ({"n.weight": weight}, plain * weight),
    ]
    for tensors, wanted in cases:
        graph = Graph(tensors)
        has_bias = len(tensors) == 2
        normed, kept = graph.add_norm(
            graph.weight("x", x), graph.weight("skip", skip), "n", 1e-5, bias=has_bias
        )
        with pytest.raises(CheckpointError, match=r"tensor 'n\.(bias|beta)'"):
            graph.norm("x", "n", 1e-5, bias=not has_bias)
        graph.output(kept, "total", [3, 8])
        graph.output(normed, "normed", [3, 8])
        session, _kept = open_session(graph, threads=1)
        given_total, given = session.run(None, {})
        np.testing.assert_array_equal(given_total, total)
        np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_a_linear_layer_and_its_checks() -> None:
    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.random((5, 8), np.float32), "a.bias": rng.random(5, np.float32)}
    tensors["b.weight"] = rng.random((5, 8), np.float32)
    graph = Graph(tensors)
    a = graph.linear(graph.constant(X, np.float32), "a", (5, 8))
    b = graph.linear(graph.constant(X, np.float32), "b", (5, 8), bias=False)
    result = evaluate(graph, graph.node("Concat", [a, b], axis=1))
    wanted = np.hstack([X @ tensors["a.weight"].T + tensors["a.bias"], X @ tensors["b.weight"].T])
    np.testing.assert_allclose(result, wanted, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"'a.weight' has shape \(5, 8\).*\(6, 8\)"):
        graph.linear("x", "a", (6, 8))
    with pytest.raises(CheckpointError, match=r"no tensor 'c.weight'"):
        graph.linear("x", "c", (6, 8))
    with pytest.raises(CheckpointError, match=r"no tensor 'b.bias'"):
        graph.linear("x", "b", (5, 8))
    with pytest.raises(CheckpointError, match=r"has a tensor 'a.bias', for which there is no place"):
        graph.linear("x", "a", (5, 8), bias=False)
    tensors["b.bias"] = np.zeros(4, np.float32)
    with pytest.raises(CheckpointError, match=r"'b.bias' has shape \(4,\)"):
        graph.linear("x", "b", (5, 8))


def test_weights_stay_outside_the_model() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert")
    graph = build_graph(checkpoint, "logits")
    num_weight_bytes = sum(array.nbytes for array in graph.weights.values())
    assert num_weight_bytes > 50_000
    assert graph.model().ByteSize() < 25_000
    # Memory-mapped, not copied: the array handed to the session is the file's own memory.
    name = "bert.embeddings.word_embeddings.weight"
    assert np.shares_memory(graph.weights[name], checkpoint.tensors()[name])


def test_equal_constants_are_shared_and_different_shapes_are_not() -> None:
    graph = Graph({})
    assert graph.constant([1, 2]) == graph.constant((1, 2))
    assert graph.constant(1) != graph.constant([1])
    assert graph.constant(0) != graph.constant(0, np.float32)


class RecordingForm(Float32Linear):
    """What a form is asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def linear(self, graph: Graph, x: str, name: str) -> str:
        self.asked.append((name,))
        return super().linear(graph, x, name)

    def linear_many(self, graph: Graph, x: str, names: Sequence[str]) -> list[str]:
        self.asked.append(tuple(names))
        return [Float32Linear().linear(graph, x, name) for name in names]


@pytest.mark.parametrize(
    ("name", "output", "first", "last"),
    [
        ("bert", "tokens", ("query", "key", "value"), ("output.dense",)),
        ("bert", "logits", ("query", "key", "value"), ("output.dense",)),
        ("distilbert", "logits", ("q_lin", "k_lin", "v_lin"), ("ffn.lin2",)),
        ("deberta_v3", "logits", ("query_proj", "key_proj", "value_proj"), ("output.dense",)),
        ("modernbert", "logits", ("Wqkv",), ("mlp.Wo",)),
    ],
)
def test_every_linear_layer_of_the_encoder_goes_through_the_form(
    name: str, output: str, first: tuple[str, ...], last: tuple[str, ...]
) -> None:
    form = RecordingForm()
    checkpoint = Checkpoint.open(GOLDEN / name)
    build_graph(checkpoint, output, form)
    for asked, wanted in ((form.asked[0], first), (form.asked[-1], last)):
        assert all(layer.endswith(end) for layer, end in zip(asked, wanted, strict=True))
    asked_for = {layer for names in form.asked for layer in names}
    matrices = {
        tensor.removesuffix(".weight")
        for tensor, array in checkpoint.tensors().items()
        if array.ndim == 2 and ("layer." in tensor or "layers." in tensor)
    }
    assert asked_for == matrices  # none is written past the form


def test_distance_rows_of_near_and_far_tokens() -> None:
    """Distances within half the buckets have a row each; the farthest share the outermost."""
    rows = distance_rows(np.arange(-600, 601), buckets=256, span=512)
    near = rows[600 - 127 : 600 + 128]
    np.testing.assert_array_equal(near, np.arange(256 - 127, 256 + 128))
    assert (np.diff(rows) >= 0).all()
    assert (rows[0], rows[600 - 511], rows[600 + 511], rows[-1]) == (0, 1, 511, 511)
    clipped = distance_rows(np.array([-30, -20, 0, 19, 30]), buckets=-1, span=20)
    assert clipped.tolist() == [0, 0, 20, 39, 39]
