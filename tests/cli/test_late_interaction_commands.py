"""`index --late-interaction`, `search --retriever late`, and late-interaction models as rerankers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrank import Index
from crossrank.models.late_interaction import LateInteraction

MODEL = Path(__file__).parents[1] / "models" / "golden_late" / "multi_vector_min"
OTHER = MODEL.with_name("pylate")
ROWS = [
    {"id": "fox", "title": "Fox", "text": "the red fox runs", "year": 1999},
    {"id": "whale", "text": "a blue whale swims in the sea", "year": 2005},
    {"id": "dog", "text": "the quick brown dog , the dog", "year": 2010},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def index(run, rows: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    made = run(
        *("index", rows, "--to", folder, "--no-vectors", "--field", "year:int"),
        *("--late-interaction", MODEL),
    )
    assert made.exit_code == 0, made.output
    return folder


def expected(query: str) -> list[str]:
    texts = [f"{row['title']} {row['text']}" if "title" in row else row["text"] for row in ROWS]
    return [ROWS[hit.index]["id"] for hit in LateInteraction(MODEL).rank(query, texts)]


def test_late_is_a_first_stage(run, index: Path) -> None:
    found = run("search", index, "red fox", "--retriever", "late", "--reranker", "none", "--json")
    hits = json.loads(found.stdout)["hits"]
    assert [hit["document_id"] for hit in hits] == expected("red fox")
    assert {hit["stage"] for hit in hits} == {"late"}
    filtered = run(
        *("search", index, "red fox", "--retriever", "late", "--reranker", "none"),
        *("--filter", "year > 2000", "--json"),
    )
    assert {hit["document_id"] for hit in json.loads(filtered.stdout)["hits"]} == {"whale", "dog"}


def test_a_late_interaction_reranker_takes_what_the_index_keeps(
    run, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self, wanted, tracked):
        raise AssertionError("stored documents are encoded again")

    monkeypatch.setattr(LateInteraction, "encode_wanted", refuse)
    found = run(
        *("search", index, "the sea", "--retriever", "bm25", "--reranker", MODEL),
        "--json",
    )
    assert found.exit_code == 0, found.output
    hits = json.loads(found.stdout)["hits"]
    assert [hit["document_id"] for hit in hits] == ["whale"]
    assert hits[0]["stage"] == "multi_vector_min"


def test_another_late_interaction_reranker_encodes_documents(run, index: Path) -> None:
    found = run("search", index, "the sea", "--retriever", "bm25", "--reranker", OTHER, "--json")
    hits = json.loads(found.stdout)["hits"]
    score = LateInteraction(OTHER).rank("the sea", [ROWS[1]["text"]])[0].score
    assert hits[0]["score"] == pytest.approx(score, abs=1e-5)


def test_info_knows_late_interaction_models(run) -> None:
    for folder in (MODEL, OTHER, MODEL.with_name("stanford")):
        facts = json.loads(run("info", folder, "--json").stdout)
        assert facts["kind"] == "late-interaction"
        assert "labels" not in facts


def test_rerank_opens_late_interaction_models(run) -> None:
    found = run("rerank", "the sea", *(row["text"] for row in ROWS), "--reranker", MODEL, "--json")
    ranking = LateInteraction(MODEL).rank("the sea", [row["text"] for row in ROWS])
    hits = json.loads(found.stdout)["hits"]
    assert [hit["score"] for hit in hits] == pytest.approx(list(ranking.scores), abs=1e-5)
    refused = run("rerank", "the sea", "a", "--reranker", MODEL, "--label", "x")
    assert refused.exit_code == 2
    assert "--label:" in refused.stderr


@pytest.mark.parametrize("form", ["float16", "residual-4bit"])
def test_info_shows_form_and_bytes(form: str, run, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    arguments = ("index", rows, "--to", folder, "--no-vectors", "--late-interaction", MODEL)
    assert run(*arguments, "--token-form", form).exit_code == 0
    facts = json.loads(run("info", folder, "--json").stdout)
    assert facts["token_form"] == form
    assert facts["token_dimensions"] == 6
    vectors = LateInteraction(MODEL).encode_documents(
        ["Fox the red fox runs", *(row["text"] for row in ROWS[1:])]
    )
    per_token = {"float16": 12, "residual-4bit": 5}[form]
    assert facts["token_bytes_per_document"] == round(per_token * sum(map(len, vectors)) / 3)


def test_an_index_grows_by_its_own_model(run, index: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "new", "text": "the red red fox"}) + "\n")
    assert run("index", more, "--to", index).exit_code == 0
    with Index.open(index, late_interaction=LateInteraction(MODEL)) as opened:
        assert "new" in opened.search_late(["red fox"])[0].document_ids


def test_options_that_contradict_the_index_are_refused(run, index: Path, rows: Path, tmp_path: Path) -> None:
    changed = run("index", rows, "--to", index, "--token-form", "float16")
    assert changed.exit_code == 2
    assert "--token-form" in changed.stderr
    other = run("index", rows, "--to", index, "--late-interaction", OTHER)
    assert other.exit_code == 1
    assert "are those of" in other.stderr
    plain = tmp_path / "plain"
    assert run("index", rows, "--to", plain, "--no-vectors").exit_code == 0
    late = run("search", plain, "fox", "--retriever", "late", "--reranker", "none")
    assert late.exit_code == 1
    assert "no token vectors" in late.stderr
    idle = run("index", rows, "--to", tmp_path / "new", "--no-vectors", "--token-form", "int8")
    assert idle.exit_code == 2
    assert "--late-interaction" in idle.stderr


def test_a_query_that_is_too_long_is_cut_where_that_is_allowed(run, index: Path, tmp_path: Path) -> None:
    long = "the red fox " * 40
    asked = ("search", index, long, "--retriever", "late", "--reranker", "none", "--json")
    refused = run(*asked)
    assert refused.exit_code == 1
    assert "allow cutting with --long-query truncate" in " ".join(refused.stderr.split())
    found = run(*asked, "--long-query", "truncate")
    assert found.exit_code == 0, found.output
    texts = [f"{row['title']} {row['text']}" if "title" in row else row["text"] for row in ROWS]
    cut = LateInteraction(MODEL, long_query="truncate").rank(long, texts)
    hits = json.loads(found.stdout)["hits"]
    assert [hit["document_id"] for hit in hits] == [ROWS[hit.index]["id"] for hit in cut]

    collection = tmp_path / "collection"
    (collection / "qrels").mkdir(parents=True)
    (collection / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": row["id"], **row}) + "\n" for row in ROWS)
    )
    (collection / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": long}) + "\n")
    (collection / "qrels" / "test.tsv").write_text(
        f"query-id\tcorpus-id\tscore\nq\t{hits[0]['document_id']}\t1\n"
    )
    measured = ("evaluate", "--index", index, "--collection", collection, "--retriever", "late", "--json")
    assert run(*measured).exit_code == 1
    cut_too = run(*measured, "--long-query", "truncate", "--measures", "MRR@10")
    assert cut_too.exit_code == 0, cut_too.output
    assert json.loads(cut_too.stdout)["measures"] == {"MRR@10": 1.0}


def test_how_long_queries_are_read_is_for_a_model_that_reads_them(run, index: Path) -> None:
    asked = ("search", index, "fox", "--reranker", "none", "--long-query", "truncate")
    assert run(*asked, "--retriever", "bm25").exit_code == 2
    assert run(*asked, "--retriever", "late").exit_code == 0
