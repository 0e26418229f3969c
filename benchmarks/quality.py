"""nDCG@10 and MRR@10 of the four ways of searching, with the built-in models, on judged collections.

Collections are folders in BEIR form. One with `runs/NAME.trec` lists (as msmarco_dl19 has) can be reranked
from those instead: the figure then says what the reranker does to somebody else's candidates.

Every system that reranks is compared with the first stage it stands on: the difference of nDCG@10 with its
95 % bootstrap interval, and the p-value of Fisher's randomisation test.

    python benchmarks/quality.py ../shared/data/scifact ../shared/data/cranfield --depth 50
    python benchmarks/quality.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --depth 100
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from crossrank import (
    BM25,
    RRF,
    BiEncoder,
    Collection,
    CrossEncoder,
    Dense,
    Hybrid,
    Run,
    ScoreCache,
    Searcher,
    WeightedSum,
    evaluate,
)
from crossrank.evaluation.significance import compare
from crossrank.evaluation.trec import read_qrels
from crossrank.types import Qrels

MEASURES = ["nDCG@10", "MRR@10", "Recall@100"]


def searched(collection: Collection, args: argparse.Namespace) -> tuple[dict[str, Run], Qrels]:
    """Runs of the systems over a collection."""
    queries, qrels = collection.queries(args.split), collection.qrels(args.split)
    documents, depth = list(collection.documents()), args.depth
    bm25 = BM25(documents)
    dense = Dense(documents, BiEncoder(args.bi_encoder, precision=args.precision))
    hybrid = Hybrid([bm25, dense], RRF())
    # The candidates of the systems overlap: a pair is scored once.
    reranker = CrossEncoder(
        args.reranker, precision=args.precision, long_query="truncate", cache=ScoreCache()
    )
    systems = {
        "BM25": Searcher(bm25),
        "bi-encoder": Searcher(dense),
        "hybrid": Searcher(hybrid),
        f"BM25 + rerank {depth}": Searcher(bm25, reranker, depth=depth),
        f"hybrid + rerank {depth}": Searcher(hybrid, reranker, depth=depth),
        f"hybrid + rerank {depth}, fused": Searcher(
            hybrid,
            reranker,
            depth=depth,
            fuse=WeightedSum(normalisation="z-score", weights=(args.first_stage_weight, 1.0)),
        ),
    }
    return {name: searcher.search_many(queries, top_k=100) for name, searcher in systems.items()}, qrels


def reranked(collection: Collection, args: argparse.Namespace) -> tuple[dict[str, Run], Qrels]:
    """A run of the collection as it is and reranked."""
    name, depth = args.run, args.depth
    qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
    queries = collection.queries()
    documents = {document.id: document for document in collection.documents()}
    given = collection.run(name)
    judged = [query_id for query_id in given if query_id in qrels]
    reranker = CrossEncoder(args.reranker, precision=args.precision, long_query="truncate")
    rankings = reranker.rank_many(
        [queries[query_id] for query_id in judged],
        [[documents[hit.document_id] for hit in given[query_id][:depth]] for query_id in judged],
    )
    return {name: given, f"{name} + rerank {depth}": Run(dict(zip(judged, rankings, strict=True)))}, qrels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--depth", type=int, default=100, help="how many candidates are reranked")
    parser.add_argument("--run", help="rerank this run of the collection instead of searching it")
    parser.add_argument("--qrels", type=Path, help="judgements to use in place of the split's")
    parser.add_argument("--reranker", help="a cross-encoder's folder or name; the built-in one by default")
    parser.add_argument("--bi-encoder", help="a bi-encoder's folder or name; the built-in one by default")
    parser.add_argument(
        "--first-stage-weight", type=float, default=1.0, help="of the hybrid's score against the reranker's 1"
    )
    parser.add_argument("--precision", default="auto", choices=["auto", "int8", "float32"])
    parser.add_argument("--json", type=Path, help="also write the values here")
    args = parser.parse_args()
    record: dict[str, dict[str, dict[str, object]]] = {}
    for folder in args.collections:
        collection = Collection.open(folder)
        start = time.perf_counter()
        runs, qrels = (reranked if args.run else searched)(collection, args)
        print(f"\n{collection.name}: {time.perf_counter() - start:.0f} s", flush=True)
        record[collection.name] = {}
        evaluations = {name: evaluate(run, qrels, MEASURES) for name, run in runs.items()}
        for name, evaluation in evaluations.items():
            values: dict[str, object] = dict(evaluation.means)
            line = f"{name:34s}" + "  ".join(f"{m} {v:.4f}" for m, v in evaluation.means.items())
            first, _, second = name.partition(" + ")
            if second:
                found = compare(evaluation, evaluations[first], "nDCG@10")
                values["against the first stage"] = {
                    **asdict(found.difference),
                    "p": found.p_value,
                }
                gain = found.difference
                line += f"  {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), p {found.p_value:.4f}"
            record[collection.name][name] = values
            print(line, flush=True)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
