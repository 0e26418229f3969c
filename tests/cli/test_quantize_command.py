"""`crossrank quantize`: pairs or a collection to a folder in int8, or to figures and exit code 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from crossrank import CrossEncoder, Pair
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.quantize import as_candidates, quantize
from crossrank.runtime.int8 import INT8_FILE, PARITY_FILE
from crossrank.runtime.quantization import LIMITS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
WORDS = ["the", "red", "fox", "runs", "over", "blue", "whale", "swims", "wood", "animal"]


def set_limits(monkeypatch: pytest.MonkeyPatch, limits: Mapping[str, float]) -> None:
    for name, limit in limits.items():
        monkeypatch.setitem(LIMITS, name, limit)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def wide_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limits(monkeypatch, {"mean_delta_in_std": 1.0, "kendall_tau": -1.0, "delta_ndcg@10": 1.0})


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    lines = [
        f"{WORDS[i % 10]} {i}\t{' '.join(WORDS[(i * j + k) % 10] for k in range(1 + (i + j) % 12))}\n"
        for i in range(60)
        for j in range(5)
    ]
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(lines))
    return path


def test_what_it_writes_is_what_the_library_writes(run, pairs: Path, tmp_path: Path) -> None:
    result = run("quantize", GOLDEN / "bert", "--pairs", pairs, "--to", tmp_path / "cli", "--seed", 2)
    assert result.exit_code == 0, result.stderr
    rows = [Pair(*line.split("\t")) for line in pairs.read_text().splitlines()]
    quantize(
        str(GOLDEN / "bert"),
        tmp_path / "library",
        as_candidates(rows),
        name=str(pairs),
        seed=2,
        progress=False,
    )
    for name in (INT8_FILE, PARITY_FILE, "model.safetensors"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "library" / name).read_bytes()
    assert CrossEncoder(tmp_path / "cli").precision == "int8"
    words = " ".join(result.stdout.split())
    assert "weights 0.1 MB" in words
    assert "Kendall's tau a query" in words
    assert "nDCG" not in words
    assert f"wrote {tmp_path / 'cli'}; it opens in int8" in result.stderr


def test_pairs_from_standard_input_as_json(run, pairs: Path, tmp_path: Path) -> None:
    result = run(
        *("quantize", GOLDEN / "sbert_bi_encoder", "--pairs", "-", "--to", tmp_path / "int8", "--json"),
        "--without-float32",
        input=pairs.read_text(),
    )
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["kind"], report["passed"], report["exceeded"]) == ("bi-encoder", True, [])
    assert report["int8_bytes"] < report["float32_bytes"]
    assert not (tmp_path / "int8" / "model.safetensors").exists()


def test_a_collection_has_its_judgements_compared(run, tmp_path: Path) -> None:
    sample = ROOT / "data" / "sample"
    result = run("quantize", GOLDEN / "bert", "--collection", sample, "--to", tmp_path / "int8")
    assert result.exit_code == 0, result.stderr
    assert "nDCG@10" in result.stdout
    record = json.loads((tmp_path / "int8" / PARITY_FILE).read_text())
    assert record["collections"]["sample"]["num_pairs"] > 2000
    assert record["collections"]["sample"]["ndcg@10_float32"] > 0


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_form_that_fails_the_gate_is_not_written(
    run, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: list[str]
) -> None:
    set_limits(monkeypatch, {"kendall_tau": 1.1})
    result = run("quantize", GOLDEN / "bert", "--pairs", pairs, "--to", tmp_path / "int8", *form)
    assert result.exit_code == 1
    if form:
        assert json.loads(result.stdout)["exceeded"] == ["kendall_tau"]
    else:
        assert "at least 1.1" in result.stdout
    assert "does not pass the parity gate; nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == [pairs]


def test_wrong_usage_and_errors(run, pairs: Path, tmp_path: Path) -> None:
    to = ("--to", tmp_path / "int8")
    for options in (to, (*to, "--pairs", pairs, "--collection", tmp_path)):
        result = run("quantize", GOLDEN / "bert", *options)
        assert result.exit_code == 2
        assert "give --pairs or --collection" in result.stderr
    result = run("quantize", GOLDEN / "bert", *to, "--pairs", pairs, "--split", "dev")
    assert result.exit_code == 2
    assert "--split would do nothing" in result.stderr
    result = run("quantize", GOLDEN / "bert", "--to", tmp_path, "--pairs", pairs)
    assert result.exit_code == 1
    assert "is not empty; name another folder, or replace it with --replace" in " ".join(
        result.stderr.split()
    )
    pairs.write_text("fox\tThe fox.\n")
    result = run("quantize", GOLDEN / "bert", *to, "--pairs", pairs)
    assert result.exit_code == 1
    assert "1 pairs of 1 queries are too few" in result.stderr


def test_a_t5_that_scores_pairs_and_one_that_compares(run, pairs: Path, tmp_path: Path) -> None:
    source = tmp_path / "t5"
    shutil.copytree(ROOT / "tests" / "golden_t5" / "t5", source)
    for kind, opened in (("mono_t5", MonoT5), ("duo_t5", DuoT5)):
        (source / "crossrank.json").write_text(json.dumps({"kind": kind}))
        result = run("quantize", source, "--pairs", pairs, "--to", tmp_path / kind)
        assert result.exit_code == 0, result.stderr
        assert f"{kind}; calibrated on" in result.stderr
        assert opened(tmp_path / kind).precision == "int8"
    ranked = run("rerank", "--reranker", tmp_path / "duo_t5", "--json", "fox", "The fox.", "A whale.")
    assert sorted(hit["document_id"] for hit in json.loads(ranked.stdout)["hits"]) == ["0", "1"]
