"""`crossrank bench`: figures for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

SMALL = ("--documents", "4", "--queries", "1", "--rounds", "1", "--alone", "--threads", "1")


def test_own_texts_to_a_file_and_the_terminal(run: Callable[..., Result], tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    lines = ["The red fox runs.", "A blue whale swims slowly in the sea.", "An oak.", "A cat, too."]
    texts.write_text("\n".join(lines), encoding="utf-8")
    written = tmp_path / "bench.json"
    result = run("bench", "--texts", texts, *SMALL, "--to", written)
    assert result.exit_code == 0, result.stderr
    assert "crossrank int8" in result.stdout
    assert "load average" in result.stdout
    found = json.loads(written.read_text(encoding="utf-8"))
    assert found["settings"]["num_documents"] == 4
    assert list(found["profiles"]) == ["texts"]
    texts.write_text("An oak.\nA cat.\nAn oak.\n", encoding="utf-8")
    failed = run("bench", "--texts", texts, *SMALL)
    assert failed.exit_code == 1
    assert "texts has 2 different documents, and a query num_documents=4 candidates" in failed.stderr


def test_mistakes_are_said_at_once(run: Callable[..., Result], tmp_path: Path) -> None:
    assert "no profile 'long'" in run("bench", "--profile", "long", *SMALL).stderr
    assert "is not NAME=PYTHON" in run("bench", "--other", "rerankers", *SMALL).stderr
    assert "no contestant 'x'" in run("bench", "--other", "x=/usr/bin/python3", *SMALL).stderr
    assert "cannot be run: No such file" in run("bench", "--export", tmp_path / "python", *SMALL).stderr
    assert "a picture's name ends in" in run("bench", "--to", tmp_path / "a.bmp", *SMALL).stderr
    assert "there is no folder" in run("bench", "--to", tmp_path / "no" / "a.json", *SMALL).stderr
