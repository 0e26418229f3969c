"""What is chosen from figures, and real measurements of small models: kept, read again, measured again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank import CrossEncoder
from crossrank.benchmarking import tune as tune_module
from crossrank.benchmarking.tune import clearly_faster, fastest_batches, tune
from crossrank.errors import InputError
from crossrank.runtime import tuned as tuned_module
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.processor import Processor, processor
from crossrank.runtime.tuned import TUNED_VARIABLE, Measurement, find_tuned

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden"
MODELS = [
    *(GOLDEN / name for name in ("bert", "bert_onnx", "modernbert", "sbert_modular_cross_encoder")),
    GOLDEN / "sbert_bi_encoder",
    TESTS / "models" / "golden_late" / "multi_vector",
]
WITHOUT_BF16 = Processor("a processor", ("avx2", "avx512_vnni"))

seconds = st.floats(1e-4, 1e3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(TUNED_VARIABLE, str(tmp_path / "tuned"))
    monkeypatch.setattr(tune_module, "processor", lambda: WITHOUT_BF16)
    return tmp_path / "tuned"


# --- what is chosen -----------------------------------------------------------------------------------


def test_a_precision_must_be_faster_by_the_margin() -> None:
    own = [1.0, 1.0, 1.0]
    assert clearly_faster({"int8": own, "float32": [0.8, 0.8, 0.8]}, "int8") == ("float32",)
    assert clearly_faster({"int8": own, "float32": [0.5, 0.5, 0.9]}, "int8") == ()  # not in every round
    assert clearly_faster({"int8": own, "float32": [2.0] * 3, "bf16": [0.4] * 3}, "int8") == ("bf16",)
    assert clearly_faster({"float32": own}, "float32") == ()


@given(rounds=st.lists(st.tuples(seconds, st.floats(0.87, 10)), min_size=3), data=st.data())
def test_no_noise_within_the_margin_changes_a_precision(
    rounds: list[tuple[float, float]], data: st.DataObject
) -> None:
    own = [mine for mine, _ in rounds]
    other = [mine * times for mine, times in rounds]  # at best 13 % less time, which is no 15 % faster
    # One round within the margin is enough, whatever the others say.
    kept = data.draw(st.integers(0, len(rounds) - 1))
    other = [each if place == kept else each / 1000 for place, each in enumerate(other)]
    assert clearly_faster({"int8": own, "float32": other}, "int8") == ()


@given(rounds=st.lists(st.tuples(seconds, st.floats(0.01, 0.869)), min_size=3))
def test_what_is_faster_in_every_round_is_said(rounds: list[tuple[float, float]]) -> None:
    found = {"int8": [mine for mine, _ in rounds], "float32": [mine * times for mine, times in rounds]}
    assert clearly_faster(found, "int8") == ("float32",)


def ways(*medians: float) -> list[Measurement]:
    return [Measurement("int8", 256 * 2**place, 1, 1, (it,)) for place, it in enumerate(medians)]


def test_batches_follow_the_median_where_it_pays() -> None:
    assert fastest_batches(ways(1.0, 0.97, 2.0)).token_budget == 256  # too little to leave the usual
    assert fastest_batches(ways(1.0, 0.9, 0.8)).token_budget == 1024
    noisy = Measurement("int8", 4096, 1, 1, (0.1, 0.1, 3.0, 3.0, 3.0))  # its least is less, its median more
    assert fastest_batches([*ways(1.0), noisy]).token_budget == 256


@given(medians=st.lists(seconds, min_size=1, max_size=8))
def test_the_choice_is_never_slower_than_the_usual(medians: list[float]) -> None:
    chosen = fastest_batches(ways(*medians)).median_s
    assert chosen == medians[0] or chosen * 1.05 <= medians[0]
    assert chosen <= 1.05 * min(medians)


# --- what is measured ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_any_kind_of_model_is_measured_and_kept(model: Path, folder: Path) -> None:
    report = tune(model, threads=1, rounds=3)
    tuned = report.tuned
    assert report.why == "it was not measured yet"
    assert [each.precision for each in tuned.precisions] == ["float32"]
    assert {(each.token_budget, each.run_threads) for each in tuned.batches} == {
        (512, 1),
        (1024, 1),
        (2048, 1),
    }
    assert all(len(each.rounds_s) == 3 and min(each.rounds_s) > 0 for each in tuned.batches)
    assert set(tuned.left_out) == {"int8", "bf16"}
    assert report.path is not None
    assert [report.path] == list(folder.iterdir())
    again = tune(model, threads=1, rounds=3)
    assert (again.why, again.tuned) == ("", tuned)  # the same figures: nothing was measured
    assert tune(model, threads=1, rounds=3, again=True).tuned.batches != tuned.batches


def test_a_t5_is_measured(tmp_path: Path) -> None:
    place = shutil.copytree(TESTS / "golden_t5" / "t5", tmp_path / "t5")
    (place / "crossrank.json").write_text('{"kind": "duo_t5"}', encoding="utf-8")
    assert tune(place, threads=1, rounds=3).tuned.precision == "float32"


def test_threads_are_measured_in_teams() -> None:
    report = tune(GOLDEN / "bert", threads=2, rounds=3)
    assert {(each.workers, each.run_threads) for each in report.tuned.batches} == {(2, 1), (1, 2)}
    four = tune(GOLDEN / "bert", threads=4, rounds=3)
    assert {(each.workers, each.run_threads) for each in four.tuned.batches} == {(4, 1), (2, 2), (1, 4)}
    assert four.path != report.path


Timed = Callable[..., None]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Give precisions these seconds in every round, and all else one."""

    def force(**known: float) -> None:
        def fake(ways: dict[object, object], rounds: int, *_: object, **__: object) -> dict[object, object]:
            return {way: (known.get(str(way), 1.0),) * rounds for way in ways}

        monkeypatch.setattr(tune_module, "_timed", fake)

    return force


def test_int8_stays_unless_float32_is_clearly_faster(
    in_int8: Path, timed: Timed, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(int8=1.0, float32=0.9)
    report = tune(in_int8, threads=1)
    assert [each.precision for each in report.tuned.precisions] == ["int8", "float32"]
    assert (report.tuned.precision, report.notes) == ("int8", ())
    assert CrossEncoder(in_int8, threads=1).precision == "int8"
    timed(int8=1.0, float32=0.8)
    assert tune(in_int8, threads=1, again=True).tuned.precision == "float32"
    assert CrossEncoder(in_int8, threads=1).precision == "float32"
    # What is bound to int8 is told, and not followed; and what was kept for another model is measured again.
    monkeypatch.setattr(tune_module, "may_change_precision", lambda _: False)
    bound = tune(in_int8, threads=1)
    assert bound.why == "the model may compute in another precision now"
    assert bound.tuned.precision == "int8"
    assert "float32 is clearly faster here than int8" in bound.notes[0]
    assert tune(in_int8, threads=1).notes == bound.notes


def test_other_versions_and_processors_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tune(GOLDEN / "bert", threads=1, rounds=3)
    assert first.path is not None
    content = json.loads(first.path.read_text(encoding="utf-8"))
    content["versions"]["onnxruntime"] = "1.0.0"
    first.path.write_text(json.dumps(content), encoding="utf-8")
    second = tune(GOLDEN / "bert", threads=1, rounds=3)
    assert second.why.startswith("onnxruntime was 1.0.0 and is ")
    assert second.path == first.path
    assert tune(GOLDEN / "bert", threads=1, rounds=3).why == ""
    monkeypatch.setattr(tuned_module, "processor", lambda: WITHOUT_BF16._replace(name="another"))
    third = tune(GOLDEN / "bert", threads=1, rounds=3)
    assert third.why == "it was not measured yet"
    assert third.path != first.path


def test_a_damaged_file_is_measured_again_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    path = tune(GOLDEN / "bert", threads=1, rounds=3).path
    assert path is not None
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    report = tune(GOLDEN / "bert", threads=1, rounds=3)
    assert f"{path} is damaged" in report.why
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert find_tuned(Checkpoint.open(GOLDEN / "bert"), 1, of_file=False).tuned == report.tuned


def test_nothing_is_kept_where_that_is_switched_off(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv(TUNED_VARIABLE, "off")
    report = tune(GOLDEN / "bert", threads=1, rounds=3)
    assert report.path is None
    assert len(report.tuned.batches) == 3
    assert not folder.exists()


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(InputError, match="rounds is 2; 3 are needed"):
        tune(GOLDEN / "bert", rounds=2)


@pytest.mark.slow
@pytest.mark.skipif(not processor().has_bf16, reason="this processor has no bf16")
def test_bf16_is_timed_and_never_taken(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(tune_module, "processor", processor)
    before = torch.get_num_threads()
    monkeypatch.setattr(tune_module, "_times_slower", lambda *_: 9.0)
    assert tune(GOLDEN / "bert", threads=1, rounds=3).tuned.left_out["bf16"] == (
        "a run took 9 times as long as one in float32"
    )
    monkeypatch.setattr(tune_module, "_times_slower", lambda *_: 2.0)
    report = tune(GOLDEN / "bert", threads=1, rounds=3, again=True)
    assert torch.get_num_threads() == before
    assert [each.precision for each in report.tuned.precisions] == ["float32", "bf16"]
    timed(float32=1.0, bf16=0.1)
    faster = tune(GOLDEN / "bert", threads=1, again=True)
    assert faster.tuned.clearly_faster == ("bf16",)
    assert (report.tuned.precision, faster.tuned.precision) == ("float32", "float32")
    assert "precision='bf16'" in faster.notes[0]
    assert CrossEncoder(GOLDEN / "bert", threads=1).precision == "float32"
