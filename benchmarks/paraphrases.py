"""Paraphrase mining: 10,000 sentences encoded, and all 50 million pairs of them searched.

Both sides have the same weights, sentences and threads, and give the same number of pairs. crossrank looks
at every pair; sentence-transformers keeps the 100 nearest neighbours of each sentence, its default. The
search is also timed alone, over the same vectors. Beside the times: which share of crossrank's float32 pairs
the others find, too.

    python benchmarks/paraphrases.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

ST = "sentence-transformers"
CROSSRANK = "crossrank"
PACKAGES = ("crossrank", "numpy", "onnxruntime", "sentence-transformers", "tokenizers", "torch")

Pairs = set[tuple[int, int]]


def contestants(
    weights: Any, sentences: list[str], args: argparse.Namespace
) -> dict[str, Callable[[], Pairs]]:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import paraphrase_mining, paraphrase_mining_embeddings

    from crossrank.models.bi_encoder import BiEncoder
    from crossrank.similarity.paraphrases import similar_pairs

    torch.set_num_threads(args.threads)
    peer = SentenceTransformer(str(weights.float32), device="cpu")
    options: dict[str, Any] = {"threads": args.threads, "progress": False}
    exact = BiEncoder(weights.float32, precision="float32", **options)
    fast = BiEncoder(weights.int8, precision="int8", **options)
    vectors = exact.encode_documents(sentences)

    def theirs(rows: list[list[float | int]]) -> Pairs:
        return {(int(first), int(second)) for _, first, second in rows}

    def ours(found: Any) -> Pairs:
        return set(zip(found.first.tolist(), found.second.tolist(), strict=True))

    def mined(encoder: BiEncoder) -> Callable[[], Pairs]:
        return lambda: ours(
            similar_pairs(encoder.encode_documents(sentences), top_k=args.pairs, progress=False)
        )

    return {
        f"{CROSSRANK} float32": mined(exact),
        f"{CROSSRANK} int8": mined(fast),
        ST: lambda: theirs(paraphrase_mining(peer, sentences, max_pairs=args.pairs)),
        f"search alone: {CROSSRANK}": lambda: ours(similar_pairs(vectors, top_k=args.pairs, progress=False)),
        f"search alone: {ST}": lambda: theirs(
            paraphrase_mining_embeddings(torch.from_numpy(vectors), max_pairs=args.pairs)
        ),
    }


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    harness.say("writing the weights in every form")
    weights = material.folders(args.weights, "bi-encoder", scratch)
    tokenizer = Tokenizer(Checkpoint.open(weights.float32))
    sentences = material.texts(material.lengths("short", args.sentences).tolist(), tokenizer)
    calls = contestants(weights, sentences, args)
    found: dict[str, Pairs] = {}
    for name, call in calls.items():
        harness.say(f"warming up: {name}")
        found[name] = call()
    load = harness.load_average()
    timings = harness.interleave(calls, args.rounds)
    exact = found[f"{CROSSRANK} float32"]
    records = {
        name: {
            **timing.summary(),
            "num_pairs": len(found[name]),
            "share_of_exact_pairs": round(len(found[name] & exact) / len(exact), 4),
        }
        for name, timing in timings.items()
    }

    def ratio(slow: str, quick: str) -> float:
        return round(timings[slow].median_s / timings[quick].median_s, 2)

    return {
        "benchmark": "paraphrases",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "sentences": len(sentences),
            "all_pairs": len(sentences) * (len(sentences) - 1) // 2,
            "pairs": args.pairs,
            "threads": args.threads,
            "rounds": args.rounds,
            **weights.origin,
        },
        "load_average_before": load,
        "contestants": records,
        "ratios": {
            f"{CROSSRANK} float32 against {ST}": ratio(ST, f"{CROSSRANK} float32"),
            f"{CROSSRANK} int8 against {ST}": ratio(ST, f"{CROSSRANK} int8"),
            "search alone against theirs": ratio(f"search alone: {ST}", f"search alone: {CROSSRANK}"),
        },
    }


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    rows = [
        {
            "": name,
            "median s": f"{values['median_s']:,.2f}",
            "minimum s": f"{values['min_s']:,.2f}",
            "CPU s": f"{values['cpu_median_s']:,.2f}",
            "pairs": f"{values['num_pairs']:,}",
            "of the exact ones": f"{values['share_of_exact_pairs']:.2%}",
        }
        for name, values in result["contestants"].items()
    ]
    harness.table(
        f"The best {settings['pairs']:,} of {settings['all_pairs']:,} pairs of {settings['sentences']:,} "
        f"sentences, {settings['threads']} threads, {settings['rounds']} rounds",
        rows,
    )
    harness.print_verdict(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sentences", type=harness.at_least_one, default=10_000)
    parser.add_argument("--pairs", type=harness.at_least_one, default=100_000, help="the most that are kept")
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    args = parser.parse_args()
    result = harness.carry_out(run, args)
    show(result)
    harness.write("paraphrases", result, args.output)


if __name__ == "__main__":
    main()
