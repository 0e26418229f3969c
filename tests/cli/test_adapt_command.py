"""`crossrank adapt`: what the command says, and that its models are found by the others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_adapt import corpus
from training_inputs import BI_ENCODER, CROSS_ENCODER, write_jsonl


def _arguments(folder: Path) -> list[object]:
    rows = [{"_id": each.id, "title": each.title, "text": each.text} for each in corpus()]
    documents = write_jsonl(folder / "corpus.jsonl", rows)
    models = ["--reranker", CROSS_ENCODER, "--model", BI_ENCODER]
    sizes = ["--steps", "3", "--depth", "16", "--round-trip-top", "40"]
    return ["adapt", documents, "--output", folder / "out", *models, *sizes]


def test_it_adapts_and_says_what_came_of_it(run, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert "mining negatives" in result.stderr
    assert "held-out nDCG@10" in result.stderr
    assert "The old reranker" in result.stdout or "The new reranker" in result.stdout
    assert (tmp_path / "out" / "report.md").is_file()
    used = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))["use"]
    found = run("rerank", "cat", "--reranker", used["reranker"], input="a cat\na dog\n")
    assert found.exit_code == 0, found.stderr
    again = run(*arguments)
    assert again.exit_code == 1
    assert "replace it with --replace" in again.stderr


def test_queries_of_ones_own_generator_are_read(run, tmp_path: Path) -> None:
    rows = [{"document_id": each.id, "query": " ".join(each.text.split()[:4])} for each in corpus()]
    queries = write_jsonl(tmp_path / "queries.jsonl", rows)
    result = run(*_arguments(tmp_path), "--queries", queries, "--source", "generated", "--json")
    assert result.exit_code == 0, result.stderr
    assert [*json.loads(result.stdout)["stages"]["queries"]["kept"]] == ["generated"]


def test_options_that_do_not_go_together_are_refused(run, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    both = run(*arguments, "--budget-minutes", "5")
    assert both.exit_code == 2
    assert "one of --steps and --budget-minutes" in " ".join(both.stderr.split())
    unknown = run(*arguments, "--source", "titles")
    assert unknown.exit_code == 1
    assert "title, heading, sentence" in " ".join(unknown.stderr.split())
