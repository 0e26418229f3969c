"""The harness: rounds, classes, padding, texts of exact lengths, contestants in their own processes."""

from __future__ import annotations

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from crossrank.benchmarking.bench import BenchReport, _control, _differences, _own_pairs, bench
from crossrank.benchmarking.contestants import Contestant, ContestantError, add_onnx_files, padding_waste
from crossrank.benchmarking.fidelity import judge, read_judged
from crossrank.benchmarking.forms import set_max_length
from crossrank.benchmarking.plots import plot_bench
from crossrank.benchmarking.rounds import Measured, histogram, interleave, machine
from crossrank.benchmarking.texts import PROFILES, cut, english, lengths
from crossrank.errors import InputError
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer

Scores = npt.NDArray[np.float32]


def test_contestants_take_turns_and_every_round_is_kept() -> None:
    ran: list[str] = []

    def contestant(name: str) -> Measured:
        ran.append(name)
        return Measured(len(ran), 10.0 * len(ran))

    timings = interleave({name: lambda name=name: contestant(name) for name in "abc"}, 5, pause_s=0)
    assert all(sorted(ran[start : start + 3]) == ["a", "b", "c"] for start in range(0, 15, 3))
    assert len({tuple(ran[start : start + 3]) for start in range(0, 15, 3)}) > 1
    of_a = [float(place + 1) for place, name in enumerate(ran) if name == "a"]
    assert timings["a"].wall_s == of_a
    summary = timings["a"].summary()
    assert (summary["median_s"], summary["min_s"]) == (sorted(of_a)[2], min(of_a))
    assert summary["cpu_median_s"] == 10 * summary["median_s"]


def test_a_contestant_that_fails_on_judged_queries_is_named(collection: Path) -> None:
    def fake(name: str, noise: float, *, fails_after: int | None = None) -> SimpleNamespace:
        calls = itertools.count()

        def give(variant: str, pairs: list[tuple[str, str]]) -> Scores:
            if next(calls) == fails_after:
                raise ContestantError("out of memory")
            return np.arange(len(pairs), dtype=np.float32) + noise

        return SimpleNamespace(name=name, variants=[""], give=give)

    running = [
        *(fake("crossrank float32", 0.0), fake("steady", 0.5)),
        fake("fails on the second", 0.5, fails_after=2),
    ]
    judged = [read_judged(collection, run="first", depth=3)]
    judged.append(read_judged(collection, depth=12)._replace(name="all"))
    left_out: dict[str, str] = {}
    found, failed = _differences(running, judged, left_out, lambda: None)
    assert failed == {"fails on the second"}  # though the first collection says that it is near
    assert {name: len(of) for name, of in found.items()} == {"steady": 2, "fails on the second": 1}
    assert list(left_out.values()) == ["out of memory"]


def test_the_control_says_what_sorting_is_worth() -> None:
    figures = {"padding": 1.0}
    latency = {
        "a batches of 8": {**figures, "median_s": 2.0},
        "a unsorted batches of 8": {**figures, "median_s": 2.1, "padding": 1.4},
        "a batches of 4": {**figures, "median_s": 1.0},
        "b": {**figures, "median_s": 5.0},
    }
    found = {"most_padding": 1.4, "unsorted_against_sorted": {"a batches of 8": 1.05}}
    assert _control(latency) == found


def test_what_runs_here_is_timed_here() -> None:
    timing = interleave({"sum": lambda: sum(range(200_000))}, 2, pause_s=0)["sum"]
    assert all(seconds > 0 for seconds in (*timing.wall_s, *timing.cpu_s))


def test_padding_is_counted_in_the_order_of_each_library() -> None:
    tokens, characters = [10, 40, 20, 30], [5, 400, 300, 1]  # the last is long in tokens alone
    assert padding_waste("fastembed", "batches of 2", tokens, characters) == (2 * 40 + 2 * 30) / 100
    assert padding_waste("onnxruntime dynamic int8", "batches of 2", tokens, characters) == 120 / 100
    assert padding_waste("sentence-transformers", "batches of 2", tokens, characters) == 140 / 100
    assert padding_waste("onnxruntime dynamic int8", "unsorted batches of 2", tokens, characters) == 140 / 100
    assert padding_waste("flashrank", "one batch", tokens, characters) == 160 / 100
    assert padding_waste("crossrank int8", "", tokens, characters) == 1.0
    # In windows of four batches: 30 and 10, 20 and 40; a window later, 50 alone.
    assert padding_waste("infinity", "batches of 2", tokens, characters) == (2 * 30 + 2 * 40) / 100
    assert padding_waste("infinity", "batches of 1", [*tokens, 50], [*characters, 0]) == 1.0
    tokens, characters = [9, 1, 9, 1, 9, 1, 9, 1, 1, 9], [9, 1, 9, 1, 9, 1, 9, 1, 1, 9]
    assert padding_waste("infinity", "batches of 2", tokens, characters) == (4 * 1 + 4 * 9 + 2 * 9) / 50


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
    assert judge(reference, reference + 1, reference[few] + 1, few, proven=True)["class"] == "tolerance"
    assert judge(reference, reference + 1, reference[few] + 1, few, proven=False)["class"] == "approximate"
    assert judge(reference, reference, reference[few] + 1, few, proven=True)["class"] == "tolerance"
    found = judge(reference, reference[::-1], reference[::-1][few], few)
    assert (found["kendall_tau"], found["top10_overlap"], found["max_delta"]) == (-1.0, 0.0, 6.0)


GOLDEN = Path(__file__).parents[1] / "golden"
SAMPLE = Path(__file__).parents[2] / "data" / "sample"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Three judged queries, and a run that finds four documents for two of them."""
    rows = {
        "corpus.jsonl": [{"_id": f"d{row}", "title": "T", "text": f"fox {row}"} for row in range(12)],
        "queries.jsonl": [{"_id": name, "text": f"fox {name}"} for name in ("q0", "q1", "q2")],
    }
    for name, lines in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for folder in ("qrels", "runs"):
        (tmp_path / folder).mkdir()
    qrels = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t1\nq2\td2\t1\n"
    (tmp_path / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    run = [f"{query} Q0 d{row} {row + 1} {-row} x\n" for query in ("q0", "q1") for row in range(4)]
    (tmp_path / "runs" / "first.trec").write_text("".join(run), encoding="utf-8")
    return tmp_path


def test_what_other_scores_do_to_judged_rankings(collection: Path) -> None:
    judged = read_judged(collection, run="first", depth=3)
    assert list(judged.queries) == ["q0", "q1"]
    assert judged.pairs()[1] == [("fox q1", f"T fox {row}") for row in range(3)]
    reference = [np.array([3, 2, 1], np.float32), np.array([2, 3, 1], np.float32)]  # both relevant first
    found = judged.difference(reference, reference)
    assert (found["float32"], found["other"], found["interval"], found["within"]) == (1.0, 1.0, [0, 0], True)
    assert (found["kendall_tau"], found["top10_overlap"], found["by_depth"]) == (None, 1.0, {"3": 1.0})
    # The relevant one of q1 falls to the second rank: 1 / log2(3).
    found = judged.difference(reference, [reference[0], np.array([3, 2, 1], np.float32)])
    second = 1 / np.log2(3)
    assert found["other"] == pytest.approx((1 + second) / 2, abs=1e-5)
    assert found["difference"] == pytest.approx((second - 1) / 2, abs=1e-5)
    assert found["interval"] == pytest.approx([second - 1, 0], abs=1e-5)
    assert not found["within"]
    assert found["max_delta"] == 1.0


def test_a_curve_has_a_point_for_each_depth(collection: Path) -> None:
    judged = read_judged(collection, depth=12)
    assert list(judged.queries) == ["q0", "q1", "q2"]
    assert {len(documents) for documents in judged.candidates} == {12}
    scores = [
        np.array([document.id in judged.qrels[query] for document in documents], np.float32)
        for query, documents in zip(judged.queries, judged.candidates, strict=True)
    ]
    found = judged.difference(scores, scores)
    assert list(found["by_depth"]) == ["10", "12"]
    assert found["by_depth"]["12"] == 1.0
    reached = [
        any(each.id in judged.qrels[query] for each in documents[:10])
        for query, documents in zip(judged.queries, judged.candidates, strict=True)
    ]
    assert found["by_depth"]["10"] == pytest.approx(np.mean(reached), abs=1e-5)
    with pytest.raises(InputError, match="no judged query has candidates"):
        read_judged(collection, run="first", num_queries=1, depth=0)


def test_the_longest_pair_is_stated_where_libraries_look(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"model_max_length": 512, "max_length": 128, "pad_token": "[PAD]"}', encoding="utf-8")
    set_max_length(tmp_path, 256)
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings == {"model_max_length": 256, "max_length": 256, "pad_token": "[PAD]"}


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
        assert contestant.environment["versions"]["crossrank"]
        assert contestant.environment["load_s"] > 0
        with pytest.raises(ContestantError, match="KeyError"):
            contestant.run("no such variant")
        assert contestant.run("").wall_s > 0  # an error does not end it
    assert measured.cpu_s > 0
    model = CrossEncoder(precision="int8", max_length=64, progress=False)
    np.testing.assert_array_equal(scores, model.score(pairs))


def test_a_library_that_cannot_load_says_why(folder: Path) -> None:
    with pytest.raises(ContestantError, match="flashrank: ModuleNotFoundError: No module named 'flashrank'"):
        Contestant("flashrank", folder, threads=1, max_length=64)


@pytest.fixture(scope="module")
def report() -> BenchReport:
    """Of the built-in model, with judged queries of the sample collection."""
    return bench(
        profiles=["fixed"],
        num_documents=12,
        num_queries=2,
        rounds=1,
        threads=1,
        contestants=["crossrank int8", "flashrank"],
        judged=[read_judged(SAMPLE, depth=12, num_queries=4)],
    )


def test_a_report_of_the_built_in_model(report: BenchReport, tmp_path: Path) -> None:
    found = report.as_dict()["profiles"]["fixed"]
    assert set(found["latency"]) == set(found["throughput"]) == {"crossrank float32", "crossrank int8"}
    assert found["latency"]["crossrank float32"]["class"] == "exact"
    int8 = found["latency"]["crossrank int8"]
    assert 0 < int8["max_delta"] < 1
    assert int8["max_delta_alone"] == 0.0
    assert (int8["is_default"], int8["is_best"]) == (True, True)
    assert all(0 < each["peak_mb"] < 2000 for each in found["latency"].values())
    assert found["control"] == {"most_padding": 1.0, "unsorted_against_sorted": {}}
    assert found["throughput"]["crossrank int8"]["pairs_per_s"] > 0
    assert "No module named 'flashrank'" in report.left_out["flashrank"]
    assert report.contestants["crossrank int8"]["versions"]["onnxruntime"]
    plot_bench(report, tmp_path / "bench.svg")
    assert "crossrank int8" in (tmp_path / "bench.svg").read_text(encoding="utf-8")


def of_int8(**options: int) -> BenchReport:
    return bench(profiles=["fixed"], threads=1, contestants=["crossrank int8"], **options)


@pytest.mark.parametrize(
    ("dies_in", "num_pairs", "measured"),
    [("give", 10, set()), ("run", 10, set()), ("give", 20, {"latency"}), ("run", 20, {"latency"})],
)
def test_a_contestant_that_dies_leaves_the_others_measured(
    monkeypatch: pytest.MonkeyPatch, dies_in: str, num_pairs: int, measured: set[str]
) -> None:
    methods = {name: getattr(Contestant, name) for name in ("give", "run")}
    given: dict[str, int] = {}

    def give(self: Contestant, variant: str, pairs: list[tuple[str, str]]) -> Scores:
        given[self.name] = len(pairs)
        return called(self, "give", variant, pairs)

    def called(self: Contestant, name: str, *arguments: object) -> Any:
        if (self.name, name, given[self.name]) == ("crossrank int8", dies_in, num_pairs):
            self._process.kill()
        return methods[name](self, *arguments)

    monkeypatch.setattr(Contestant, "give", give)
    monkeypatch.setattr(Contestant, "run", lambda self, variant: called(self, "run", variant))
    report = of_int8(num_documents=10, num_queries=2, rounds=1)
    found = report.profiles["fixed"]
    assert {name for name in ("latency", "throughput") if "crossrank int8" in found[name]} == measured
    assert "crossrank float32" in found["throughput"]
    assert all(place.startswith("crossrank int8") for place in report.left_out)
    assert "killed, most likely for want of memory" in next(iter(report.left_out.values()))


@pytest.mark.parametrize("seen", [0, 3])  # rounds that were well: of two, or of two and one more
def test_a_contestant_that_dies_in_a_later_round_is_left_out(
    monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    run, runs = Contestant.run, itertools.count()

    def dying(self: Contestant, variant: str) -> Measured:
        if self.name == "crossrank int8" and next(runs) == seen:
            self._process.kill()
            self._process.wait()  # so that what is sent to it next breaks the pipe
        return run(self, variant)

    monkeypatch.setattr(Contestant, "run", dying)
    report = of_int8(num_documents=4, num_queries=1, rounds=4)
    assert list(report.profiles["fixed"]["latency"]) == ["crossrank float32"]
    assert len(report.profiles["fixed"]["latency"]["crossrank float32"]["rounds_s"]) == 4
    assert list(report.left_out) == ["crossrank int8, 4 pairs"]
    assert next(runs) == seen + 1  # it is not asked again


def test_own_texts_make_pairs_that_differ() -> None:
    pairs = _own_pairs(["a b", "c", "d", "a b"], 2, 3)
    assert pairs == [("a b", "a b"), ("a b", "c"), ("a b", "d"), ("c", "a b"), ("c", "c"), ("c", "d")]


def test_other_libraries_with_the_same_weights_give_the_same_scores() -> None:
    for name in ("sentence_transformers", "onnx"):
        pytest.importorskip(name)
    peers = ["sentence-transformers", "onnxruntime dynamic int8"]
    found = bench(
        GOLDEN / "bert",
        profiles=["short"],
        num_documents=6,
        num_queries=1,
        rounds=1,
        threads=1,
        max_length=64,
        contestants=peers,
        prepare=partial(add_onnx_files, interpreter=sys.executable),
    )
    assert not found.left_out
    profile = found.profiles["short"]
    assert {each["contestant"] for each in profile["latency"].values()} == {"crossrank float32", *peers}
    for label, each in profile["latency"].items():
        assert ("peak_mb" in each) == (each["is_default"] or each["is_best"])
        if each["contestant"] != "onnxruntime dynamic int8":
            assert each["class"] == "exact", label
    assert profile["latency"]["onnxruntime dynamic int8 batches of 8"]["max_delta"] > 0
    assert profile["control"]["unsorted_against_sorted"]["onnxruntime dynamic int8 batches of 8"] > 0


def test_the_class_tolerance_is_proven_on_judged_queries(report: BenchReport) -> None:
    judged = report.judged["crossrank int8"]["sample"]
    assert list(report.judged) == ["crossrank int8"]  # float32 is exact
    assert (judged["queries"], judged["pairs"]) == (4, 48)
    profile = report.profiles["fixed"]
    expected = "tolerance" if judged["within"] else "approximate"
    assert profile["latency"]["crossrank int8"]["class"] == expected
    points = profile["curves"]["crossrank int8"]["sample"]
    assert [point["depth"] for point in points] == [10, 12]
    assert [point["ndcg@10"] for point in points] == list(judged["by_depth"].values())
    assert all(point["ms"] > 0 for point in points)


def test_an_earlier_report_counts_for_the_same_model_only(report: BenchReport) -> None:
    earlier = json.loads(json.dumps(report.as_dict()))
    earlier["judged"]["crossrank int8"]["sample"]["within"] = True
    small = {
        "num_documents": 4,
        "num_queries": 1,
        "rounds": 1,
        "threads": 1,
        "contestants": ["crossrank int8"],
    }
    again = bench(profiles=["short"], known=earlier, **small)
    assert again.judged == earlier["judged"]
    assert again.profiles["short"]["latency"]["crossrank int8"]["class"] == "tolerance"
    earlier["settings"]["fingerprint"] = "of another model"
    assert bench(profiles=[], known=earlier, **small).judged == {}


def test_bad_requests_are_refused_before_anything_runs() -> None:
    with pytest.raises(InputError, match="no contestant 'x'; choose from crossrank float32"):
        bench(contestants=["x"])
    with pytest.raises(InputError, match="rounds must be"):
        bench(rounds=0)
    for texts, message in (
        ([], "texts has 0 different documents, and a query num_documents=3"),
        (["a", "b", "b"], "texts has 2 different documents"),
        (["a", "b", "c"], "are 3 different ones, and num_queries=4"),
    ):
        with pytest.raises(InputError, match=message):
            bench(texts=texts, num_documents=3)
    assert set(PROFILES) == {"short", "marco", "nq", "fixed"}
