"""`crossrank tune`: tables for people, JSON for programs, and what other commands do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from crossrank.benchmarking import tune as tune_module
from crossrank.runtime.processor import Processor
from crossrank.runtime.tuned import TUNED_VARIABLE

MODEL = Path(__file__).parents[1] / "golden" / "bert"
SMALL = (MODEL, "--rounds", "3", "--threads", "1")


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNED_VARIABLE, str(tmp_path / "tuned"))
    monkeypatch.setattr(tune_module, "processor", lambda: Processor("a processor", ("avx2",)))


def test_measured_once_and_shown_again(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("tune", *SMALL)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("taken") == 2  # a precision, and a way of batching
    assert "int8 was left out: no form of the model passed the parity gate" in result.stdout
    assert "1,024" in result.stdout
    [path] = (tmp_path / "tuned").iterdir()
    assert f"measured, since it was not measured yet; kept in {path}" in result.stderr
    again = run("tune", *SMALL)
    assert again.stdout == result.stdout
    assert f"read from {path}" in again.stderr
    assert "asked for again" in run("tune", *SMALL, "--again").stderr


def test_json_is_all_there_is_on_standard_output(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("tune", *SMALL, "--json")
    found = json.loads(result.stdout)
    [path] = (tmp_path / "tuned").iterdir()
    assert (found["path"], found["precision"], found["threads"]) == (str(path), "float32", 1)
    assert {each["token_budget"] for each in found["batches"]} == {512, 1024, 2048}
    assert all(len(each["rounds_s"]) == 3 for each in found["batches"])
    assert json.loads(run("tune", *SMALL, "--json").stdout)["why_measured"] is None


def test_where_nothing_is_kept_that_is_said(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TUNED_VARIABLE, "off")
    result = run("tune", *SMALL)
    assert result.exit_code == 0
    assert "it is not kept" in result.stderr


def test_a_damaged_file_stops_no_command(run: Callable[..., Result], tmp_path: Path) -> None:
    expected = run("score", "-r", MODEL, "--threads", 1, input="what is it\ta text\n").stdout
    run("tune", *SMALL)
    [path] = (tmp_path / "tuned").iterdir()
    path.write_bytes(b"\x00\xff")
    result = run("score", "-r", MODEL, "--threads", 1, input="what is it\ta text\n")
    assert (result.exit_code, result.stdout) == (0, expected)
    assert run("tune", *SMALL).exit_code == 0
    json.loads(path.read_text(encoding="utf-8"))


def test_wrong_usage(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("tune", MODEL, "--rounds", "2").exit_code == 2
    assert run("tune", tmp_path).exit_code == 1
