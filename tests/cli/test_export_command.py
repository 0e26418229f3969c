"""`crossrank export`: the folder, what is printed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import crossrank

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = [("the red fox", "the red fox runs"), ("the red fox", "a blue whale swims")]


def test_the_folder_opens_like_the_model(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("export", GOLDEN / "bert", out)
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "inputs input_ids, attention_mask, token_type_ids" in words
    assert "output logits: float32 (batch, 1): a raw score for each label" in words
    np.testing.assert_array_equal(
        crossrank.load(out, threads=1).score(PAIRS),
        crossrank.load(GOLDEN / "bert", threads=1).score(PAIRS),
    )


def test_heads_at_earlier_layers_are_left_out_and_it_is_said(run, tmp_path: Path) -> None:
    result = run("export", GOLDEN / "bert_exits", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "left out: heads after layers 1, 2" in " ".join(result.stderr.split())
    assert not list((tmp_path / "out").rglob("exits.safetensors"))
    again = run("rerank", "the red fox", "a whale", "-r", tmp_path / "out", "--exit-layer", 1)
    assert again.exit_code == 1
    assert "no head after layer 1" in " ".join(again.stderr.split())


def test_the_report_as_json(run, tmp_path: Path) -> None:
    result = run("export", GOLDEN / "sbert_bi_encoder", tmp_path / "out", "--precision", "float32", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kind"] == "bi_encoder"
    assert report["exits_left_out"] == []
    assert list(report["outputs"]) == ["last_hidden_state", "sentence_embedding"]
    assert Path(report["files"][0]).stat().st_size == report["size_bytes"]


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(run, tmp_path: Path) -> None:
    assert run("export", GOLDEN / "bert", tmp_path / "out").exit_code == 0
    again = run("export", GOLDEN / "roberta", tmp_path / "out")
    assert again.exit_code == 1
    assert "or replace it with --replace" in " ".join(again.stderr.split())
    assert run("export", GOLDEN / "roberta", tmp_path / "out", "--replace").exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "roberta"


def test_int8_that_is_not_there(run, tmp_path: Path) -> None:
    result = run("export", GOLDEN / "bert", tmp_path / "out", "--precision", "int8")
    assert result.exit_code == 1
    assert "no int8 form" in result.stderr
    assert not (tmp_path / "out").exists()
