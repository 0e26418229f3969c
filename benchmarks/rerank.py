"""Rerank the passages of one query: crossrank against sentence-transformers and ONNX Runtime.

Every contestant has the same weights, texts, longest length and number of threads, and tokenises within the
time measured:

- sentence-transformers' CrossEncoder.predict, with its default batches of 32 and with others;
- ONNX Runtime with a torch export in dynamic int8 (`quantize_dynamic` as it is), and with the export first
  fused by ONNX Runtime's own optimiser for transformers; pairs sorted by tokens, several batch sizes;
- crossrank in float32 and in int8.

Beside the times are the largest difference from sentence-transformers' float32 logits, and how far the logits
of eight of the pairs move when they are scored by themselves.

    python benchmarks/rerank.py --profile marco
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

Scorer = Callable[[list[tuple[str, str]]], Any]  # pairs -> float32 (n,) logits

ST = "sentence-transformers"
DYNAMIC = "ONNX Runtime dynamic int8"
FUSED = "ONNX Runtime fused, dynamic int8"
CROSSRANK = "crossrank"
PACKAGES = (
    "crossrank",
    "onnx",
    "onnxruntime",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)


def sentence_transformers(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(args.threads)
    model = CrossEncoder(str(folder), device="cpu", max_length=args.max_length)

    def scorer(batch_size: int) -> Scorer:
        return lambda pairs: model.predict(
            pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )

    sizes = [32, *(size for size in args.st_batch_sizes if size != 32)]  # 32 is its default
    return {f"{ST}, batches of {size}": scorer(size) for size in sizes}


def onnx_runtime(folder: Path, scratch: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(args.max_length, strategy="longest_first")
    files = export_dynamic_int8(folder, scratch)
    return {
        f"{name}, batches of {size}": onnx_runtime_scorer(file, tokenizer, size, args.threads)
        for name, file in files.items()
        for size in args.onnx_batch_sizes
    }


def export_dynamic_int8(folder: Path, scratch: Path) -> dict[str, Path]:
    """Export with torch and quantise as ONNX Runtime's own guide does: plainly, and fused before."""
    import logging
    import warnings

    import onnx
    import torch
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModelForSequenceClassification

    # The optimiser knows this form of attention.
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "length"} for name in names}
    exported = str(scratch / "exported.onnx")
    with warnings.catch_warnings():  # of the exporter about itself
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.ones((2, 8), dtype=torch.int64),) * 3,
            exported,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={**axes, "logits": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    logging.disable(logging.WARNING)  # "please consider to run pre-processing"
    fused = str(scratch / "fused.onnx")
    config = model.config
    optimize_model(
        exported, model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size
    ).save_model_to_file(fused)
    files = {DYNAMIC: scratch / "int8.onnx", FUSED: scratch / "fused-int8.onnx"}
    quantize_dynamic(exported, files[DYNAMIC])
    # Shape inference does not know the fused operators.
    quantize_dynamic(fused, files[FUSED], extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
    logging.disable(logging.NOTSET)
    return files


def onnx_runtime_scorer(file: Path, tokenizer: Any, batch_size: int, threads: int) -> Scorer:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def score(pairs: list[tuple[str, str]]) -> Any:
        encoded = tokenizer.encode_batch_fast(pairs)
        order = sorted(range(len(pairs)), key=lambda row: len(encoded[row]), reverse=True)
        scores = np.empty(len(pairs), np.float32)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            arrays = np.zeros((3, len(rows), len(encoded[rows[0]])), np.int64)  # 0 pads BERT's three inputs
            for place, row in enumerate(rows):
                one = encoded[row]
                arrays[:, place, : len(one)] = one.ids, one.attention_mask, one.type_ids
            feed = dict(zip(("input_ids", "attention_mask", "token_type_ids"), arrays, strict=True))
            scores[rows] = session.run(["logits"], feed)[0][:, 0]
        return scores

    return score


def crossrank(float32: Path, int8: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    from crossrank.models.cross_encoder import CrossEncoder

    options: dict[str, Any] = {"max_length": args.max_length, "threads": args.threads, "progress": False}
    return {
        f"{CROSSRANK} float32": CrossEncoder(float32, precision="float32", **options).score,
        f"{CROSSRANK} int8": CrossEncoder(int8, precision="int8", **options).score,
    }


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material
    import numpy as np

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    harness.say("writing the weights in every form")
    weights = material.folders(args.weights, "cross-encoder", scratch)
    checkpoint = Checkpoint.open(weights.float32)
    if checkpoint.architecture != "bert":
        raise SystemExit(f"{args.weights}: the peers are set up for BERT, not {checkpoint.architecture}")
    tokenizer = Tokenizer(checkpoint)
    passages = material.texts(material.lengths(args.profile, args.passages).tolist(), tokenizer)
    query = material.queries(1)[0]
    pairs = [(query, passage) for passage in passages]
    sizes = [len(tokens.ids) for tokens in tokenizer.encode(passages)]
    scorers = {
        **sentence_transformers(weights.float32, args),
        **onnx_runtime(weights.float32, scratch, args),
        **crossrank(weights.float32, weights.int8, args),
    }

    found = harness.compare(scorers, pairs, sizes, args.rounds)
    return {
        "benchmark": "rerank",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "profile": args.profile,
            "passages": args.passages,
            "max_length": args.max_length,
            "threads": args.threads,
            "rounds": args.rounds,
            "query": query,
            "query_tokens": len(tokenizer.encode([query])[0].ids),
            "mean_passage_tokens": round(float(np.mean(sizes)), 1),
            "passage_tokens": harness.histogram(sizes, 50 if args.profile == "nq" else 15),
            "score_std": float(np.std(next(iter(found.outputs.values())))),
            **weights.origin,
        },
        "load_average_before": found.load_average_before,
        "contestants": found.records,
        "ratios": found.ratios(
            [f"{CROSSRANK} float32", f"{CROSSRANK} int8"],
            {
                f"{ST} default": f"{ST}, batches of 32",
                f"{ST} best": ST,
                f"{DYNAMIC} best": DYNAMIC,
                f"{FUSED} best": FUSED,
            },
        ),
    }


def show(result: dict[str, Any]) -> None:
    settings, contestants = result["settings"], result["contestants"]
    default = contestants[f"{ST}, batches of 32"]["median_s"]
    harness.print_histogram(
        f"Tokens of the {settings['passages']:,} passages, mean {settings['mean_passage_tokens']} "
        f"(and {settings['query_tokens']} of the query):",
        settings["passage_tokens"],
    )
    rows = [
        {
            "": name,
            "median ms": f"{1000 * values['median_s']:,.0f}",
            "minimum ms": f"{1000 * values['min_s']:,.0f}",
            "CPU ms": f"{1000 * values['cpu_median_s']:,.0f}",
            "× ST default": f"{default / values['median_s']:.2f}",
            "max |Δ| to ST": f"{values['max_delta_to_sentence_transformers']:.1e}",
            "max |Δ| alone": f"{values['max_delta_alone']:.1e}",
        }
        for name, values in contestants.items()
    ]
    harness.table(
        f"Rerank {settings['passages']:,} passages ({settings['profile']}), {settings['threads']} threads, "
        f"{settings['rounds']} rounds",
        rows,
    )
    print(f"standard deviation of the logits: {settings['score_std']:.3f}; int8: {settings['int8']}")
    harness.print_verdict(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--profile", choices=("marco", "nq", "fixed"), default="marco", help="of lengths")
    parser.add_argument("--passages", type=harness.at_least_one, default=100)
    parser.add_argument("--rounds", type=harness.at_least_one, default=7)
    parser.add_argument("--max-length", type=harness.at_least_one, default=512, help="tokens of a pair")
    parser.add_argument("--st-batch-sizes", type=harness.at_least_one, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--onnx-batch-sizes", type=harness.at_least_one, nargs="+", default=[8, 16, 32])
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="crossrank-rerank-", ignore_cleanup_errors=True) as scratch:
        result = run(args, Path(scratch))
    harness.say("")
    show(result)
    harness.write(f"rerank_{args.profile}", result, args.output)


if __name__ == "__main__":
    main()
