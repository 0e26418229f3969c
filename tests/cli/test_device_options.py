"""`--backend` and `--device`: where the models of a command run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer

from crossrank import BiEncoder, CrossEncoder, Document, Index
from crossrank.cli.app import app

pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "golden"
RERANKER, BI_ENCODER = GOLDEN / "bert", GOLDEN / "sbert_bi_encoder"
DOCUMENTS = ["a village in the hills", "the play was written in 1600", "the river"]
COMMANDS = typer.main.get_command(app).commands
# These train, and make or measure what runs on the CPU.
WITHOUT = {"adapt", "bench", "export", "quantize", "tune"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_models_can_be_told_where_to_run(name: str) -> None:
    options = {parameter.name for parameter in COMMANDS[name].params}
    expected = "threads" in options and name not in WITHOUT
    assert ({"backend", "device"} <= options) == expected


def test_rerank_and_score_run_where_they_are_told(run) -> None:
    expected = CrossEncoder(RERANKER, backend="onnx").score([("who wrote it", text) for text in DOCUMENTS])
    for options in (["--device", "cpu"], ["--backend", "torch"], ["--backend", "onnx"]):
        result = run("rerank", "who wrote it", *DOCUMENTS, "-r", RERANKER, "--json", *options)
        assert result.exit_code == 0
        scores = {hit["index"]: hit["score"] for hit in json.loads(result.stdout)["hits"]}
        assert [scores[i] for i in range(3)] == pytest.approx(expected, abs=1e-5)
    lines = "".join(f"who wrote it\t{text}\n" for text in DOCUMENTS)
    result = run("score", "-r", RERANKER, "--device", "cpu", "--precision", "bf16", input=lines)
    scores = [float(line) for line in result.stdout.split()]
    assert scores == pytest.approx(expected, abs=0.1)
    assert scores != pytest.approx(expected, abs=1e-5)  # in bf16


def test_early_exits_need_no_backend_where_torch_is_the_choice(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSRANK_BACKEND", "torch")  # as "auto" is with a GPU
    command = ["rerank", "who wrote it", *DOCUMENTS, "--exit-layer", 2, "--finish", 1, "--json"]
    hits = json.loads(run(*command).stdout)["hits"]
    assert [hit["stage"] for hit in hits] == ["crossrank-mini", "crossrank-mini@2", "crossrank-mini@2"]
    refused = run(*command, "--backend", "torch")
    assert refused.exit_code != 0
    assert "open it with --backend onnx" in refused.stderr


def test_encode_runs_where_it_is_told(run, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    run("encode", texts, "-m", BI_ENCODER, "--device", "cpu", "--to", tmp_path / "vectors.npy")
    expected = BiEncoder(BI_ENCODER, backend="onnx").encode_documents(DOCUMENTS)
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--device", "gpu"],
            "device is 'gpu'; choose 'cpu', 'cuda', 'cuda:1' (the second GPU), ... or 'mps'",
        ),
        (["--backend", "onnx", "--device", "cpu"], "--device is of --backend torch; leave it out"),
        (["--device", "cpu", "--precision", "int8"], "precision 'int8' is of --backend onnx"),
        (["--backend", "onnx", "--precision", "bf16"], "precision 'bf16' needs --backend torch"),
    ],
)
def test_what_cannot_be_is_said_in_options(run, options: list[str], message: str) -> None:
    result = run("rerank", "a query", "a text", "-r", RERANKER, *options)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_kind_that_cannot_choose_names_the_option(run) -> None:
    result = run("rerank", "a query", "a text", "-r", GOLDEN.with_name("golden_t5") / "t5", "--device", "cpu")
    assert result.exit_code != 0  # it does not say what it is for; no traceback
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("options", [("--device", "cpu"), ("--precision", "bf16", "--device", "cpu")])
def test_t5_rerankers_take_the_same_options(run, tmp_path: Path, options: tuple[str, ...]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    shutil.copytree(GOLDEN.with_name("golden_t5") / "t5", tmp_path / "t5")
    (tmp_path / "t5" / "crossrank.json").write_text('{"kind": "mono_t5"}', encoding="utf-8")
    result = run("rerank", "a query", *DOCUMENTS, "-r", tmp_path / "t5", "--json", *options)
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["hits"]) == len(DOCUMENTS)


def test_a_device_for_nothing_is_wrong_usage(run, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(DOCUMENTS), encoding="utf-8")
    result = run("index", texts, "--to", tmp_path / "index", "--no-vectors", "--device", "cpu")
    assert result.exit_code == 2
    assert "--device would do nothing" in " ".join(result.stderr.replace("│", "").split())


def test_models_of_an_index_in_int8_stay_where_they_can_run(run, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    with index_in_int8(tmp_path / "index") as index:
        assert index.model is not None
        assert index.model.precision == "int8"
    result = run("search", tmp_path / "index", "the play", "--device", "cpu", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["hits"][0]["document_id"] == "1"


def index_in_int8(path: Path) -> Index:
    index = Index.create(path, BiEncoder(backend="onnx", precision="int8"))
    index.add([Document(str(number), text) for number, text in enumerate(DOCUMENTS)])
    return index
