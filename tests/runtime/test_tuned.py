"""What was measured: kept, read where it counts and nowhere else, followed by the models that open."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank import BiEncoder, CrossEncoder, MonoT5
from crossrank.errors import InputError
from crossrank.runtime import engine as engine_module
from crossrank.runtime import tuned as tuned_module
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import open_engine
from crossrank.runtime.int8 import write_parity
from crossrank.runtime.processor import Processor
from crossrank.runtime.tuned import (
    TUNED_VARIABLE,
    Measurement,
    Tuned,
    find_tuned,
    installed_versions,
    keep_tuned,
    tuned_folder,
)

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden"
PAIRS = [("what is it", "a text " * n) for n in range(1, 9)]

SLOW = Processor("a processor", ("avx2",))
FAST = Processor("a processor", ("avx2", "avx512_vnni"))


def measured(threads: int = 2, **chosen: Any) -> Tuned:
    """A result whose choice is another than the usual one, unless told."""
    tuned = Tuned(
        precision="float32",
        token_budget=512,
        run_threads=threads,
        threads=threads,
        clearly_faster=(),
        num_pairs=4,
        num_tokens=100,
        precisions=(Measurement("float32", 1024, threads, 1, (0.5, 0.25, 0.75)),),
        batches=(Measurement("float32", 512, 1, threads, (0.5, 0.25, 0.75)),),
        left_out={"int8": "there is none"},
        versions=installed_versions(),
        measured_at="2026-01-01T00:00:00+00:00",
    )
    return replace(tuned, **chosen)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(TUNED_VARIABLE, str(tmp_path / "tuned"))
    tuned_module._say_once.cache_clear()
    engine_module._say_what_int8_lacks.cache_clear()
    return tmp_path / "tuned"


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "bert")


def keep(model: Path, tuned: Tuned) -> Path:
    path = keep_tuned(tuned, Checkpoint.open(model), of_file=False)
    assert path is not None
    return path


def test_what_was_kept_is_found_as_it_was(checkpoint: Checkpoint, folder: Path) -> None:
    nothing = find_tuned(checkpoint, 2, of_file=False)
    assert nothing.tuned is None
    assert nothing.why == "it was not measured yet"
    path = keep_tuned(measured(), checkpoint, of_file=False)
    found = find_tuned(checkpoint, 2, of_file=False)
    assert found == (measured(), "", path, False)
    assert found.tuned is not None
    assert found.tuned.precisions[0].median_s == 0.5
    assert [each.name for each in folder.iterdir()] == [path.name]  # and nothing beside it


def test_another_machine_number_of_threads_or_model_was_not_measured(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, in_int8: Path
) -> None:
    monkeypatch.setattr(tuned_module, "processor", lambda: FAST)
    keep_tuned(measured(), checkpoint, of_file=False)
    assert find_tuned(checkpoint, 2, of_file=False).tuned is not None
    assert find_tuned(checkpoint, 1, of_file=False).tuned is None
    assert find_tuned(checkpoint, 2, of_file=True).tuned is None
    assert find_tuned(Checkpoint.open(GOLDEN / "roberta"), 2, of_file=False).tuned is None
    assert find_tuned(Checkpoint.open(in_int8), 2, of_file=False).tuned is None  # it has a second form
    for other in (SLOW, FAST._replace(name="another")):
        monkeypatch.setattr(tuned_module, "processor", lambda other=other: other)
        assert find_tuned(checkpoint, 2, of_file=False).tuned is None


def test_the_same_shape_in_another_folder_was_measured(checkpoint: Checkpoint, tmp_path: Path) -> None:
    keep_tuned(measured(), checkpoint, of_file=False)
    copy = shutil.copytree(GOLDEN / "bert", tmp_path / "copy")
    assert find_tuned(Checkpoint.open(copy), 2, of_file=False).tuned == measured()


@pytest.mark.parametrize("name", ["crossrank", "onnxruntime", "torch"])
def test_other_versions_do_not_count(
    checkpoint: Checkpoint, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep_tuned(
        replace(measured(), versions={**installed_versions(), name: "0.0.1"}), checkpoint, of_file=False
    )
    found = find_tuned(checkpoint, 2, of_file=False)
    assert found.tuned is None
    assert found.why == f"{name} was 0.0.1 and is {installed_versions()[name]}"
    with caplog.at_level(logging.INFO, "crossrank"):
        opened = open_engine(checkpoint, output="logits", threads=2)
        open_engine(checkpoint, output="logits", threads=2)
    assert (opened.threads, opened.batch_tokens) == (2, 1024)
    [said] = caplog.records  # once
    assert said.levelno == logging.INFO
    assert f"{name} was 0.0.1" in said.getMessage()


def broken(content: dict[str, Any], **changed: Any) -> bytes:
    return json.dumps({**content, **changed}).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"token_budget": 0},
        {"token_budget": "1024"},
        {"token_budget": True},
        {"run_threads": 3},
        {"threads": 1},
        {"batches": []},
        {"batches": [{}]},
        {"precisions": None},
        {"left_out": 5},
        {"clearly_faster": None},
    ],
)
def test_a_file_with_other_values_is_damaged(checkpoint: Checkpoint, change: dict[str, Any]) -> None:
    path = keep_tuned(measured(), checkpoint, of_file=False)
    assert path is not None
    path.write_bytes(broken(json.loads(path.read_text(encoding="utf-8")), **change))
    found = find_tuned(checkpoint, 2, of_file=False)
    assert found.tuned is None
    assert found.is_damaged
    assert f"{path} is damaged" in found.why


@given(content=st.binary(max_size=200) | st.integers(1, 900))
def test_a_damaged_file_is_said_and_left_out(content: bytes | int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        checkpoint = Checkpoint.open(GOLDEN / "bert")
        path = keep_tuned(measured(), checkpoint, of_file=False)
        assert path is not None
        whole = path.read_bytes()
        path.write_bytes(whole[:content] if isinstance(content, int) else content)  # cut short, or anything
        said: list[tuple[int, str]] = []
        patch.setattr(tuned_module, "_say_once", lambda *message: said.append(message))
        engine = open_engine(checkpoint, output="logits", threads=2)
        assert (engine.threads, engine.batch_tokens) == (2, 1024)
        assert [level for level, _ in said] == [logging.WARNING]
        assert "`crossrank tune` measures again" in said[0][1]


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Checkpoint) -> None:
    assert tuned_folder() == tmp_path / "tuned"
    monkeypatch.setenv(TUNED_VARIABLE, " OFF ")
    assert tuned_folder() is None
    assert find_tuned(checkpoint, 2, of_file=False).path is None
    assert keep_tuned(measured(), checkpoint, of_file=False) is None
    monkeypatch.delenv(TUNED_VARIABLE)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for platform, place in (
        ("linux", tmp_path / "xdg"),
        ("darwin", tmp_path / "Library" / "Caches"),
        ("win32", tmp_path / "local"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        assert tuned_folder() == place / "crossrank" / "tuned"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert tuned_folder() == tmp_path / ".cache" / "crossrank" / "tuned"


def test_what_cannot_be_kept_is_said(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv(TUNED_VARIABLE, str(tmp_path / "file" / "tuned"))
    assert keep_tuned(measured(), checkpoint, of_file=False) is None
    assert "cannot be kept" in caplog.text
    assert open_engine(checkpoint, output="logits", threads=2).batch_tokens == 1024  # and no crash


def test_models_open_as_was_measured_with_the_same_scores() -> None:
    usual = CrossEncoder(GOLDEN / "bert", threads=2)
    keep(GOLDEN / "bert", measured())
    tuned = CrossEncoder(GOLDEN / "bert", threads=2)
    assert (tuned._engine.threads, tuned._engine.run_threads, tuned._token_budget) == (1, 2, 512)
    np.testing.assert_allclose(tuned.score(PAIRS), usual.score(PAIRS), atol=1e-5)
    assert tuned.fingerprint == usual.fingerprint
    bi_encoder = BiEncoder(GOLDEN / "sbert_bi_encoder", threads=2)
    vectors = bi_encoder.encode_documents(["a text", "another one"])
    keep(GOLDEN / "sbert_bi_encoder", measured(token_budget=2048))
    tuned_encoder = BiEncoder(GOLDEN / "sbert_bi_encoder", threads=2)
    assert (tuned_encoder._engine.run_threads, tuned_encoder._token_budget) == (2, 2048)
    np.testing.assert_allclose(tuned_encoder.encode_documents(["a text", "another one"]), vectors, atol=1e-5)


def test_arguments_and_the_variable_go_before_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(GOLDEN / "bert", measured())
    assert CrossEncoder(GOLDEN / "bert", threads=2, token_budget=700)._token_budget == 700
    alone = CrossEncoder(GOLDEN / "bert", threads=1)  # which was not measured
    assert (alone._engine.threads, alone._token_budget) == (1, 1024)
    with pytest.raises(InputError, match="token_budget"):
        CrossEncoder(GOLDEN / "bert", token_budget=0)
    monkeypatch.setenv(TUNED_VARIABLE, "off")
    usual = CrossEncoder(GOLDEN / "bert", threads=2)
    assert (usual._engine.threads, usual._token_budget) == (2, 1024)


def test_a_monot5_follows(tmp_path: Path) -> None:
    place = shutil.copytree(TESTS / "golden_t5" / "t5", tmp_path / "t5")
    usual = MonoT5(place, threads=2)
    keep(place, measured())
    tuned = MonoT5(place, threads=2)
    assert (tuned._engine.run_threads, tuned._token_budget) == (2, 512)
    np.testing.assert_allclose(tuned.score(PAIRS), usual.score(PAIRS), atol=1e-5)


def test_float32_takes_the_place_of_int8_for_rerankers_alone(in_int8: Path) -> None:
    assert CrossEncoder(in_int8, threads=2).precision == "int8"
    keep(in_int8, measured(clearly_faster=("float32",)))
    tuned = CrossEncoder(in_int8, threads=2)
    assert (tuned.precision, tuned._engine.run_threads) == ("float32", 2)
    assert CrossEncoder(in_int8, threads=2, precision="int8").precision == "int8"
    # What gives vectors keeps its precision, and what was measured in another one is not followed.
    opened = open_engine(Checkpoint.open(in_int8), output="tokens", threads=2)
    assert (opened.precision, opened.threads, opened.batch_tokens) == ("int8", 2, 1024)


@pytest.mark.parametrize(("bound", "precision"), [("int8", "int8"), ("float32", "float32")])
def test_a_calibrated_model_keeps_the_precision_of_its_calibration(
    in_int8: Path, tmp_path: Path, bound: str, precision: str
) -> None:
    place = shutil.copytree(in_int8, tmp_path / "model")
    calibration = {
        "map": {"method": "temperature", "slope": 1.0, "intercept": 0.0, "knots": []},
        "label": CrossEncoder(place, precision=bound).label,
        "made_with": CrossEncoder(place, precision=bound).score_identity,
        "holds_for": "a test",
        "num_pairs": 1,
        "num_queries": 1,
        "share_relevant": 0.5,
        "figures": {"before": {}, "after": {}},
        "thresholds": [],
    }
    (place / "calibration.json").write_text(json.dumps(calibration), encoding="utf-8")
    keep(place, measured(clearly_faster=("float32",)))
    model = CrossEncoder(place, threads=2)
    assert model.precision == precision
    assert model.calibration is not None


def test_int8_that_did_not_pass_the_gate_stays_refused(in_int8: Path, tmp_path: Path) -> None:
    place = shutil.copytree(in_int8, tmp_path / "model")
    keep(place, measured(precision="int8"))
    write_parity(place, {"passed": False})
    assert CrossEncoder(place, threads=2).precision == "float32"


def test_a_processor_without_integer_sums_is_said_once(
    in_int8: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "crossrank")
    for here, times in ((FAST, 0), (Processor("unknown", None), 0), (SLOW, 1)):
        monkeypatch.setattr(engine_module, "processor", lambda here=here: here)
        engine_module._say_what_int8_lacks.cache_clear()
        for _ in range(2):
            open_engine(Checkpoint.open(in_int8), output="logits", threads=1)
        assert caplog.text.count("`crossrank tune` measures what is") == times


@pytest.mark.parametrize("run_threads", [0, 3])
def test_a_batch_takes_no_more_threads_than_there_are(checkpoint: Checkpoint, run_threads: int) -> None:
    with pytest.raises(InputError, match=f"run_threads is {run_threads}; it must be from 1 to threads, 2"):
        open_engine(checkpoint, output="logits", threads=2, run_threads=run_threads)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads")
def test_batches_on_several_threads_have_threads_in_a_forked_process_too() -> None:
    program = (
        "import os, sys, numpy as np\n"
        "from crossrank.models.hub import resolve\n"
        "from crossrank.runtime.checkpoint import Checkpoint\n"
        "from crossrank.runtime.engine import open_engine\n"
        "checkpoint = Checkpoint.open(resolve(None, kind='cross-encoder'))\n"
        "engine = open_engine(checkpoint, output='logits', threads=2, run_threads=2)\n"
        "ids = np.arange(1000, 1800).reshape(8, 100)  # enough for the threads to share\n"
        "mask = np.ones_like(ids)\n"
        "cut = mask.copy()\n"
        "cut[0, -2:] = 0\n"
        "def scores():\n"
        "    return np.concatenate(list(engine.run_all([(ids, mask, 0 * ids), (ids, cut, 0 * ids)])))\n"
        "expected = scores()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    same = np.allclose(scores(), expected, atol=1e-5)\n"
        "    threads = len(os.listdir('/proc/self/task'))\n"
        "    os._exit(0 if same and threads >= 3 else 3)\n"  # this one, the worker's, and one it shares with
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)
