"""nDCG@10 and MRR@10 of the ways of searching, with the built-in models, on judged collections.

Collections are folders in BEIR form. One that has the run `--run` (as msmarco_dl19 has
`runs/bm25.top100.trec`) is not searched: its lists are reranked, whole, by `--qrels` where given, so that
figures can be compared with those that others publish for the same lists; there "bi-encoder" and "hybrid"
are orders of the same documents.

Every system that reranks is compared with the first stage it stands on: the difference of nDCG@10 with its
95 % bootstrap interval, and the p-value of Fisher's randomisation test. "Fused" adds the reranker's scores to
those of the first stage, both as z-scores of the list; "tuned" takes the weights that are best on four fifths
of the queries for the others.

    python benchmarks/quality.py ../shared/data/{msmarco_dl19,scifact,cranfield} --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt --page docs/models.md

With --output benchmarks/results/quality_tiny.json the page's section is "quality_tiny". `--beside
crossrank-mini` also compares the first reranker with that one, over the same candidates.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import harness

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
from crossrank.models.quantize import in_hash_order
from crossrank.retrieval.fusion import tune
from crossrank.types import Document, Qrels, Ranking

PACKAGES = ("crossrank", "numpy", "onnxruntime", "tokenizers")
MEASURE = "nDCG@10"
MEASURES = [MEASURE, "MRR@10"]
FOLDS = 5

Runs = Mapping[str, Ranking]
Systems = dict[str, tuple[Runs, str | None]]
"""Name -> its rankings, and the first stage it is compared with."""


class Found(NamedTuple):
    """What the ways of searching found in a collection.

    Attributes:
        queries: query id -> text.
        qrels: judgements.
        first: name of a first stage -> its rankings.
        second: (a reranker's name, a first stage's) -> the rankings of both.
        same_lists: whether a reranker's order is the same over all first stages.
    """

    queries: Mapping[str, str]
    qrels: Qrels
    first: dict[str, Runs]
    second: dict[tuple[str, str], Runs]
    same_lists: bool


def searched(collection: Collection, rerankers: list[CrossEncoder], args: Any) -> Found:
    """The collection's own queries, searched in its documents."""
    queries, qrels = collection.queries(args.split), collection.qrels(args.split)
    documents = list(collection.documents())
    bm25 = BM25(documents)
    dense = Dense(documents, BiEncoder(args.bi_encoder, precision=args.precision, threads=args.threads))
    hybrid = Hybrid([bm25, dense], RRF())
    first_stages = {"BM25": bm25, "bi-encoder": dense, "hybrid": hybrid}
    runs: dict[str, Runs] = {
        name: Searcher(stage).search_many(queries, top_k=args.depth) for name, stage in first_stages.items()
    }
    second: dict[tuple[str, str], Runs] = {
        (reranker.name, name): Searcher(stage, reranker, depth=args.depth).search_many(
            queries, top_k=args.depth
        )
        for reranker in rerankers
        for name, stage in first_stages.items()
    }
    return Found(queries, qrels, runs, second, same_lists=False)


def reranked(collection: Collection, rerankers: list[CrossEncoder], args: Any) -> Found:
    """A run that the collection comes with, reranked."""
    qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
    documents = {document.id: document for document in collection.documents()}
    given = {query_id: ranking for query_id, ranking in collection.run(args.run).items() if query_id in qrels}
    queries = {query_id: text for query_id, text in collection.queries().items() if query_id in given}
    lists: list[list[Document]] = [[documents[hit.document_id] for hit in given[q]] for q in queries]
    model = BiEncoder(args.bi_encoder, precision=args.precision, threads=args.threads)
    dense = {
        query_id: Dense(found, model).retrieve([queries[query_id]], top_k=len(found))[0]
        for query_id, found in zip(queries, lists, strict=True)
    }
    hybrid = {query_id: RRF()([given[query_id], dense[query_id]]) for query_id in queries}
    runs: dict[str, Runs] = {"BM25": Run(given), "bi-encoder": Run(dense), "hybrid": Run(hybrid)}
    second: dict[tuple[str, str], Runs] = {}
    for reranker in rerankers:
        rankings = reranker.rank_many(list(queries.values()), lists)
        run = Run(dict(zip(queries, rankings, strict=True)))
        second |= {(reranker.name, name): run for name in runs}
    return Found(queries, qrels, runs, second, same_lists=True)


def with_reranker(found: Found, reranker: str, first: str) -> Systems:
    """The reranked run by itself, fused with the first stage's, and with weights tuned on other queries."""
    name = f"{first} + {reranker}"
    given, run = found.first[first], found.second[reranker, first]
    even = WeightedSum(normalisation="z-score")
    fused = {query_id: even([given[query_id], run[query_id]]) for query_id in run}
    return {
        name: (run, first),
        f"{name}, fused": (fused, first),
        f"{name}, tuned": (dict(tuned(given, run, found.queries, found.qrels)), first),
    }


def tuned(given: Runs, run: Runs, queries: Mapping[str, str], qrels: Qrels) -> Iterator[tuple[str, Ranking]]:
    """Each query's fused ranking, with the weights that are best on the queries of the other folds."""
    order = in_hash_order({query_id: queries[query_id] for query_id in run})
    for fold in range(FOLDS):
        held_out = set(order[fold::FOLDS])
        others = {
            query_id: qrels[query_id] for query_id in order if query_id not in held_out and query_id in qrels
        }
        fusion = tune({"first": given, "then": run}, others, MEASURE, normalisation="z-score")
        for query_id in order[fold::FOLDS]:
            yield query_id, fusion([given[query_id], run[query_id]])


def measured(folder: Path, rerankers: list[CrossEncoder], args: Any) -> dict[str, Any]:
    """What all systems reach on a collection."""
    collection = Collection.open(folder)
    start = time.perf_counter()
    is_given = args.run is not None and args.run in collection.runs
    found = (reranked if is_given else searched)(collection, rerankers, args)
    systems: Systems = {name: (run, None) for name, run in found.first.items()}
    for reranker in rerankers[:-1] if args.beside else rerankers:
        for first in found.first:
            systems |= with_reranker(found, reranker.name, first)
    values = {name: evaluate(run, found.qrels, MEASURES) for name, (run, _) in systems.items()}
    records: dict[str, Any] = {}
    for name, (_, first) in systems.items():
        records[name] = dict(values[name].means)
        if first is not None:
            comparison = compare(values[name], values[first], MEASURE)
            records[name] |= {
                "against": first,
                "difference": asdict(comparison.difference),
                "p": comparison.p_value,
            }
    beside: dict[str, Any] = {}
    if args.beside:
        for first in ["BM25"] if found.same_lists else found.first:
            other = evaluate(found.second[rerankers[-1].name, first], found.qrels, MEASURES)
            beside[first] = asdict(compare(values[f"{first} + {rerankers[0].name}"], other, MEASURE))
    num_queries = len(values["BM25"].per_query)
    harness.say(f"{collection.name}: {num_queries} queries, {time.perf_counter() - start:.0f} s")
    depth = max(len(ranking) for ranking in found.first["BM25"].values())
    return {"queries": num_queries, "depth": depth, "systems": records, "beside": beside}


def as_markdown(result: Mapping[str, Any]) -> str:
    """A table of a row a system and collection."""
    columns = ["collection", "system", MEASURE, "MRR@10", f"change of {MEASURE}, 95 % interval", "p"]
    rows = []
    for name, collection in result["collections"].items():
        shown = f"{name} ({collection['queries']} queries, depth {collection['depth']})"
        for system, values in collection["systems"].items():
            cells = [shown, system, f"{values[MEASURE]:.4f}", f"{values['MRR@10']:.4f}", "", ""]
            if "difference" in values:
                gain = values["difference"]
                cells[4:] = [
                    f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})",
                    f"{values['p']:.4f}",
                ]
            rows.append(cells)
            shown = ""
    told = f"By `benchmarks/quality.py`, {harness.machine_line(result)}."
    lines = [told, "", *harness.markdown_table(columns, rows, words=2)]
    if names := result["beside"]:
        columns = ["collection", "candidates of", *names, "difference, 95 % interval", "p"]
        rows = [
            [name, first, *_beside(found)]
            for name, collection in result["collections"].items()
            for first, found in collection["beside"].items()
        ]
        lines += ["", f"Beside one another, {MEASURE}:", "", *harness.markdown_table(columns, rows, words=2)]
    return "\n".join(lines)


def _beside(found: Mapping[str, Any]) -> list[str]:
    difference = found["difference"]
    return [
        f"{found['mean']['value']:.4f}",
        f"{found['other_mean']['value']:.4f}",
        f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})",
        f"{found['p_value']:.4f}",
    ]


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Draw what every system gains over its first stage, with its interval."""
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for collection, found in result["collections"].items():
        for name, row in found["systems"].items():
            if "difference" in row:
                series = panels.setdefault(f"over {row['against']}", {})
                series.setdefault(name.partition(" + ")[2], {})[collection] = row["difference"]
    harness.plot_gains(panels, path, label=f"change of {MEASURE}, 95 % interval")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--split", default="test")
    parser.add_argument("--depth", type=int, default=20, help="how many candidates are reranked")
    parser.add_argument("--run", help="rerank this run, whole, of collections that come with it")
    parser.add_argument("--qrels", type=Path, help="judgements for those, in place of the split's")
    parser.add_argument("--reranker", nargs="+", default=["crossrank-mini"], help="folders or names")
    parser.add_argument("--beside", help="a reranker that the first one is compared with, too")
    parser.add_argument("--bi-encoder", help="a bi-encoder's folder or name; the built-in one by default")
    parser.add_argument("--precision", default="auto", choices=["auto", "int8", "float32"])
    parser.add_argument("--threads", type=harness.at_least_one, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/quality.json")
    harness.page_option(parser)
    args = parser.parse_args()
    rerankers = [
        # The candidates of the first stages overlap: a pair is scored once.
        CrossEncoder(
            name, precision=args.precision, threads=args.threads, long_query="truncate", cache=ScoreCache()
        )
        for name in [*args.reranker, *([args.beside] if args.beside else [])]
    ]
    result: dict[str, Any] = {
        "benchmark": "quality",
        "machine": harness.machine(*PACKAGES),
        "precision": args.precision,
        "beside": [rerankers[0].name, rerankers[-1].name] if args.beside else [],
        "collections": {},
    }
    for folder in args.collections:
        Collection.open(folder).qrels(args.split)  # what cannot be read is said now
    for name, folder in harness.named(args.collections).items():
        result["collections"][name] = measured(folder, rerankers, args)
        harness.write("quality", result, args.output)  # what is known when it is interrupted
    section = args.output.stem if args.output else None
    harness.publish("quality", result, as_markdown(result), args, section=section, plot=plot)


if __name__ == "__main__":
    main()
