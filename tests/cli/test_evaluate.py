"""`crossrank evaluate` on run files: figures that can be worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

RUN = """\
q1 Q0 d1 1 3.0 first
q1 Q0 d2 2 2.0 first
q2 Q0 d9 1 1.0 first
q9 Q0 d1 1 1.0 first
"""
QRELS = """\
q1 0 d2 1
q2 0 d1 1
q3 0 d3 1
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "a.run").write_text(RUN)
    (tmp_path / "a.qrels").write_text(QRELS)
    return tmp_path / "a.run", tmp_path / "a.qrels"


def test_json_has_means_queries_and_what_is_missing(run, files) -> None:
    result = run("evaluate", *files, "--measures", "nDCG@10,MRR@10", "--per-query", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "measures": {"nDCG@10": pytest.approx(1 / math.log2(3) / 3), "MRR@10": pytest.approx(1 / 6)},
        "num_queries": 3,
        "relevance_level": 1,
        "missing_queries": ["q3"],
        "unjudged_queries": ["q9"],
        "per_query": {
            "q1": {"nDCG@10": pytest.approx(1 / math.log2(3)), "MRR@10": 0.5},
            "q2": {"nDCG@10": 0.0, "MRR@10": 0.0},
            "q3": {"nDCG@10": 0.0, "MRR@10": 0.0},
        },
    }


def test_the_table_has_one_line_for_the_means(run, files) -> None:
    result = run("evaluate", *files, "--measures", "MRR@10")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [["query", "MRR@10"], ["all", "0.1667"]]
    assert "count as 0" in result.stderr


def test_an_unknown_measure_lists_the_known_ones(run, files) -> None:
    result = run("evaluate", *files, "--measures", "nDCG@10,accuracy")
    assert result.exit_code == 1
    assert "'accuracy'" in result.stderr
    assert "nDCG@k" in result.stderr


@pytest.mark.parametrize("extra", [["--collection", "folder"], ["--index", "folder"]])
def test_a_run_and_an_index_do_not_go_together(run, files, extra: list[str]) -> None:
    assert run("evaluate", *files, *extra).exit_code == 2


@pytest.mark.parametrize(
    "idle",
    [
        ["--run", "kept.run"],
        ["--reranker", "none"],
        ["--depth", "5"],
        ["--retriever", "bm25"],
        ["--split", "dev"],
        ["--filter", "year = 2000"],
        ["-m", "model"],
    ],
)
def test_options_of_a_search_do_not_go_with_a_run(run, files, idle: list[str]) -> None:
    result = run("evaluate", *files, *idle)
    assert result.exit_code == 2
    assert "would do nothing" in result.stderr


def test_fewer_hits_than_a_cutoff_are_refused(run, tmp_path) -> None:
    options = ["--collection", tmp_path, "--measures", "nDCG@10,Recall@50", "--top-k", 20]
    result = run("evaluate", "--index", tmp_path, *options)
    assert result.exit_code == 2
    assert "less than 50" in result.stderr


def test_a_run_or_qrels_from_standard_input(run, files) -> None:
    expected = run("evaluate", *files, "--json").stdout
    assert run("evaluate", "-", files[1], "--json", input=RUN).stdout == expected
    assert run("evaluate", files[0], "-", "--json", input=QRELS).stdout == expected
    assert run("evaluate", "-", "-", input=RUN).exit_code == 2


def test_a_bad_row_of_standard_input_is_named(run, files) -> None:
    result = run("evaluate", "-", files[1], input=RUN + "q1 Q0 d3\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: <stdin>:5: a row of a run has 6 columns")
