"""`explain`: the library's own weights, printed, as JSON and as a page; documents from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrank import CrossEncoder
from crossrank.explanation.explain import explain

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "bert"
QUERY = "what is the water"
DOCUMENT = "the old river <b>is</b> blue [bold]"


def test_json_is_the_librarys_explanation(run) -> None:
    result = run("explain", QUERY, DOCUMENT, "--reranker", MODEL, "--json")
    assert result.exit_code == 0
    expected = explain(QUERY, DOCUMENT, CrossEncoder(MODEL)).to_dict()
    printed = json.loads(result.stdout)
    assert printed["document_terms"] == [
        {**term, "weight": pytest.approx(term["weight"], abs=1e-5)} for term in expected["document_terms"]
    ]
    assert (printed["method"], printed["model"]) == ("occlusion", "bert")


def test_a_person_sees_texts_and_weights(run) -> None:
    result = run("explain", QUERY, DOCUMENT, "-r", MODEL)
    assert QUERY in result.stdout
    assert DOCUMENT in result.stdout
    assert "document term" in result.stdout
    assert "\x1b" not in result.stdout, "no colours in a pipe"


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_documents_from_files(run, tmp_path: Path, source: str) -> None:
    path = tmp_path / "article.txt"
    path.write_text(f"\ufeff{DOCUMENT}", encoding="utf-8")
    given = f"@{path}" if source == "file" else "@-"
    result = run("explain", QUERY, given, "-r", MODEL, "--json", input=path.read_bytes())
    assert json.loads(result.stdout)["document"] == DOCUMENT


def test_a_page_is_written(run, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    result = run("explain", QUERY, DOCUMENT, "-r", MODEL, "--html", page)
    assert result.stdout == ""
    assert str(page) in result.stderr.replace("\n", "")
    assert page.read_text(encoding="utf-8") == explain(QUERY, DOCUMENT, CrossEncoder(MODEL)).to_html()


def test_gradients_where_asked_for(run) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    result = run("explain", QUERY, DOCUMENT, "-r", MODEL, "--method", "integrated-gradients", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["baseline"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((" ", DOCUMENT), 2, "the query is empty"),
        ((QUERY, DOCUMENT, "--json", "--html", "x.html"), 2, "not both"),
        ((QUERY, DOCUMENT, "--method", "attention"), 2, "attention"),
        ((QUERY, "@no-such-file.txt"), 1, "no-such-file.txt"),
        ((QUERY, DOCUMENT, "--method", "alignment"), 1, "no token similarities"),
        ((QUERY,), 2, "DOCUMENT"),
    ],
)
def test_what_cannot_be_explained(run, arguments, code, message) -> None:
    result = run("explain", *arguments, "-r", MODEL)
    assert result.exit_code == code
    assert message.lower() in " ".join(result.stderr.split()).lower()


def test_a_file_that_is_no_text_is_named(run, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG\r\n\xff")
    result = run("explain", QUERY, f"@{path}", "-r", MODEL)
    assert result.exit_code == 1
    assert "not UTF-8 text" in result.stderr
    assert "picture.png" in result.stderr.replace("\n", "")


def test_a_page_that_is_there_is_replaced_only_where_that_is_said(run, tmp_path: Path) -> None:
    page = tmp_path / "why.html"
    page.write_text("mine")
    refused = run("explain", QUERY, DOCUMENT, "-r", MODEL, "--html", page)
    assert refused.exit_code == 1
    assert "replace it with --replace" in " ".join(refused.stderr.split())
    assert page.read_text() == "mine"
    assert run("explain", QUERY, DOCUMENT, "-r", MODEL, "--html", page, "--replace").exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run("explain", QUERY, DOCUMENT, "-r", MODEL, "--replace").exit_code == 2


@pytest.mark.parametrize(
    ("query", "document", "note"),
    [
        (QUERY, "", "the document is empty: the score is what the model gives the query alone"),
        (QUERY, "!!!", "the document has no words, so none has a weight"),
        ("!!!", DOCUMENT, "the query has no words, so none has a weight"),
    ],
)
def test_texts_without_words_are_said_to_be_so(run, query, document, note) -> None:
    result = run("explain", query, document, "-r", MODEL)
    assert result.exit_code == 0, result.stderr
    assert f"note: {note}" in " ".join(result.stdout.split())
    notes = json.loads(run("explain", query, document, "-r", MODEL, "--json").stdout)["notes"]
    assert note in notes
