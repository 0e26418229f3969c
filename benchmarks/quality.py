"""nDCG@10 and MRR@10 of the four ways of searching, with the built-in models, on judged collections.

Collections are folders in BEIR form. One with `runs/NAME.trec` lists (as msmarco_dl19 has) can be reranked
from those instead: the figure then says what the reranker does to somebody else's candidates.

    python benchmarks/quality.py ../shared/data/scifact ../shared/data/cranfield --depth 50
    python benchmarks/quality.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --depth 100
"""

from __future__ import annotations

import argparse
import json
import time
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
from crossrank.evaluation.trec import read_qrels
from crossrank.types import Qrels

MEASURES = ["nDCG@10", "MRR@10", "Recall@100"]


def searched(collection: Collection, split: str, depth: int, precision: str) -> tuple[dict[str, Run], Qrels]:
    """Runs of the four systems over a collection."""
    queries, qrels = collection.queries(split), collection.qrels(split)
    documents = list(collection.documents())
    bm25, dense = BM25(documents), Dense(documents, BiEncoder(precision=precision))
    hybrid = Hybrid([bm25, dense], RRF())
    # The candidates of the systems overlap: a pair is scored once.
    reranker = CrossEncoder(precision=precision, long_query="truncate", cache=ScoreCache())
    systems = {
        "BM25": Searcher(bm25),
        "bi-encoder": Searcher(dense),
        "hybrid": Searcher(hybrid),
        f"BM25 + rerank {depth}": Searcher(bm25, reranker, depth=depth),
        f"hybrid + rerank {depth}": Searcher(hybrid, reranker, depth=depth),
        f"hybrid + rerank {depth}, fused": Searcher(
            hybrid, reranker, depth=depth, fuse=WeightedSum(normalisation="z-score")
        ),
    }
    return {name: searcher.search_many(queries, top_k=100) for name, searcher in systems.items()}, qrels


def reranked(
    collection: Collection, name: str, qrels: Qrels, depth: int, precision: str
) -> tuple[dict[str, Run], Qrels]:
    """A run of the collection as it is and reranked."""
    queries = collection.queries()
    documents = {document.id: document for document in collection.documents()}
    given = collection.run(name)
    judged = [query_id for query_id in given if query_id in qrels]
    reranker = CrossEncoder(precision=precision, long_query="truncate")
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
    parser.add_argument("--precision", default="auto", choices=["auto", "int8", "float32"])
    parser.add_argument("--json", type=Path, help="also write the values here")
    args = parser.parse_args()
    record = {}
    for folder in args.collections:
        collection = Collection.open(folder)
        start = time.perf_counter()
        if args.run:
            qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
            runs, qrels = reranked(collection, args.run, qrels, args.depth, args.precision)
        else:
            runs, qrels = searched(collection, args.split, args.depth, args.precision)
        print(f"\n{collection.name}: {time.perf_counter() - start:.0f} s", flush=True)
        record[collection.name] = {}
        for name, run in runs.items():
            values = evaluate(run, qrels, MEASURES).means
            record[collection.name][name] = values
            print(f"{name:34s}" + "  ".join(f"{m} {v:.4f}" for m, v in values.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
