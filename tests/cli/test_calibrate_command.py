"""`crossrank calibrate`, and `--min-probability` of `rerank` and `search`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from crossrank import BiEncoder, CrossEncoder, Document, Index
from crossrank.models.calibration import (
    CALIBRATION_FILE,
    Calibration,
    ProbabilityMap,
    sigmoid,
    write_calibration,
)

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]
TEXTS = ["the cat", "old river city", "blue water and light on the mountain"]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, object]]:
    """Pairs whose label follows the score of the model, but for every fifth."""
    texts = [
        (
            f"{WORDS[i % 12]} {WORDS[i // 12]}",
            " ".join(WORDS[(i * j + k) % 12] for k in range(1 + (i + j) % 9)),
        )
        for i in range(40)
        for j in range(6)
    ]
    scores = CrossEncoder(GOLDEN / "bert", threads=1).score(texts)
    middle = np.median(scores)
    return [
        {"query": query, "document": text, "label": int((score > middle) != (place % 5 == 0))}
        for place, ((query, text), score) in enumerate(zip(texts, scores, strict=True))
    ]


@pytest.fixture
def pairs(rows, tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "bert", tmp_path / "model"))


@pytest.fixture
def calibrated(run, pairs: Path, folder: Path) -> Path:
    assert run("calibrate", folder, "--pairs", pairs, "--method", "platt", "--threads", 1).exit_code == 0
    return folder


def test_it_saves_with_the_model_and_shows_held_out_figures(run, pairs: Path, folder: Path) -> None:
    result = run(
        *("calibrate", folder, "--pairs", pairs, "--threads", 1),
        *("--wanted-precision", 0.7, "--wanted-recall", 0.9, "--holds-for", "made-up pairs"),
    )
    assert result.exit_code == 0, result.stderr
    assert "sigmoid of the score, unfitted" in result.stdout
    assert "precision 0.7" in result.stdout
    assert "recall 0.9" in result.stdout
    assert "240 pairs of 40 queries" in result.stderr
    assert "holds for made-up pairs" in result.stderr
    opened = CrossEncoder(folder, threads=1)
    assert opened.calibration is not None
    assert opened.calibration.holds_for == "made-up pairs"
    assert json.loads(run("info", folder, "--json").stdout)["calibration"] == "made-up pairs"


def test_json_is_what_was_saved(run, pairs: Path, folder: Path, tmp_path: Path) -> None:
    result = run("calibrate", folder, "--pairs", pairs, "--to", tmp_path / "copy", "--json", "--threads", 1)
    printed = json.loads(result.stdout)
    saved = json.loads((tmp_path / "copy" / CALIBRATION_FILE).read_text())
    assert printed["calibration"] == {key: value for key, value in saved.items() if key != "crossrank"} | {
        "thresholds": printed["calibration"]["thresholds"]
    }
    assert set(printed["methods"]) == {"sigmoid", "temperature", "platt", "isotonic"} or set(
        printed["methods"]
    ) > {"sigmoid"}
    assert not (folder / CALIBRATION_FILE).exists()


def test_a_collection_gives_pairs_by_a_first_stage_or_a_run(run, folder: Path, tmp_path: Path) -> None:
    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    documents = {str(i): " ".join(WORDS[(i + k) % 12] for k in range(1 + i % 7)) for i in range(40)}
    queries = {f"q{i}": f"{WORDS[i % 12]} {WORDS[(i + 5) % 12]}" for i in range(30)}
    model = CrossEncoder(folder, threads=1)
    ids = [(name, each) for name in queries for each in documents]
    scores = model.score([(queries[name], documents[each]) for name, each in ids])
    best = [pair for pair, score in zip(ids, scores, strict=True) if score > np.quantile(scores, 0.7)]
    for file, texts in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps({"_id": name, "text": text}) for name, text in texts.items()]
        (collection / f"{file}.jsonl").write_text("\n".join(lines))
    judged = [f"{name}\t{each}\t1" for name, each in best]
    (collection / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged))
    result = run(
        *("calibrate", folder, "--collection", collection, "--retriever", "bm25", "--depth", 30),
        *("--threads", 1, "--json"),
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["calibration"]
    assert found["num_queries"] == len({queries[name] for name, _ in best})
    assert found["holds_for"] == "the first 30 candidates of bm25 in collection, dev"
    lines = [f"{name} Q0 {i} {i + 1} {40 - i} x" for name in queries for i in range(40)]
    (tmp_path / "a.run").write_text("\n".join(lines) + "\n")
    result = run(
        *("calibrate", folder, "--collection", collection, "--run", tmp_path / "a.run", "--depth", 40),
        *("--threads", 1, "--json", "--replace"),
    )
    assert result.exit_code == 0, result.stderr
    judged_queries = {name for name, _ in best}
    assert json.loads(result.stdout)["calibration"]["num_pairs"] == 40 * len(judged_queries), result.stderr


def test_a_reliability_diagram(run, pairs: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "reliability.svg"
    assert run("calibrate", folder, "--pairs", pairs, "--plot", plot, "--threads", 1).exit_code == 0
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give --pairs or --collection"),
        (("--pairs", "PAIRS", "--split", "test"), 2, "would do nothing"),
        (("--pairs", "PAIRS", "--plot", "a.txt"), 1, "ends in one of"),
        (("--pairs", "PAIRS", "--to", "none/there"), 1, "make it first"),
    ],
)
def test_wrong_usage_is_found_before_anything_is_scored(
    run, pairs: Path, folder: Path, arguments, code: int, message: str
) -> None:
    given = [pairs if each == "PAIRS" else each for each in arguments]
    result = run("calibrate", folder, *given)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_what_is_there_is_not_replaced_unasked(run, pairs: Path, calibrated: Path) -> None:
    result = run("calibrate", calibrated, "--pairs", pairs, "--threads", 1)
    assert result.exit_code == 1
    assert "--replace" in result.stderr
    assert run("calibrate", calibrated, "--pairs", pairs, "--replace", "--threads", 1).exit_code == 0
    result = run("calibrate", "crossrank-mini", "--pairs", pairs)
    assert result.exit_code == 1
    assert "--to" in result.stderr


def test_grades_are_no_judgements(run, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "grades.csv"
    path.write_text("query,document,label\na,b,0.5\n")
    result = run("calibrate", folder, "--pairs", path)
    assert result.exit_code == 1
    assert "a label is 0.5" in result.stderr


def test_rerank_leaves_out_what_is_improbable(run, calibrated: Path) -> None:
    whole = json.loads(run("rerank", "the river", *TEXTS, "-r", calibrated, "--json").stdout)["hits"]
    probabilities = [hit["probability"] for hit in whole]
    opened = CrossEncoder(calibrated, threads=1)
    assert opened.calibration is not None
    fitted = opened.calibration.map
    expected = sigmoid(fitted.slope * np.array([hit["score"] for hit in whole]) + fitted.intercept)
    assert probabilities == pytest.approx(expected.tolist(), abs=1e-9)
    least = probabilities[0]
    cut = run("rerank", "the river", *TEXTS, "-r", calibrated, "--json", "--min-probability", least)
    found = json.loads(cut.stdout)
    assert [hit["document_id"] for hit in found["hits"]] == [whole[0]["document_id"]]
    assert found["notes"] == [f"left out 2 of 3 documents: below {least:g}"]
    shown = run("rerank", "the river", *TEXTS, "-r", calibrated, "--min-probability", 1)
    assert "nothing here answers the question" in shown.stdout
    assert "the most probable of 3 documents" in shown.stderr
    assert "prob." in run("rerank", "the river", *TEXTS, "-r", calibrated).stdout


def test_who_left_at_an_earlier_layer_has_no_probability_and_is_left_out(run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "bert_exits", tmp_path / "model"))
    made_with = CrossEncoder(folder, threads=1).score_identity
    platt = ProbabilityMap("platt", 0.5, 0.1)
    write_calibration(Calibration(platt, "LABEL_0", made_with, "", 9, 3, 0.5, {}), folder)
    arguments = ("rerank", "the river", *TEXTS, "-r", folder, "--exit-layer", 1, "--json")
    found = json.loads(run(*arguments, "--finish", 1, "--min-probability", 0).stdout)
    assert [hit["probability"] is not None for hit in found["hits"]] == [True]
    assert found["notes"] == ["left out 2 of 3 documents that have no probability: not reranked to the end"]
    refused = run(*arguments, "--min-probability", 0)
    assert refused.exit_code == 1
    assert "it is not for scores after layer 1" in " ".join(refused.stderr.split())


def test_without_a_calibration_that_holds_it_is_said_why(run, calibrated: Path) -> None:
    result = run("rerank", "the cat", *TEXTS, "-r", GOLDEN / "bert", "--min-probability", 0.5)
    assert result.exit_code == 1
    assert "make one with `crossrank calibrate`" in result.stderr
    result = run(
        *("rerank", "the cat", *TEXTS, "-r", calibrated, "--long-documents", "max", "--min-probability", 0.5)
    )
    assert "long_documents is 'max' and was 'truncate'" in " ".join(result.stderr.split())


def test_search_says_that_nothing_answers(run, calibrated: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "index", BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1)) as index:
        index.add([Document(str(i), text) for i, text in enumerate(TEXTS)])
    arguments = ("search", tmp_path / "index", "cat", "--retriever", "bm25", "-r", calibrated)
    assert json.loads(run(*arguments, "--json", "--min-probability", 0).stdout)["hits"]
    result = run(*arguments, "--min-probability", 1)
    assert result.exit_code == 0
    assert "nothing here answers the question" in result.stdout
    result = run("search", tmp_path / "index", "cat", "--reranker", "none", "--min-probability", 0.5)
    assert result.exit_code == 2
    assert "would do nothing" in result.stderr
