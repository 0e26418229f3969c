"""Peak memory while reranking few and many documents, and mining negatives from small and large indexes.

Each measurement is a process of its own. Reranking is of the documents of one query with one call: the
documents, the tokens of a block of them and the ranking are in the figure. Mining is of BM25 and random
negatives for 100 queries, from an index that is made beforehand; needs the extra `search`.

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


def write_index(path: Path, count: int) -> None:
    """Make an index of the sample collection's texts, each several times with another number."""
    import material

    from crossrank.store.lance import Index
    from crossrank.types import Document

    texts = material.corpus()
    with Index.create(path) as index:
        index.add(
            (Document(str(row), f"{texts[row % len(texts)]} {row}") for row in range(count)), progress=False
        )
        index.optimize(grace_s=0)


def measure_mining(path: Path, count: int) -> dict[str, float]:
    """Mine once in this process."""
    import material

    from crossrank.benchmarking.worker import peak_mb
    from crossrank.retrieval.from_index import index_retriever
    from crossrank.store.lance import Index
    from crossrank.training.negatives import Source, mine

    queries = {str(row): text for row, text in enumerate(material.queries(100))}
    with Index.open(path) as index:
        opened = peak_mb()
        start = time.perf_counter()
        sources = [Source(index_retriever(index, "bm25"), 2), Source("random", 1)]
        mine(
            queries,
            {name: {name: 1} for name in queries},
            index,
            sources,
            path / "mined.jsonl",
            progress=False,
        )
        seconds = time.perf_counter() - start
        assert len(index) == count
    most = peak_mb()
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
    for count in sorted(args.indexed):
        harness.say(f"mining, {count:,} documents")
        for step in ("--index", "--mine"):
            command = [sys.executable, __file__, step, str(scratch / f"index-{count}"), str(count)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures[f"mining, {count} documents"] = json.loads(done.stdout)
    counts = {"float32": args.documents, "int8": args.documents, "mining": args.indexed}
    return {
        "benchmark": "memory",
        "machine": harness.machine(*PACKAGES),
        "settings": {
            "documents": sorted(args.documents),
            "indexed": sorted(args.indexed),
            "threads": args.threads,
            **weights.origin,
        },
        "figures": figures,
        "growth_mb": {
            name: round(
                figures[f"{name}, {max(each)} documents"]["peak_mb"]
                - figures[f"{name}, {min(each)} documents"]["peak_mb"],
                1,
            )
            for name, each in counts.items()
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
    harness.table(f"Peak memory of reranking and mining, {result['settings']['threads']} threads", rows)
    for name, growth in result["growth_mb"].items():
        verdict = "flat" if growth <= result["allowed_mb"] else "NOT flat"
        print(f"{name}: {growth:+.0f} MB from fewest to most documents, {verdict}")
    harness.print_machine(result)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--documents", type=harness.at_least_one, nargs="+", default=[100, 10_000])
    parser.add_argument("--indexed", type=harness.at_least_one, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--index", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--mine", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what the processes are started with
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    if args.measure:
        folder, precision, file = args.measure
        print(json.dumps(measure(Path(folder), precision, args.threads, Path(file))))
        return
    if args.index:
        write_index(Path(args.index[0]), int(args.index[1]))
        return
    if args.mine:
        print(json.dumps(measure_mining(Path(args.mine[0]), int(args.mine[1]))))
        return
    result = harness.carry_out(run, args)
    show(result)
    harness.write("memory", result, args.output)


if __name__ == "__main__":
    main()
