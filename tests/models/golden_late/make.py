"""Make the models and numbers that test_late_interaction.py compares with, by the reference libraries.

PyLate 1.6 and sentence-transformers 6.2 cannot be installed together, so this runs twice, from the
repository's root, each time for what is installed:
    python tests/models/golden_late/make.py

Each folder is a tiny random encoder (2 layers, 16 dimensions) with golden.json: texts, the token vectors that
the library gives for them as queries and as documents, and the MaxSim of each query with each document.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers

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
    "brown",
    "dog",
    "find",
]
QUERIES = ["the red fox", "a blue whale swims in the sea .", "unknown words !", "the " * 14]
DOCUMENTS = [
    "the red fox runs over the whale",
    "",
    "a blue whale , swims in the sea ! the whales ?",
    "...",
    "the quick brown fox , " * 12,
]


def save_encoder(folder: Path, architecture: str, markers: tuple[str, ...], window: int = 8) -> None:
    """Save a random encoder and a tokenizer in which the markers are tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *markers]
    vocabulary = {word: n for n, word in enumerate([*special, *WORDS, *",.!:?"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    sizes = {"vocab_size": len(vocabulary), "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    sizes |= {"initializer_range": 0.5, "pad_token_id": 0}
    if architecture == "distilbert":
        config = transformers.DistilBertConfig(
            vocab_size=len(vocabulary), dim=16, n_layers=2, n_heads=2, hidden_dim=24, initializer_range=0.5
        )
        config.max_position_embeddings = 64
    elif architecture == "modernbert":
        sizes |= {
            "local_attention": window,
            "global_attn_every_n_layers": 2,
            "initializer_cutoff_factor": 2.0,
        }
        sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        config = transformers.ModernBertConfig(**sizes, attn_implementation="eager")
    else:
        config = transformers.BertConfig(**sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.BertTokenizerFast(tokenizer_object=backend, model_max_length=64).save_pretrained(folder)


def write_golden(
    folder: Path, made_with: str, queries: list[np.ndarray], documents: list[np.ndarray]
) -> None:
    def rounded(vectors: list[np.ndarray]) -> list[list[list[float]]]:
        return [[[float(f"{v:.7g}") for v in token] for token in text.tolist()] for text in vectors]

    scores = [[float((q @ d.T).max(axis=1).sum()) for d in documents] for q in queries]
    golden = {"made_with": made_with, "queries": QUERIES, "documents": DOCUMENTS, "scores": scores}
    golden |= {"query_vectors": rounded(queries), "document_vectors": rounded(documents)}
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")


def encode_with_pylate(model: object, folder: Path) -> None:
    import pylate

    vectors = [
        [np.asarray(each) for each in model.encode(texts, is_query=is_query, batch_size=1)]
        for texts, is_query in ((QUERIES, True), (DOCUMENTS, False))
    ]
    write_golden(folder, f"pylate {pylate.__version__}, torch {torch.__version__}", *vectors)


def make_pylate() -> None:
    from pylate.models import ColBERT

    layouts = {
        "pylate": ("bert", {"query_length": 12, "document_length": 24}),
        "pylate_attended": (
            "bert",
            {"query_length": 10, "document_length": 30, "attend_to_expansion_tokens": True}
            | {"skiplist_words": [",", "the"], "query_prefix": "[unused0]", "document_prefix": "[unused1]"},
        ),
        "pylate_without_expansion": (
            "modernbert",
            {"query_length": 9, "document_length": 40, "do_query_expansion": False, "skiplist_words": []},
        ),
        "pylate_modernbert": ("modernbert", {"query_length": 24, "document_length": 40}),
    }
    for seed, (name, (architecture, options)) in enumerate(layouts.items()):
        torch.manual_seed(seed)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        window = 48 if name == "pylate_modernbert" else 8  # what is filled up must see the query
        save_encoder(folder, architecture, ("[unused0]", "[unused1]"), window)
        model = ColBERT(str(folder), embedding_size=8, device="cpu", **options)
        shutil.rmtree(folder)
        model.save(str(folder), create_model_card=False)
        encode_with_pylate(ColBERT(str(folder), device="cpu"), folder)

    torch.manual_seed(9)
    folder = HERE / "stanford"
    shutil.rmtree(folder, ignore_errors=True)
    save_encoder(folder, "bert", ("[unused0]", "[unused1]"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights = {f"bert.{key}": value for key, value in weights.items()} | {"linear.weight": torch.randn(8, 16)}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}, indent=2))
    metadata = {"query_maxlen": 16, "doc_maxlen": 24, "query_token_id": "[unused0]"}
    metadata |= {"doc_token_id": "[unused1]", "attend_to_mask_tokens": False, "mask_punctuation": True}
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    encode_with_pylate(ColBERT(str(folder), device="cpu"), folder)


def make_sentence_transformers() -> None:
    import sentence_transformers
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    def dense(width: int, to: int, **options: object) -> Dense:
        return Dense(width, to, module_input_name="token_embeddings", **options)

    identity = {"bias": False, "activation_function": torch.nn.Identity()}
    layouts = {
        "multi_vector": ("bert", {}, [dense(16, 8, **identity)], {}, []),
        "multi_vector_min": (
            "distilbert",
            {"query_expansion": {"strategy": "min", "length": 11}, "document_length": 20},
            [dense(16, 12, activation_function=torch.nn.GELU()), dense(12, 6, **identity)],
            {"query": "find : ", "document": "the "},
            [",", "."],
        ),
        "multi_vector_fixed": (
            "modernbert",
            {"query_expansion": {"strategy": "fixed", "length": 13, "attend": True, "token": "[SEP]"}},
            [dense(16, 16, use_residual=True, activation_function=torch.nn.Tanh())],
            {"query": "[unused0]"},
            ["the"],
        ),
    }
    for seed, (name, (architecture, options, projections, prompts, skipped)) in enumerate(layouts.items()):
        torch.manual_seed(seed)
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        save_encoder(folder, architecture, ("[unused0]", "[unused1]"))
        first = Transformer(str(folder), max_seq_length=40, **options)
        tasks = ["query", "document"] if skipped == ["the"] else None
        mask = MultiVectorMask(skiplist_words=skipped, skiplist_tasks=tasks)
        modules = [first, *projections, mask, Normalize(module_input_name="token_embeddings")]
        model = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
        shutil.rmtree(folder)
        model.save_pretrained(str(folder), create_model_card=False)
        model = MultiVectorEncoder(str(folder), device="cpu")
        vectors = [
            encode(texts, batch_size=1, convert_to_numpy=True)
            for encode, texts in ((model.encode_query, QUERIES), (model.encode_document, DOCUMENTS))
        ]
        made_with = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
        write_golden(folder, made_with, *vectors)


if __name__ == "__main__":
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    if "pylate" in installed:
        make_pylate()
    else:
        make_sentence_transformers()
