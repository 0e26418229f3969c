"""Make the tiny T5 checkpoints of this folder and what transformers computes with them.

    python tests/golden_t5/make_golden.py

needs torch, transformers and sentence-transformers (the tests that read the result do not). Weights are
random, norms included, so that a missing term shows. Prompts are tokenised whole, as one string, and run one
at a time, without padding. Beside each checkpoint, `expected.json` has the texts, the prompts and their token
ids, `expected.npz` the logits of the first token that is generated, (prompts, vocabulary); of `t5_encoder`,
the scores of its dense layer, (prompts,).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
CORPUS = [
    "what is the water of the river and how old is the dog",
    "Query: where is the light Document: the blue city in the mountain Relevant:",
    "Document0: the old river Document1: the new city Relevant: a cat and a bird (Felis catus), 3.5 kg; pet",
    "Pergunta: o que é Documento: uma cidade Relevante: true false yes no sim não Sim Não",
    "Dogs: 'man's best friend'? 7 + 5? twelve",
] * 4
ANSWERS = ("▁true", "▁false", "▁yes", "▁no", "▁sim", "▁não", "▁Sim", "▁Não")
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;?!'()+-"
PAIRS = [
    ("what is a cat", "a cat (Felis catus) is a pet"),
    ("how old is the dog", ""),
    ("7 + 5?", "twelve"),
    ("where is the light of the city", "birds and dogs " * 9),
    ("what is the water", "the water of the mountain is in the river " * 30),  # farther than the last bucket
]
MONO, RANK = "Query: {} Document: {} Relevant:", "Query: {} Document: {}"
DUO = "Query: {} Document0: {} Document1: {} Relevant:"
SMALL = {"d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4}  # 4 heads of 12 are not 32
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {"feed_forward_proj": "relu", "tie_word_embeddings": True, "num_decoder_layers": 1}),
    "t5_v1_1": ("T5", GATED | {"num_decoder_layers": 3, "relative_attention_max_distance": 40}),
    "mt5": ("MT5", GATED),
}


def tokenizer() -> Tokenizer:
    """A Unigram tokenizer made like T5's: '▁' before words, </s> after texts, <extra_id_0> last."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    content = json.loads(made.to_str())
    vocabulary = [[piece, round(score, 4)] for piece, score in content["model"]["vocab"]]
    known = {piece for piece, _ in vocabulary}
    vocabulary += [[piece, -9.0] for piece in (*ANSWERS, *LETTERS, "▁") if piece not in known]
    content["model"]["vocab"] = vocabulary
    made = Tokenizer.from_str(json.dumps(content))
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    made.add_special_tokens([f"<extra_id_{i}>" for i in range(19, -1, -1)])
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", made.token_to_id("</s>"))]
    )
    return made


def save_tokenizer(made: Tokenizer, folder: Path) -> None:
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def randomise(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + float(parameter.ndim == 1))


def first_logits(model: Any, ids: list[int]) -> np.ndarray:
    """What is generated first; forward and `generate` must agree on it."""
    row = torch.tensor([ids])
    with torch.no_grad():
        start = torch.full((1, 1), model.config.decoder_start_token_id)
        forward = model(input_ids=row, decoder_input_ids=start).logits[0, 0].numpy()
        options = {"max_new_tokens": 1, "do_sample": False, "use_cache": False}
        out = model.generate(row, return_dict_in_generate=True, output_logits=True, **options)
    np.testing.assert_allclose(out.logits[0][0].numpy(), forward, rtol=0, atol=1e-6)
    return forward


def rows(made: Tokenizer) -> list[dict[str, Any]]:
    found = []
    for i, (query, document) in enumerate(PAIRS):
        other = PAIRS[(i + 2) % len(PAIRS)][1]
        for kind, texts, prompt in (
            ("mono", [query, document], MONO),
            ("rank", [query, document], RANK),
            ("duo", [query, document, other], DUO),
        ):
            whole = prompt.format(*texts)
            ids = made.encode(whole).ids
            if len(ids) <= 512:
                found.append({"kind": kind, "texts": texts, "prompt": whole, "ids": ids})
    return found


def write_expected(folder: Path, expected: list[dict[str, Any]], values: np.ndarray) -> None:
    (folder / "expected.json").write_text(
        json.dumps({"rows": expected}, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    np.savez_compressed(folder / "expected.npz", logits=values)


def make(name: str, made: Tokenizer) -> None:
    family, settings = CHECKPOINTS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    size = made.get_vocab_size() + 12  # padded, as T5's is
    config = getattr(transformers, f"{family}Config")(
        **{"vocab_size": size, "decoder_start_token_id": 0, **SMALL, **settings}
    )
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    randomise(model)
    if not settings["tie_word_embeddings"]:
        torch.manual_seed(1)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    model.save_pretrained(folder)
    save_tokenizer(made, folder)
    model = type(model).from_pretrained(folder).eval()  # what a reader of the folder gets
    expected = rows(made)
    write_expected(folder, expected, np.stack([first_logits(model, row["ids"]) for row in expected]))


def make_encoder(made: Tokenizer) -> None:
    """An encoder-only RankT5 in sentence-transformers' layout: first token, dense layer."""
    folder, scratch = HERE / "t5_encoder", HERE / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    config = transformers.T5Config(vocab_size=made.get_vocab_size() + 12, **SMALL)
    encoder = transformers.T5EncoderModel(config).eval()
    randomise(encoder)
    encoder.save_pretrained(scratch)
    save_tokenizer(made, scratch)
    transformer = Transformer(str(scratch), max_seq_length=512)
    pooling = Pooling(SMALL["d_model"], pooling_mode="cls")
    dense = Dense(
        SMALL["d_model"],
        1,
        activation_function=torch.nn.Identity(),
        module_output_name="scores",
    )
    randomise(dense)
    CrossEncoder(modules=[transformer, pooling, dense], device="cpu").save_pretrained(str(folder))
    save_tokenizer(made, folder)
    (folder / "crossrank.json").write_text('{"kind": "rank_t5"}\n', encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)
    shutil.rmtree(scratch)
    expected = [row for row in rows(made) if row["kind"] == "rank"]
    scores = []
    with torch.no_grad():
        for row in expected:
            ids = torch.tensor([row["ids"]])
            vectors = encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            scores.append(float(dense.linear(vectors[0, 0])[0]))
    write_expected(folder, expected, np.array(scores, dtype=np.float32))


if __name__ == "__main__":
    shared = tokenizer()
    for each in CHECKPOINTS:
        make(each, shared)
    make_encoder(shared)
