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


OTHER = """\
q1 Q0 d2 1 3.0 second
q1 Q0 d1 2 2.0 second
q2 Q0 d1 1 1.0 second
"""


def rows(table: str) -> list[str]:
    """Give the rows of a table with one space between their words."""
    return [" ".join(line.split()) for line in table.splitlines()]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    (tmp_path / "b.run").write_text(OTHER)
    return tmp_path / "b.run"


def test_intervals_of_the_means(run, files) -> None:
    plain = run("evaluate", *files, "--measures", "MRR@10,MAP")
    result = run("evaluate", *files, "--measures", "MRR@10,MAP", "--interval")
    assert result.exit_code == 0
    # reciprocal ranks 1/2, 0, 0: 8 of 27 resamples have mean 0, and 1 has mean 1/2
    ends = "95 % 0.0000 to 0.5000 0.0000 to 0.5000"
    assert rows(result.stdout) == [*rows(plain.stdout), ends]
    document = json.loads(run("evaluate", *files, "--measures", "MRR@10", "--interval", "--json").stdout)
    assert document["intervals"] == {
        "MRR@10": {"value": document["measures"]["MRR@10"], "low": 0.0, "high": 0.5, "confidence": 0.95}
    }


def test_one_judged_query_has_no_interval(run, files) -> None:
    files[1].write_text("q1 0 d2 1\n")
    result = run("evaluate", *files, "--interval")
    assert result.exit_code == 1
    assert "error: 1 queries say nothing about others" in result.stderr


def test_a_comparison_has_a_line_for_each_measure(run, files, other) -> None:
    result = run("evaluate", *files, "--measures", "MRR@10,Recall@1", "--against", other)
    assert result.exit_code == 0
    # reciprocal ranks 1/2, 0, 0 against 1, 1, 0: of 4 ways to flip two signs, two are as far out
    assert rows(result.stdout) == [
        "measure value 95 % against difference 95 % p wins/ties/losses",
        "MRR@10 0.1667 0.0000 to 0.5000 0.6667 -0.5000 -1.0000 to +0.0000 0.5000 0/1/2",
        "Recall@1 0.0000 0.0000 to 0.0000 0.6667 -0.6667 -1.0000 to +0.0000 0.5000 0/1/2",
    ]
    assert "1 of them are not in the run and count as 0" in result.stderr
    assert "1 of them are not in the run of --against and count as 0" in result.stderr


def test_a_comparison_query_by_query(run, files, other) -> None:
    result = run("evaluate", *files, "--measures", "MRR@10", "--against", other, "--per-query")
    assert rows(result.stdout)[:4] == [
        "query MRR@10",
        "q1 0.5000 (-0.5000)",
        "q2 0.0000 (-1.0000)",
        "q3 0.0000 (+0.0000)",
    ]
    assert rows(result.stdout)[4].startswith("measure")


def test_json_of_a_comparison(run, files, other) -> None:
    options = ["--measures", "MRR@10", "--per-query", "--json"]
    document = json.loads(run("evaluate", *files, *options, "--against", other).stdout)
    comparison = document["comparisons"].pop("MRR@10")
    assert document == {
        **json.loads(run("evaluate", *files, *options).stdout),
        "against": json.loads(run("evaluate", other, files[1], *options).stdout),
        "comparisons": {},
    }
    interval = json.loads(run("evaluate", *files, *options, "--interval").stdout)["intervals"]["MRR@10"]
    assert comparison.pop("mean") == interval
    assert comparison.pop("other_mean")["value"] == document["against"]["measures"]["MRR@10"]
    difference = comparison.pop("difference")
    assert difference == {"value": pytest.approx(-0.5), "low": -1.0, "high": 0.0, "confidence": 0.95}
    assert comparison == {"p_value": 0.5, "exact": True, "wins": 0, "ties": 1, "losses": 2}


def test_one_file_of_a_comparison_from_standard_input(run, files, other) -> None:
    expected = run("evaluate", *files, "--against", other, "--json").stdout
    assert run("evaluate", *files, "--against", "-", "--json", input=OTHER).stdout == expected
    assert run("evaluate", "-", files[1], "--against", "-", input=RUN).exit_code == 2
    result = run("evaluate", *files, "--against", "-", input="q1 Q0 d3\n")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: <stdin>:1: a row of a run has 6 columns")


def test_a_search_is_compared_with_a_run(run, tmp_path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "d1", "text": "blue whales"}\n{"_id": "d2", "text": "red wood"}\n'
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "whale"}\n{"_id": "q2", "text": "wood"}\n')
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    assert run("index", tmp_path, "--to", tmp_path / "index", "--no-vectors").exit_code == 0
    search = ["evaluate", "--index", tmp_path / "index", "--collection", tmp_path]
    result = run(*search, "--measures", "MRR@10", "--against", "-", "--json", input="q1 Q0 d1 1 1.0 tag\n")
    document = json.loads(result.stdout)
    assert document["measures"] == {"MRR@10": 1.0}
    assert document["against"]["measures"] == {"MRR@10": 0.5}
    assert document["comparisons"]["MRR@10"]["p_value"] == 1


def test_intervals_of_a_comparison_need_no_option(run, files, other) -> None:
    result = run("evaluate", *files, "--against", other, "--interval")
    assert result.exit_code == 2
    assert "would do nothing" in result.stderr


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
