"""open_engine: what runs, what is refused, and that a session can be shared."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import build_graph, open_engine
from crossrank.runtime.tokenization import ModelInputs

GOLDEN = Path(__file__).parent.parent / "golden"
Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def batch(name: str = "bert") -> tuple[Arrays, npt.NDArray[np.float32]]:
    """The golden pairs as one padded batch, and their logits."""
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    ids = np.zeros((len(rows), max(len(row["ids"]) for row in rows)), np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, row in enumerate(rows):
        size = len(row["ids"])
        ids[i, :size], mask[i, :size], types[i, :size] = row["ids"], 1, row["types"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return (ids, mask, types), arrays["logits"]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "bert")


def test_token_types_matter(checkpoint: Checkpoint) -> None:
    (ids, mask, types), logits = batch()
    engine = open_engine(checkpoint, output="logits", threads=1)
    np.testing.assert_allclose(engine.run(ids, mask, types), logits, atol=1e-5)
    assert np.abs(engine.run(ids, mask, np.zeros_like(types)) - logits).max() > 0.01


def one_by_one(arrays: Arrays) -> list[ModelInputs]:
    return [ModelInputs(*(array[[row]] for array in arrays)) for row in range(len(arrays[0]))]


@pytest.mark.parametrize(
    "name", ["bert", "deberta_v3", "distilbert", "electra", "modernbert", "modernbert_mean", "xlm_roberta"]
)
def test_rows_without_padding_have_a_graph_of_their_own_and_the_same_scores(name: str) -> None:
    arrays, logits = batch(name)
    checkpoint = Checkpoint.open(GOLDEN / name)
    exact = build_graph(checkpoint, "logits", padded=False).model()
    assert "attention_mask" in {value.name for value in build_graph(checkpoint, "logits").model().graph.input}
    assert "attention_mask" not in {value.name for value in exact.graph.input}
    engine = open_engine(checkpoint, output="logits", threads=1)
    for row in range(len(logits)):
        size = int(arrays[1][row].sum())
        alone = engine.run(*(array[[row], :size] for array in arrays))
        np.testing.assert_allclose(alone, logits[[row]], atol=1e-5)
    np.testing.assert_allclose(engine.run(*arrays), logits, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_batches_come_in_order_from_any_number_of_threads(checkpoint: Checkpoint, threads: int) -> None:
    arrays, logits = batch()
    engine = open_engine(checkpoint, output="logits", threads=threads)
    outputs = list(engine.run_all(one_by_one(arrays) * 5))
    np.testing.assert_allclose(np.concatenate(outputs), np.tile(logits, (5, 1)), atol=1e-5)


def test_batches_are_taken_as_they_are_needed(checkpoint: Checkpoint) -> None:
    [first, *_] = one_by_one(batch()[0])
    taken = itertools.count()
    outputs = open_engine(checkpoint, output="logits", threads=2).run_all(first for _ in taken)
    assert [next(outputs).shape for _ in range(3)] == [(1, 1)] * 3  # of an endless supply
    assert next(taken) <= 3 + 2 * 2 + 1


def test_a_batch_that_cannot_run_raises_in_its_turn(checkpoint: Checkpoint) -> None:
    [first, *_] = one_by_one(batch()[0])
    empty = ModelInputs(*(array[:, :0] for array in first))
    outputs = open_engine(checkpoint, output="logits", threads=2).run_all([first, empty, first])
    next(outputs)
    with pytest.raises(InputError, match="empty batch"):
        next(outputs)


def test_callers_share_the_threads(checkpoint: Checkpoint) -> None:
    engine = open_engine(checkpoint, output="logits", threads=2)
    inputs = one_by_one(batch()[0]) * 20
    before = threading.active_count()
    with ThreadPoolExecutor(8) as callers:
        running = [callers.submit(lambda: list(engine.run_all(inputs))) for _ in range(8)]
        most = max(threading.active_count() for _ in iter(lambda: all(f.done() for f in running), True))
    assert most <= before + 8 + 2
    first, *others = (np.concatenate(future.result()) for future in running)
    assert all((first == other).all() for other in others)


_PROGRAM = (
    "import atexit, os, sys, threading, time, numpy as np\n"
    "from crossrank import CrossEncoder\n"
    "model = CrossEncoder(sys.argv[1], threads=2)\n"
    "pairs = [('what is it', 'a text ' * n) for n in range(1, 9)]\n"
    "expected = model.score(pairs)\n"
)


def run_program(rest: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM + rest, str(GOLDEN / "bert")]
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout


def test_threads_and_exit_handlers_run_while_the_interpreter_ends() -> None:
    rest = (
        "def score():\n"
        "    time.sleep(0.2)\n"
        "    print(np.array_equal(model.score(pairs), expected), flush=True)\n"
        "atexit.register(score)\n"
        "threading.Thread(target=score).start()\n"
    )
    assert run_program(rest) == "True\nTrue\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_runs_too() -> None:
    rest = (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if np.array_equal(model.score(pairs), expected) else 3)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    run_program(rest)


def test_a_tokenizer_without_token_types_means_zeros(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert", tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"]}))
    (ids, mask, types), _ = batch()
    engine = open_engine(Checkpoint.open(folder), output="logits", threads=1)
    zeros = engine.run(ids, mask, np.zeros_like(types))
    np.testing.assert_array_equal(engine.run(ids, mask, types), zeros)


@pytest.mark.parametrize("output", ["logits", "tokens"])
def test_results_are_float32_of_the_stated_shape(checkpoint: Checkpoint, output: str) -> None:
    (ids, mask, types), _ = batch()
    result = open_engine(checkpoint, output=output, threads=1).run(ids, mask, types)
    assert result.dtype == np.float32
    assert result.shape == ((len(ids), 1) if output == "logits" else (*ids.shape, 32))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta_v3", "modernbert_mean"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_score_of_a_pair_depends_on_the_pair_alone(name: str, data: st.DataObject) -> None:
    engine = ENGINES.setdefault(name, open_engine(Checkpoint.open(GOLDEN / name), output="logits", threads=1))
    padding = Checkpoint.open(GOLDEN / name).config["pad_token_id"]
    token = st.integers(5, 70)
    rows = data.draw(st.lists(st.lists(token, min_size=2, max_size=40), min_size=1, max_size=6))
    length = data.draw(st.integers(max(map(len, rows)), 96))
    ids = np.full((len(rows), length), padding, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    together = engine.run(ids, mask, np.zeros_like(ids))
    for i, row in enumerate(rows):
        alone = np.array([row])
        score = engine.run(alone, np.ones_like(alone), np.zeros_like(alone))
        np.testing.assert_allclose(together[i], score[0], rtol=0, atol=1e-5)


ENGINES: dict[str, object] = {}


@pytest.mark.parametrize("name", ["bert", "deberta_v3", "modernbert"])
def test_a_row_of_one_token(name: str) -> None:
    engine = open_engine(Checkpoint.open(GOLDEN / name), output="logits", threads=1)
    one = np.ones((1, 1), np.int64)
    assert np.isfinite(engine.run(one, one, one * 0)).all()


def test_many_threads_share_an_engine(checkpoint: Checkpoint) -> None:
    arrays, _ = batch()
    engine = open_engine(checkpoint, output="logits", threads=1)
    wanted = engine.run(*arrays)
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: engine.run(*arrays), range(64)):
            np.testing.assert_array_equal(result, wanted)


def test_threads_do_not_change_scores(checkpoint: Checkpoint) -> None:
    arrays, logits = batch()
    engine = open_engine(checkpoint, output="logits", threads=3)
    np.testing.assert_allclose(engine.run(*arrays), logits, atol=1e-5)


def test_unusable_arrays(checkpoint: Checkpoint) -> None:
    engine = open_engine(checkpoint, output="logits", threads=1)
    ones = np.ones((2, 5), np.int64)
    with pytest.raises(InputError, match=r"one shape \(batch, length\)"):
        engine.run(ones, ones[:, :4], ones)
    with pytest.raises(InputError, match=r"one shape"):
        engine.run(ones[0], ones[0], ones[0])
    with pytest.raises(InputError, match="empty batch"):
        engine.run(ones[:0], ones[:0], ones[:0])
    long = np.ones((1, 97), np.int64)
    with pytest.raises(InputError, match="97 tokens is longer than the model's 96 positions"):
        engine.run(long, long, long)


def test_there_is_no_int8_form_of_a_plain_checkpoint(checkpoint: Checkpoint) -> None:
    assert open_engine(checkpoint, output="logits", threads=1).precision == "float32"
    with pytest.raises(CheckpointError, match="no int8 form"):
        open_engine(checkpoint, output="logits", precision="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of auto, float32, int8"),
        ({"precision": None}, "precision is None; choose one of"),
        ({"source": "torch"}, "source is 'torch'; choose one of auto, weights, onnx"),
        ({"threads": "2"}, "threads must be a whole number"),
        ({"threads": 10**6}, "threads is 1000000; it must be at most 1024"),
    ],
)
def test_options_that_are_none(checkpoint: Checkpoint, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_engine(checkpoint, output="logits", **options)


def test_an_onnx_file_stands_in_for_missing_safetensors() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert_onnx")
    assert checkpoint.weight_files == ()
    (ids, mask, types), logits = batch("bert_onnx")
    engine = open_engine(checkpoint, output="logits", threads=1)
    np.testing.assert_allclose(engine.run(ids, mask, types), logits, atol=1e-5)
    assert np.abs(engine.run(ids, mask, types * 0) - logits).max() > 0.01
    with pytest.raises(CheckpointError, match="gives logits, but tokens needs one of last_hidden_state"):
        open_engine(checkpoint, output="tokens")
    with pytest.raises(CheckpointError, match="no safetensors weights"):
        open_engine(checkpoint, output="logits", source="weights")


def test_weights_are_taken_before_a_file_unless_asked(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert", tmp_path / "model")
    plain = open_engine(Checkpoint.open(folder), output="logits", threads=1)
    shutil.copytree(GOLDEN / "bert_onnx" / "onnx", folder / "onnx")
    checkpoint = Checkpoint.open(folder)
    by_default = open_engine(checkpoint, output="logits", threads=1)
    from_file = open_engine(checkpoint, output="logits", threads=1, source="onnx")
    assert by_default.fingerprint == plain.fingerprint
    assert by_default.fingerprint != from_file.fingerprint
    arrays, _ = batch()
    np.testing.assert_array_equal(by_default.run(*arrays), plain.run(*arrays))
    np.testing.assert_allclose(from_file.run(*arrays), plain.run(*arrays), atol=1e-5)


def test_an_unknown_architecture_runs_from_its_own_file(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert_onnx", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {**config, "model_type": "mpnet", "architectures": ["MPNetForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.architecture == "mpnet"
    arrays, logits = batch("bert_onnx")
    engine = open_engine(checkpoint, output="logits", threads=1)
    np.testing.assert_allclose(engine.run(*arrays), logits, atol=1e-5)
    with pytest.raises(UnsupportedArchitectureError, match="no graph for 'mpnet'"):
        build_graph(checkpoint, "logits")


def test_quantised_files_are_not_used(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert_onnx", tmp_path / "model")
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_qint8_avx512.onnx")
    with pytest.raises(CheckpointError, match=r"has model_qint8_avx512\.onnx .* another batch"):
        open_engine(Checkpoint.open(folder), output="logits")


def test_a_damaged_onnx_file_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert_onnx", tmp_path / "model")
    file = folder / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be opened"):
        open_engine(Checkpoint.open(folder), output="logits")


def test_an_onnx_file_with_inputs_nobody_gives(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bert_onnx", tmp_path / "model")
    file = folder / "onnx" / "model.onnx"
    model = onnx.load(file)
    model.graph.input.append(onnx.helper.make_tensor_value_info("pixels", 1, [1]))
    onnx.save(model, file)
    with pytest.raises(CheckpointError, match="wants inputs that crossrank does not give: pixels"):
        open_engine(Checkpoint.open(folder), output="logits")


def test_an_engine_outlives_what_it_was_made_from() -> None:
    """Weights are read in place: they must stay mapped as long as the session runs."""
    import gc

    engine = open_engine(Checkpoint.open(GOLDEN / "bert"), output="logits", threads=1)
    gc.collect()
    arrays, logits = batch()
    np.testing.assert_allclose(engine.run(*arrays), logits, atol=1e-5)


def test_running_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from crossrank.runtime.checkpoint import Checkpoint; "
        "from crossrank.runtime.engine import open_engine; "
        f"open_engine(Checkpoint.open({str(GOLDEN / 'bert')!r}), output='logits', threads=1); "
        "print(sorted({'torch', 'transformers', 'safetensors'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
