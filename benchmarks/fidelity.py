"""What int8 does to a ranking: the difference of nDCG@10 from float32, with its interval, tau and overlap.

Candidates are BM25's, or those of the run `--run` where a collection has it (`runs/NAME.trec`), judged by
--qrels if given. The difference is proven small where its whole 95 % bootstrap interval lies within 0.003 on
either side of 0: that is more than a difference that was not significant. Few queries give wide intervals,
whatever the model.

    python benchmarks/fidelity.py ../shared/data/{msmarco_dl19,scifact,cranfield} --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --page docs/performance.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt

from crossrank import Collection, CrossEncoder
from crossrank.benchmarking.fidelity import TOLERANCE, Judged, read_judged


def measured(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What `Judged.difference` says of int8."""
    run, qrels = (args.run, args.qrels) if args.run in Collection.open(folder).runs else (None, None)
    judged = read_judged(folder, depth=args.depth, split=args.split, run=run, qrels=qrels)
    float32, int8 = (_scores(judged, precision, args) for precision in ("float32", "int8"))
    return {"name": judged.name, "run": run, **judged.difference(float32, int8)}


def _scores(judged: Judged, precision: str, args: argparse.Namespace) -> list[npt.NDArray[np.float32]]:
    harness.say(f"{judged.name}: {precision}")
    model = CrossEncoder(
        args.reranker, precision=precision, long_query="truncate", threads=args.threads, progress=False
    )
    return judged.scored(model.score)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--run", help="rerank this run of the collections that have it")
    parser.add_argument("--qrels", type=Path, help="judgements of those, in place of the split's")
    parser.add_argument("--depth", type=harness.at_least_one, default=50, help="candidates a query")
    parser.add_argument(
        "--reranker", default="crossrank-mini", help="a cross-encoder's folder or name (default: %(default)s)"
    )
    parser.add_argument("--threads", type=harness.at_least_one, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; default: a file in benchmarks/results")
    harness.page_option(parser)
    args = parser.parse_args()
    harness.limit_threads(args.threads)
    found = [measured(folder, args) for folder in args.collections]
    result = {
        "benchmark": "fidelity",
        "machine": harness.machine("crossrank", "onnxruntime", "tokenizers"),
        "settings": {
            "reranker": Path(args.reranker).name,
            "depth": args.depth,
        },
        "collections": {each.pop("name"): each for each in found},
    }
    harness.publish("fidelity", result, table(result), args)


def table(result: Mapping[str, Any]) -> str:
    """The page's table, as Markdown."""
    lines = [
        f"{harness.machine_line(result)}. {result['settings']['reranker']}, "
        f"{result['settings']['depth']} candidates a query, nDCG@10.",
        "",
    ]
    columns = ["collection", "queries", "float32", "int8", "difference (95 %)", f"within ±{TOLERANCE}"]
    columns += ["Kendall's tau", "top 10 in common", "mean difference of scores, standard deviations"]
    rows = []
    for name, row in result["collections"].items():
        low, high = row["interval"]
        cells = [
            name,
            f"{row['queries']}",
            f"{row['float32']:.4f}",
            f"{row['other']:.4f}",
            f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})",
            "yes" if row["within"] else "no",
            "" if row["kendall_tau"] is None else f"{row['kendall_tau']:.3f}",  # lists of fewer than ten
            f"{row['top10_overlap']:.3f}",
            f"{row['mean_delta_in_std']:.4f}",
        ]
        rows.append(cells)
    return "\n".join([*lines, *harness.markdown_table(columns, rows)])


if __name__ == "__main__":
    main()
