"""What int8 does to a ranking: the difference of nDCG@10 from float32, with its interval, tau and overlap.

Candidates are BM25's, or those of a run that the collection has (`runs/NAME.trec`). The difference is proven
small where its whole 95 % bootstrap interval lies within 0.003 on either side of 0: that is more than a
difference that was not significant. Few queries give wide intervals, whatever the model.

    python benchmarks/fidelity.py ../shared/data/scifact ../shared/data/cranfield
    python benchmarks/fidelity.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt

from crossrank import CrossEncoder
from crossrank.benchmarking.fidelity import TOLERANCE, Judged, read_judged


def measured(judged: Judged, args: argparse.Namespace) -> dict[str, Any]:
    """What `Judged.difference` says of int8."""
    float32, int8 = (_scores(judged, precision, args) for precision in ("float32", "int8"))
    return judged.difference(float32, int8)


def _scores(judged: Judged, precision: str, args: argparse.Namespace) -> list[npt.NDArray[np.float32]]:
    harness.say(f"{judged.name}: {precision}")
    model = CrossEncoder(
        args.reranker, precision=precision, long_query="truncate", threads=args.threads, progress=False
    )
    pairs = judged.pairs()
    scores = model.score([pair for each in pairs for pair in each])
    return np.split(scores, np.cumsum([len(each) for each in pairs])[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--run", help="rerank this run of the collection in place of BM25's candidates")
    parser.add_argument("--qrels", type=Path, help="judgements to use in place of the split's")
    parser.add_argument("--depth", type=harness.at_least_one, default=50, help="candidates a query")
    parser.add_argument("--reranker", help="a cross-encoder's folder or name; the built-in one by default")
    parser.add_argument("--threads", type=harness.at_least_one)
    parser.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "benchmark": "fidelity",
        "machine": harness.machine("crossrank", "onnxruntime", "tokenizers"),
        "settings": {"reranker": args.reranker or "built-in", "depth": args.depth, "run": args.run},
        "collections": {},
    }
    for folder in args.collections:
        judged = read_judged(folder, depth=args.depth, split=args.split, run=args.run, qrels=args.qrels)
        result["collections"][judged.name] = measured(judged, args)
    harness.say("")
    rows = [
        {
            "collection": name,
            "queries": str(found["queries"]),
            "float32": f"{found['float32']:.4f}",
            "int8": f"{found['other']:.4f}",
            "difference": f"{found['difference']:+.4f}",
            "95 %": "{:+.4f} to {:+.4f}".format(*found["interval"]),
            f"within ±{TOLERANCE}": "yes" if found["within"] else "no",
            "tau": f"{found['kendall_tau']:.3f}",
            "top 10": f"{found['top10_overlap']:.3f}",
            "mean |Δ| in std": f"{found['mean_delta_in_std']:.4f}",
        }
        for name, found in result["collections"].items()
    ]
    harness.table(f"nDCG@10 of {args.depth} reranked candidates", rows)
    name = "_".join(["fidelity", *result["collections"]])
    harness.write(name, result, args.output)


if __name__ == "__main__":
    main()
