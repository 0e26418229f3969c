"""Settings of the wrong type are errors that name the file and the key, whatever reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from crossrank.errors import CheckpointError
from crossrank.models.bi_encoder import BiEncoder
from crossrank.models.cross_encoder import CrossEncoder

GOLDEN = Path(__file__).parent.parent / "golden"
TOKENIZER = "tokenizer_config.json"
MODEL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"


@pytest.mark.parametrize(
    ("name", "file", "key", "value"),
    [
        ("bert", "config.json", "num_attention_heads", 3),
        ("bert", "config.json", "num_attention_heads", 0),
        ("modernbert", "config.json", "num_attention_heads", 5),
        ("deberta_v3", "config.json", "num_attention_heads", True),
        ("distilbert", "config.json", "n_heads", "4"),
        ("bert", "config.json", "num_hidden_layers", 0),
        ("bert", "config.json", "hidden_size", 10**30),
        ("bert", "config.json", "layer_norm_eps", "x"),
        ("bert", "config.json", "layer_norm_eps", float("nan")),
        ("bert", "config.json", "id2label", {"a": "x"}),
        ("bert", "config.json", "id2label", ["a"]),
        ("bert", "config.json", "num_labels", "x"),
        ("bert", "config.json", "max_position_embeddings", "x"),
        ("bert", "config.json", "type_vocab_size", None),
        ("bert", "config.json", "hidden_act", None),
        ("bert", "config.json", "architectures", "BertForSequenceClassification"),
        ("bert", "config.json", "model_type", 5),
        ("bert", "config.json", "vocab_size", "x"),
        ("roberta", "config.json", "pad_token_id", None),
        ("electra", "config.json", "embedding_size", "x"),
        ("deberta_v2", "config.json", "pos_att_type", 5),
        ("deberta_v2", "config.json", "position_buckets", None),
        ("deberta_v2", "config.json", "conv_kernel_size", "x"),
        ("modernbert", "config.json", "norm_bias", "no"),
        ("modernbert", "config.json", "layer_types", [["full_attention"]]),
        ("modernbert", "config.json", "rope_parameters", {"full_attention": {"rope_theta": "x"}}),
        ("bert", TOKENIZER, "model_max_length", "x"),
        ("bert", TOKENIZER, "model_input_names", 5),
        ("sbert_bi_encoder", MODEL, "prompts", ["a"]),
        ("sbert_bi_encoder", MODEL, "prompts", {"query": 5}),
        ("sbert_bi_encoder", MODEL, "default_prompt_name", ["q"]),
        ("sbert_bi_encoder", MODEL, "default_prompt_name", "passage"),
        ("sbert_cross_encoder", MODEL, "prompts", {"query": ["a"]}),
        ("sbert_cross_encoder", MODEL, "default_prompt_name", "passage"),
        ("sbert_bi_encoder", TRANSFORMER, "max_seq_length", "x"),
        ("sbert_bi_encoder", TRANSFORMER, "do_lower_case", "no"),
        ("sbert_bi_encoder", "1_Pooling/config.json", "pooling_mode", 5),
        ("sbert_bi_encoder", "1_Pooling/config.json", "include_prompt", "no"),
    ],
)
def test_a_setting_of_the_wrong_type(tmp_path: Path, name: str, file: str, key: str, value: Any) -> None:
    folder = shutil.copytree(GOLDEN / name, tmp_path / "model")
    path = folder / file
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError) as error:
        (BiEncoder if name == "sbert_bi_encoder" else CrossEncoder)(folder, threads=1)
    assert str(tmp_path) in str(error.value)
    assert f"{file}: {key}" in str(error.value)


@pytest.mark.parametrize("file", ["config.json", TOKENIZER, MODEL, TRANSFORMER, "1_Pooling/config.json"])
def test_a_file_that_is_no_object(tmp_path: Path, file: str) -> None:
    folder = shutil.copytree(GOLDEN / "sbert_bi_encoder", tmp_path / "model")
    (folder / file).write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"{file} is not a JSON object"):
        BiEncoder(folder)
