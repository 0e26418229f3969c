"""Heads at earlier layers: models cut there, and models in parts that go on from where a pair was left."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crossrank.cache import ScoreCache
from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.models import quantize as quantize_module
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.quantize import quantize
from crossrank.runtime import staged_engine
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import build_graph
from crossrank.runtime.exits import EXITS_FILE, Exits
from crossrank.runtime.int8 import PARITY_FILE

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = ["bert_exits", "roberta_exits"]
QUERY = "what is the old city"
WORDS = ["the", "of", "cat", "dog", "bird", "river", "mountain", "city", "water", "light", "blue", "old"]


def texts(count: int = 30) -> list[str]:
    random = np.random.default_rng(3)
    return [" ".join(random.choice(WORDS, random.integers(1, 25))) for _ in range(count)]


def pairs() -> list[tuple[str, str]]:
    return [(QUERY, text) for text in texts()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "bert_exits", tmp_path / "model")


def golden(name: str) -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    import json

    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return [tuple(row["pair"]) for row in rows], dict(arrays)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_transformers_hidden_states(name: str, layer: int) -> None:
    rows, arrays = golden(name)
    model = CrossEncoder(GOLDEN / name, exit_layer=layer, long_query="truncate")
    assert model.name == f"{name}@{layer}"
    np.testing.assert_allclose(
        model.score(rows).reshape(len(rows), -1), arrays[f"exit_{layer}"], rtol=0, atol=1e-5
    )


def test_a_cut_model_has_no_node_of_later_layers() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert_exits")
    graphs = [build_graph(checkpoint, Exits(checkpoint).cut(layer)) for layer in (1, 2)]
    whole = build_graph(checkpoint, "logits")
    norms = [
        sum(node.op_type == "LayerNormalization" for node in graph.model().graph.node)
        for graph in (*graphs, whole)
    ]
    assert norms == [1 + 2 * 1, 1 + 2 * 2, 1 + 2 * 4]


def test_the_last_layer_is_the_whole_model() -> None:
    whole, last = CrossEncoder(GOLDEN / "bert_exits"), CrossEncoder(GOLDEN / "bert_exits", exit_layer=4)
    assert (last.name, last.exit_layer, last.fingerprint) == (whole.name, None, whole.fingerprint)
    assert whole.exit_layers == (1, 2)
    assert whole.num_layers == 4


def test_an_exit_has_a_fingerprint_of_its_own_and_shares_a_cache() -> None:
    cache = ScoreCache()
    models = [CrossEncoder(GOLDEN / "bert_exits", exit_layer=layer, cache=cache) for layer in (None, 1, 2)]
    assert len({model.fingerprint for model in models}) == 3
    scores = [model.score(pairs()) for model in models]
    for model, expected in zip(models, scores, strict=True):
        np.testing.assert_array_equal(model.score(pairs()), expected)
    assert not np.allclose(scores[0], scores[1])


def test_heads_count_in_the_fingerprint(folder: Path) -> None:
    before = CrossEncoder(folder, exit_layer=1).fingerprint
    heads = load_file(folder / EXITS_FILE)
    heads["1.1.bias"] = heads["1.1.bias"] + 1
    save_file(heads, folder / EXITS_FILE)
    assert CrossEncoder(folder, exit_layer=1).fingerprint != before


@pytest.mark.parametrize("name", MODELS)
def test_who_goes_on_ends_with_the_bits_of_the_whole_model(name: str) -> None:
    options = {"label": 0, "threads": 2}
    whole = CrossEncoder(GOLDEN / name, **options)
    layers = (1, 2, whole.num_layers)
    first, second, last = whole.staged(layers)()
    assert [each.name for each in (first, second, last)] == [f"{name}@1", f"{name}@2", name]
    documents = texts(40)
    np.testing.assert_array_equal(
        first.score([(QUERY, text) for text in documents]),
        CrossEncoder(GOLDEN / name, exit_layer=1, **options).score([(QUERY, text) for text in documents]),
    )
    on = [(QUERY, text) for text in documents[5:30]]
    second.score(on)
    end = [*on[3:9], (QUERY, "a text that no stage has seen"), *on[12:20]]
    np.testing.assert_array_equal(last.score(end), whole.score(end))


def test_finishing_runs_the_layers_that_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, int, int]] = []
    run = staged_engine.StagedEngine.run

    def counted(self, inputs, source, stage, states):
        runs.append((source, stage, len(inputs.input_ids)))
        return run(self, inputs, source, stage, states)

    monkeypatch.setattr(staged_engine.StagedEngine, "run", counted)
    first, last = CrossEncoder(GOLDEN / "bert_exits", threads=1).staged((2, 4))()
    rows = list(dict.fromkeys(pairs()))
    first.score(rows)
    last.score(rows[:10])
    assert {(source, stage) for source, stage, _ in runs} == {(-1, 0), (0, 1)}
    assert sum(count for source, _, count in runs if source == 0) == 10


def test_layer_0_may_be_all() -> None:
    (words,) = CrossEncoder(GOLDEN / "bert_exits").staged([0])()
    cut = CrossEncoder(GOLDEN / "bert_exits", exit_layer=0)
    np.testing.assert_array_equal(words.score(pairs()), cut.score(pairs()))


def test_the_same_layers_are_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    make = staged_engine.StagedEngine.__init__

    def counted(self, *arguments, **options):
        opened.append(arguments[1])
        make(self, *arguments, **options)

    monkeypatch.setattr(staged_engine.StagedEngine, "__init__", counted)
    model = CrossEncoder(GOLDEN / "bert_exits")
    for layers in ((1, 4), (2, 4), (1, 4), (0, 2, 4)):
        model.staged(layers)()
    assert opened == [[1, 4], [2, 4]]


def test_states_beyond_the_bound_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staged_engine, "_KEPT_BYTES", 20_000)
    whole = CrossEncoder(GOLDEN / "bert_exits", threads=2)
    first, last = whole.staged((2, 4))()
    first.score(pairs())
    np.testing.assert_allclose(last.score(pairs()), whole.score(pairs()), rtol=0, atol=1e-6)


def test_a_pair_that_goes_on_begins_with_the_layer_of_the_head() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert_exits")
    exits = Exits(checkpoint)
    for (start, stop), layers, inputs in (((0, 1), 1, 3), ((0, 2), 2, 3), ((1, 4), 3, 2)):
        graph = build_graph(checkpoint, exits.part(start, stop)).model().graph
        norms = sum(node.op_type == "LayerNormalization" for node in graph.node)
        assert norms == 2 * layers + (start == 0)  # the embeddings have one, too
        assert len(graph.input) == inputs


@pytest.mark.parametrize("long_documents", ["max", "mean_top_k"])
def test_windows_go_on_as_they_are(long_documents: str) -> None:
    options = {"long_documents": long_documents, "max_length": 24, "threads": 1}
    whole = CrossEncoder(GOLDEN / "bert_exits", **options)
    first, last = whole.staged((2, 4))()
    first.score(pairs())
    np.testing.assert_array_equal(last.score(pairs()[:7]), whole.score(pairs()[:7]))


@pytest.mark.parametrize("layer", [3, 5, -1, True, "2"])
def test_a_layer_without_a_head_is_refused_with_those_there_are(layer: object) -> None:
    with pytest.raises(InputError, match=r"no head after layer .*scores after layer 1, 2, 4 \(its last\)"):
        CrossEncoder(GOLDEN / "bert_exits", exit_layer=layer)


def test_models_without_heads_say_so() -> None:
    with pytest.raises(
        InputError, match=r"no head after layer 1; bert has scores after layer 2 \(its last\)"
    ):
        CrossEncoder(GOLDEN / "bert", exit_layer=1)
    with pytest.raises(InputError, match="ONNX file is run whole"):
        CrossEncoder(GOLDEN / "bert_exits", exit_layer=1, source="onnx")
    with pytest.raises(InputError, match="must ascend"):
        CrossEncoder(GOLDEN / "bert_exits").staged((2, 1))
    with pytest.raises(InputError, match="is cut after layer 1"):
        CrossEncoder(GOLDEN / "bert_exits", exit_layer=1).staged((1, 4))


def test_models_that_cannot_be_cut_say_so(tmp_path: Path) -> None:
    modern = shutil.copytree(GOLDEN / "modernbert", tmp_path / "modern")
    shutil.copyfile(GOLDEN / "bert_exits" / EXITS_FILE, modern / EXITS_FILE)
    assert CrossEncoder(modern).exit_layers == (1, 2)  # the whole model runs all the same
    with pytest.raises(UnsupportedArchitectureError, match="modernbert cannot be cut"):
        CrossEncoder(modern, exit_layer=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.0.bias": None}, "lacks a weight or bias of the head after layer 1"),
        ({"4.0.bias": np.zeros(32, np.float32)}, r"tensor '4.0.bias'.*from 1 to 3"),
        ({"pooler": np.zeros(3, np.float32)}, "tensor 'pooler'"),
        ({"1.1.weight": np.zeros((2, 32), np.float32)}, r"'1.1.weight' has shape \(2, 32\).*another model's"),
    ],
)
def test_heads_that_do_not_fit_are_named(folder: Path, change: dict, message: str) -> None:
    heads = {**load_file(folder / EXITS_FILE), **change}
    save_file({name: array for name, array in heads.items() if array is not None}, folder / EXITS_FILE)
    with pytest.raises(CheckpointError, match=message):
        CrossEncoder(folder, exit_layer=1)


# --- int8 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("int8") / "model"
    random = np.random.default_rng(5)
    rows = [
        (f"what is {number}", " ".join(random.choice(WORDS, random.integers(2, 20))))
        for number in range(60)
        for _ in range(6)
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Random weights 32 wide average little out.
        for name, limit in {"mean_delta_in_std": 1.0, "kendall_tau": -1.0, "delta_ndcg@10": 1.0}.items():
            patch.setitem(quantize_module.LIMITS, name, limit)
        report = quantize(GOLDEN / "bert_exits", to, quantize_module.as_candidates(rows), progress=False)
    assert report.passed
    assert set(report.exits) == {1, 2}
    assert all(figures["num_pairs"] == report.figures["num_pairs"] for figures in report.exits.values())
    return to


def test_an_int8_form_carries_the_heads_and_a_pairs_score_is_its_own(int8: Path) -> None:
    exact = CrossEncoder(GOLDEN / "bert_exits", exit_layer=2).score(pairs())
    model = CrossEncoder(int8, exit_layer=2, threads=2)
    assert model.precision == "int8"
    scores = model.score(pairs())
    assert np.corrcoef(scores, exact)[0, 1] > 0.9
    np.testing.assert_array_equal(scores, np.concatenate([model.score([pair]) for pair in pairs()]))


def test_int8_parts_end_with_the_bits_of_the_whole(int8: Path) -> None:
    whole = CrossEncoder(int8, precision="int8")
    first, last = whole.staged((2, 4))()
    assert last.precision == "int8"
    first.score(pairs())
    np.testing.assert_array_equal(last.score(pairs()[4:9]), whole.score(pairs()[4:9]))


def test_heads_that_were_not_measured_are_not_used_in_int8(int8: Path, tmp_path: Path) -> None:
    other = shutil.copytree(int8, tmp_path / "other")
    heads = load_file(other / EXITS_FILE)
    save_file({name: array * 2 for name, array in heads.items()}, other / EXITS_FILE)
    with pytest.raises(CheckpointError, match=f"{PARITY_FILE} does not say so of its {EXITS_FILE}"):
        CrossEncoder(other, exit_layer=1, precision="int8")
    assert CrossEncoder(other, exit_layer=1).precision == "float32"
    whole = CrossEncoder(other)
    assert whole.precision == "int8"  # of the last layer nothing has changed
    assert [each.precision for each in whole.staged((0, 4))()] == ["float32", "int8"]
    with pytest.raises(CheckpointError, match="does not say so"):
        whole.staged((1, 4))


def test_an_exit_must_pass_the_gate_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = quantize_module.parity_figures
    calls = []

    def second_fails(*arguments, **options):
        calls.append(arguments)
        found, _ = figures(*arguments, **options)
        return found, ["kendall_tau"] if len(calls) == 2 else []

    monkeypatch.setattr(quantize_module, "parity_figures", second_fails)
    rows = [(f"what is {number}", text) for number in range(20) for text in texts(10)]
    to = tmp_path / "to"
    report = quantize(GOLDEN / "bert_exits", to, quantize_module.as_candidates(rows), progress=False)
    assert not report.passed
    assert report.exceeded == ("kendall_tau after layer 1",)
    assert not to.exists()
