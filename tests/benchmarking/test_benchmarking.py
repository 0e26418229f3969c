"""The harness: rounds, classes, padding, texts of exact lengths, contestants in their own processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crossrank.benchmarking.bench import bench, judge
from crossrank.benchmarking.contestants import Contestant, ContestantError, padding_waste
from crossrank.benchmarking.plots import plot_bench
from crossrank.benchmarking.rounds import Measured, histogram, interleave, machine
from crossrank.benchmarking.texts import PROFILES, cut, english, lengths
from crossrank.errors import InputError
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer


def test_contestants_take_turns_and_every_round_is_kept() -> None:
    ran: list[str] = []

    def contestant(name: str) -> Measured:
        ran.append(name)
        return Measured(len(ran), 10.0 * len(ran), peak_mb=5.0)

    timings = interleave({name: lambda name=name: contestant(name) for name in "abc"}, 5, pause_s=0)
    assert all(sorted(ran[start : start + 3]) == ["a", "b", "c"] for start in range(0, 15, 3))
    assert len({tuple(ran[start : start + 3]) for start in range(0, 15, 3)}) > 1
    of_a = [float(place + 1) for place, name in enumerate(ran) if name == "a"]
    assert timings["a"].wall_s == of_a
    summary = timings["a"].summary()
    assert (summary["median_s"], summary["min_s"]) == (sorted(of_a)[2], min(of_a))
    assert summary["cpu_median_s"] == 10 * summary["median_s"]
    assert summary["peak_mb"] == 5.0


def test_what_runs_here_is_timed_here() -> None:
    timing = interleave({"sum": lambda: sum(range(200_000))}, 2, pause_s=0)["sum"]
    assert all(seconds > 0 for seconds in (*timing.wall_s, *timing.cpu_s))
    assert "peak_mb" not in timing.summary()


def test_padding_is_counted_in_the_order_of_each_library() -> None:
    tokens, characters = [10, 40, 20, 30], [5, 400, 300, 1]  # the last is long in tokens alone
    assert padding_waste("fastembed", "batches of 2", tokens, characters) == (2 * 40 + 2 * 30) / 100
    assert padding_waste("onnxruntime dynamic int8", "batches of 2", tokens, characters) == 120 / 100
    assert padding_waste("sentence-transformers", "batches of 2", tokens, characters) == 140 / 100
    assert padding_waste("flashrank way", "one batch", tokens, characters) == 160 / 100
    assert padding_waste("crossrank int8", "", tokens, characters) == 1.0


def test_classes() -> None:
    reference = np.linspace(-3, 3, 40, dtype=np.float32)
    few = [0, 20, 39]

    def kind(scores: np.ndarray, alone: np.ndarray | None = None) -> str:
        scores = scores.astype(np.float32)
        return str(judge(reference, scores, scores[few] if alone is None else alone, few)["class"])

    assert kind(reference + 9e-5) == "exact"
    assert kind(reference + 2e-4) == "tolerance"
    assert kind(reference[::-1]) == "approximate"
    assert kind(reference, reference[few] + np.float32(0.01)) == "approximate"  # depends on its batch
    found = judge(reference, reference[::-1], reference[::-1][few], few)
    assert (found["kendall_tau"], found["top10_overlap"], found["max_delta"]) == (-1.0, 0.0, 6.0)


def test_profiles_have_the_lengths_they_state() -> None:
    assert set(lengths("fixed", 50)) == {75}
    assert abs(lengths("marco", 5000).mean() - 75) < 3
    assert np.percentile(lengths("nq", 5000), 95) > 2 * lengths("nq", 5000).mean()
    with pytest.raises(InputError, match="no profile 'long'; choose from short, marco"):
        lengths("long", 1)
    assert histogram([1, 4, 5, 11], 5) == {"0-4": 2, "5-9": 1, "10-14": 1}


def test_texts_are_cut_to_the_token() -> None:
    tokenizer = Tokenizer(Checkpoint.open(resolve(None, kind="cross-encoder")))
    wanted = lengths("marco", 30).tolist()
    found = cut(english(), wanted, tokenizer)
    assert [len(tokens.ids) for tokens in tokenizer.encode(found)] == wanted
    assert len(set(found)) == 30
    assert found == cut(english(), wanted, tokenizer)
    with pytest.raises(InputError, match="too few places for 50 tokens"):
        cut(["One sentence. Another one."], [50], tokenizer)


def test_the_machine_is_described() -> None:
    facts = machine("numpy", "no-such-package")
    assert facts["versions"] == {"numpy": np.__version__}
    assert facts["cpus"] >= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a contestant is given: a float32 model with its int8 form beside it."""
    scratch = tmp_path_factory.mktemp("forms")
    (scratch / "int8").symlink_to(resolve(None, kind="cross-encoder"), target_is_directory=True)
    return scratch / "float32"


def test_a_contestant_scores_in_its_own_process(folder: Path) -> None:
    pairs = [("what is a fox", "A fox is a small animal."), ("what is a fox", "Whales swim."), ("a", "b")]
    with Contestant("crossrank int8", folder, threads=1, max_length=64) as contestant:
        scores = contestant.give("", pairs)
        measured = contestant.run("")
        assert contestant.versions["crossrank"]
        with pytest.raises(ContestantError, match="KeyError"):
            contestant.run("no such variant")
        assert contestant.run("").wall_s > 0  # an error does not end it
    assert measured.cpu_s > 0
    model = CrossEncoder(precision="int8", max_length=64, progress=False)
    np.testing.assert_array_equal(scores, model.score(pairs))


def test_a_library_that_cannot_load_says_why(folder: Path) -> None:
    with pytest.raises(ContestantError, match=r"flashrank way: .*No such file"):
        Contestant("flashrank way", folder, threads=1, max_length=64)


def test_a_report_of_the_built_in_model(tmp_path: Path) -> None:
    report = bench(
        profiles=["short"],
        num_documents=6,
        num_queries=2,
        rounds=1,
        threads=1,
        contestants=["crossrank float32", "crossrank int8", "flashrank way"],
    )
    found = report.as_dict()["profiles"]["short"]
    assert set(found["latency"]) == set(found["throughput"]) == {"crossrank float32", "crossrank int8"}
    assert found["latency"]["crossrank float32"]["class"] == "exact"
    int8 = found["latency"]["crossrank int8"]
    assert 0 < int8["max_delta"] < 1
    assert int8["max_delta_alone"] == 0.0
    assert int8["padding"] == 1.0
    assert found["throughput"]["crossrank int8"]["pairs_per_s"] > 0
    assert "onnx" in report.left_out["flashrank way"]
    assert report.machine["versions"]["onnxruntime"]
    plot_bench(report, tmp_path / "bench.svg")
    assert "crossrank int8" in (tmp_path / "bench.svg").read_text(encoding="utf-8")


def test_bad_requests_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="no contestant 'x'; choose from crossrank float32"):
        bench(contestants=["x"])
    with pytest.raises(InputError, match="rounds must be"):
        bench(rounds=0)
    with pytest.raises(InputError, match="no documents"):
        bench(texts=[])
    assert set(PROFILES) == {"short", "marco", "nq", "fixed"}
