"""What a model folder says, and a clear error for each way it can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crossrank.errors import CheckpointError, CheckpointNotFoundError, UnsupportedArchitectureError
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.engine import build_graph, open_engine
from crossrank.runtime.modules import Dense, LayerNorm, Normalize, Pooling
from crossrank.runtime.weights import open_tensors

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """Copy a golden checkpoint and change settings of one of its JSON files; None removes a key."""

    def make(name: str, file: str = "config.json", **changes: Any) -> Path:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(GOLDEN / name, folder)
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# --- facts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture", "num_labels", "max_length"),
    [
        ("bert", "bert", 1, 96),
        ("bert_float16", "bert", 3, 96),
        ("electra", "electra", 1, 96),
        ("roberta", "roberta", 1, 96),  # 98 positions, of which pad_token_id + 1 are never used
        ("xlm_roberta", "roberta", 1, 96),
        ("camembert", "roberta", 3, 96),
        ("distilbert", "distilbert", 1, 96),
        ("deberta_v3", "deberta-v2", 1, 96),
        ("modernbert", "modernbert", 1, 96),
        ("sbert_modular_cross_encoder", "bert", 1, 96),
    ],
)
def test_facts_of_plain_checkpoints(name: str, architecture: str, num_labels: int, max_length: int) -> None:
    checkpoint = Checkpoint.open(GOLDEN / name)
    assert checkpoint.architecture == architecture
    assert checkpoint.num_labels == num_labels
    assert checkpoint.max_length == max_length


def test_labels_come_in_the_order_of_the_scores() -> None:
    assert Checkpoint.open(GOLDEN / "bert_float16").labels == ("contradiction", "entailment", "neutral")
    assert Checkpoint.open(GOLDEN / "bert").labels == ("LABEL_0",)


def test_transformers_default_of_two_labels(copy: Callable[..., Path]) -> None:
    assert Checkpoint.open(copy("bert", id2label=None, label2id=None)).num_labels == 2


def test_maximum_length_is_the_least_stated(copy: Callable[..., Path]) -> None:
    folder = copy("bert", "sentence_bert_config.json", max_seq_length=40)
    assert Checkpoint.open(folder).max_length == 40
    copy("bert", "tokenizer_config.json", model_max_length=30)
    assert Checkpoint.open(folder).max_length == 30
    copy("bert", "tokenizer_config.json", model_max_length=int(1e30))
    assert Checkpoint.open(folder).max_length == 40


def test_modules_of_a_bi_encoder() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "sbert_bi_encoder")
    pooling, dense, normalize = checkpoint.modules
    assert pooling == Pooling(("mean",)) == checkpoint.pooling
    assert isinstance(dense, Dense)
    assert (dense.weight.shape, dense.activation, dense.gives_scores) == ((20, 32), "tanh", False)
    assert isinstance(normalize, Normalize)
    assert checkpoint.normalize
    assert checkpoint.prompts == {"query": "what is ", "document": ""}
    assert checkpoint.similarity == "dot"
    assert not checkpoint.is_modular_cross_encoder
    plain = Checkpoint.open(GOLDEN / "bert")
    assert (plain.modules, plain.pooling, plain.normalize, plain.prompts) == ([], None, False, {})


def test_the_modules_give_the_embeddings_sentence_transformers_gave() -> None:
    """Pooling, Dense and Normalize as stated, over the stored token vectors."""
    _, dense, _ = Checkpoint.open(GOLDEN / "sbert_bi_encoder").modules
    assert isinstance(dense, Dense)
    assert dense.bias is not None
    with np.load(GOLDEN / "sbert_bi_encoder" / "expected.npz") as arrays:
        for i, embedding in enumerate(arrays["embeddings"]):
            vector = np.tanh(arrays[f"tokens_{i}"].mean(axis=0) @ dense.weight.T + dense.bias)
            np.testing.assert_allclose(vector / np.linalg.norm(vector), embedding, atol=1e-6)


def test_modules_of_a_cross_encoder() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "sbert_modular_cross_encoder")
    pooling, dense, norm, scores = checkpoint.modules
    assert pooling == Pooling(("cls",))
    assert isinstance(dense, Dense)
    assert (dense.activation, dense.bias, dense.gives_scores) == ("gelu", None, False)
    assert isinstance(norm, LayerNorm)
    assert isinstance(scores, Dense)
    assert (scores.activation, scores.gives_scores) == ("identity", True)
    assert checkpoint.is_modular_cross_encoder


@pytest.mark.parametrize(
    ("legacy", "modes"),
    [
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, ("lasttoken",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, ("max", "mean")),
    ],
)
def test_older_pooling_settings(
    copy: Callable[..., Path], legacy: dict[str, bool], modes: tuple[str, ...]
) -> None:
    folder = copy("sbert_bi_encoder", "1_Pooling/config.json", pooling_mode=None, **legacy)
    pooling = Checkpoint.open(folder).pooling
    assert pooling is not None
    assert pooling.modes == modes


def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bert", tmp_path / "0_Transformer")
    modules = [{"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.transformer_folder == tmp_path / "0_Transformer"
    assert "classifier.weight" in checkpoint.tensors()


def test_activation_is_what_the_config_says(copy: Callable[..., Path]) -> None:
    assert Checkpoint.open(GOLDEN / "bert").activation is None
    assert Checkpoint.open(GOLDEN / "sbert_cross_encoder").activation == "sigmoid"
    nested = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.0"}
    assert Checkpoint.open(copy("bert", sentence_transformers=nested)).activation == "identity"
    old = copy("electra", sbert_ce_default_activation_function="torch.nn.modules.activation.Softmax")
    assert Checkpoint.open(old).activation == "softmax"


@pytest.mark.parametrize("stated", ["torch.nn.modules.activation.Hardswish", "mine.Sigmoid"])
def test_unknown_activation_is_an_error_only_when_asked_for(copy: Callable[..., Path], stated: str) -> None:
    checkpoint = Checkpoint.open(copy("bert", sbert_ce_default_activation_function=stated))
    with pytest.raises(CheckpointError, match=r"activation .* pass activation= one of"):
        _ = checkpoint.activation


# --- weights ----------------------------------------------------------------------------------------------


def test_sharded_weights_are_one_mapping() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "bert_sharded")
    assert len(checkpoint.weight_files) > 1
    separate: dict[str, np.ndarray] = {}
    for file in checkpoint.weight_files:
        separate.update(load_file(file))
    assert set(checkpoint.tensors()) == set(separate)
    for name, array in checkpoint.tensors().items():
        np.testing.assert_array_equal(array, separate[name])


def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    stated = {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    header = json.dumps(stated).encode()
    content = np.array([0x3F80, 0xC000, 0x0000, 0x7F80], "<u2").tobytes()  # 1, -2, 0, infinity
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + content)
    array = open_tensors((file,))["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [1.0, -2.0, 0.0, float("inf")]


def test_half_precision_is_widened_and_float32_is_a_view_of_the_file() -> None:
    half = Checkpoint.open(GOLDEN / "bert_float16").tensors()["classifier.weight"]
    stored = load_file(GOLDEN / "bert_float16" / "model.safetensors")["classifier.weight"]
    assert (half.dtype, stored.dtype) == (np.float32, np.float16)
    np.testing.assert_array_equal(half, stored.astype(np.float32))
    full = Checkpoint.open(GOLDEN / "bert").tensors()["classifier.weight"]
    assert not full.flags.writeable
    assert not full.flags.owndata


@pytest.mark.parametrize("kept", [0, 5, 8, 200, -1])
def test_a_truncated_file_is_named_with_the_likely_cause(copy: Callable[..., Path], kept: int) -> None:
    file = copy("bert") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short.*interrupted"):
        Checkpoint.open(file.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not a safetensors file"),
        ((20).to_bytes(8, "little") + b"{" * 20, "damaged safetensors header"),
        ((13).to_bytes(8, "little") + b'{"x":{"a":1}}', "damaged safetensors header"),
    ],
)
def test_a_damaged_file_is_named(copy: Callable[..., Path], content: bytes, message: str) -> None:
    file = copy("bert") / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors .*{message}"):
        Checkpoint.open(file.parent)


def test_a_missing_shard_is_named(copy: Callable[..., Path]) -> None:
    folder = copy("bert_sharded")
    (folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00004\.safetensors.*interrupted"):
        Checkpoint.open(folder)


def test_shards_outside_the_folder_are_refused(copy: Callable[..., Path]) -> None:
    folder = copy("bert_sharded", "model.safetensors.index.json", weight_map={"x": "../x.safetensors"})
    with pytest.raises(CheckpointError, match="outside its own folder"):
        Checkpoint.open(folder)


def test_pickled_weights_are_not_read(copy: Callable[..., Path]) -> None:
    folder = copy("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        Checkpoint.open(folder)


# --- a folder that is not what it should be ----------------------------------------------------------------


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        Checkpoint.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", r"no config\.json"),
        ("tokenizer.json", r"no tokenizer\.json.*save_pretrained"),
        ("model.safetensors", "no weights"),
    ],
)
def test_a_missing_file(copy: Callable[..., Path], missing: str, message: str) -> None:
    folder = copy("bert")
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_json_is_named(copy: Callable[..., Path], file: str) -> None:
    path = copy("bert") / file
    path.write_text(path.read_text(encoding="utf-8")[:50], encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{file} is damaged"):
        Checkpoint.open(path.parent)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "t5", "architectures": ["UMT5ForConditionalGeneration"]},
        {"model_type": "bert", "architectures": ["JinaBertForMaskedLM"]},  # custom code, another computation
        {"model_type": None, "architectures": None},
    ],
)
def test_unknown_architectures_are_not_guessed(copy: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="supported model types: bert, electra, roberta"):
        Checkpoint.open(copy("bert", **changes))


def test_the_class_name_alone_is_enough(copy: Callable[..., Path]) -> None:
    assert Checkpoint.open(copy("distilbert", model_type=None)).architecture == "distilbert"


def test_a_tokenizer_of_another_model(copy: Callable[..., Path]) -> None:
    folder = copy("bert")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["##extra"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"token ids up to 5000.*do not belong together"):
        Checkpoint.open(folder)


def test_unknown_modules_and_pooling(copy: Callable[..., Path]) -> None:
    folder = copy("sbert_bi_encoder", "1_Pooling/config.json", pooling_mode="median")
    with pytest.raises(UnsupportedArchitectureError, match="pooling mode 'median'"):
        Checkpoint.open(folder)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError, match="a module LSTM"):
        Checkpoint.open(folder)
    modules[0]["type"] = "sentence_transformers.models.CLIPModel"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError, match="begins with CLIPModel"):
        Checkpoint.open(folder)
    modules[0] = {**modules[0], "path": "../elsewhere"}
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside the model's own"):
        Checkpoint.open(folder)


def test_a_dense_module_that_does_not_fit_its_config(copy: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"Dense should have a weight of shape \(21, 32\)"):
        Checkpoint.open(copy("sbert_bi_encoder", "2_Dense/config.json", out_features=21))
    with pytest.raises(CheckpointError, match=r"Dense should have a bias of shape None, but it is \(20,\)"):
        Checkpoint.open(copy("sbert_bi_encoder", "2_Dense/config.json", out_features=20, bias=False))
    with pytest.raises(CheckpointError, match=r"Dense should have a bias of shape \(24,\), but it is None"):
        Checkpoint.open(copy("sbert_modular_cross_encoder", "2_Dense/config.json", bias=True))


# --- fingerprint ------------------------------------------------------------------------------------------


def test_fingerprint_changes_with_what_decides_a_score_and_nothing_else(copy: Callable[..., Path]) -> None:
    folder = copy("sbert_bi_encoder")
    first = Checkpoint.open(folder).fingerprint
    assert len(first) == 64
    (folder / "README.md").write_text("words", encoding="utf-8")
    assert Checkpoint.open(folder).fingerprint == first
    moved = folder.rename(folder.with_name("another_name"))
    assert Checkpoint.open(moved).fingerprint == first
    seen = {first}
    for file in ("tokenizer.json", "2_Dense/config.json", "config_sentence_transformers.json"):
        with (moved / file).open("a", encoding="utf-8") as stream:
            stream.write("\n")
        seen.add(Checkpoint.open(moved).fingerprint)
    rewrite(moved, lambda tensors: np.negative(*[next(iter(tensors.values()))] * 2))
    seen.add(Checkpoint.open(moved).fingerprint)
    assert len(seen) == 5


# --- scores need a trained head ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "classifier.weight"),
        ("bert", "bert.pooler.dense.weight"),
        ("electra", "classifier.out_proj.weight"),
        ("roberta", "classifier.dense.weight"),
        ("distilbert", "pre_classifier.weight"),
        ("deberta_v3", "classifier.weight"),
        ("modernbert", "head.dense.weight"),
    ],
)
def test_no_head_no_scores(copy: Callable[..., Path], name: str, head: str) -> None:
    folder = copy(name)
    rewrite(folder, lambda tensors: tensors.pop(head) is None)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=rf"no trained classification head \(no tensor '{head}'"):
        open_engine(checkpoint, output="logits")
    open_engine(checkpoint, output="tokens", threads=1)


def test_a_bi_encoder_gives_no_scores() -> None:
    with pytest.raises(CheckpointError, match="no trained classification head"):
        open_engine(Checkpoint.open(GOLDEN / "sbert_bi_encoder"), output="logits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, r"shape \(\d+, 32\), but config.json calls for \(\d+, 64\)"),
        ({"num_hidden_layers": 3}, "no tensor 'bert.encoder.layer.2"),
        ({"intermediate_size": 40}, "intermediate.dense.weight' has shape"),
        ({"id2label": {"0": "a", "1": "b"}}, r"'classifier.weight' has shape \(1, 32\)"),
        ({"max_position_embeddings": 100}, "position_embeddings.weight' has shape"),
        ({"num_attention_heads": None}, "num_attention_heads is missing"),
        ({"num_attention_heads": 3}, r"config.json: num_attention_heads is 3; .* a divisor of the .* 32"),
        ({"hidden_act": "snake"}, "activation 'snake'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ],
)
def test_weights_that_do_not_fit_the_config(
    copy: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_engine(Checkpoint.open(copy("bert", **changes)), output="logits")


FAMILIES = ["bert", "electra", "roberta", "distilbert", "deberta_v2", "deberta_v3", "modernbert_mean"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tensor_is_needed(name: str) -> None:
    """No term of the computation is left out for want of a tensor, biases included."""
    checkpoint = Checkpoint.open(GOLDEN / name)
    tensors = dict(checkpoint.tensors())
    assert any(tensor.endswith("bias") for tensor in tensors)
    build_graph(checkpoint, "logits", tensors=tensors)
    for tensor in tensors:
        rest = {other: array for other, array in tensors.items() if other != tensor}
        with pytest.raises(CheckpointError, match="no tensor"):
            build_graph(checkpoint, "logits", tensors=rest)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("deberta_v2", "deberta.embeddings.embed_proj.bias"),
        ("modernbert", "model.layers.0.attn.Wqkv.bias"),
        ("modernbert", "model.layers.2.attn.Wo.bias"),
        ("modernbert", "model.layers.1.mlp.Wi.bias"),
        ("modernbert", "model.layers.1.mlp_norm.bias"),
        ("modernbert", "model.final_norm.bias"),
        ("modernbert", "head.dense.bias"),
    ],
)
def test_a_bias_that_the_config_has_no_place_for(name: str, tensor: str) -> None:
    checkpoint = Checkpoint.open(GOLDEN / name)
    tensors = {**checkpoint.tensors(), tensor: np.ones(32, np.float32)}
    with pytest.raises(CheckpointError, match=rf"a tensor '{tensor}', for which there is no place"):
        build_graph(checkpoint, "logits", tensors=tensors)


@pytest.mark.parametrize("switch", ["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"])
def test_modernberts_switches_call_for_biases(copy: Callable[..., Path], switch: str) -> None:
    stated = Checkpoint.open(GOLDEN / "modernbert_mean").config[switch]
    checkpoint = Checkpoint.open(copy("modernbert_mean", **{switch: not stated}))
    with pytest.raises(CheckpointError, match="has a tensor" if stated else r"no tensor '.*bias'"):
        build_graph(checkpoint, "logits")


@pytest.mark.parametrize("name", FAMILIES)
def test_more_layers_than_the_config_has(copy: Callable[..., Path], name: str) -> None:
    key = "n_layers" if name == "distilbert" else "num_hidden_layers"
    folder = copy(name, **{key: 1})
    if name == "modernbert_mean":
        copy(name, layer_types=["full_attention"])
    with pytest.raises(CheckpointError, match=r"\.1\..*, but config.json calls for 1 layers only"):
        open_engine(Checkpoint.open(folder), output="tokens")


def test_a_whole_number_where_a_fraction_is_meant(copy: Callable[..., Path]) -> None:
    open_engine(Checkpoint.open(copy("bert", layer_norm_eps=0)), output="logits", threads=1)


def test_a_tokenizer_much_smaller_than_the_embedding_matrix(copy: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"token ids up to 75 only, .* embeddings for 1101 tokens"):
        Checkpoint.open(copy("bert", vocab_size=1101))
    Checkpoint.open(copy("bert", vocab_size=1100))  # rows beyond the tokens may be padding
    Checkpoint.open(copy("bert", vocab_size=78))


def test_an_embedding_matrix_smaller_than_the_tokenizer(copy: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="embeddings for 20 tokens only"):
        Checkpoint.open(copy("bert", vocab_size=20))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deberta_v3", {"conv_kernel_size": 3}),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    ],
)
def test_variants_with_another_computation_are_refused(
    copy: Callable[..., Path], name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="no graph here"):
        open_engine(Checkpoint.open(copy(name, **changes)), output="tokens")
