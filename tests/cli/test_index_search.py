"""`index` and `search`: from files to hits, runs and figures, with a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossrank import Collection, read_run

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "sbert_bi_encoder"
RERANKER = GOLDEN / "bert"
ROWS = [
    {"id": "fox", "title": "Foxes", "text": "A red fox runs through the wood.", "year": 1999},
    {"id": "whale", "text": "The blue whale is the largest animal.", "year": 2005},
    {"id": "oak", "text": "An oak may live for a thousand years.", "year": 2010},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def text_index(run, rows: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "text index"
    assert run("index", rows, "--to", folder, "--no-vectors", "--field", "year:int").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": row["id"], "text": row["text"]}) + "\n" for row in ROWS)
    )
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "largest whale"}\n{"_id": "q2", "text": "red wood"}\n'
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\twhale\t1\nq2\tfox\t1\n")
    return folder


@pytest.fixture(scope="module")
def vector_index(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    from crossrank.cli.app import app

    folder = tmp_path_factory.mktemp("vectors") / "index"
    done = CliRunner().invoke(app, ["index", str(collection), "--to", str(folder), "--model", str(MODEL)])
    assert done.exit_code == 0, done.output
    return folder


def test_index_reports_what_it_did(run, rows: Path, tmp_path: Path) -> None:
    command = ["index", rows, "--to", tmp_path / "i", "--no-vectors", "--json"]
    first = json.loads(run(*command).stdout)
    assert (first["num_documents"], first["added"], first["rejected"]) == (3, 3, [])


def test_indexing_again_changes_nothing_and_new_rows_are_added(run, rows: Path, text_index: Path) -> None:
    again = json.loads(run("index", rows, "--to", text_index, "--json").stdout)
    assert (again["added"], again["unchanged"]) == (0, 3)
    changed = [{**ROWS[0], "text": "A grey fox."}, {"id": "elm", "text": "An elm."}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in changed))
    report = json.loads(run("index", rows, "--to", text_index, "--json").stdout)
    assert (report["num_documents"], report["added"], report["replaced"]) == (4, 1, 1)


def test_replace_starts_anew(run, rows: Path, text_index: Path) -> None:
    rows.write_text(json.dumps(ROWS[1]) + "\n")
    report = json.loads(run("index", rows, "--to", text_index, "--replace", "--no-vectors", "--json").stdout)
    assert report["num_documents"] == 1


def test_bad_rows_are_listed_and_the_rest_is_indexed(run, rows: Path, tmp_path: Path) -> None:
    with rows.open("a") as file:
        file.write('{"id": "bad"}\nnot json\n')
    command = ["index", rows, "--to", tmp_path / "i", "--no-vectors"]
    result = run(*command, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["num_documents"]) == (1, 3)
    assert [(row["path"], row["line"]) for row in report["rejected"]] == [(str(rows), 4), (str(rows), 5)]
    shown = run(*command, "--replace", "--skip-bad-rows")
    assert shown.exit_code == 0
    assert f"{rows}:4" in shown.stderr


def test_a_missing_source_costs_no_index(run, text_index: Path, tmp_path: Path) -> None:
    result = run("index", tmp_path / "nothing.jsonl", "--to", text_index, "--replace", "--no-vectors")
    assert result.exit_code == 1
    assert json.loads(run("info", text_index, "--json").stdout)["documents"] == 3


def test_settings_of_an_index_that_is_there_cannot_be_changed(run, rows: Path, text_index: Path) -> None:
    result = run("index", rows, "--to", text_index, "--field", "lang:str")
    assert result.exit_code == 2
    assert "--replace" in result.stderr


@pytest.mark.parametrize("field", ["year", "year:date", ":int:"])
def test_a_field_needs_a_known_type(run, rows: Path, tmp_path: Path, field: str) -> None:
    assert run("index", rows, "--to", tmp_path / "i", "--field", field).exit_code == 2


def test_search_finds_filters_and_says_so_in_json(run, text_index: Path) -> None:
    command = ["search", text_index, "fox or whale or oak", "--reranker", "none", "--json"]
    everything = json.loads(run(*command).stdout)
    assert {hit["document_id"] for hit in everything["hits"]} == {"fox", "whale", "oak"}
    late = json.loads(run(*command, "--filter", "year >= 2005 and not year = 2010").stdout)
    assert [hit["document_id"] for hit in late["hits"]] == ["whale"]
    assert late["hits"][0]["metadata"] == {"year": 2005}


def test_search_shows_both_ranks(run, text_index: Path) -> None:
    result = run("search", text_index, "red fox", "-r", RERANKER)
    heading, hit = result.stdout.splitlines()
    assert heading.split() == ["rank", "first", "score", "id", "text"]
    assert hit.split()[:2] == ["1", "1"]
    assert "Foxes: A red fox" in hit
    assert "ms" in result.stderr


def test_nothing_found_is_no_error(run, text_index: Path) -> None:
    result = run("search", text_index, "zebra", "-r", "none")
    assert (result.exit_code, result.stdout) == (0, "nothing found\n")


def test_an_unknown_field_is_an_error_that_names_it(run, text_index: Path) -> None:
    result = run("search", text_index, "fox", "-r", "none", "--filter", "size > 3")
    assert result.exit_code == 1
    assert "size" in result.stderr


@pytest.mark.parametrize("retriever", ["bm25", "dense", "hybrid", "auto"])
def test_a_file_of_queries_gives_a_run(run, vector_index: Path, tmp_path: Path, retriever: str) -> None:
    (tmp_path / "queries.tsv").write_text("q1\tlargest whale\nq2\tred wood\n")
    result = run(
        *("search", vector_index, "--queries", tmp_path / "queries.tsv", "--run", tmp_path / "out.run"),
        *("--retriever", retriever, "--reranker", "none", "--tag", "mine"),
    )
    assert (result.exit_code, result.stdout) == (0, "")
    written = read_run(tmp_path / "out.run")
    assert (list(written), written.tag) == (["q1", "q2"], "mine")
    if retriever == "bm25":
        assert [ranking.document_ids for ranking in written.values()] == [("whale",), ("fox",)]


def test_queries_go_to_standard_output_without_a_run_file(run, vector_index: Path) -> None:
    command = ["search", vector_index, "--queries", "-", "--retriever", "bm25", "--reranker", "none"]
    result = run(*command, input="red wood\n")
    assert result.stdout.split()[:4] == ["1", "Q0", "fox", "1"]
    rows = [json.loads(line) for line in run(*command, "--json", input="red wood\n").stdout.splitlines()]
    assert [(row["query_id"], row["query"]) for row in rows] == [("1", "red wood")]


def test_evaluate_an_index_equals_evaluate_its_run(
    run, vector_index: Path, collection: Path, tmp_path: Path
) -> None:
    search = ["--retriever", "hybrid", "--reranker", str(RERANKER), "--depth", "2"]
    saved = tmp_path / "kept.run"
    direct = run(
        *("evaluate", "--index", vector_index, "--collection", collection, *search, "--run", saved, "--json")
    )
    of_run = run("evaluate", saved, collection / "qrels" / "test.tsv", "--json")
    assert json.loads(direct.stdout) == json.loads(of_run.stdout)
    assert Collection.open(collection).qrels("test").keys() == read_run(saved).keys()


def test_bm25_finds_both_judged_documents_first(run, vector_index: Path, collection: Path) -> None:
    result = run(
        *("evaluate", "--index", vector_index, "--collection", collection, "--retriever", "bm25", "--json"),
        *("--measures", "MRR@10"),
    )
    assert json.loads(result.stdout)["measures"] == {"MRR@10": 1.0}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_without_a_query_it_asks_for_queries_until_the_end_of_input(text_index: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "crossrank", "search", str(text_index), "--reranker", "none"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        os.write(ours, b"red fox\n\nblue whale\n\x04")  # the last is Ctrl-D
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when the other side has closed
            while block := os.read(ours, 4096):
                shown += block
    os.close(ours)
    assert process.returncode == 0
    assert b"A red fox runs" in shown
    assert b"The blue whale" in shown


def test_a_folder_that_is_no_index_is_an_error(run, tmp_path: Path) -> None:
    result = run("search", tmp_path / "nothing", "fox")
    assert result.exit_code == 1
    assert str(tmp_path / "nothing") in result.stderr
