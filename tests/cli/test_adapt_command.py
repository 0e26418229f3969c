"""`crossrank adapt`: what the command says, and that its models are found by the others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sentence_transformers")

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from test_adapt import corpus
from training_inputs import BI_ENCODER, CROSS_ENCODER, write_jsonl

PROCESS = Path(__file__).parents[1] / "training" / "adapt_process.py"


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


def test_a_generator_is_a_function_of_a_module_in_this_folder(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = "def ask(texts):\n    return [[' '.join(text.split()[:4])] for text in texts]\nnumber = 4\n"
    (tmp_path / "my_questions.py").write_text(code, encoding="utf-8")
    arguments = (*_arguments(tmp_path), "--source", "generated", "--json", "--generator")
    for wrong in ("my_questions", "my_questions:number", "my_questions:answer", "my_answers:ask"):
        refused = run(*arguments, wrong)
        assert refused.exit_code == 2
        assert f"--generator {wrong}" in " ".join(refused.stderr.replace("│", " ").split())
    result = run(*arguments, "my_questions:ask")
    assert result.exit_code == 0, result.stderr
    assert [*json.loads(result.stdout)["stages"]["queries"]["kept"]] == ["generated"]


def test_a_generator_whose_queries_would_not_be_used_is_refused(run, tmp_path: Path) -> None:
    queries = write_jsonl(tmp_path / "queries.jsonl", [{"document_id": "0", "query": "a cat"}])
    refused = run(*_arguments(tmp_path), "--queries", queries, "--source", "title")
    assert refused.exit_code == 1
    assert "sources are without 'generated'" in " ".join(refused.stderr.split())
    both = run(*_arguments(tmp_path), "--queries", queries, "--generator", "my_questions:ask")
    assert both.exit_code == 2


def test_options_that_do_not_go_together_are_refused(run, tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    both = run(*arguments, "--budget-minutes", "5")
    assert both.exit_code == 2
    assert "one of --steps and --budget-minutes" in " ".join(both.stderr.split())
    unknown = run(*arguments, "--source", "titles")
    assert unknown.exit_code == 1
    assert "title, heading, sentence" in " ".join(unknown.stderr.split())


def _dies(point: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROCESS), point, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(each) for key, each in value.items() if key != "seconds"}
    return [_without_seconds(each) for each in value] if isinstance(value, list) else value


def _ended_with(folder: Path) -> tuple[Any, str, dict[str, bytes]]:
    """What adaptation.json and report.md say, and the bytes of what was made of the documents."""
    output = folder / "out"
    found = (output / "adaptation.json").read_text(encoding="utf-8").replace(str(folder), "")
    report = (output / "report.md").read_text(encoding="utf-8").replace(str(folder), "")
    report = re.sub(r"## Time.*?(?=## )", "", re.sub(r", [\d,]+ s with", "", report), flags=re.S)
    training = output / "training"
    files = [*sorted((training / "collection").rglob("*.*")), *training.glob("*.jsonl")]
    bytes_of = {str(path.relative_to(training)): path.read_bytes() for path in files if path.is_file()}
    return _without_seconds(json.loads(found)), report, bytes_of


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight processes
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_command_that_is_killed_again_and_again_ends_with_the_same_report(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    finished = _dies("-", *_arguments(whole))
    assert finished.returncode == 0, finished.stderr
    points = {
        # texts are encoded and written down; their queries are not
        "crossrank.training.adapt.vectors:RememberedEncoder._encode:1": "making pseudo-queries",
        "crossrank.training.journal:Journal.append:1": "mining negatives",
        "crossrank.training.run_folder:RunFolder.commit_checkpoint:2": "training the reranker",
        # the reranker's folder is whole, and that it is has not been noted
        "crossrank.training.run_folder:RunFolder.finish:1": "training the reranker",
        "crossrank.training.adapt.measuring:_Measurer._measured:3": "measuring before and after",
        "crossrank.training.adapt.adaptation:write_report:1": "calibrating",
    }
    for point, words in points.items():
        process = _dies(point, *_arguments(killed))
        assert process.returncode == -signal.SIGKILL, process.stderr
        last = [line for line in process.stderr.splitlines() if ": done in" in line or line == words][-1]
        assert last.startswith(words), point
    finished = _dies("-", *_arguments(killed))
    assert finished.returncode == 0, finished.stderr
    assert "done in" not in finished.stderr  # only the report was left to be written
    assert _ended_with(killed) == _ended_with(whole)
