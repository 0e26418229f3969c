"""Rerank on a GPU: crossrank's torch backend against sentence-transformers, and against the device itself.

One run measures, with the same weights, texts and longest length for all, tokenisation included:

- latency: 100 candidates of one query from texts to scores, p50 and p99;
- throughput: the candidates of many queries in one call, as pairs and tokens a second, and as part of the
  rate at which the device multiplied large bf16 matrices in the same run;
- ratios to sentence-transformers in bf16 with SDPA (best of several batch sizes) and to its default (float32,
  batches of 32); largest differences from its float32 logits;
- the same with token ids that documents bring along from an index, in place of tokenising them;
- what the host needs by itself (the device's part replaced by nothing), so that it shows which of the two is
  waited for; and a profile of the device's time by kind of kernel.

Sizes: the built-in model; `base` (BERT, 12 layers of 768), `modernbert-base` (22 layers of 768) and `large`
(BERT, 24 layers of 1024) with random weights; or a folder.

Needs torch 2.10 or newer with CUDA, transformers, sentence-transformers, and what crossrank needs without
extras. From a checkout:

    pip install -e ".[train]"
    python benchmarks/gpu.py --size built-in --size base --size modernbert-base
    python benchmarks/gpu.py --device cpu --trial     # does it run at all: tiny sizes, figures mean nothing
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

Pairs = list[tuple[str, str]]
Scorer = Callable[[Pairs], Any]

ST = "sentence-transformers"
CROSSRANK = "crossrank"
PACKAGES = (
    "crossrank",
    "onnxruntime",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
)
NEEDED = (
    "torch",
    "transformers",
    "sentence_transformers",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "rich",
    "typer",
)

SHAPES = {  # (model type, layers, hidden, inner, heads)
    "base": ("bert", 12, 768, 3072, 12),
    "modernbert-base": ("modernbert", 22, 768, 1152, 12),
    "large": ("bert", 24, 1024, 4096, 16),
    "trial": ("bert", 2, 64, 128, 4),
    "modernbert-trial": ("modernbert", 4, 64, 96, 4),
}
# Kernels and operators by what they do; the first that fits counts.
KINDS = {
    "attention": r"flash|fmha|attention|attn|softmax|bmm",
    "matrix products": r"gemm|gemv|cutlass|cublas|nvjet|wgmma|splitk|aten::addmm|aten::mm|aten::linear",
    "norms": r"layer_?norm",
    "activations": r"gelu|silu|tanh|relu",
    "embeddings, gathers": r"embedding|index|gather|scatter|segment",
    "copies": r"memcpy|memset|copy|cat",
    "other elementwise": r"elementwise|aten::add|aten::mul|vectorized|unrolled",
}


def random_model(size: str, folder: Path, tokenizer_of: Path) -> Path:
    """Write a cross-encoder of random weights that has the built-in model's tokenizer."""
    import torch
    import transformers

    kind, layers, hidden, inner, heads = SHAPES[size]
    vocabulary = json.loads((tokenizer_of / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    special = json.loads((tokenizer_of / "config.json").read_text(encoding="utf-8")).get("pad_token_id", 0)
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        max_position_embeddings=512,
        num_labels=1,
        pad_token_id=special,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (tokenizer_of / name).is_file():
            shutil.copyfile(tokenizer_of / name, folder / name)
    return folder


def sentence_transformers(folder: Path, args: argparse.Namespace) -> dict[str, Scorer]:
    import torch
    from sentence_transformers import CrossEncoder

    def scorer(model: Any, batch_size: int) -> Scorer:
        return lambda pairs: model.predict(
            pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )

    default = CrossEncoder(str(folder), device=args.device, max_length=args.max_length)
    half = CrossEncoder(
        str(folder),
        device=args.device,
        max_length=args.max_length,
        model_kwargs={"dtype": torch.bfloat16, "attn_implementation": "sdpa"},
    )
    return {
        f"{ST} default (float32, batches of 32)": scorer(default, 32),
        **{f"{ST} bf16, batches of {size}": scorer(half, size) for size in args.st_batch_sizes},
    }


def crossrank(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from crossrank.models.cross_encoder import CrossEncoder

    def model(precision: str) -> Any:
        return CrossEncoder(
            folder,
            backend="torch",
            device=args.device,
            precision=precision,
            max_length=args.max_length,
            progress=False,
        )

    single = model("bf16")
    single._engine._graphs = None
    return {
        f"{CROSSRANK} float32": model("float32"),
        f"{CROSSRANK} bf16, single launches": single,
        f"{CROSSRANK} bf16": model("bf16"),
    }


def with_ids(model: Any, tokenizer: Any, passages: list[str]) -> Scorer:
    """A scorer of documents that bring their token ids along, as those of an index do."""
    import numpy as np

    from crossrank.types import Document, TokenIds

    kept = {}
    for number, (text, tokens) in enumerate(zip(passages, tokenizer.encode(passages), strict=True)):
        ids = TokenIds(tokenizer.fingerprint, text, tokens.ids)
        kept[text] = Document(str(number), text, token_ids=ids)

    def score(pairs: Pairs) -> Any:
        rows: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows.setdefault(query, []).append(row)
        documents = [[kept[pairs[row][1]] for row in each] for each in rows.values()]
        scores = np.empty(len(pairs), np.float32)
        for ranking, own in zip(model.rank_many([*rows], documents), rows.values(), strict=True):
            for hit in ranking:
                scores[own[hit.index]] = hit.score
        return scores

    return score


def matrix_peak(args: argparse.Namespace) -> float:
    """Floating-point operations a second of a large bf16 matrix product of random numbers, the best."""
    import torch

    size = 256 if args.trial else 8192
    left, right = (torch.randn(size, size, device=args.device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(13):
        wait(args)
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        wait(args)
        seconds.append((time.perf_counter() - start) / 10)
    return float(2 * size**3 / min(seconds[3:]))


def wait(args: argparse.Namespace) -> None:
    import torch

    if args.device.startswith("cuda"):
        torch.cuda.synchronize(args.device)


def operations(folder: Path, lengths: list[int]) -> float:
    """Floating-point operations that crossrank's encoder does for rows of these lengths."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layers, hidden, inner = (
        config[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    up = 2 * inner if config["model_type"] == "modernbert" else inner
    window = config.get("local_attention", 0)
    every = config.get("global_attn_every_n_layers", 3)
    total = 0.0
    for number in range(layers):
        last = number == layers - 1
        local = config["model_type"] == "modernbert" and number % every != 0
        for length in lengths:
            seen = min(length, window + 1) if local else length
            queries = 1 if last else length
            joined = (
                3 * hidden * length
                if config["model_type"] == "modernbert"
                else hidden * (2 * length + queries)
            )
            total += 2 * hidden * joined  # query, key, value
            total += 4 * queries * seen * hidden  # attention
            total += 2 * queries * hidden * (hidden + up + inner)
    return total


def host_only(model: Any, pairs: Pairs, rounds: int) -> float:
    """Median seconds of a call whose part on the device is replaced by nothing."""
    import torch

    engine = model._engine
    kept = engine._forward, engine._graphs
    engine._forward = lambda batch: torch.zeros(batch.num_rows, 1, device=engine.device)
    engine._graphs = None
    try:
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            model.score(pairs)
            seconds.append(time.perf_counter() - start)
    finally:
        engine._forward, engine._graphs = kept
    return statistics.median(seconds)


def profile(model: Any, pairs: Pairs, args: argparse.Namespace) -> dict[str, float]:
    """Part of the device's time by kind of kernel, of one call launched kernel by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_gpu = args.device.startswith("cuda")
    model._engine.callers = 1  # the profiler sees this thread alone
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch_profile(activities=activities) as recorded:
        model.score(pairs)
        wait(args)
    microseconds: Counter[str] = Counter()
    for event in recorded.key_averages():
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if taken <= 0:
            continue
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, event.key, re.I)), "other")
        microseconds[kind] += taken
    whole = sum(microseconds.values()) or 1
    return {kind: round(taken / whole, 4) for kind, taken in microseconds.most_common()}


def measure(size: str, args: argparse.Namespace, scratch: Path, peak: float) -> dict[str, Any]:
    import material
    import numpy as np

    from crossrank.models.hub import resolve
    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    built_in = resolve(None, kind="cross-encoder")
    if size in SHAPES:
        folder = random_model(size, scratch / size, built_in)
    else:
        weights = None if size == "built-in" else Path(size)
        folder = material.folders(weights, "cross-encoder", scratch / Path(size).name).float32
    tokenizer = Tokenizer(Checkpoint.open(folder))
    passages = material.texts(material.lengths(args.profile, args.candidates).tolist(), tokenizer)
    questions = material.queries(args.queries)
    one: Pairs = [(questions[0], passage) for passage in passages]
    # The same passages for every query; pairs all differ, so none is computed once for several.
    many: Pairs = [(question, passage) for question in questions for passage in passages]
    sizes = [len(tokens.ids) for tokens in tokenizer.encode(passages)]
    asked = [len(tokens.ids) for tokens in tokenizer.encode(questions)]
    lengths = [
        min(args.max_length, tokenizer.pair_length(question, passage))
        for question in asked
        for passage in sizes
    ]

    models = crossrank(folder, args)
    scorers = {
        **sentence_transformers(folder, args),
        **{name: model.score for name, model in models.items()},
        f"{CROSSRANK} bf16, ids of an index": with_ids(models[f"{CROSSRANK} bf16"], tokenizer, passages),
    }
    # Graphs are captured when a shape comes again, and libraries choose kernels for each.
    for scorer in scorers.values():
        for _ in range(3):
            scorer(one)
    latency = harness.compare(scorers, one, sizes, args.latency_rounds)
    throughput = harness.compare(scorers, many, lengths, args.rounds)
    ours = [name for name in scorers if name.startswith(CROSSRANK)]
    peers = {"ST bf16, best batch": f"{ST} bf16", "ST default": f"{ST} default"}
    done = operations(folder, lengths)
    best = models[f"{CROSSRANK} bf16"]
    bare = models[f"{CROSSRANK} bf16, single launches"]
    return {
        "size": size,
        "mean_passage_tokens": round(float(np.mean(sizes)), 1),
        "pairs": len(many),
        "tokens": sum(lengths),
        "attention": sorted(best._engine._encoder.ways),
        "token_budget": best._engine.token_budget,
        "graphs_captured": _captured(best),
        "logits_std": float(np.std(next(iter(throughput.outputs.values())))),
        "latency": {
            name: {
                **latency.records[name],
                "p50_ms": round(1000 * statistics.median(timing.wall_s), 3),
                "p99_ms": round(1000 * float(np.quantile(timing.wall_s, 0.99)), 3),
            }
            for name, timing in latency.timings.items()
        },
        "latency_ratios": latency.ratios(ours, peers),
        "throughput": {
            name: {
                **throughput.records[name],
                "pairs_per_s": round(len(many) / timing.median_s),
                "tokens_per_s": round(sum(lengths) / timing.median_s),
                "part_of_matrix_peak": round(done / timing.median_s / peak, 4),
            }
            for name, timing in throughput.timings.items()
        },
        "throughput_ratios": throughput.ratios(ours, peers),
        "host_only_ms": {
            "latency": round(1000 * host_only(best, one, args.latency_rounds), 3),
            "throughput": round(1000 * host_only(best, many, args.rounds), 3),
        },
        "profile": {"latency": profile(bare, one, args), "throughput": profile(bare, many, args)},
    }


def _captured(model: Any) -> int:
    graphs = model._engine._graphs
    return 0 if graphs is None else sum(graph is not None for graph in graphs._graphs.values())


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import torch

    peak = matrix_peak(args)
    on_gpu = args.device.startswith("cuda")
    return {
        "benchmark": "gpu",
        "machine": {
            **harness.machine(*PACKAGES),
            "device": torch.cuda.get_device_name(args.device) if on_gpu else args.device,
            "cuda": torch.version.cuda,
            "bf16_matrix_peak_tflops": round(peak / 1e12, 2),
        },
        "settings": {
            "profile": args.profile,
            "candidates": args.candidates,
            "queries": args.queries,
            "max_length": args.max_length,
            "rounds": args.rounds,
            "latency_rounds": args.latency_rounds,
            "threads": args.threads,
            "trial": args.trial,
        },
        "load_average_before": harness.load_average(),
        "sizes": [measure(size, args, scratch, peak) for size in args.size],
    }


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    if settings["trial"]:
        print("A trial: whether everything runs. Its figures mean nothing.")
    for found in result["sizes"]:
        rows = [
            {
                "": name,
                "p50 ms": f"{latency['p50_ms']:,.2f}",
                "p99 ms": f"{latency['p99_ms']:,.2f}",
                "pairs/s": f"{found['throughput'][name]['pairs_per_s']:,}",
                "tokens/s": f"{found['throughput'][name]['tokens_per_s']:,}",
                "of peak": f"{found['throughput'][name]['part_of_matrix_peak']:.1%}",
                "max |Δ| to ST": f"{found['throughput'][name]['max_delta_to_sentence_transformers']:.1e}",
                "max |Δ| alone": f"{found['throughput'][name]['max_delta_alone']:.1e}",
            }
            for name, latency in found["latency"].items()
        ]
        harness.table(
            f"{found['size']}: {settings['candidates']} candidates ({settings['profile']}), "
            f"{found['pairs']:,} pairs at once",
            rows,
        )
        for kind in ("latency", "throughput"):
            for name, ratio in found[f"{kind}_ratios"].items():
                print(f"{ratio:6.2f} × {kind}: {name}")
            print(f"host alone, {kind}: {found['host_only_ms'][kind]:.2f} ms")
            parts = ", ".join(f"{name} {part:.0%}" for name, part in found["profile"][kind].items())
            print(f"device's time, {kind}: {parts}")
        print(
            f"attention: {', '.join(found['attention'])}; token budget {found['token_budget']}; "
            f"{found['graphs_captured']} graphs; standard deviation of the logits {found['logits_std']:.3f}"
        )
    machine = result["machine"]
    print(f"{machine['device']}, bf16 matrix products {machine['bf16_matrix_peak_tflops']} TFLOP/s")
    harness.print_machine(result)
    print(f"load average before: {result['load_average_before']}")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.set_defaults(threads=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda", help="torch's name (default: cuda)")
    parser.add_argument("--size", action="append", help="built-in, base, modernbert-base, large, or a folder")
    parser.add_argument(
        "--profile", choices=("short", "marco", "nq", "fixed"), default="marco", help="of lengths"
    )
    parser.add_argument("--candidates", type=harness.at_least_one, default=100)
    parser.add_argument("--queries", type=harness.at_least_one, default=64, help="of the throughput")
    parser.add_argument("--max-length", type=harness.at_least_one, default=512, help="tokens of a pair")
    parser.add_argument("--rounds", type=harness.at_least_one, default=7, help="of the throughput")
    parser.add_argument("--latency-rounds", type=harness.at_least_one, default=50)
    parser.add_argument("--st-batch-sizes", type=harness.at_least_one, nargs="+", default=[32, 128, 512])
    parser.add_argument("--trial", action="store_true", help="tiny sizes, to see whether everything runs")
    args = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; see --help for what this needs")
    if args.trial:
        args.size = args.size or ["trial", "modernbert-trial"]
        args.candidates, args.queries, args.rounds, args.latency_rounds = 6, 2, 2, 2
        args.st_batch_sizes = [4]
    args.size = args.size or ["built-in"]
    harness.limit_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="crossrank-gpu-", ignore_cleanup_errors=True) as scratch:
        result = run(args, Path(scratch))
    harness.say("")
    show(result)
    harness.write("gpu_trial" if args.trial else f"gpu_{args.profile}", result, args.output)


if __name__ == "__main__":
    main()
