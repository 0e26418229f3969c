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

from crossrank import BM25, Collection, CrossEncoder, Document, Ranking, Run, evaluate
from crossrank.evaluation.significance import compare
from crossrank.evaluation.trec import read_qrels
from crossrank.runtime import quantization
from crossrank.types import Qrels

MEASURE = "nDCG@10"
SMALL = 0.003
PRECISIONS = ("float32", "int8")


def candidates(
    collection: Collection, args: argparse.Namespace
) -> tuple[dict[str, str], list[list[Document]], Qrels]:
    """Judged queries, their candidates, and the judgements."""
    qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
    queries = {name: text for name, text in collection.queries().items() if name in qrels}
    documents = {document.id: document for document in collection.documents()}
    if args.run:
        given = collection.run(args.run)
        queries = {name: text for name, text in queries.items() if name in given}
        found = [
            [documents[hit.document_id] for hit in given[name][: args.depth] if hit.document_id in documents]
            for name in queries
        ]
        return queries, found, qrels
    rankings = BM25(list(documents.values())).retrieve(list(queries.values()), args.depth)
    return queries, [[documents[hit.document_id] for hit in ranking] for ranking in rankings], qrels


def measured(collection: Collection, args: argparse.Namespace) -> dict[str, Any]:
    queries, lists, qrels = candidates(collection, args)
    rankings: dict[str, list[Ranking]] = {}
    for precision in PRECISIONS:
        harness.say(f"{collection.name}: {precision}")
        model = CrossEncoder(
            args.reranker, precision=precision, long_query="truncate", threads=args.threads, progress=False
        )
        rankings[precision] = model.rank_many(list(queries.values()), lists)
    by_precision = {
        precision: evaluate(Run(dict(zip(queries, found, strict=True))), qrels, [MEASURE])
        for precision, found in rankings.items()
    }
    difference = compare(by_precision["int8"], by_precision["float32"], MEASURE)
    scores = {precision: [_in_order(ranking) for ranking in found] for precision, found in rankings.items()}
    parity = quantization.compare(scores["float32"], scores["int8"], shortest=10)
    interval = difference.difference
    return {
        "queries": len(queries),
        "pairs": parity.num_pairs,
        "float32": round(difference.other_mean.value, 5),
        "int8": round(difference.mean.value, 5),
        "difference": round(interval.value, 5),
        "interval": [round(interval.low, 5), round(interval.high, 5)],
        "within": max(-interval.low, interval.high) <= SMALL,
        "kendall_tau": parity.kendall_tau,
        "top10_overlap": round(_overlap(rankings["float32"], rankings["int8"]), 4),
        "mean_delta_in_std": round(parity.mean_delta / parity.reference_std, 5),
        "max_delta": parity.max_delta,
    }


def _in_order(ranking: Ranking) -> np.ndarray:
    """Scores by document id, whatever the order of the ranking."""
    return np.array([hit.score for hit in sorted(ranking, key=lambda hit: hit.document_id)], np.float32)


def _overlap(first: list[Ranking], second: list[Ranking]) -> float:
    shares = []
    for one, other in zip(first, second, strict=True):
        best = [{hit.document_id for hit in ranking[:10]} for ranking in (one, other)]
        if best[0]:
            shares.append(len(best[0] & best[1]) / len(best[0]))
    return float(np.mean(shares))


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
        collection = Collection.open(folder)
        result["collections"][collection.name] = measured(collection, args)
    harness.say("")
    rows = [
        {
            "collection": name,
            "queries": str(found["queries"]),
            "float32": f"{found['float32']:.4f}",
            "int8": f"{found['int8']:.4f}",
            "difference": f"{found['difference']:+.4f}",
            "95 %": "{:+.4f} to {:+.4f}".format(*found["interval"]),
            f"within ±{SMALL}": "yes" if found["within"] else "no",
            "tau": f"{found['kendall_tau']:.3f}",
            "top 10": f"{found['top10_overlap']:.3f}",
        }
        for name, found in result["collections"].items()
    ]
    harness.table(f"{MEASURE} of {args.depth} reranked candidates", rows)
    name = "_".join(["fidelity", *result["collections"]])
    harness.write(name, result, args.output)


if __name__ == "__main__":
    main()
