"""Encode short sentences: crossrank's BiEncoder against sentence-transformers.

Both have the same weights, texts and number of threads, and tokenise within the time measured. Beside the
times is the smallest cosine between a vector and sentence-transformers' float32 one, and how far the vectors
of eight of the sentences move when they are encoded by themselves.

    python benchmarks/encode.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

Encoder = Callable[[list[str]], Any]  # texts -> float32 (n, dimensions), L2-normalised

ST = "sentence-transformers"
CROSSRANK = "crossrank"
PACKAGES = ("crossrank", "onnxruntime", "sentence-transformers", "tokenizers", "torch", "transformers")


def sentence_transformers(folder: Path, args: argparse.Namespace) -> dict[str, Encoder]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(args.threads)
    model = SentenceTransformer(str(folder), device="cpu")

    def encoder(batch_size: int) -> Encoder:
        return lambda texts: model.encode(
            texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
        )

    sizes = [32, *(size for size in args.st_batch_sizes if size != 32)]  # 32 is its default
    return {f"{ST}, batches of {size}": encoder(size) for size in sizes}


def crossrank(float32: Path, int8: Path, args: argparse.Namespace) -> dict[str, Encoder]:
    from crossrank.models.bi_encoder import BiEncoder

    options: dict[str, Any] = {"threads": args.threads, "progress": False}
    return {
        f"{CROSSRANK} float32": BiEncoder(float32, precision="float32", **options).encode_documents,
        f"{CROSSRANK} int8": BiEncoder(int8, precision="int8", **options).encode_documents,
    }


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material
    import numpy as np

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    harness.say("writing the weights in every form")
    weights = material.folders(args.weights, "bi-encoder", scratch)
    tokenizer = Tokenizer(Checkpoint.open(weights.float32))
    sentences = material.texts(material.lengths("short", args.sentences).tolist(), tokenizer)
    sizes = [len(tokens.ids) for tokens in tokenizer.encode(sentences)]
    encoders = {
        **sentence_transformers(weights.float32, args),
        **crossrank(weights.float32, weights.int8, args),
    }

    found = harness.compare(encoders, sentences, sizes, args.rounds)
    for name, vectors in found.outputs.items():
        cosines = (vectors * next(iter(found.outputs.values()))).sum(axis=1)
        found.records[name]["min_cosine_to_sentence_transformers"] = float(cosines.min())
        found.records[name]["sentences_per_s"] = round(len(sentences) / found.timings[name].median_s)
    return {
        "benchmark": "encode",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "sentences": args.sentences,
            "threads": args.threads,
            "rounds": args.rounds,
            "mean_tokens": round(float(np.mean(sizes)), 1),
            "tokens": harness.histogram(sizes, 5),
            **weights.origin,
        },
        "load_average_before": found.load_average_before,
        "contestants": found.records,
        "ratios": found.ratios(
            [f"{CROSSRANK} float32", f"{CROSSRANK} int8"],
            {f"{ST} default": f"{ST}, batches of 32", f"{ST} best": ST},
        ),
    }


def show(result: dict[str, Any]) -> None:
    settings, contestants = result["settings"], result["contestants"]
    default = contestants[f"{ST}, batches of 32"]["median_s"]
    harness.print_histogram(
        f"Tokens of the {settings['sentences']:,} sentences, mean {settings['mean_tokens']}:",
        settings["tokens"],
    )
    rows = [
        {
            "": name,
            "median s": f"{values['median_s']:,.2f}",
            "minimum s": f"{values['min_s']:,.2f}",
            "CPU s": f"{values['cpu_median_s']:,.2f}",
            "sentences/s": f"{values['sentences_per_s']:,}",
            "× ST default": f"{default / values['median_s']:.2f}",
            "min cos to ST": f"{values['min_cosine_to_sentence_transformers']:.5f}",
            "max |Δ| alone": f"{values['max_delta_alone']:.1e}",
        }
        for name, values in contestants.items()
    ]
    harness.table(
        f"Encode {settings['sentences']:,} sentences, {settings['threads']} threads, "
        f"{settings['rounds']} rounds",
        rows,
    )
    print(f"int8: {settings['int8']}")
    harness.print_verdict(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sentences", type=harness.at_least_one, default=10_000)
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--st-batch-sizes", type=harness.at_least_one, nargs="+", default=[32])
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    show(result)
    harness.write("encode", result, args.output)


if __name__ == "__main__":
    main()
