"""T5 graphs give what transformers gave (tests/golden_t5), whatever else is in the batch."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from crossrank.errors import CheckpointError, InputError, UnsupportedArchitectureError
from crossrank.models.t5_opening import open_step
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.encoders.t5 import TokenScore, distance_buckets
from crossrank.runtime.engine import open_engine
from crossrank.runtime.prompts import PromptTokenizer
from crossrank.runtime.tokenization import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden_t5"
NAMES = ("t5", "t5_v1_1", "mt5")
TOLERANCE = 1e-5
DUO = "Query: {query} Document0: {document0} Document1: {document1} Relevant:"
FIELDS = {
    "mono": ("Query: {query} Document: {document} Relevant:", ("query", "document")),
    "rank": ("Query: {query} Document: {document}", ("query", "document")),
    "duo": (DUO, ("query", "document0", "document1")),
}


@cache
def expected(name):
    rows = json.loads((GOLDEN / name / "expected.json").read_text(encoding="utf-8"))["rows"]
    with np.load(GOLDEN / name / "expected.npz") as arrays:
        return rows, arrays["logits"]


@cache
def checkpoint(name):
    return Checkpoint.open(GOLDEN / name)


@cache
def engine(name, output):
    return open_engine(checkpoint(name), output=output, threads=1, source="weights")


def run(name, output, rows, length=None):
    length = length or max(len(row["ids"]) for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["ids"])], mask[i, : len(row["ids"])] = row["ids"], 1
    return engine(name, output).run(ids, mask, np.zeros_like(ids))


@pytest.fixture
def copy(tmp_path):
    """Copies a golden folder, with changes to its config."""

    def make(name, **changes):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in {**config, **changes}.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")
        return folder

    return make


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


# --- numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("token", [0, 1, 7, 60, 130])
def test_logits_are_those_that_transformers_generates_from(name, token):
    rows, logits = expected(name)
    alone = np.concatenate([run(name, TokenScore(token), [row]) for row in rows])
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone[:, 0], logits[:, token], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_and_padding_change_nothing(name):
    rows, logits = expected(name)
    for order, length in ((rows, None), (rows[::-1], 500)):
        got = run(name, TokenScore(9), order, length)[:: 1 if order is rows else -1, 0]
        np.testing.assert_allclose(got, logits[:, 9], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_probability_is_log_softmax_over_two_tokens(name):
    rows, logits = expected(name)
    false, true = 8, 30
    wide = logits.astype(np.float64)
    wanted = wide[:, true] - np.logaddexp(wide[:, false], wide[:, true])
    got = run(name, TokenScore(true, against=false, log_probability=True), rows)[:, 0]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)
    margins = run(name, TokenScore(true, against=false), rows)[:, 0]
    np.testing.assert_allclose(margins, wide[:, true] - wide[:, false], rtol=0, atol=TOLERANCE)


def test_a_log_probability_never_saturates(copy):
    folder = copy("t5_v1_1")

    def grow(tensors):
        tensors["lm_head.weight"][30] *= 6

    change_tensors(folder, grow)
    rows, _ = expected("t5_v1_1")
    scores = {}
    for score in (TokenScore(30, against=8), TokenScore(30, against=8, log_probability=True)):
        opened = open_engine(Checkpoint.open(folder), output=score, threads=1)
        ids = [np.array([row["ids"]]) for row in rows]
        scores[score] = np.array([opened.run(row, np.ones_like(row), row * 0)[0, 0] for row in ids])
    margins, logs = scores.values()
    assert 20 < margins.max() < 80  # where the probability itself is 1 in float32, and in float64 at times
    np.testing.assert_array_equal(np.argsort(margins), np.argsort(logs))
    assert len(set(logs.tolist())) == len(logs)
    np.testing.assert_allclose(logs, -np.logaddexp(0, -margins.astype(np.float64)), rtol=1e-5)


def test_an_encoder_with_a_dense_layer():
    rows, scores = expected("t5_encoder")
    alone = np.concatenate([run("t5_encoder", "logits", [row]) for row in rows])
    np.testing.assert_allclose(alone[:, 0], scores, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(run("t5_encoder", "logits", rows)[:, 0], scores, rtol=0, atol=TOLERANCE)


def test_the_first_token_alone_is_the_first_of_all():
    rows, _ = expected("t5_encoder")
    vectors = run("t5_encoder", "tokens", rows)
    assert vectors.shape == (len(rows), max(len(row["ids"]) for row in rows), 32)
    with_dense = safetensors.numpy.load_file(GOLDEN / "t5_encoder" / "2_Dense" / "model.safetensors")
    scores = vectors[:, 0] @ with_dense["linear.weight"][0] + with_dense["linear.bias"]
    np.testing.assert_allclose(scores, run("t5_encoder", "logits", rows)[:, 0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_token_vectors_are_those_of_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(GOLDEN / name).eval()
    rows, _ = expected(name)
    for row in rows:
        with torch.no_grad():
            wanted = model.encoder(input_ids=torch.tensor([row["ids"]])).last_hidden_state[0].numpy()
        np.testing.assert_allclose(run(name, "tokens", [row])[0], wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 40), (64, 256), (8, 20)])
def test_distances_fall_into_the_buckets_of_transformers(num_buckets, max_distance):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-600, 601)
    wanted = modeling.T5Attention._relative_position_bucket(
        torch.from_numpy(distances), True, num_buckets, max_distance
    )
    near = np.clip(distances, -max_distance, max_distance)
    np.testing.assert_array_equal(distance_buckets(near, num_buckets, max_distance), wanted.numpy())


@pytest.mark.parametrize(
    ("changes", "scaled"),
    [
        ({"tie_word_embeddings": True, "scale_decoder_outputs": None}, True),
        ({"tie_word_embeddings": None, "scale_decoder_outputs": None}, True),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": None}, False),
        (
            {"tie_word_embeddings": True, "scale_decoder_outputs": False},
            False,
        ),  # as transformers 5 writes v1.1
        ({"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}, False),
    ],
)
def test_only_tied_weights_are_scaled(copy, changes, scaled):
    rows, logits = expected("t5")
    opened = open_engine(Checkpoint.open(copy("t5", **changes)), output=TokenScore(9), threads=1)
    ids = np.array([rows[0]["ids"]])
    got = opened.run(ids, np.ones_like(ids), ids * 0)[0, 0]
    assert got == pytest.approx(logits[0, 9] * (1 if scaled else 32**0.5), abs=1e-4)


def test_flan_t5_as_it_is_published(copy):
    """Its config is of transformers 4: untied weights, no word on scaling, an activation by its old name."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    stated = {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu", "n_positions": 512}
    newer = ("scale_decoder_outputs", "dense_act_fn", "is_gated_act", "dtype", "transformers_version")
    folder = copy("t5_v1_1", **stated, **dict.fromkeys(newer))
    rows, logits = expected("t5_v1_1")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    opened = open_engine(Checkpoint.open(folder), output=TokenScore(9), threads=1)
    for row, wanted in zip(rows[:4], logits, strict=False):
        ids = np.array([row["ids"]])
        with torch.no_grad():
            step = model(input_ids=torch.from_numpy(ids), decoder_input_ids=torch.tensor([[0]])).logits
        got = opened.run(ids, np.ones_like(ids), ids * 0)[0, 0]
        assert got == pytest.approx(float(step[0, 0, 9]), abs=TOLERANCE)
        assert got == pytest.approx(wanted[9], abs=TOLERANCE)


# --- prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "t5_encoder"])
def test_ids_are_those_of_the_whole_prompt(name):
    for row in expected(name)[0]:
        tokenizer = PromptTokenizer(checkpoint(name), *FIELDS[row["kind"]])
        texts = [tokens.ids for tokens in tokenizer.encode(row["texts"])]
        inputs = tokenizer.inputs([texts], len(row["ids"]) + 3)
        assert inputs.input_ids[0].tolist() == [*row["ids"], 0, 0, 0]
        assert inputs.attention_mask[0].tolist() == [1] * len(row["ids"]) + [0] * 3
        assert not inputs.token_type_ids.any()


@pytest.mark.parametrize(
    "prompt",
    ["Query: {query}", "{document} {query}", "{query} {document} {query}", "Query: {} {document}", "plain"],
)
def test_a_prompt_must_have_its_fields(prompt):
    with pytest.raises(InputError, match=r"must have \{query\} then \{document\}"):
        PromptTokenizer(checkpoint("t5"), prompt, ("query", "document"))


def test_a_prompt_that_glues_words_to_a_field_is_refused():
    with pytest.raises(CheckpointError, match="other tokens"):
        PromptTokenizer(checkpoint("t5"), "Query:{query} Document: {document}", ("query", "document"))


# --- checkpoints that do not fit ------------------------------------------------------------------------


def test_tokens_have_ids():
    tokenizer = Tokenizer(checkpoint("t5"))
    assert tokenizer.token_id("</s>") == 1
    assert tokenizer.token_id("no such token") is None


def test_an_encoder_has_no_step():
    with pytest.raises(CheckpointError, match="no decoder"):
        open_engine(checkpoint("t5_encoder"), output=TokenScore(3))


def test_scores_of_a_whole_t5_need_a_class_that_knows_what_it_answers():
    with pytest.raises(CheckpointError, match="MonoT5, RankT5 or DuoT5"):
        open_engine(checkpoint("t5"), output="logits")


def test_another_architecture_has_no_step():
    bert = Checkpoint.open(GOLDEN.parent / "golden" / "bert")
    with pytest.raises(CheckpointError, match="it is no T5"):
        open_engine(bert, output=TokenScore(3))


def test_there_must_be_such_a_token():
    with pytest.raises(CheckpointError, match="no token 5000"):
        open_engine(checkpoint("t5"), output=TokenScore(5000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.block.1.layer.0.SelfAttention.k.weight"), "no tensor 'encoder.block.1"),
        (lambda t: t.pop("decoder.block.0.layer.1.EncDecAttention.v.weight"), "no tensor 'decoder.block.0"),
        (lambda t: t.pop("shared.weight"), "no tensor 'shared.weight'"),
        (
            lambda t: t.update(
                {"encoder.block.2.layer.0.layer_norm.weight": t["encoder.final_layer_norm.weight"].copy()}
            ),
            "config.json calls for 2 layers only",
        ),
        (
            lambda t: t.update(
                {"encoder.final_layer_norm.bias": t["encoder.final_layer_norm.weight"].copy()}
            ),
            "there is no place",
        ),
    ],
)
def test_weights_must_be_those_of_the_config(copy, change, message):
    folder = copy("t5")
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        open_engine(Checkpoint.open(folder), output=TokenScore(3))


def test_positions_in_every_layer_are_another_architecture(copy):
    folder = copy("t5")
    first = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    change_tensors(folder, lambda t: t.update({first.format(1): t[first.format(0)].copy()}))
    with pytest.raises(UnsupportedArchitectureError, match="UMT5"):
        open_engine(Checkpoint.open(folder), output=TokenScore(3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-nothing"}, "'nothing' has no graph"),
        ({"feed_forward_proj": "glu-relu"}, "feed_forward_proj"),
        ({"num_heads": 3}, "has shape"),
        ({"d_model": "32"}, "d_model"),
        ({"relative_attention_num_buckets": 16}, "has shape"),
    ],
)
def test_a_config_must_fit(copy, changes, message):
    folder = copy("t5" if "gated" not in str(changes) else "t5_v1_1", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_engine(Checkpoint.open(folder), output=TokenScore(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"backend": "jax"}, "backend is 'jax'"),
        ({"precision": "bf16"}, "needs backend='torch'"),
        ({"device": "cpu"}, "device is of backend='torch'"),
        ({"backend": "torch", "precision": "int8"}, "is of backend='onnx'"),
    ],
)
def test_ways_of_running_must_go_together(options, message):
    chosen = {"precision": "auto", "backend": "onnx", "device": None, "threads": 1, "identity": ""}
    with pytest.raises(InputError, match=message):
        open_step(checkpoint("t5"), TokenScore(3), **{**chosen, **options})
