"""`--llm` of rerank and search, against a server on a real socket."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "llm"))

from chat_server import ChatServer, fails, says

pytest.importorskip("openai")

TEXTS = ["a river worth 1", "a river worth 3", "a river worth 2"]


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ChatServer() as running:
        yield running


@pytest.mark.parametrize("method", ["listwise", "setwise", "pairwise", "pointwise"])
def test_rerank_by_a_language_model(run, server, method, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    options = ["--llm", method, "--llm-model", "oracle", "--base-url", server.url]
    result = run("rerank", *options, "--json", "river", *TEXTS)
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert [hit["index"] for hit in row["hits"]] == [1, 2, 0]
    assert {hit["stage"] for hit in row["hits"]} == {f"{method}:oracle"}
    assert f"oracle: {len(server.calls)} calls" in result.stderr
    assert server.calls[0].headers["authorization"] == "Bearer sk-very-secret"
    assert "very-secret" not in result.output


def test_requests_are_reranked_together(run, server):
    rows = [{"query": f"q{number}", "query_id": f"i{number}", "documents": TEXTS} for number in range(3)]
    result = run(
        *("rerank", "--llm", "listwise", "--llm-model", "oracle", "--base-url", server.url, "--json"),
        input="\n".join(map(json.dumps, rows)),
    )
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["query_id"] for row in found] == ["i0", "i1", "i2"]
    assert len(server.calls) == 3


def test_repairs_are_said_to_people_and_in_json(run, server):
    server.does(says("hm: [3] > [1]"))
    options = ["--llm", "listwise", "--llm-model", "oracle", "--base-url", server.url]
    result = run("rerank", *options, "river", *TEXTS)
    assert result.exit_code == 0
    assert "1 of 1 answer of the model repaired" in result.stderr
    assert "repaired" in json.loads(run("rerank", *options, "--json", "river", *TEXTS).stdout)["notes"][0]


def test_failures_and_budgets_are_errors_in_one_line(run, server):
    options = ["--llm", "listwise", "--llm-model", "oracle", "--base-url", server.url]
    result = run("rerank", *options, "--llm-budget", "10", "river", *TEXTS)
    assert result.exit_code == 1
    assert "the budget of 10 tokens is used up" in result.stderr
    assert server.calls == []
    money = ["--llm-prices", "1000,2000", "--llm-max-cost", "0.001"]
    result = run("rerank", *options, *money, "river", *TEXTS)
    assert result.exit_code == 1
    assert "the budget of 0.001 is used up" in result.stderr
    assert server.calls == []
    server.does(fails(404))
    result = run("rerank", *options, "river", *TEXTS)
    assert result.exit_code == 1
    assert "status 404" in result.stderr


def test_what_was_used_is_told_in_money(run, server):
    options = ["--llm", "listwise", "--llm-model", "oracle", "--base-url", server.url]
    result = run("rerank", *options, "--llm-prices", "1000,2000", "river", *TEXTS)
    assert result.exit_code == 0, result.output
    said = re.search(r"1 calls, ([\d,]+) tokens read, ([\d,]+) written, cost ([\d.]+)", result.stderr)
    assert said is not None, result.stderr
    read, written = (int(each.replace(",", "")) for each in said.groups()[:2])
    assert float(said[3]) == pytest.approx((read * 1000 + written * 2000) / 1e6, rel=1e-3)


def test_search_by_a_language_model(run, server, tmp_path):
    pytest.importorskip("lancedb")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS))
    )
    assert run("index", corpus, "--to", tmp_path / "i", "--no-vectors").exit_code == 0
    options = ["--llm", "listwise", "--llm-model", "oracle", "--base-url", server.url, "--json"]
    result = run("search", tmp_path / "i", "river", *options)
    assert result.exit_code == 0, result.output
    assert [hit["document_id"] for hit in json.loads(result.stdout)["hits"]] == ["d1", "d2", "d0"]
    server.does(fails(500))
    queries = tmp_path / "q.tsv"
    queries.write_text("1\triver\n")
    server.does(fails(403))
    result = run("search", tmp_path / "i", "--queries", queries, *options)
    assert result.exit_code == 0
    row = json.loads(result.stdout)
    assert row["status"] == "degraded"
    assert "status 403" in row["notes"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--llm", "listwise"], "--llm-model"),
        (["--llm-model", "m"], "there is no --llm"),
        (["--base-url", "http://x/v1"], "there is no --llm"),
        (["--llm", "nonsense", "--llm-model", "m"], "nonsense"),
        (["--llm", "listwise", "--llm-model", "m", "--reranker", "x"], "--llm is the reranker"),
        (["--llm", "listwise", "--llm-model", "m", "--precision", "int8"], "--llm is the reranker"),
        (["--llm", "listwise", "--llm-model", "m", "--llm-template", "yes-no"], "only --llm pointwise"),
        (["--llm", "listwise", "--llm-model", "m", "--llm-budget", "9"], "costs nothing"),
        (["--llm", "listwise", "--llm-model", "m", "--llm-prices", "1,2"], "costs nothing"),
        (
            ["--llm", "listwise", "--llm-model", "m", "--base-url", "http://x/v1", "--llm-max-cost", "1"],
            "needs prices",
        ),
        *(
            (
                ["--llm", "listwise", "--llm-model", "m", "--base-url", "http://x/v1", "--llm-prices", bad],
                "must be two prices",
            )
            for bad in ("1", "a,b", "1,2,3", "nan,1", "-1,2")
        ),
        (["--llm", "query-likelihood", "--llm-model", "m", "--base-url", "http://x/v1"], "on this machine"),
        (
            [
                *("--llm", "pointwise", "--llm-model", "m", "--base-url", "http://x/v1"),
                *("--llm-template", "qwen3-reranker"),
            ],
            "on this machine",
        ),
    ],
)
def test_options_that_would_do_nothing_are_wrong_usage(run, options, said):
    result = run("rerank", *options, "q", "a text", "another")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_help_names_the_methods_and_the_key(run):
    for command in ("rerank", "search"):
        text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
        for word in ("listwise", "--llm-model", "--base-url", "OPENAI_API_KEY", "--llm-budget"):
            assert word in text


def test_a_local_model_of_the_command_line(run, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny_models import qwen

    model, tokenizer = qwen()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for method, extra in (
        ("pointwise", ["--llm-template", "qwen3-reranker"]),
        ("query-likelihood", []),
        ("setwise", []),
    ):
        result = run("rerank", "--llm", method, "--llm-model", tmp_path, *extra, "--json", "river", *TEXTS)
        assert result.exit_code == 0, result.output
        assert sorted(hit["index"] for hit in json.loads(result.stdout)["hits"]) == [0, 1, 2]
