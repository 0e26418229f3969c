"""How cost grows: with candidates, with tokens, with threads, with callers; and that memory does not.

Each series is the built-in model in int8 on cuts of the sample collection, the median of a few rounds. The
exponent is the slope of log time over log size: 1 for candidates, between 1 and 2 for tokens (attention grows
with the square of a pair's length). Peak memory is measured in a process of its own for each size. Texts with
more tokens than the model has positions are read in windows (`long_documents="max"`).

    python benchmarks/cost_growth.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import harness
import material
import numpy as np

from crossrank.models.cross_encoder import CrossEncoder
from crossrank.models.hub import resolve
from crossrank.runtime.checkpoint import Checkpoint
from crossrank.runtime.tokenization import Tokenizer

CANDIDATES = (10, 30, 100, 300, 1_000, 3_000, 10_000)
TOKENS = (32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
CALLERS = (1, 2, 4, 8)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


def series(sizes: Sequence[int], call: Callable[[int], Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Median seconds of each size, and the exponent."""
    medians = []
    for size in sizes:
        harness.say(f"{size:,}")
        run = call(size)
        run()
        medians.append(harness.interleave({"it": run}, rounds)["it"].median_s)
    return {
        "sizes": list(sizes),
        "median_s": [round(median, 4) for median in medians],
        "exponent": exponent(sizes, medians),
    }


def documents(count: int) -> list[str]:
    """Passages of the lengths that MS MARCO's have; they repeat after the first thousand."""
    few = material.texts(material.lengths("marco", min(count, 1_000)).tolist(), _tokenizer())
    return list(itertools.islice(itertools.cycle(few), count))


def long_documents(num_tokens: int, count: int) -> list[str]:
    """Texts of about this many tokens."""
    words = " ".join(material.articles()).split()
    size = max(1, int(num_tokens / 1.3))  # a word of the sample is 1.3 tokens
    return [" ".join(words[start : start + size]) for start in range(0, count * 50, 50)]


def callers(model: CrossEncoder, pairs: list[tuple[str, str]], count: int) -> None:
    """The same call from several threads at once."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(model.score, [pairs] * count))


def peak(count: int, num_tokens: int, threads: int) -> float | None:
    """Peak MB of a process that scores these."""
    command = [sys.executable, __file__, "--peak", str(count), str(num_tokens), "--threads", str(threads)]
    found: float | None = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def measure_peak(count: int, num_tokens: int, threads: int) -> None:
    """Score, and print the peak; runs in the process of its own."""
    from crossrank.benchmarking.worker import peak_mb

    texts = documents(count) if num_tokens == 0 else long_documents(num_tokens, count)
    model = CrossEncoder(threads=threads, progress=False, long_documents="max")
    model.score([("what is it about", text) for text in texts])
    print(json.dumps(peak_mb()))


def plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, kind, label in zip(
        panels,
        ("candidates", "tokens", "callers"),
        ("candidates", "tokens of a document", "callers"),
        strict=True,
    ):
        for name, found in result[kind].items():
            panel.loglog(
                found["sizes"],
                found["median_s"],
                marker="o",
                label=f"{name}: exponent {found['exponent']:.2f}",
            )
        panel.set(xlabel=label, ylabel="seconds")
        panel.legend()
    figure.savefig(path)


def run(args: argparse.Namespace) -> dict[str, Any]:
    question = material.queries(1)[0]
    result: dict[str, Any] = {
        "benchmark": "cost_growth",
        "machine": harness.machine("crossrank", "onnxruntime"),
        "load_average_before": harness.load_average(),
        "settings": {"rounds": args.rounds, "documents_of_tokens": args.documents},
        "candidates": {},
        "tokens": {},
        "callers": {},
        "peak_mb": {},
    }
    for threads in args.thread_counts:
        name = f"{threads} thread{'s' * (threads > 1)}"
        model = CrossEncoder(threads=threads, progress=False, long_documents="max")

        def pairs_of(texts: list[str]) -> list[tuple[str, str]]:
            return [(question, text) for text in texts]

        def scoring(texts: list[str], model: CrossEncoder = model) -> Callable[[], object]:
            return partial(model.score, pairs_of(texts))

        result["candidates"][name] = series(
            args.candidates, lambda size, scoring=scoring: scoring(documents(size)), args.rounds
        )
        result["tokens"][name] = series(
            args.tokens,
            lambda size, scoring=scoring: scoring(long_documents(size, args.documents)),
            args.rounds,
        )
        result["callers"][name] = series(
            args.callers,
            lambda size, model=model: partial(callers, model, pairs_of(documents(50)), size),
            args.rounds,
        )
    result["peak_mb"] = {
        "candidates": {str(size): peak(size, 0, args.threads) for size in args.candidates},
        "tokens": {str(size): peak(args.documents, size, args.threads) for size in args.tokens},
    }
    if args.most:
        result["peak_mb"]["a document of 1 MB"] = peak(1, 210_000, args.threads)
        result["peak_mb"]["100,000 candidates"] = peak(100_000, 0, args.threads)
    return result


def _tokenizer() -> Tokenizer:
    return Tokenizer(Checkpoint.open(resolve(None, kind="cross-encoder")))


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--candidates", type=harness.at_least_one, nargs="+", default=CANDIDATES)
    parser.add_argument("--tokens", type=harness.at_least_one, nargs="+", default=TOKENS)
    parser.add_argument("--callers", type=harness.at_least_one, nargs="+", default=CALLERS)
    parser.add_argument("--thread-counts", type=harness.at_least_one, nargs="+", default=(1, 2))
    parser.add_argument("--documents", type=harness.at_least_one, default=8, help="of each number of tokens")
    parser.add_argument("--rounds", type=harness.at_least_one, default=3)
    parser.add_argument(
        "--most",
        action="store_true",
        help="also the peaks of a document of 1 MB and of 100,000 candidates: long",
    )
    parser.add_argument("--peak", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        harness.limit_threads(args.threads)
        measure_peak(*args.peak, args.threads)
        return
    harness.limit_threads(max(args.thread_counts))
    result = run(args)
    harness.say("")
    for kind in ("candidates", "tokens", "callers"):
        rows = [
            {
                kind: name,
                **{
                    f"{size:,}": f"{s:.2f} s"
                    for size, s in zip(found["sizes"], found["median_s"], strict=True)
                },
                "exponent": f"{found['exponent']:.2f}",
            }
            for name, found in result[kind].items()
        ]
        harness.table(kind, rows)
    print("peak MB:", json.dumps(result["peak_mb"]))
    harness.print_machine(result)
    harness.write("cost_growth", result, args.output)
    plot(result, (args.output or harness.RESULTS / "cost_growth.json").with_suffix(".svg"))


if __name__ == "__main__":
    main()
