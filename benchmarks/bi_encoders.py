r"""Bi-encoders beside one another: exact search by cosine on judged collections, and likeness of sentences.

The first model is what the others are compared with: the difference of nDCG@10 with its 95 % bootstrap
interval, and the p-value of Fisher's randomisation test. A collection that has the run `--run` is not
searched: its lists are put in order, by `--qrels` where given. `--pairs` takes labelled pairs of sentences,
as `crossrank evaluate-pairs` does, whose Spearman correlation with the cosine is told.

    python benchmarks/bi_encoders.py ../shared/data/{msmarco_dl19,scifact,cranfield} --models MINILM \
        crossrank-embed --run bm25.top100 --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt \
        --pairs ../shared/data/stsb/test.jsonl.gz --page docs/models.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import harness
import numpy as np
import numpy.typing as npt

from crossrank import BiEncoder, Collection, Dense, Searcher, evaluate
from crossrank.evaluation.measures import Evaluation
from crossrank.evaluation.pairs import pair_values, read_labelled_pairs, spearman
from crossrank.evaluation.significance import compare
from crossrank.evaluation.trec import read_qrels

PACKAGES = ("crossrank", "numpy", "onnxruntime", "tokenizers")
MEASURE = "nDCG@10"


def searched(folder: Path, model: BiEncoder, args: argparse.Namespace) -> Evaluation:
    """How well a model finds what a collection's queries ask for."""
    collection = Collection.open(folder)
    if args.run is None or args.run not in collection.runs:
        queries = collection.queries(args.split)
        run = Searcher(Dense(list(collection.documents()), model)).search_many(queries, top_k=args.depth)
        return evaluate(run, collection.qrels(args.split), [MEASURE])
    qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
    given = {query_id: ranking for query_id, ranking in collection.run(args.run).items() if query_id in qrels}
    wanted = {hit.document_id for ranking in given.values() for hit in ranking}
    documents = [document for document in collection.documents() if document.id in wanted]
    vectors = dict(zip((each.id for each in documents), model.encode_documents(documents), strict=True))
    texts = collection.queries()
    found = {}
    for query_id, ranking in given.items():
        query = model.encode_queries([texts[query_id]])[0]
        found[query_id] = {hit.document_id: float(vectors[hit.document_id] @ query) for hit in ranking}
    return evaluate(found, qrels, [MEASURE])


def _gains(found: Evaluation, other: Evaluation) -> npt.NDArray[np.float64]:
    """What each query gains."""
    return np.array(
        [values[MEASURE] - other.per_query[query_id][MEASURE] for query_id, values in found.per_query.items()]
    )


def mean_gain(gains: Sequence[npt.NDArray[np.float64]], resamples: int = 10_000) -> dict[str, float]:
    """The mean of collections' mean gains: its bootstrap interval, over queries within collections, and p.

    The collections are taken as they are; p is that of Fisher's randomisation test of all queries' signs.
    """
    draws = np.random.default_rng(0)
    means, chance = np.zeros(resamples), np.zeros(resamples)
    for column in gains:
        for row in range(resamples):
            means[row] += draws.choice(column, len(column)).mean() / len(gains)
            chance[row] += (column * draws.choice((-1.0, 1.0), len(column))).mean() / len(gains)
    value = float(np.mean([column.mean() for column in gains]))
    low, high = np.quantile(means, (0.025, 0.975))
    as_far = int((np.abs(chance) >= abs(value)).sum())
    return {"value": value, "low": float(low), "high": float(high), "p": (as_far + 1) / (resamples + 1)}


def as_markdown(result: Mapping[str, Any]) -> str:
    """A table of a row a collection, and one of their mean."""
    first, *others = result["models"]
    columns = ["", first["name"]]
    for model in others:
        columns += [f"{model['name']}, {model['precision']}", "difference, 95 % interval", "p"]
    rows = []
    for name in first["collections"]:
        cells = [f"{name}, {MEASURE}", f"{first['collections'][name][MEASURE]:.4f}"]
        for model in others:
            found = model["collections"][name]
            gain = found["difference"]
            cells += [
                f"{found[MEASURE]:.4f}",
                f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})",
                f"{found['p']:.4f}",
            ]
        rows.append(cells)
    for name, key in [("mean of these", "mean"), *((f"{name}, Spearman", name) for name in first["pairs"])]:
        values = [model["mean"] if key == "mean" else model["pairs"][key] for model in result["models"]]
        cells = [name, f"{values[0]:.4f}"]
        for value, model in zip(values[1:], others, strict=True):
            cells += [f"{value:.4f}", f"{value - values[0]:+.4f}", ""]
            if key == "mean":
                gain = model["gain"]
                cells[-2:] = [f"{cells[-2]} ({gain['low']:+.4f} to {gain['high']:+.4f})", f"{gain['p']:.4f}"]
        rows.append(cells)
    told = f"By `benchmarks/bi_encoders.py`, {harness.machine_line(result)}."
    return "\n".join([told, "", *harness.markdown_table(columns, rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    parser.add_argument("--models", nargs="+", required=True, help="NAME, FOLDER, or NAME=FOLDER")
    parser.add_argument("--pairs", type=Path, nargs="*", default=[], help="files of labelled pairs")
    parser.add_argument("--split", default="test")
    parser.add_argument("--depth", type=harness.at_least_one, default=20, help="hits that are judged")
    parser.add_argument("--run", help="order this run of collections that come with it")
    parser.add_argument("--qrels", type=Path, help="judgements for those, in place of the split's")
    parser.add_argument("--threads", type=harness.at_least_one, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; default: benchmarks/results/bi_encoders.json")
    harness.page_option(parser)
    args = parser.parse_args()
    named = harness.named(args.collections)
    for folder in args.collections:
        Collection.open(folder).qrels(args.split)  # what cannot be read is said now
    result: dict[str, Any] = {
        "benchmark": "bi_encoders",
        "machine": harness.machine(*PACKAGES),
        "models": [],
    }
    baseline: dict[str, Evaluation] = {}
    for spec in args.models:
        name, _, folder = spec.rpartition("=")
        model = BiEncoder(folder, threads=args.threads)
        row: dict[str, Any] = {"name": name or model.name, "precision": model.precision, "collections": {}}
        gains = []
        for place, path in named.items():
            found = searched(path, model, args)
            row["collections"][place] = dict(found.means)
            if result["models"]:
                comparison = compare(found, baseline[place], MEASURE)
                row["collections"][place] |= {
                    "difference": asdict(comparison.difference),
                    "p": comparison.p_value,
                }
                gains.append(_gains(found, baseline[place]))
            else:
                baseline[place] = found
            harness.say(f"{row['name']}: {place} {found.means[MEASURE]:.4f}")
        row["mean"] = float(np.mean([each[MEASURE] for each in row["collections"].values()]))
        row["gain"] = mean_gain(gains) if gains else None
        row["pairs"] = {}
        for path in args.pairs:
            pairs = list(read_labelled_pairs(path))
            labels = [float(pair.label) for pair in pairs]
            row["pairs"][path.parent.name] = spearman(pair_values(model, pairs), labels)
        harness.say(f"{row['name']}: mean {row['mean']:.4f}, {row['pairs']}")
        result["models"].append(row)
        harness.write("bi_encoders", result, args.output)  # what is known when it is interrupted
    harness.publish("bi_encoders", result, as_markdown(result), args)


if __name__ == "__main__":
    main()
