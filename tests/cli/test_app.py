"""What all commands share: version, help, exit codes, one-line errors, closed pipes, and their page."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

import crossrank
from crossrank.cli.app import app
from crossrank.cli.wording import WORDING, in_options

GOLDEN = Path(__file__).parents[1] / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = typer.main.get_command(app).commands


def test_version(run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"crossrank {version('crossrank')}\n")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example(run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"crossrank {name}" in result.stdout
    assert "Example" in result.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_page_has_every_command_and_its_options(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    introduction, *_ = text.partition("\n## ")
    section = re.search(rf"^## crossrank {name}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    options = {
        option for parameter in COMMANDS[name].params for option in parameter.opts if option[:2] == "--"
    }
    missing = {option for option in options - {"--help"} if option not in section[1] + introduction}
    assert missing == set()


def test_the_page_has_no_option_that_does_not_exist() -> None:
    existing = {
        opt
        for command in COMMANDS.values()
        for parameter in command.params
        for opt in [*parameter.opts, *parameter.secondary_opts]
    }
    stated = set(re.findall(r"--[a-z][a-z0-9-]*", PAGE.read_text(encoding="utf-8")))
    assert stated <= existing | {"--help", "--version"}


def test_help_shows_the_form_of_a_file_of_queries(run) -> None:
    assert "id and query with a tab between" in " ".join(
        run("search", "--help").stdout.replace("│", "").split()
    )


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["evaluate"], ["search"], ["rerank", "--top-k", "0"], ["info", "--nonsense"]],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_an_error_is_one_line_on_standard_error(run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.run"
    bad.write_text("q Q0 d 1\n")
    qrels = tmp_path / "qrels"
    qrels.write_text("q 0 d 1\n")
    result = run("evaluate", bad, qrels)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {bad}:1: ")
    assert result.stderr.count("\n") == 1


def test_a_file_that_cannot_be_written_is_an_error(run, tmp_path: Path) -> None:
    run_file = tmp_path / "a.run"
    run_file.write_text("q Q0 d 1 1.0 tag\n")
    result = run("evaluate", run_file, tmp_path / "missing")
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'missing'}: there is no such file\n"


def test_an_interrupt_is_exit_code_130(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crossrank.evaluation.trec.read_qrels", interrupted)
    result = run("evaluate", tmp_path / "run", tmp_path / "qrels")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE to report")
def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    # Many more lines than a pipe holds.
    (tmp_path / "pairs.tsv").write_text("".join(f"query\tdocument {number}\n" for number in range(4000)))
    arguments = ["score", "pairs.tsv", "--json", "--reranker", str(GOLDEN / "bert")]
    command = [sys.executable, "-m", "crossrank", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE to report")
@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"], []])
def test_a_reader_of_help_that_goes_away_is_the_same(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        command = [sys.executable, "-m", "crossrank", *arguments]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_every_wording_is_one_of_the_library() -> None:
    said = "\n".join(
        _literal(node)
        for path in Path(crossrank.__file__).parent.rglob("*.py")
        if path.parent.name != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Constant, ast.JoinedStr))
    )
    assert [words for words in WORDING if words not in said] == []


def _literal(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_advice_names_options() -> None:
    assert in_options("no column text among id; name the right one with text_column") == (
        "no column text among id; name the right one with --text-column"
    )
    assert in_options("the model gave NaN for pairs[7] (query 'a', document 'b')") == (
        "the model gave NaN for a pair (query 'a', document 'b')"
    )
