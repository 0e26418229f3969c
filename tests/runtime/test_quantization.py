"""Static int8: calibration, what the files say, and scores that depend on the row alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from crossrank.errors import CheckpointError, InputError
from crossrank.runtime import checkpoint as checkpoint_module
from crossrank.runtime import int8
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import Engine, build_graph, open_engine, open_session
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE, Int8Linear, write_parity
from crossrank.runtime.quantization import calibrate, compare, write_int8
from crossrank.runtime.tokenization import ModelInputs

GOLDEN = Path(__file__).parent.parent / "golden"
FAMILIES = ["bert", "distilbert", "electra", "roberta", "deberta_v2", "modernbert"]


def inputs_of(name: str) -> list[ModelInputs]:
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    return [
        ModelInputs(
            np.array([row["ids"]], np.int64),
            np.ones((1, len(row["ids"])), np.int64),
            np.array([row["types"]], np.int64),
        )
        for row in rows
    ]


def quantised(name: str, folder: Path, *, passed: bool = True, keep_float: bool = True) -> Checkpoint:
    """A golden checkpoint with its int8 form beside (or in place of) its float32 weights."""
    shutil.copytree(GOLDEN / name, folder)
    checkpoint = Checkpoint.open(folder)
    layers = calibrate(checkpoint, "logits", inputs_of(name), rows_per_input=64)
    write_int8(folder / INT8_FILE, checkpoint.tensors(), layers)
    write_parity(folder, {"passed": passed})
    if not keep_float:
        (folder / "model.safetensors").unlink()
    return Checkpoint.open(folder)


def scores(engine: Engine, inputs: list[ModelInputs]) -> np.ndarray:
    return np.concatenate([engine.run(*row) for row in inputs])


@pytest.mark.parametrize("name", FAMILIES)
def test_int8_is_near_float32_and_not_it(name: str, tmp_path: Path) -> None:
    checkpoint = quantised(name, tmp_path / "model")
    inputs = inputs_of(name)
    exact = scores(open_engine(checkpoint, output="logits", precision="float32", threads=1), inputs)
    engine = open_engine(checkpoint, output="logits", threads=1)
    got = scores(engine, inputs)
    assert engine.precision == "int8"
    # Random weights 32 wide average little out; real models are held by the gate, not by this bound.
    assert 0 < np.abs(got - exact).max() < 0.15 * (1 + np.abs(exact).max())


def test_auto_is_float32_until_the_gate_is_passed(tmp_path: Path) -> None:
    checkpoint = quantised("bert", tmp_path / "model", passed=False)
    assert open_engine(checkpoint, output="logits", threads=1).precision == "float32"
    with pytest.raises(CheckpointError, match="no int8 form that passed the parity gate"):
        open_engine(checkpoint, output="logits", precision="int8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not a JSON object"),
        ("{}", "passed is missing"),
        ('{"passed": "yes"}', "passed is 'yes'"),
        ('{"passed": true}', "sha256 is missing"),
    ],
)
def test_a_damaged_record_of_the_gate_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    checkpoint = quantised("bert", tmp_path / "model")
    (checkpoint.folder / PARITY_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"parity\.json.* {message}"):
        open_engine(checkpoint, output="logits")


def test_the_record_is_about_the_very_weights_it_measured(tmp_path: Path) -> None:
    both = quantised("bert", tmp_path / "both")
    alone = quantised("bert", tmp_path / "alone", keep_float=False)
    for folder in (both.folder, alone.folder):
        content = bytearray((folder / INT8_FILE).read_bytes())
        content[-1] ^= 1
        (folder / INT8_FILE).write_bytes(content)
    both, alone = Checkpoint.open(both.folder), Checkpoint.open(alone.folder)
    for checkpoint in (both, alone):
        with pytest.raises(CheckpointError, match=r"passed the parity gate.* SHA-256 .*precision='float32'"):
            open_engine(checkpoint, output="logits", precision="int8")
    assert open_engine(both, output="logits", threads=1).precision == "float32"
    with pytest.raises(CheckpointError, match="passed the parity gate"):  # its weights are unchecked, too
        open_engine(alone, output="logits")
    assert open_engine(alone, output="logits", precision="float32", threads=1).precision == "float32"


def test_the_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = quantised("bert", tmp_path / "model", keep_float=False)
    hashed: list[str] = []
    digest = checkpoint_module.file_digest
    monkeypatch.setattr(
        checkpoint_module, "file_digest", lambda file: (hashed.append(file.name), digest(file))[1]
    )
    assert open_engine(checkpoint, output="logits", threads=1).fingerprint
    assert hashed.count(INT8_FILE) == 1


def test_int8_weights_alone_are_a_whole_model(tmp_path: Path) -> None:
    both = quantised("bert", tmp_path / "both")
    alone = quantised("bert", tmp_path / "alone", keep_float=False)
    inputs = inputs_of("bert")
    np.testing.assert_array_equal(
        scores(open_engine(alone, output="logits", threads=1), inputs),
        scores(open_engine(both, output="logits", threads=1), inputs),
    )
    float32 = open_engine(alone, output="logits", precision="float32", threads=1)
    exact = scores(open_engine(both, output="logits", precision="float32", threads=1), inputs)
    assert 0 < np.abs(scores(float32, inputs) - exact).max() < 0.15 * (1 + np.abs(exact).max())


def test_fingerprints_tell_the_forms_apart(tmp_path: Path) -> None:
    checkpoint = quantised("bert", tmp_path / "model")
    first = open_engine(checkpoint, output="logits", precision="int8", threads=1)
    other = open_engine(checkpoint, output="logits", precision="float32", threads=1)
    assert first.fingerprint != other.fingerprint
    layers = calibrate(checkpoint, "logits", inputs_of("bert")[:1])
    write_int8(checkpoint.folder / INT8_FILE, checkpoint.tensors(), layers)
    write_parity(checkpoint.folder, {"passed": True})
    again = open_engine(Checkpoint.open(checkpoint.folder), output="logits", precision="int8", threads=1)
    assert again.fingerprint != first.fingerprint


def test_calibration_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    one, two = quantised("bert", tmp_path / "one"), quantised("bert", tmp_path / "two")
    assert one.int8_file is not None
    assert two.int8_file is not None
    assert one.int8_file.read_bytes() == two.int8_file.read_bytes()


def test_int8_weights_alone_calibrated_again_keep_their_bits(tmp_path: Path) -> None:
    alone = quantised("bert", tmp_path / "alone", keep_float=False)
    write_int8(
        tmp_path / "again", alone.tensors(), calibrate(alone, "logits", inputs_of("bert"), rows_per_input=64)
    )
    assert alone.int8_file is not None
    first, again = (load_file(path) for path in (alone.int8_file, tmp_path / "again"))
    of_weights = {name for name in first if name.rpartition(".")[2] not in ("bias_correction", "by_row")}
    of_weights -= {name for name in first if ".input_" in name and not name.endswith("smooth")}
    assert len(of_weights) > 40
    for name in of_weights:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)


def test_int8_weights_are_rounded_again_where_other_inputs_ask_for_it(tmp_path: Path) -> None:
    alone = quantised("bert", tmp_path / "alone", keep_float=False)
    few = [ModelInputs(*(part[:, :6] for part in row)) for row in inputs_of("bert")[:2]]
    layers = calibrate(alone, "logits", few)
    exact, stored = alone.tensors(), alone.int8_tensors()
    is_other = {
        name: not np.array_equal(layer.weight, stored[f"{name}.weight"]) for name, layer in layers.items()
    }
    assert {*is_other.values()} == {False, True}
    for name, layer in layers.items():
        smooth = 1 if layer.input_smooth is None else layer.input_smooth
        weight = layer.weight * layer.weight_scale[:, None]
        off = np.abs(weight - exact[f"{name}.weight"] / smooth) / layer.weight_scale[:, None]
        assert off.max() <= (0.51 if is_other[name] else 1e-4), name


def test_calibration_sees_the_first_token_of_every_input() -> None:
    """Of one row an input, nothing is left to the seed."""
    checkpoint = Checkpoint.open(GOLDEN / "bert")
    one, two = (
        calibrate(checkpoint, "logits", inputs_of("bert"), rows_per_input=1, seed=seed) for seed in (0, 1)
    )
    for name in one:
        np.testing.assert_array_equal(one[name].input_scale, two[name].input_scale)
        np.testing.assert_array_equal(one[name].bias_correction, two[name].bias_correction)


def test_calibration_without_inputs_is_an_error() -> None:
    with pytest.raises(InputError, match="calibration needs inputs"):
        calibrate(Checkpoint.open(GOLDEN / "bert"), "logits", [])


@pytest.fixture(scope="module")
def int8_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return open_engine(
        quantised("bert", tmp_path_factory.mktemp("int8") / "model"), output="logits", threads=1
    )


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_row_scores_the_same_among_any_neighbours(int8_engine: Engine, data: st.DataObject) -> None:
    length = data.draw(st.integers(4, 40))
    ids = st.lists(st.integers(5, 77), min_size=length, max_size=length)
    rows = np.array(data.draw(st.lists(ids, min_size=2, max_size=12)), np.int64)
    lengths = data.draw(st.lists(st.integers(3, length), min_size=len(rows), max_size=len(rows)))
    mask = (np.arange(length) < np.array(lengths)[:, None]).astype(np.int64)
    types = np.zeros_like(rows)
    together = int8_engine.run(rows * mask, mask, types)
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    alone = np.concatenate(
        [int8_engine.run(rows[[i]] * mask[[i]], mask[[i]], types[[i]]) for i in range(len(rows))]
    )
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)
    shuffled = int8_engine.run((rows * mask)[order], mask[order], types[order])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-4, rtol=0)


def test_processors_without_exact_signed_products_give_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = quantised("bert", tmp_path / "model")
    inputs = inputs_of("bert")
    results = []
    for exact in (True, False):
        monkeypatch.setattr(int8, "_multiplies_exactly", lambda exact=exact: exact)
        graph = build_graph(checkpoint, "logits", Int8Linear(), checkpoint.int8_tensors())
        session, kept = open_session(graph, 1)
        names = {value.name for value in session.get_inputs()}
        feeds = [{k: v for k, v in row._asdict().items() if k in names} for row in inputs]
        results.append(np.concatenate([session.run(None, feed)[0] for feed in feeds]))
        assert kept is not None
    np.testing.assert_allclose(results[0], results[1], atol=1e-5, rtol=0)


def test_compare_by_hand() -> None:
    parity = compare(
        [np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0])], [np.array([3.0, 1.0, 2.0]), np.array([1.5, 0.0])]
    )
    assert parity.num_pairs == 5
    assert parity.max_delta == 1.0
    assert parity.mean_delta == pytest.approx(0.5)
    assert parity.kendall_tau == pytest.approx((1 / 3 + 1.0) / 2)


def test_layers_that_read_the_same_input_round_it_once(tmp_path: Path) -> None:
    checkpoint = quantised("bert", tmp_path / "model")
    tensors = checkpoint.int8_tensors()
    names = [f"bert.encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    for part in ("input_scale", "input_zero_point"):
        assert len({tensors[f"{name}.{part}"].tobytes() for name in names}) == 1
    graph = build_graph(checkpoint, "logits", Int8Linear(), tensors).model().graph
    rounded = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    products = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    reads = [node.input[0] for node in products if node.input[0] in rounded]
    first_layer = [
        node.input[0] for node in products if node.input[1].startswith("bert.encoder.layer.0.atten")
    ]
    assert len(set(first_layer)) == 2  # one for the three, one for the projection behind attention
    assert len(reads) == len(products)
