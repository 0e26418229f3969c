"""`crossrank paraphrases` and `crossrank cluster`: the library's pairs and clusters, in every form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from crossrank import BiEncoder
from crossrank.similarity.clusters import cluster
from crossrank.similarity.paraphrases import similar_pairs

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = ("--model", GOLDEN / "sbert_bi_encoder", "--threads", 1)
WORDS = ["the", "cat", "dog", "river", "city", "water", "light", "mountain", "bird", "old", "new", "blue"]
TEXTS = [" ".join(WORDS[(i * k) % 12] for k in range(1, 3 + i % 4)) for i in range(14)] + ["the cat"] * 2


@pytest.fixture(scope="module")
def vectors():
    return BiEncoder(GOLDEN / "sbert_bi_encoder", threads=1).encode_documents(TEXTS)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def test_pairs_are_the_librarys_in_json_and_files(run, corpus: Path, vectors, tmp_path: Path) -> None:
    expected = similar_pairs(vectors, threshold=0.2)
    result = run("paraphrases", corpus, *MODEL, "--threshold", 0.2, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    ids = [(row["id1"], row["id2"]) for row in rows]
    assert ids == [(f"d{i}", f"d{j}") for i, j in zip(expected.first, expected.second, strict=True)]
    assert [row["score"] for row in rows] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    for name in ("pairs.jsonl", "pairs.csv"):
        file = tmp_path / name
        assert run("paraphrases", corpus, *MODEL, "--threshold", 0.2, "--to", file).exit_code == 0
        with file.open(encoding="utf-8") as lines:
            read = (
                list(csv.DictReader(lines)) if name.endswith("csv") else [json.loads(each) for each in lines]
            )
        assert [(row["id1"], row["id2"]) for row in read] == ids
        assert read[0]["text1"] == rows[0]["text1"]


def test_a_person_sees_the_best_pairs_and_what_was_left_out(run, corpus: Path) -> None:
    result = run("paraphrases", corpus, *MODEL, "--threshold", -1, "--top-k", 5)
    assert result.stdout.split()[:2] == ["score", "first"]
    assert "d14: the cat" in result.stdout
    assert f"{16 * 15 // 2:,} pairs are at or above -1; the best 5 were kept" in result.stderr
    result = run("paraphrases", corpus, *MODEL, "--threshold", -1)
    assert "100 more pairs" in result.stderr


@pytest.mark.parametrize("method", ["communities", "components", "average", "complete"])
def test_clusters_are_the_librarys(run, corpus: Path, vectors, method) -> None:
    result = run("cluster", corpus, *MODEL, "--threshold", 0.6, "--method", method, "--json")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    expected = cluster(vectors, threshold=0.6, method=method)
    found = [[row["id"] for row in rows if row["cluster"] == number] for number in range(len(expected))]
    assert found == [[f"d{row}" for row in each.members] for each in expected]
    shown = run("cluster", corpus, *MODEL, "--threshold", 0.6, "--method", method)
    assert f"{len(expected)} clusters of {len(rows)} of 16 texts" in shown.stderr


def test_a_cross_encoder_reads_borderline_pairs(run, corpus: Path) -> None:
    verify = ("--verify", GOLDEN / "bert", "--band", "-1:0.99", "--least", 1e9, "--json")
    result = run("paraphrases", corpus, *MODEL, "--threshold", -1, *verify)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows
    assert all(row["score"] >= 0.99 and row["value"] is None for row in rows)
    assert "borderline pairs" in result.stderr
    result = run("cluster", corpus, *MODEL, "--threshold", -1, "--method", "components", *verify)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["id"] for row in found} == {end for row in rows for end in (row["id1"], row["id2"])}
    result = run("paraphrases", corpus, *MODEL, "--threshold", -1, *verify[:4], "--least", -1e9, "--most", 3)
    assert "3 read, 0 rejected" in result.stderr
    assert "beyond --most were dropped unread" in result.stderr
    assert result.stdout.split()[:3] == ["score", "value", "first"]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("paraphrases", ("--to", "pairs.txt"), "ends in .jsonl or .csv"),
        ("paraphrases", ("--to", "pairs.csv", "--json"), "give one"),
        ("paraphrases", ("--least", 0.3), "there is no cross-encoder (--verify)"),
        ("paraphrases", ("--verify", "x", "--band", "high"), "not LOW:HIGH"),
        ("cluster", ("--verify", "x"), "--method components"),
    ],
)
def test_wrong_usage(run, corpus: Path, command: str, options, message: str) -> None:
    result = run(command, corpus, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_texts_that_cannot_be_compared(run, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "text": "cat"}\n{"id": "a", "text": "dog"}\n')
    assert "two documents have the id 'a'" in run("cluster", path, *MODEL).stderr
    path.write_text('{"id": "a", "text": "cat"}\n{"id": "b", "text": " "}\n')
    result = run("cluster", path, *MODEL)
    assert result.exit_code == 1
    assert "1 documents without text were left out" in result.stderr
    assert "1 texts have no pair" in result.stderr


def test_what_cannot_verify_is_refused_before_texts_are_encoded(run, corpus: Path, monkeypatch) -> None:
    monkeypatch.setattr("crossrank.models.bi_encoder.BiEncoder.encode_documents", None)
    for command in (("paraphrases", corpus), ("cluster", corpus, "--method", "components")):
        raw = run(*command, *MODEL, "--verify", GOLDEN / "bert")
        assert raw.exit_code == 1
        words = " ".join(raw.stderr.split())
        assert "bert has neither a calibration nor an activation" in words
        assert "give --least in that range, or calibrate the model with `crossrank calibrate`" in words
        bi_encoder = run(*command, *MODEL, "--verify", GOLDEN / "sbert_bi_encoder")
        assert bi_encoder.exit_code == 1
        assert "is a bi-encoder, which is for a first stage; give a reranker" in " ".join(
            bi_encoder.stderr.split()
        )


@pytest.mark.parametrize("command", ["paraphrases", "cluster"])
def test_a_file_that_is_there_is_replaced_only_where_that_is_said(run, corpus, tmp_path, command) -> None:
    to = tmp_path / "rows.csv"
    to.write_text("mine")
    asked = (command, corpus, *MODEL, "--threshold", 0.6, "--to", to)
    refused = run(*asked)
    assert refused.exit_code == 1
    assert "exists; name another file, or replace it with --replace" in " ".join(refused.stderr.split())
    assert to.read_text() == "mine"
    assert run(*asked, "--replace").exit_code == 0
    assert to.read_text().startswith(("score", "cluster"))
    assert run(command, corpus, *MODEL, "--replace").exit_code == 2


@pytest.mark.parametrize("command", ["paraphrases", "cluster"])
def test_a_folder_that_is_not_there_is_said_before_texts_are_encoded(
    run, corpus, tmp_path, monkeypatch, command
) -> None:
    monkeypatch.setattr("crossrank.models.bi_encoder.BiEncoder.encode_documents", None)
    result = run(command, corpus, *MODEL, "--to", tmp_path / "nothing" / "rows.csv")
    assert result.exit_code == 1
    assert "there is no folder" in " ".join(result.stderr.split())
