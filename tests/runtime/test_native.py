"""Whole layers by the native library give what ONNX Runtime's own operators give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank import BiEncoder, CrossEncoder
from crossrank.errors import CheckpointError, InputError
from crossrank.models.hub import BUILT_IN, resolve
from crossrank.runtime import native
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.bert import BertEncoder
from crossrank.runtime.engine import build_stored_graph, open_session
from crossrank.runtime.graph import Graph
from crossrank.runtime.int8 import Int8Linear
from crossrank.runtime.native import VARIABLE, left_out, library

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(
    native._runs_here() is None, reason="the library was not compiled, or cannot run on this processor"
)

VOCABULARY = 50


class Shape(NamedTuple):
    """Of a model whose layers have random int8 weights."""

    hidden: int = 128
    heads: int = 4
    inner: int = 256
    layers: int = 1
    by_row: tuple[str, ...] = ()
    smooth: bool = True
    seed: int = 0
    apart: tuple[str, ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.inner,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 512,
            "hidden_act": "gelu",
        }

    def tensors(self) -> dict[str, Array]:
        random = np.random.default_rng(self.seed)
        hidden, inner = self.hidden, self.inner

        def floats(*shape: int, spread: float = 1.0) -> Array:
            return (random.standard_normal(shape) * spread).astype(np.float32)

        made: dict[str, Array] = {
            "embeddings.word_embeddings.weight": floats(VOCABULARY, hidden),
            "embeddings.position_embeddings.weight": floats(512, hidden, spread=0.3),
            "embeddings.token_type_embeddings.weight": floats(2, hidden, spread=0.3),
        }
        norms = ["embeddings.LayerNorm"]
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}"
            norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
            linear = {
                ("attention.self.query", "attention.self.key", "attention.self.value"): (hidden, hidden),
                ("attention.output.dense",): (hidden, hidden),
                ("intermediate.dense",): (inner, hidden),
                ("output.dense",): (hidden, inner),
            }
            for parts, (rows, columns) in linear.items():
                is_by_row = parts[-1] in self.by_row
                shared = {
                    "input_scale": np.array([1 / 127 if is_by_row else 6 / 255], np.float32),
                    "input_zero_point": np.array([random.integers(100, 150)], np.uint8),
                }
                if self.smooth:
                    shared["input_smooth"] = np.exp(floats(columns, spread=0.2))
                if is_by_row:
                    shared["by_row"] = np.ones(1, np.uint8)
                for part in parts:
                    prefix = f"{name}.{part}"
                    made |= {f"{prefix}.{key}": value for key, value in shared.items()}
                    if part.endswith(self.apart):  # rounds its inputs in a way of its own
                        made[f"{prefix}.input_scale"] = shared["input_scale"] * np.float32(0.9)
                    made[f"{prefix}.weight"] = random.integers(-127, 128, (rows, columns)).astype(np.int8)
                    scale = 1 / (74 * np.sqrt(columns)) * np.exp(floats(rows, spread=0.2))
                    made[f"{prefix}.weight_scale"] = scale.astype(np.float32)
                    made[f"{prefix}.bias"] = floats(rows, spread=0.1)
                    made[f"{prefix}.bias_correction"] = floats(rows, spread=0.01)
        for norm in norms:
            made[f"{norm}.weight"] = 1 + floats(hidden, spread=0.1)
            made[f"{norm}.bias"] = floats(hidden, spread=0.1)
        return made


def graph_of(
    shape: Shape,
    compiled: Path | None,
    *,
    first: bool = False,
    padded: bool = False,
    tensors: dict[str, Array] | None = None,
) -> Graph:
    graph = Graph(
        shape.tensors() if tensors is None else tensors, Int8Linear(operators=compiled), padded=padded
    )
    encoder = BertEncoder(graph, shape.config, "bert")
    written = encoder.first() if first else encoder.frame.deep(encoder.tokens())
    graph.output(written, "states", [None] * (2 if first else 3))
    return graph


def runner(graph: Graph) -> Callable[..., Array]:
    session, kept = open_session(graph)

    def run(ids: Array, mask: Array | None = None) -> Array:
        assert kept is not None
        feed = {"input_ids": ids, "token_type_ids": ids % 2}
        if mask is not None:
            feed["attention_mask"] = mask
        result: Array = session.run(None, feed)[0]
        return result

    return run


def run(graph: Graph, ids: Array, mask: Array | None = None) -> Array:
    return runner(graph)(ids, mask)


def ids_of(batch: int, length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length))


def kinds(graph: Graph) -> set[str]:
    return {node.op_type for node in graph.model().graph.node}


shapes = st.builds(
    lambda wide, **rest: Shape(hidden=wide[0], heads=wide[1], **rest),
    wide=st.sampled_from([(128, 1), (128, 2), (128, 4), (128, 8), (192, 4)]),  # 128, 64, 32, 16, 48 a head
    inner=st.sampled_from([64, 320]),
    by_row=st.sets(
        st.sampled_from(
            ["attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"]
        )
    ).map(tuple),
    layers=st.just(1),
    smooth=st.booleans(),
    seed=st.integers(0, 5),
    apart=st.sets(st.sampled_from(["query", "value"])).map(tuple),
)


# Texts of more tokens than a block has (192), and more rows than feed-forward layers take at a time (96).
sizes = st.sampled_from([(1, 1), (1, 5), (3, 17), (7, 30), (2, 97), (1, 200), (2, 210), (120, 2)])


def differences(shape: Shape, size: tuple[int, int], *, first: bool) -> Array:
    """How far the library's states are from ONNX Runtime's operators', in their standard deviation.

    Of at least 50 rows: one rounding that is tipped is seen in all of a row, so a single one tells little.
    """
    rows = size[0] * (1 if first else size[1])
    inputs = [ids_of(*size, seed=100 * shape.seed + number) for number in range(-(-50 // rows))]
    whole, parts = graph_of(shape, library(), first=first), graph_of(shape, None, first=first)
    assert "BertLayer" in kinds(whole)
    assert "MatMulIntegerToFloat" not in kinds(whole)
    assert "BertLayer" not in kinds(parts)
    run_whole, run_parts = runner(whole), runner(parts)
    found, expected = (np.concatenate([each(ids) for ids in inputs]) for each in (run_whole, run_parts))
    assert found.shape == expected.shape
    off: Array = np.abs(found - expected) / expected.std()
    return off


@settings(max_examples=25, deadline=None)
@given(shape=shapes, first=st.booleans(), rows=st.sampled_from([1, 5, 100, 250]))
def test_a_layer_is_that_of_onnx_runtimes_operators(shape: Shape, first: bool, rows: int) -> None:
    """In texts of one token, which attends to itself alone: no rounding of attention's is in them."""
    off = differences(shape, (rows, 1), first=first)
    # Within float32's rounding but where that tips an input from one of 256 levels to the next.
    assert np.median(off) < 2e-6
    assert np.mean(off) < 1e-3
    assert off.max() < 0.1


@settings(max_examples=25, deadline=None)
@given(shape=shapes, first=st.booleans(), size=sizes)
def test_attention_is_that_of_onnx_runtimes_operators_rounded(
    shape: Shape, first: bool, size: tuple[int, int]
) -> None:
    off = differences(shape, size, first=first)
    assert np.mean(off) < 0.005  # attention rounds by the largest number of a head: to 14 bits of that
    assert off.max() < 0.1


def both_ways(shape: Shape, tensors: dict[str, Array], ids: Array) -> Array:
    """How far the library's states are from ONNX Runtime's operators'."""
    found, expected = (run(graph_of(shape, each, tensors=tensors), ids) for each in (library(), None))
    off: Array = np.abs(found - expected) / expected.std()
    return off


@pytest.mark.parametrize("length", [2, 64, 500])
def test_mixtures_of_many_equal_tokens_stay_within_their_bits(length: int) -> None:
    """All values are as large as they get, and all weights alike: the largest sums there are."""
    shape = Shape(heads=2)
    tensors = shape.tensors()
    tensors["embeddings.position_embeddings.weight"][:] = 0
    off = both_ways(shape, tensors, np.full((1, length), 7))
    assert np.median(off) < 2e-5
    assert off.max() < 0.1


@pytest.mark.parametrize("heads", [1, 4])
def test_scores_of_the_largest_queries_and_keys_stay_within_their_bits(heads: int) -> None:
    """All features of a query are alike, and all of a key: the largest scores there are, among others."""
    shape = Shape(heads=heads)
    tensors = shape.tensors()
    query, key = (f"encoder.layer.0.attention.self.{part}" for part in ("query", "key"))
    tensors[f"{query}.weight"][:] = 0
    tensors[f"{query}.bias"][:] = 0.2
    tensors[f"{key}.weight"][:] = tensors[f"{key}.weight"][0]
    tensors[f"{key}.weight_scale"][:] = tensors[f"{key}.weight_scale"][0]
    for part in (query, key):
        tensors[f"{part}.bias_correction"][:] = 0
    tensors[f"{key}.bias"][:] = 0
    off = both_ways(shape, tensors, ids_of(3, 30))
    assert np.mean(off) < 0.005
    assert off.max() < 0.1


@settings(max_examples=25, deadline=None)
@given(shape=shapes, lengths=st.lists(st.integers(1, 230), min_size=1, max_size=5), first=st.booleans())
def test_a_row_depends_on_its_own_tokens_alone(shape: Shape, lengths: list[int], first: bool) -> None:
    """To the bit: with padding or without, among others or alone."""
    shape = shape._replace(layers=2)
    ids = ids_of(len(lengths), max(lengths), seed=shape.seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    together = run(graph_of(shape, library(), first=first, padded=True), ids * mask, mask)
    exact = graph_of(shape, library(), first=first)
    for row, length in enumerate(lengths):
        alone = run(exact, ids[row : row + 1, :length])[0]
        np.testing.assert_array_equal(together[row] if first else together[row, :length], alone)
        assert first or not together[row, length:].any()


@pytest.mark.parametrize("value", [0, -3, 7])
def test_a_mask_that_is_none_does_not_lead_out_of_the_text(value: int) -> None:
    ids = ids_of(2, 20)
    mask = np.ones_like(ids)
    mask[0] = value
    exact = run(graph_of(Shape(), library()), ids)
    found = run(graph_of(Shape(), library(), padded=True), ids, mask)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[1], exact[1])


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({"hidden_act": "relu"}, Shape()),
        ({}, Shape(hidden=96, heads=4)),
        ({}, Shape(inner=100)),
        ({}, Shape(heads=16)),
    ],
)
def test_what_the_library_does_not_compute_is_left_to_onnx_runtime(
    change: dict[str, Any], shape: Shape
) -> None:
    graph = Graph(shape.tensors(), Int8Linear(operators=library()), padded=False)
    graph.output(BertEncoder(graph, {**shape.config, **change}, "bert").first(), "states", [None, None])
    assert "BertLayer" not in kinds(graph)
    assert np.isfinite(run(graph, ids_of(2, 9))).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_layer_of_the_built_in_models_is_the_librarys(name: str) -> None:
    checkpoint = Checkpoint.open(resolve(name, kind=BUILT_IN[name]))
    output: Literal["logits", "tokens"] = "logits" if BUILT_IN[name] == "cross-encoder" else "tokens"
    graph = build_stored_graph(checkpoint, output, "int8", library(), padded=False)
    assert "BertLayer" in kinds(graph)
    assert "MultiHeadAttention" not in kinds(graph)


def test_a_layer_of_another_size_than_the_config_says_is_refused() -> None:
    shape = Shape()
    tensors = {
        name: array[:64] if name == "encoder.layer.0.intermediate.dense.weight" else array
        for name, array in shape.tensors().items()
    }
    graph = Graph(tensors, Int8Linear(operators=library()), padded=False)
    with pytest.raises(CheckpointError, match=r"intermediate\.dense\.weight' has shape \(64, 128\)"):
        BertEncoder(graph, shape.config, "bert").first()


PAIRS = [
    ("who wrote Hamlet", "Hamlet is a play by William Shakespeare."),
    ("who wrote Hamlet", "A hamlet is a small village. " * 20),
    ("capital of France", "Paris has been the capital of France for most of its history."),
    ("capital of France", "France is a country."),
]


@pytest.mark.parametrize("name", ["crossrank-mini", "crossrank-tiny"])
def test_built_in_rerankers_score_alike(name: str) -> None:
    fast = CrossEncoder(name, threads=1)
    with left_out():
        plain = CrossEncoder(name, threads=1)
    assert fast.fingerprint == plain.fingerprint
    exact = CrossEncoder(name, threads=1, precision="float32").score(PAIRS)
    found, expected = fast.score(PAIRS), plain.score(PAIRS)
    np.testing.assert_allclose(found, expected, atol=0.1 * exact.std())
    # As far from float32 as ONNX Runtime's operators are, and not further.
    assert np.abs(found - exact).mean() < 2 * np.abs(expected - exact).mean()


def test_vectors_are_alike() -> None:
    texts = [text for _, text in PAIRS]
    with left_out():
        expected = BiEncoder(threads=1, progress=False).encode_documents(texts)
    found = BiEncoder(threads=1, progress=False).encode_documents(texts)
    assert (found * expected).sum(axis=1).min() > 0.999


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is not None
    with left_out():
        assert library() is None
    monkeypatch.setenv(VARIABLE, "off")
    assert library() is None
    monkeypatch.setenv(VARIABLE, "on")
    with pytest.raises(InputError, match="CROSSRANK_NATIVE is 'on'; choose 'auto' or 'off'"):
        library()


def test_a_library_of_other_source_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "bert_layer.c"
    source.write_bytes(native._SOURCE.read_bytes() + b"\n")
    compiled = native._runs_here()
    assert compiled is not None
    (tmp_path / compiled.name).write_bytes(compiled.read_bytes())
    monkeypatch.setattr(native, "_SOURCE", source)
    assert native._runs_here.__wrapped__() is None


def test_a_library_that_cannot_be_loaded_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = native._runs_here()
    assert compiled is not None
    (tmp_path / "bert_layer.c").write_bytes(native._SOURCE.read_bytes())
    (tmp_path / compiled.name).write_bytes(b"no library")
    monkeypatch.setattr(native, "_SOURCE", tmp_path / "bert_layer.c")
    assert native._runs_here.__wrapped__() is None
    assert "cannot be loaded, so int8 runs without it" in caplog.text
