"""`export`: the folder opens to the same scores, and ONNX Runtime alone gives them, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

import crossrank
from crossrank.errors import CheckpointError, InputError, ModelOutputError
from crossrank.models import export as export_module
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.calibration import Calibration, ProbabilityMap, write_calibration
from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.duo_t5 import DuoT5
from crossrank.models.export import export
from crossrank.models.late_interaction import LateInteraction
from crossrank.models.mono_t5 import MonoT5
from crossrank.models.pooling import pool
from crossrank.models.rank_t5 import RankT5
from crossrank.runtime import onnx_file
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.encoder import Encoder
from crossrank.runtime.encoders.heads import write_pooling
from crossrank.runtime.engine import build_graph, open_session
from crossrank.runtime.graph import Graph
from crossrank.runtime.int8 import INT8_FILE, write_parity
from crossrank.runtime.modules import PoolingMode
from crossrank.runtime.native import left_out
from crossrank.runtime.onnx_file import TwoPaths
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.quantization import calibrate, write_int8

TESTS = Path(__file__).parents[1]
GOLDEN, GOLDEN_T5 = TESTS / "golden", TESTS / "golden_t5"
GOLDEN_BI, GOLDEN_LATE = TESTS / "models" / "golden_bi", TESTS / "models" / "golden_late"
QUERY = "what is the red fox"
TEXTS = [
    "the red fox runs over the blue whale",
    "",
    "a whale swims , in the wood",
    "the quick brown fox " * 30,
    "the water of the old river is blue",
]
MODELS = [
    "crossrank-mini",
    "crossrank-embed",
    *(
        GOLDEN / name
        for name in (
            *("bert", "bert_float16", "bert_sharded", "roberta", "distilbert", "electra", "deberta_v2"),
            *("modernbert_mean", "camembert", "sbert_modular_cross_encoder", "sbert_bi_encoder"),
        )
    ),
    *(
        GOLDEN_BI / name
        for name in ("cls_dense", "joined", "last_norm", "max_without_prompt", "weighted_gelu")
    ),
    *(GOLDEN_LATE / name for name in ("multi_vector_fixed", "pylate", "pylate_modernbert", "stanford")),
]
T5S: list[tuple[str, dict[str, Any]]] = [
    ("t5", {"kind": "mono_t5"}),
    ("mt5", {"kind": "mono_t5", "tokens": [5, 9], "prompt": "Frage: {query} Text: {document} Passt:"}),
    ("t5_v1_1", {"kind": "rank_t5"}),
    ("t5_encoder", {"kind": "rank_t5"}),
    ("t5_v1_1", {"kind": "duo_t5"}),
]
QUIET = {"threads": 1, "progress": False}


def given(model: Any) -> npt.NDArray[np.float32]:
    """What a model of any kind gives for some texts."""
    if isinstance(model, BiEncoder):
        return np.concatenate([model.encode_queries([QUERY]), model.encode_documents(TEXTS)])
    if isinstance(model, DuoT5):
        return model.prefer([(QUERY, one, other) for one in TEXTS for other in TEXTS])
    return model.score([(QUERY, text) for text in TEXTS])


def opened(model: str | Path) -> Any:
    return crossrank.load(model, **QUIET)


def session_of(folder: Path) -> onnxruntime.InferenceSession:
    """The exported file as a program without crossrank opens it."""
    return onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def fed(folder: Path, texts: Sequence[Any], max_length: int = 512) -> dict[str, npt.NDArray[np.int64]]:
    """Inputs of the file by the folder's tokenizer alone; a pair's document is cut."""
    stated = json.loads((folder / "onnx" / "inputs.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cut = "only_second" if isinstance(texts[0], tuple) else "longest_first"
    tokenizer.enable_truncation(min(max_length, stated.get("max_length", max_length)), strategy=cut)
    tokenizer.enable_padding(pad_id=stated["padding"]["token_id"])
    encoded = tokenizer.encode_batch(list(texts))
    arrays = {
        "input_ids": np.array([each.ids for each in encoded]),
        "attention_mask": np.array([each.attention_mask for each in encoded]),
        "token_type_ids": np.array([each.type_ids for each in encoded]),
    }
    return {name: arrays[name] for name in stated["inputs"]}


@pytest.fixture
def t5(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str, declaration: dict[str, Any]) -> Path:
        folder = tmp_path / f"my-{name}"
        shutil.copytree(GOLDEN_T5 / name, folder)
        (folder / "crossrank.json").write_text(json.dumps(declaration), encoding="utf-8")
        return folder

    return make


# --- opened again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: Path(model).name)
def test_the_folder_opens_to_the_same_bits(model: str | Path, tmp_path: Path) -> None:
    report = export(model, tmp_path / "out", threads=1)
    with left_out():
        before = opened(model)
    after = opened(tmp_path / "out")
    assert type(after) is type(before)
    np.testing.assert_array_equal(given(after), given(before))
    assert after.precision == before.precision == report.precision
    assert report.largest_difference == 0
    assert after.fingerprint != before.fingerprint  # other files
    assert not list((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "declaration"), T5S, ids=lambda value: str(value)[:24])
def test_t5s_open_to_the_same_bits(
    name: str, declaration: dict[str, Any], t5: Callable[..., Path], tmp_path: Path
) -> None:
    folder = t5(name, declaration)
    report = export(folder, tmp_path / "out", threads=1)
    before, after = opened(folder), opened(tmp_path / "out")
    assert report.kind == declaration["kind"]
    assert type(after) is type(before)
    assert after.prompt == before.prompt
    np.testing.assert_array_equal(given(after), given(before))


def test_a_t5_that_is_known_by_its_name_alone_says_in_the_copy_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(export_module.load.__globals__["PUBLISHED"], "me/mono", ("mono_t5", "mt5"))
    shutil.copytree(GOLDEN_T5 / "mt5", tmp_path / "me" / "mono")
    monkeypatch.chdir(tmp_path)
    export("me/mono", "out", threads=1)
    stated = json.loads((tmp_path / "out" / "crossrank.json").read_text(encoding="utf-8"))
    before = MonoT5("me/mono", threads=1)
    assert stated["kind"] == "mono_t5"
    assert tuple(stated["tokens"]) == before.token_ids
    np.testing.assert_array_equal(given(opened(tmp_path / "out")), given(before))


def test_a_calibration_holds_for_the_folder(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "bert", tmp_path / "bert")
    made_with = CrossEncoder(source, threads=1).score_identity
    calibration = Calibration(ProbabilityMap("platt", 0.5, 0.1), "LABEL_0", made_with, "", 9, 3, 0.5, {})
    write_calibration(calibration, source)
    before = CrossEncoder(source, threads=1)
    assert before.calibration is not None
    export(source, tmp_path / "out", threads=1)
    after = CrossEncoder(tmp_path / "out", threads=1)
    assert [hit.probability for hit in after.rank(QUERY, TEXTS)] == [
        hit.probability for hit in before.rank(QUERY, TEXTS)
    ]
    assert after.rank(QUERY, TEXTS)[0].probability is not None


# --- by ONNX Runtime alone ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["crossrank-mini", GOLDEN / "bert", GOLDEN / "roberta", GOLDEN / "sbert_modular_cross_encoder"],
    ids=lambda model: Path(model).name,
)
def test_scores_of_pairs(model: str | Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = export(model, out, threads=1)
    pairs = [(QUERY, text) for text in TEXTS]
    with left_out():
        expected = CrossEncoder(model, threads=1).score(pairs)
    session = session_of(out)
    alone = [session.run(["logits"], fed(out, [pair]))[0][0, 0] for pair in pairs]
    np.testing.assert_array_equal(alone, expected)
    [logits] = session.run(["logits"], fed(out, pairs))
    # With padding, attention rounds differently, which int8 magnifies.
    tolerance = {"float32": 2e-5, "int8": 0.1}[report.precision]
    np.testing.assert_allclose(logits[:, 0], expected, atol=tolerance)


def test_scores_are_the_reference_librarys(tmp_path: Path) -> None:
    export(GOLDEN / "bert", tmp_path / "out", threads=1)
    rows = json.loads((GOLDEN / "bert" / "expected.json").read_text(encoding="utf-8"))["rows"]
    session = session_of(tmp_path / "out")
    found = [
        session.run(
            ["logits"],
            {
                "input_ids": np.array([row["ids"]]),
                "attention_mask": np.ones((1, len(row["ids"])), np.int64),
                "token_type_ids": np.array([row["types"]]),
            },
        )[0]
        for row in rows
    ]
    with np.load(GOLDEN / "bert" / "expected.npz") as arrays:
        np.testing.assert_allclose(np.concatenate(found), arrays["logits"], atol=1e-5)


@pytest.mark.parametrize(("name", "declaration"), T5S, ids=lambda value: str(value)[:24])
def test_scores_of_t5s(
    name: str, declaration: dict[str, Any], t5: Callable[..., Path], tmp_path: Path
) -> None:
    folder = t5(name, declaration)
    export(folder, tmp_path / "out", threads=1)
    stated = json.loads((tmp_path / "out" / "onnx" / "inputs.json").read_text(encoding="utf-8"))
    short = [text for text in TEXTS if 0 < len(text) < 100]
    texts = {"document": short, "document0": short, "document1": short[::-1]}
    prompts = [
        stated["text"].format(query=QUERY, **{name: each[i] for name, each in texts.items()})
        for i in range(len(short))
    ]
    [found] = session_of(tmp_path / "out").run(["logits"], fed(tmp_path / "out", prompts))
    model = crossrank.load(folder, **QUIET)
    if isinstance(model, DuoT5):
        margins = found[:, 0].astype(np.float64)
        expected = model.prefer([(QUERY, one, other) for one, other in zip(short, short[::-1], strict=True)])
        np.testing.assert_allclose(1 / (1 + np.exp(-margins)), expected, atol=1e-5)
    else:
        np.testing.assert_allclose(found[:, 0], model.score([(QUERY, text) for text in short]), atol=1e-5)


@pytest.mark.parametrize(
    "model",
    ["crossrank-embed", *(GOLDEN_BI / name for name in ("mean", "cls_dense", "joined", "weighted_gelu"))],
    ids=lambda model: Path(model).name,
)
def test_vectors_of_texts(model: str | Path, tmp_path: Path) -> None:
    report = export(model, tmp_path / "out", threads=1)
    stated = json.loads((tmp_path / "out" / "onnx" / "inputs.json").read_text(encoding="utf-8"))
    prompted = [stated["document_prompt"] + text for text in TEXTS]
    session = session_of(tmp_path / "out")
    with left_out():
        expected = BiEncoder(model, **QUIET).encode_documents(TEXTS)
    alone = [session.run(["sentence_embedding"], fed(tmp_path / "out", [text]))[0][0] for text in prompted]
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    [vectors] = session.run(["sentence_embedding"], fed(tmp_path / "out", prompted))
    # With padding, attention rounds differently, which int8 magnifies.
    np.testing.assert_allclose(vectors, expected, atol={"float32": 1e-5, "int8": 0.02}[report.precision])


def test_a_pooling_without_the_prompt_is_left_to_whoever_knows_the_prompt(tmp_path: Path) -> None:
    report = export(GOLDEN_BI / "max_without_prompt", tmp_path / "out", threads=1)
    assert list(report.outputs) == ["last_hidden_state"]


@pytest.mark.parametrize("layout", ["multi_vector", "pylate", "stanford"])
def test_token_vectors_and_their_maxsim(layout: str, tmp_path: Path) -> None:
    """Markers, expansion and tokens that do not count are read from inputs.json."""
    out = tmp_path / "out"
    export(GOLDEN_LATE / layout, out, threads=1)
    stated = json.loads((out / "onnx" / "inputs.json").read_text(encoding="utf-8"))
    tokenizer, session = Tokenizer.from_file(str(out / "tokenizer.json")), session_of(out)

    def vectors(text: str, form: dict[str, Any]) -> npt.NDArray[np.float32]:
        first, *own, last = tokenizer.encode(form["prompt"] + text).ids
        own = [*form["marker"], *own][: form["max_length"] - 2]
        ids = [first, *own, last]
        mask = [1] * len(ids)
        if form["expansion"] is not None:
            added = max(0, form["expansion"]["length"] - len(ids))
            ids += [form["expansion"]["token_id"]] * added
            mask += [int(form["expansion"]["attended"])] * added
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": [0] * len(ids)}
        feed = {name: np.array([arrays[name]]) for name in stated["inputs"]}
        [[found]] = session.run(["token_embeddings"], feed)
        return found[~np.isin(ids, form["skipped"])]

    model = LateInteraction(GOLDEN_LATE / layout, **QUIET)
    of_query = vectors(QUERY, stated["query"])
    np.testing.assert_allclose(of_query, model.encode_queries([QUERY])[0], atol=1e-5)
    scores = [(of_query @ vectors(text, stated["document"]).T).max(axis=1).sum() for text in TEXTS]
    np.testing.assert_allclose(scores, model.score([(QUERY, text) for text in TEXTS]), atol=1e-4)


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean", "max", "weightedmean", "mean_sqrt_len_tokens"])
def test_poolings_in_the_graph_are_those_outside(mode: PoolingMode) -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert")

    def further(graph: Graph, encoder: Encoder, tokens: str) -> None:
        pooled = write_pooling(graph, encoder.frame, tokens, [mode, "mean"])
        graph.output(pooled, "pooled", ["batch", "features"])

    session, _kept = open_session(build_graph(checkpoint, "tokens", further=further))
    lengths = np.array([7, 1, 4])
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    ids = np.random.default_rng(5).integers(5, 30, mask.shape) * mask
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0}
    vectors, pooled = session.run(["last_hidden_state", "pooled"], feed)
    np.testing.assert_allclose(pooled, pool(vectors, lengths, [mode, "mean"]), atol=1e-6)


def test_types_that_the_model_does_not_read_are_not_asked_for(tmp_path: Path) -> None:
    source = shutil.copytree(GOLDEN / "bert", tmp_path / "bert")
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config), encoding="utf-8")
    report = export(source, tmp_path / "out", threads=1)
    assert report.inputs == ("input_ids", "attention_mask")
    pairs = [(QUERY, text) for text in TEXTS]
    [logits] = session_of(tmp_path / "out").run(["logits"], fed(tmp_path / "out", pairs))
    np.testing.assert_allclose(logits[:, 0], CrossEncoder(source, threads=1).score(pairs), atol=1e-5)


# --- int8 -----------------------------------------------------------------------------------------------


@pytest.fixture
def int8_t5(t5: Callable[..., Path]) -> Path:
    folder = t5("t5_v1_1", {"kind": "mono_t5"})
    checkpoint, model = Checkpoint.open(folder), MonoT5(folder, threads=1)
    tokenizer = PromptTokenizer(checkpoint, model.prompt, ("query", "document"))
    rows = [[each.ids for each in tokenizer.encode([QUERY, text])] for text in TEXTS]
    inputs = [tokenizer.inputs([row], sum(map(len, row)) + tokenizer.num_special_tokens) for row in rows]
    write_int8(folder / INT8_FILE, checkpoint.tensors(), calibrate(checkpoint, model.token_score, inputs))
    write_parity(folder, {"passed": True})
    return folder


def test_an_int8_t5_opens_to_the_same_bits(int8_t5: Path, tmp_path: Path) -> None:
    report = export(int8_t5, tmp_path / "out", threads=1)
    assert report.precision == "int8"
    assert MonoT5(int8_t5, threads=1).precision == "int8"
    np.testing.assert_array_equal(given(opened(tmp_path / "out")), given(MonoT5(int8_t5, threads=1)))
    exact = export(int8_t5, tmp_path / "exact", precision="float32", threads=1)
    assert exact.precision == "float32"
    assert exact.size_bytes > report.size_bytes
    np.testing.assert_array_equal(
        given(opened(tmp_path / "exact")), given(MonoT5(int8_t5, precision="float32", threads=1))
    )


def test_int8_products_are_those_that_are_exact_on_every_processor(tmp_path: Path) -> None:
    export("crossrank-mini", tmp_path / "out", threads=1)
    graph = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    branches = [branch.g for branch in graph.node[-1].attribute]
    products = [node for branch in branches for node in branch.node if node.op_type == "MatMulIntegerToFloat"]
    assert products
    assert {types[node.input[1]] for node in products} == {onnx.TensorProto.UINT8}


def test_an_int8_file_that_nothing_vouches_for_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export("crossrank-mini", out, threads=1)
    assert CrossEncoder(out, threads=1, precision="int8").precision == "int8"
    with pytest.raises(CheckpointError, match="computes in int8, not float32"):
        CrossEncoder(out, threads=1, precision="float32")
    file = out / "onnx" / "model.onnx"
    model = onnx.load(file)
    model.doc_string = "changed"
    onnx.save(model, file)
    with pytest.raises(CheckpointError, match=r"passed the parity gate; write it again with `crossrank exp"):
        CrossEncoder(out, threads=1)
    (out / "onnx" / "parity.json").unlink()
    with pytest.raises(CheckpointError, match="passed the parity gate"):
        CrossEncoder(out, threads=1)


def test_a_float32_file_is_not_opened_as_int8(tmp_path: Path) -> None:
    export(GOLDEN / "bert", tmp_path / "out", threads=1)
    with pytest.raises(CheckpointError, match="no int8 form that passed the parity gate"):
        CrossEncoder(tmp_path / "out", precision="int8", threads=1)


# --- large models ---------------------------------------------------------------------------------------


def test_weights_that_are_too_large_for_the_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "_MOST_BYTES_INSIDE", 1000)
    report = export(GOLDEN / "bert", tmp_path / "out", threads=1)
    assert [file.name for file in report.files] == ["model.onnx", "model.onnx_data"]
    file, data = report.files
    assert file.stat().st_size < data.stat().st_size
    before = CrossEncoder(GOLDEN / "bert", threads=1)
    after = CrossEncoder(tmp_path / "out", threads=1)
    np.testing.assert_array_equal(given(after), given(before))
    pairs = [(QUERY, text) for text in TEXTS]
    [logits] = session_of(tmp_path / "out").run(["logits"], fed(tmp_path / "out", pairs))
    np.testing.assert_allclose(logits[:, 0], before.score(pairs), atol=1e-5)
    fingerprint = after.fingerprint
    moved = tmp_path / "elsewhere"
    (tmp_path / "out").rename(moved)
    assert CrossEncoder(moved, threads=1).fingerprint == fingerprint
    content = bytearray((moved / "onnx" / data.name).read_bytes())
    content[-2] ^= 64
    (moved / "onnx" / data.name).write_bytes(content)
    assert CrossEncoder(moved, threads=1).fingerprint != fingerprint


# --- what is refused ------------------------------------------------------------------------------------


def test_another_answer_than_the_files_is_refused(t5: Callable[..., Path], tmp_path: Path) -> None:
    export(t5("t5", {"kind": "mono_t5"}), tmp_path / "out", threads=1)
    with pytest.raises(CheckpointError, match=r"to give the log-probability of token \d+ against token \d+"):
        MonoT5(tmp_path / "out", tokens=(7, 8), threads=1)
    (tmp_path / "out" / "crossrank.json").unlink()
    with pytest.raises(CheckpointError, match="the logit of token 9 is asked for"):
        RankT5(tmp_path / "out", token=9, threads=1)


def test_the_files_of_other_exporters_give_no_t5_score(tmp_path: Path) -> None:
    folder = tmp_path / "t5"
    shutil.copytree(GOLDEN_T5 / "t5", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(GOLDEN / "bert_onnx" / "onnx", folder / "onnx")
    with pytest.raises(CheckpointError, match=r"does not say that it gives the log-probability of token"):
        MonoT5(folder, family="t5", threads=1)


def test_torch_needs_weights(t5: Callable[..., Path], tmp_path: Path) -> None:
    export(t5("t5", {"kind": "mono_t5"}), tmp_path / "out", threads=1)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors, which backend='torch' needs"):
        MonoT5(tmp_path / "out", backend="torch")


def test_an_export_is_not_exported_again(tmp_path: Path) -> None:
    export(GOLDEN / "bert", tmp_path / "out", threads=1)
    with pytest.raises(CheckpointError, match="export the model that it was made of"):
        export(tmp_path / "out", tmp_path / "again")


def test_a_folder_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a T5, and does not say what it was trained for"):
        export(GOLDEN_T5 / "t5", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(GOLDEN / "bert", out, threads=1)
    before = (out / "onnx" / "model.onnx").read_bytes()
    with pytest.raises(InputError, match="is not empty; name another folder, or replace it with overwrite"):
        export(GOLDEN / "roberta", out)
    assert (out / "onnx" / "model.onnx").read_bytes() == before
    export(GOLDEN / "roberta", out, overwrite=True, threads=1)
    np.testing.assert_array_equal(given(opened(out)), given(opened(GOLDEN / "roberta")))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and no model"):
        export(GOLDEN / "bert", tmp_path / "letters", overwrite=True)


def test_other_numbers_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    export(GOLDEN / "bert", out, threads=1)
    before = (out / "onnx" / "model.onnx").read_bytes()

    def damaged(path: Path, graph: TwoPaths, *arguments: Any, **options: Any) -> list[Path]:
        for each in (graph._padded, graph._exact):
            bias = each._initializers["classifier.bias"]
            bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 1).tobytes()
        return onnx_file.write_onnx(path, graph, *arguments, **options)

    monkeypatch.setattr(export_module, "write_onnx", damaged)
    with pytest.raises(ModelOutputError, match="gives other numbers than the model"):
        export(GOLDEN / "bert", out, overwrite=True, threads=1)
    assert (out / "onnx" / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
