"""Peak memory while reranking few and many documents: it must not grow with their number.

Each measurement is a process of its own, which reranks the documents of one query with one call. The
documents, the tokens of a block of them and the ranking are in the figure. Needs crossrank alone.

    python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness

ALLOWED_MB = 150
PACKAGES = ("crossrank", "onnxruntime", "tokenizers", "numpy")


def measure(folder: Path, precision: str, threads: int, file: Path) -> dict[str, float]:
    """Rerank once in this process."""
    from crossrank.benchmarking.worker import peak_mb
    from crossrank.models.cross_encoder import CrossEncoder

    query, *documents = json.loads(file.read_text(encoding="utf-8"))
    model = CrossEncoder(folder, precision=precision, threads=threads, progress=False)  # type: ignore[arg-type]
    opened = peak_mb()
    start = time.perf_counter()
    ranking = model.rank(query, documents)
    seconds = time.perf_counter() - start
    most = peak_mb()
    assert len(ranking) == len(documents)
    if opened is None or most is None:
        sys.exit("peak memory is read from /proc, which this system lacks")
    return {"opened_mb": opened, "peak_mb": most, "seconds": round(seconds, 2)}


def run(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    import material

    from crossrank.runtime.checkpoint import Checkpoint
    from crossrank.runtime.tokenization import Tokenizer

    weights = material.folders(args.weights, "cross-encoder", scratch)
    tokenizer = Tokenizer(Checkpoint.open(weights.float32))
    documents = material.texts(material.lengths("marco", max(args.documents)).tolist(), tokenizer)
    figures: dict[str, Any] = {}
    for precision, folder in (("float32", weights.float32), ("int8", weights.int8)):
        for count in sorted(args.documents):
            harness.say(f"{precision}, {count:,} documents")
            file = scratch / f"{count}.json"
            file.write_text(json.dumps([material.queries(1)[0], *documents[:count]]), encoding="utf-8")
            command = [sys.executable, __file__, "--measure", str(folder), precision, str(file)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[f"{precision}, {count} documents"] = json.loads(done.stdout)
    few, many = min(args.documents), max(args.documents)
    return {
        "benchmark": "memory",
        "machine": harness.machine(*PACKAGES),
        "settings": {"documents": sorted(args.documents), "threads": args.threads, **weights.origin},
        "figures": figures,
        "growth_mb": {
            precision: round(
                figures[f"{precision}, {many} documents"]["peak_mb"]
                - figures[f"{precision}, {few} documents"]["peak_mb"],
                1,
            )
            for precision in ("float32", "int8")
        },
        "allowed_mb": ALLOWED_MB,
    }


def show(result: dict[str, Any]) -> None:
    rows = [
        {
            "": name,
            "MB when opened": f"{values['opened_mb']:,.0f}",
            "peak MB": f"{values['peak_mb']:,.0f}",
            "seconds": f"{values['seconds']:,.1f}",
        }
        for name, values in result["figures"].items()
    ]
    harness.table(f"Peak memory of reranking, {result['settings']['threads']} threads", rows)
    for precision, growth in result["growth_mb"].items():
        verdict = "flat" if growth <= result["allowed_mb"] else "NOT flat"
        print(f"{precision}: {growth:+.0f} MB from fewest to most documents, {verdict}")
    harness.print_machine(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--documents", type=harness.at_least_one, nargs="+", default=[100, 10_000])
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what the processes are started with
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    if args.measure:
        folder, precision, file = args.measure
        print(json.dumps(measure(Path(folder), precision, args.threads, Path(file))))
        return
    result = harness.carry_out(run, args)
    show(result)
    harness.write("memory", result, args.output)


if __name__ == "__main__":
    main()
