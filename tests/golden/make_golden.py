"""Make the tiny checkpoints of this folder and what transformers computes with them.

    python tests/golden/make_golden.py

needs torch, transformers and sentence-transformers (the tests that read the result do not). Every checkpoint
has random weights, biases and norms included, so that a missing term shows. Expected values are computed one
pair at a time, without padding: what a pair's score is by definition. Beside each checkpoint, `expected.json`
has the pairs and their token ids, `expected.npz` the logits (pairs, labels) and the last hidden states
(`tokens_0`, ...) or embeddings, and for models with heads at earlier layers their logits (`exit_1`, ...).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HERE = Path(__file__).parent
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "of", "and", "in", "cat", "dog", "bird", "river", "mountain", "city", "water", "light"]
WORDS += ["how", "what", "where", "is", "blue", "old", "new"]
PAIRS = [
    ("what is a cat", "a cat is an animal"),
    ("blue river", "the old river in the new city is blue and the water of the mountain is light"),
    ("how old", ""),
    ("a", "b"),
    ("where is the light of the city", "birds and dogs " * 9),
    ("what is the water", "the water of the mountain is in the river " * 4),
]
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
}


def word_piece(specials: list[str], cls: str, sep: str) -> tuple[Tokenizer, dict[str, str]]:
    pieces = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    unknown = next(token for token in specials if "unk" in token.lower())
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    if sep == "</s>":
        ends = ((sep, vocabulary[sep]), (cls, vocabulary[cls]))
        tokenizer.post_processor = processors.RobertaProcessing(
            *ends, trim_offsets=True, add_prefix_space=False
        )
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls} $A {sep} $B:1 {sep}:1",
            special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
        )
    named = {"cls_token": cls, "sep_token": sep, "unk_token": unknown}
    named["pad_token"] = next(token for token in specials if "pad" in token.lower())
    named["mask_token"] = next(token for token in specials if "mask" in token.lower())
    return tokenizer, named


BERT_TOKENS = word_piece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]")
DEBERTA_TOKENS = word_piece(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"], "[CLS]", "[SEP]")
ROBERTA_TOKENS = word_piece(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<s>", "</s>")
MODERN_TOKENS = word_piece(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], "[CLS]", "[SEP]")


def fast_tokenizer(made: tuple[Tokenizer, dict[str, str]]) -> transformers.PreTrainedTokenizerFast:
    tokenizer, named = made
    names = ["input_ids", "attention_mask"]
    if made is BERT_TOKENS or made is DEBERTA_TOKENS:
        names.insert(1, "token_type_ids")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=96, model_input_names=names, **named
    )


def randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.25 + (1.0 if norm else 0.0))


def classifier(kind: str, made: tuple[Tokenizer, dict[str, str]], **settings: object) -> torch.nn.Module:
    tokenizer, named = made
    vocabulary = tokenizer.get_vocab()
    config = transformers.AutoConfig.for_model(
        kind,
        **{"num_labels": 1, **COMMON, **settings},
        vocab_size=tokenizer.get_vocab_size() + 2,
        pad_token_id=vocabulary[named["pad_token"]],
        bos_token_id=vocabulary[named["cls_token"]],
        eos_token_id=vocabulary[named["sep_token"]],
        cls_token_id=vocabulary[named["cls_token"]],
        sep_token_id=vocabulary[named["sep_token"]],
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    randomise(model)
    return model


def encode(tokenizer: transformers.PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> list[dict]:
    rows = []
    for query, document in pairs:
        encoding = tokenizer.backend_tokenizer.encode(query, document)
        rows.append({"pair": [query, document], "ids": encoding.ids, "types": encoding.type_ids})
    return rows


def write_expected(folder: Path, rows: list[dict], arrays: dict[str, np.ndarray]) -> None:
    (folder / "expected.json").write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    np.savez_compressed(folder / "expected.npz", **arrays)


def save(
    name: str,
    model: torch.nn.Module,
    made: tuple[Tokenizer, dict[str, str]],
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = fast_tokenizer(made)
    tokenizer.save_pretrained(folder)
    model.to(dtype).save_pretrained(folder, **options)
    model.float()  # what the half-precision weights say, computed in float32
    rows = encode(tokenizer, PAIRS)
    arrays, logits = {}, []
    uses_types = getattr(model.config, "type_vocab_size", 0) > 1 and model.config.model_type != "distilbert"
    for i, row in enumerate(rows):
        inputs = {"input_ids": torch.tensor([row["ids"]])}
        if uses_types:
            inputs["token_type_ids"] = torch.tensor([row["types"]])
        with torch.no_grad():
            logits.append(model(**inputs).logits[0].numpy())
            arrays[f"tokens_{i}"] = model.base_model(**inputs).last_hidden_state[0].numpy()
    arrays["logits"] = np.stack(logits)
    write_expected(folder, rows, arrays)


def save_exits(name: str, kind: str, made: tuple[Tokenizer, dict[str, str]], **settings: object) -> None:
    """A classifier with heads after its first two layers; `exit_1` and `exit_2` are what these give."""
    torch.manual_seed(2)
    model = classifier(kind, made, **settings)
    save(name, model, made)
    folder, width = HERE / name, model.config.hidden_size
    heads = torch.nn.ModuleDict(
        {
            str(layer): torch.nn.ModuleList(
                [torch.nn.Linear(width, width), torch.nn.Linear(width, model.config.num_labels)]
            )
            for layer in (1, 2)
        }
    )
    randomise(heads)
    save_file(heads.state_dict(), folder / "exits.safetensors")
    with np.load(folder / "expected.npz") as stored:
        arrays = dict(stored)
    rows = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["rows"]
    for layer, (dense, out) in heads.items():
        logits = []
        for row in rows:
            inputs = {"input_ids": torch.tensor([row["ids"]])}
            if made is BERT_TOKENS:
                inputs["token_type_ids"] = torch.tensor([row["types"]])
            with torch.no_grad():
                states = model.base_model(**inputs, output_hidden_states=True).hidden_states
                logits.append(out(torch.tanh(dense(states[int(layer)][:, 0])))[0].numpy())
        arrays[f"exit_{layer}"] = np.stack(logits)
    write_expected(folder, rows, arrays)


def save_onnx(name: str, source: str) -> None:
    """A folder that has an ONNX export by torch in place of safetensors."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / source, folder)
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        HERE / source, attn_implementation="eager"
    ).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        model,
        tuple(torch.ones(2, 7, dtype=torch.int64) for _ in names),
        str(folder / "onnx" / "model.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
        dynamo=False,
    )


def save_cross_encoder(name: str, model: CrossEncoder) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").unlink(missing_ok=True)
    rows = encode(model.tokenizer, PAIRS)
    logits = model.predict(PAIRS, activation_fn=torch.nn.Identity(), batch_size=1, show_progress_bar=False)
    write_expected(folder, rows, {"logits": np.asarray(logits).reshape(len(PAIRS), -1)})


def save_bi_encoder(name: str, model: SentenceTransformer) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(str(folder), create_model_card=False)
    (folder / "README.md").unlink(missing_ok=True)
    rows, arrays = [], {}
    texts = [text for pair in PAIRS for text in pair if text]
    for i, text in enumerate(texts):
        encoding = model.tokenizer.backend_tokenizer.encode(text)
        rows.append({"text": text, "ids": encoding.ids, "types": encoding.type_ids})
        arrays[f"tokens_{i}"] = model.encode(text, prompt="", output_value="token_embeddings").numpy()
    arrays["embeddings"] = np.stack([model.encode(text, prompt="") for text in texts])
    arrays["query_embeddings"] = np.stack([model.encode_query(text) for text in texts])
    write_expected(folder, rows, arrays)


def main() -> None:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    three = {"id2label": {0: "contradiction", 1: "entailment", 2: "neutral"}, "num_labels": 3}
    save("bert", classifier("bert", BERT_TOKENS), BERT_TOKENS)
    save("bert_float16", classifier("bert", BERT_TOKENS, **three), BERT_TOKENS, torch.float16)
    save("bert_bfloat16", classifier("bert", BERT_TOKENS, hidden_act="gelu_new"), BERT_TOKENS, torch.bfloat16)
    save(
        "bert_sharded", classifier("bert", BERT_TOKENS, hidden_act="relu"), BERT_TOKENS, max_shard_size="30KB"
    )
    save("electra", classifier("electra", BERT_TOKENS, embedding_size=16), BERT_TOKENS)
    roberta = {"max_position_embeddings": 98, "type_vocab_size": 1}
    save("roberta", classifier("roberta", ROBERTA_TOKENS, **roberta), ROBERTA_TOKENS)
    save("xlm_roberta", classifier("xlm-roberta", ROBERTA_TOKENS, **roberta), ROBERTA_TOKENS)
    save("camembert", classifier("camembert", ROBERTA_TOKENS, **roberta, **three), ROBERTA_TOKENS)
    distilled = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    save("distilbert", classifier("distilbert", BERT_TOKENS, **distilled), BERT_TOKENS)
    version_3 = {
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    }
    save("deberta_v3", classifier("deberta-v2", DEBERTA_TOKENS, **version_3), DEBERTA_TOKENS)
    version_2 = {
        **version_3,
        "position_buckets": -1,
        "max_relative_positions": 20,
        "norm_rel_ebd": "none",
        "share_att_key": False,
        "pos_att_type": "c2p|p2c",
        "position_biased_input": True,
        "type_vocab_size": 2,
        "embedding_size": 16,
    }
    save("deberta_v2", classifier("deberta-v2", DEBERTA_TOKENS, **version_2), DEBERTA_TOKENS)
    modern = {"num_hidden_layers": 3, "local_attention": 8}
    save("modernbert", classifier("modernbert", MODERN_TOKENS, **modern), MODERN_TOKENS)
    mean = {
        **modern,
        "num_hidden_layers": 2,
        "classifier_pooling": "mean",
        "norm_bias": True,
        "mlp_bias": True,
    }
    save("modernbert_mean", classifier("modernbert", MODERN_TOKENS, **mean), MODERN_TOKENS)

    save_onnx("bert_onnx", "bert")
    save_cross_encoder("sbert_cross_encoder", CrossEncoder(str(HERE / "electra")))
    transformer = Transformer(str(HERE / "bert"))
    dense = Dense(32, 24, activation_function=torch.nn.GELU(), bias=False)
    score = Dense(24, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    modules = [transformer, Pooling(32, "cls"), dense, LayerNorm(24), score]
    for module in modules[2:]:
        randomise(module)
    save_cross_encoder("sbert_modular_cross_encoder", CrossEncoder(modules=modules))
    dense = Dense(32, 20)
    randomise(dense)
    encoder = SentenceTransformer(
        modules=[transformer, Pooling(32, "mean"), dense, Normalize()],
        prompts={"query": "what is ", "document": ""},
        similarity_fn_name="dot",
    )
    save_bi_encoder("sbert_bi_encoder", encoder)
    save_exits("bert_exits", "bert", BERT_TOKENS, num_hidden_layers=4)
    save_exits("roberta_exits", "roberta", ROBERTA_TOKENS, **roberta, num_hidden_layers=3, num_labels=2)


if __name__ == "__main__":
    main()
