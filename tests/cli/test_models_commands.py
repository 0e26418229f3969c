"""`rerank`, `score`, `encode`, `info`, `models`: the library's own numbers, in every form of input."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossrank import BiEncoder, CrossEncoder, Document, load
from crossrank.runtime.checkpoint import Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
RERANKER = GOLDEN / "bert"
BI_ENCODER = GOLDEN / "sbert_bi_encoder"
QUERY = "who wrote the play"
DOCUMENTS = ["a village in the hills", "the play was written in 1600", "[bold]not markup[/bold]"]


@pytest.fixture(scope="module")
def reranker() -> CrossEncoder:
    return CrossEncoder(RERANKER)


def test_rerank_gives_the_librarys_ranking(run, reranker) -> None:
    result = run("rerank", QUERY, *DOCUMENTS, "-r", RERANKER, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    expected = reranker.rank(QUERY, DOCUMENTS)
    assert [hit["document_id"] for hit in printed["hits"]] == list(expected.document_ids)
    assert [hit["score"] for hit in printed["hits"]] == pytest.approx(expected.scores, abs=1e-5)
    assert [hit["text"] for hit in printed["hits"]] == [DOCUMENTS[hit.index] for hit in expected]


def test_rerank_leaves_at_an_earlier_layer_and_lets_the_best_finish(run) -> None:
    folder = GOLDEN / "bert_exits"
    asked = ("rerank", QUERY, *DOCUMENTS, "-r", folder, "--json", "--exit-layer", "2")
    left = json.loads(run(*asked).stdout)["hits"]
    assert [hit["stage"] for hit in left] == ["bert_exits@2"] * 3
    finished = json.loads(run(*asked, "--finish", "2").stdout)["hits"]
    assert [hit["stage"] for hit in finished] == ["bert_exits"] * 2 + ["bert_exits@2"]
    assert {hit["document_id"] for hit in finished[:2]} == {hit["document_id"] for hit in left[:2]}
    many = [f"{DOCUMENTS[0]}{' fox' * number}" for number in range(12)]
    options = ("--exit-layer", "2", "--finish", "12", "--margin", "0", "--json")
    close = json.loads(run("rerank", QUERY, *many, "-r", folder, *options).stdout)["hits"]
    assert [hit["stage"] for hit in close] == ["bert_exits"] * 10 + ["bert_exits@2"] * 2
    pairs = "".join(f"{QUERY}\t{text}\n" for text in DOCUMENTS)
    scores = run("score", "-r", folder, "--exit-layer", "2", input=pairs).stdout.split()
    expected = CrossEncoder(folder, exit_layer=2).score([(QUERY, text) for text in DOCUMENTS])
    np.testing.assert_allclose([float(score) for score in scores], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--finish", "2"], "--finish would do nothing"),
        (["--margin", "2"], "--margin would do nothing"),
        (["--exit-layer", "2", "--margin", "2"], "--margin would do nothing"),
        (["--exit-layer", "1", "--finish", "2", "-r", str(RERANKER)], "no head after layer 1"),
    ],
)
def test_exits_that_cannot_be_are_refused(run, options: list[str], message: str) -> None:
    result = run("rerank", QUERY, *DOCUMENTS, *options)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())


def test_rerank_shows_texts_as_they_are(run) -> None:
    result = run("rerank", QUERY, *DOCUMENTS, "-r", RERANKER, "-k", "3")
    assert all(document in result.stdout for document in DOCUMENTS)


def test_rerank_takes_documents_from_lines(run, reranker) -> None:
    result = run("rerank", QUERY, "-r", RERANKER, "--json", "-k", "1", input="\n".join(DOCUMENTS))
    assert json.loads(result.stdout)["hits"][0]["index"] == reranker.rank(QUERY, DOCUMENTS)[0].index


def test_rerank_answers_requests_in_their_order(run) -> None:
    requests = [{"query": f"query {n}", "documents": DOCUMENTS[:n], "query_id": f"q{n}"} for n in (2, 0, 1)]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    result = run("rerank", "-r", RERANKER, "--json", input=lines)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["query_id"], row["query"], len(row["hits"])) for row in rows] == [
        ("q2", "query 2", 2),
        ("q0", "query 0", 0),
        ("q1", "query 1", 1),
    ]


def test_a_bad_request_names_its_line(run) -> None:
    result = run("rerank", "-r", RERANKER, input='{"query": "a", "documents": []}\n{"query": "b"}\n')
    assert result.exit_code == 1
    assert result.stderr.startswith("error: <stdin>:2: ")


def test_rerank_reads_titles_and_keeps_ids(run, reranker) -> None:
    documents = [{"text": DOCUMENTS[0], "id": "D1", "title": "a play"}, DOCUMENTS[1]]
    request = json.dumps({"query": QUERY, "documents": documents})
    hits = json.loads(run("rerank", "-r", RERANKER, "--json", input=request).stdout)["hits"]
    expected = reranker.rank(QUERY, [Document("D1", DOCUMENTS[0], "a play"), Document("1", DOCUMENTS[1])])
    assert [(hit["document_id"], hit["score"]) for hit in hits] == [
        (hit.document_id, pytest.approx(hit.score, abs=1e-5)) for hit in expected
    ]
    assert {hit["title"] for hit in hits} == {"a play", ""}


def test_rerank_of_nothing_says_so(run) -> None:
    result = run("rerank", QUERY, "-r", RERANKER, input="")
    assert (result.exit_code, result.stdout) == (0, f"{QUERY}\nnothing to rank\n")


def test_rerank_takes_documents_from_one_place(run, tmp_path: Path) -> None:
    result = run("rerank", QUERY, *DOCUMENTS, "--input", tmp_path / "documents.txt")
    assert result.exit_code == 2
    assert "--input would do nothing" in result.stderr


LONG = "word " * 600


def test_a_request_whose_query_is_too_long_names_its_line(run) -> None:
    queries = [f"query {number}" for number in range(70)] + [LONG]  # in the second chunk of requests
    lines = "\n" + "".join(json.dumps({"query": query, "documents": ["a"]}) + "\n" for query in queries)
    result = run("rerank", "-r", RERANKER, "--json", input=lines)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: <stdin>:72: query has ")
    assert "--long-query truncate" in result.stderr
    assert "max_query_length" not in result.stderr


def test_a_pair_whose_query_is_too_long_names_its_line(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossrank.cli.rerank.PAIRS_AT_ONCE", 2)
    result = run("score", "-r", RERANKER, input=f"a\tb\nc\td\ne\tf\n{LONG}\tg\n")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr.startswith("error: <stdin>:4: the query has ")


def test_score_gives_raw_logits_in_the_order_of_the_pairs(run, reranker) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    lines = "".join(f"{query}\t{document}\n" for query, document in pairs)
    result = run("score", "-r", RERANKER, input=lines)
    assert [float(line) for line in result.stdout.splitlines()] == pytest.approx(
        reranker.score(pairs).tolist(), abs=2e-6
    )


def test_score_activates_when_asked(run, reranker, tmp_path: Path) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    result = run("score", path, "-r", RERANKER, "--activate", "--json")
    scores = [json.loads(line)["score"] for line in result.stdout.splitlines()]
    assert scores == pytest.approx(reranker.activate(reranker.score(pairs)).tolist(), abs=1e-6)


def test_score_says_that_a_model_has_no_activation(run, tmp_path: Path) -> None:
    folder = shutil.copytree(RERANKER, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config))
    plain = run("score", "-r", folder, input="a\tb\n")
    activated = run("score", "-r", folder, "--activate", input="a\tb\n")
    assert (plain.stdout, plain.stderr) == (activated.stdout, "")
    assert "states no activation" in activated.stderr


@pytest.mark.parametrize("role", ["query", "document"])
def test_encode_writes_the_librarys_vectors(run, tmp_path: Path, role: str) -> None:
    path = tmp_path / "vectors.npy"
    result = run("encode", "--as", role, "-m", BI_ENCODER, "--to", path, input="\n".join(DOCUMENTS))
    assert result.exit_code == 0
    encoder = BiEncoder(BI_ENCODER)
    expected = (encoder.encode_queries if role == "query" else encoder.encode_documents)(DOCUMENTS)
    written = np.load(path)
    assert written.dtype == np.float32
    np.testing.assert_allclose(written, expected, atol=1e-5)


def test_encode_prints_json_lines(run) -> None:
    result = run("encode", "-m", BI_ENCODER, input="one\ntwo\n")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["one", "two"]
    assert [np.linalg.norm(row["embedding"]) for row in rows] == pytest.approx([1, 1], abs=1e-5)


def test_encode_writes_an_array_to_standard_output(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("encode", "-m", BI_ENCODER, "--to", "-", input="one\ntwo\n")
    assert np.load(io.BytesIO(result.stdout_bytes)).shape == (2, BiEncoder(BI_ENCODER).dimensions)
    assert run("encode", "-m", BI_ENCODER, "--to", "-", "--json", input="one\n").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_encode_of_nothing_is_an_empty_array(run, tmp_path: Path) -> None:
    run("encode", "-m", BI_ENCODER, "--to", tmp_path / "none.npy", input="")
    assert np.load(tmp_path / "none.npy").shape == (0, BiEncoder(BI_ENCODER).dimensions)


@pytest.mark.parametrize(("folder", "kind"), [("bert", "cross-encoder"), ("sbert_bi_encoder", "bi-encoder")])
def test_info_says_what_a_model_is(run, folder: str, kind: str) -> None:
    facts = json.loads(run("info", GOLDEN / folder, "--json").stdout)
    assert facts["kind"] == kind
    assert facts["architecture"] == "bert"
    assert facts["precision"] == "float32"
    model = load(GOLDEN / folder)
    assert facts["fingerprint"] == model.fingerprint
    assert facts["files_fingerprint"] == Checkpoint.open(GOLDEN / folder).fingerprint


def test_the_fingerprint_of_a_model_is_the_one_its_index_names(run, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "text": "the red fox"}\n')
    model = GOLDEN / "sbert_bi_encoder"
    assert run("index", rows, "--to", tmp_path / "index", "--model", model).exit_code == 0
    index = json.loads(run("info", tmp_path / "index", "--json").stdout)
    facts = json.loads(run("info", model, "--json").stdout)
    assert index["model_fingerprint"] == facts["fingerprint"]
    assert index["precision"] == facts["precision"]


def test_info_of_a_model_that_does_not_open_says_why(run, t5) -> None:
    facts = json.loads(run("info", t5(None), "--json").stdout)
    assert facts["kind"] == "not stated"
    assert facts["opens"].startswith("no: ")
    assert "fingerprint" not in facts


CARD = """---
license: apache-2.0
base_model: some/model
datasets: [one, two]
model-index: [{name: m, results: [{dataset: {name: d}, metrics: [{type: nDCG@10, value: 0.5}]}]}]
---
# A model
"""


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (
            CARD,
            {
                "license": "apache-2.0",
                "base_model": "some/model",
                "datasets": ["one", "two"],
                "results": ["d: nDCG@10 0.5"],
            },
        ),
        ("---\nlicense: [\n---\n", {}),
        ("no front matter", {}),
    ],
)
def test_info_reads_the_model_card(run, tmp_path: Path, card: str, expected: dict[str, object]) -> None:
    folder = shutil.copytree(RERANKER, tmp_path / "model")
    plain = json.loads(run("info", folder, "--json").stdout)
    (folder / "README.md").write_text(card)
    assert json.loads(run("info", folder, "--json").stdout) == {**plain, **expected}


def test_info_of_the_machine(run) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["cores_to_use"] >= 1
    assert facts["packages"]["onnxruntime"]


def test_info_of_nothing_that_exists(run) -> None:
    result = run("info", "no/such/thing")
    assert result.exit_code == 1
    assert "no/such/thing" in result.stderr
    assert "crossrank-mini" in result.stderr


def test_models_lists_what_ships_with_the_package(run) -> None:
    listed = json.loads(run("models", "--json").stdout)
    assert {(model["name"], model["kind"]) for model in listed["built_in"]} == {
        ("crossrank-mini", "cross-encoder"),
        ("crossrank-tiny", "cross-encoder"),
        ("crossrank-embed", "bi-encoder"),
        ("crossrank-colbert", "late-interaction"),
    }
    assert all(model["license"] for model in listed["built_in"])


def test_every_family_listed_can_be_opened() -> None:
    from crossrank.cli.models import FAMILIES
    from crossrank.runtime.checkpoint import Checkpoint

    opened = {
        json.loads(path.read_text())["model_type"]: path.parent
        for path in GOLDEN.parent.glob("golden*/*/config.json")
    }
    for family in FAMILIES:
        assert Checkpoint.open(opened[family]).architecture


@pytest.fixture
def t5(tmp_path: Path) -> Callable[[str | None], Path]:
    """A T5 that says of which kind it is."""

    def make(kind: str | None) -> Path:
        folder = tmp_path / str(kind)
        shutil.copytree(GOLDEN.parent / "golden_t5" / "t5", folder)
        if kind is not None:
            (folder / "crossrank.json").write_text(json.dumps({"kind": kind}), encoding="utf-8")
        return folder

    return make


@pytest.mark.parametrize("kind", ["mono_t5", "rank_t5", "duo_t5"])
def test_a_t5_is_opened_as_what_its_folder_says(run, t5, kind) -> None:
    folder = t5(kind)
    result = run("rerank", QUERY, *DOCUMENTS, "-r", folder, "--json")
    assert result.exit_code == 0, result.stderr
    hits = json.loads(result.stdout)["hits"]
    expected = load(folder).rank(QUERY, DOCUMENTS)
    assert [hit["document_id"] for hit in hits] == list(expected.document_ids)
    assert [hit["score"] for hit in hits] == pytest.approx(expected.scores, abs=1e-5)
    assert json.loads(run("info", folder, "--json").stdout)["kind"] == kind.replace("_", "-")


def test_a_t5_that_does_not_say_is_refused(run, t5) -> None:
    folder = t5(None)
    result = run("rerank", QUERY, *DOCUMENTS, "-r", folder)
    assert result.exit_code == 1
    words = " ".join(result.stderr.split())
    assert "does not say what it was trained for: write what it is into its crossrank.json" in words
    assert json.loads(run("info", folder, "--json").stdout)["kind"] == "not stated"


def test_what_gives_no_scores_says_so(run, t5) -> None:
    for model, message in (
        (t5("duo_t5"), "is a DuoT5, which does not score pairs"),
        (BI_ENCODER, "is a bi-encoder, which is for a first stage"),
    ):
        result = run("score", "-r", model, input="a\tb\n")
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_scores_of_a_mono_t5_can_be_activated(run, t5) -> None:
    folder = t5("mono_t5")
    result = run("score", "-r", folder, "--activate", input=f"{QUERY}\t{DOCUMENTS[0]}\n")
    model = load(folder)
    expected = model.activate(model.score([(QUERY, DOCUMENTS[0])]))[0]
    assert float(result.stdout) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("folder", ["sbert_modular_cross_encoder", "../models/golden_late/pylate"])
def test_a_reranker_where_a_bi_encoder_is_needed(run, folder: str) -> None:
    result = run("encode", "-m", GOLDEN / folder, input="a text\n")
    assert result.exit_code == 1
    assert result.stderr.rstrip("\n").endswith(", and a bi-encoder is needed here")
