"""Late interaction beside the bi-encoder and the cross-encoder: quality, latency, bytes a document.

Each reranks the same candidates: BM25's, or those of a run that the collection has. Token vectors come from
an index, in each of the forms it can keep them, or are made at query time. Latency is that of one query with
all its candidates, the encoding of the query included; the first few queries warm up. Quality needs no
quiet machine, latency does: --timed 0 leaves it out.

    python benchmarks/late_interaction.py ../shared/data/scifact ../shared/data/cranfield --depth 50
    python benchmarks/late_interaction.py ../shared/data/msmarco_dl19 --run bm25.top100 \
        --qrels ../shared/data/msmarco_dl19/qrels_full_official.txt

The section of a page (--page) is called as the file that --output names.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import (
    at_least_one,
    limit_threads,
    load_average,
    machine,
    machine_line,
    markdown_table,
    page_option,
    parser,
    publish,
    say,
)

Candidates = Mapping[str, tuple[str, list[Any]]]
"""Query id -> its text and its documents."""

SAMPLE_TEXTS = 400  # for the centroids of residuals
CROSS_ENCODER = "cross-encoder"


def candidate_options(made: argparse.ArgumentParser) -> None:
    """Give a parser the options that `candidates_of` reads."""
    made.add_argument("--split", default="test")
    made.add_argument("--depth", type=at_least_one, default=100, help="candidates of a query")
    made.add_argument("--queries", type=at_least_one, help="only the first so many judged queries")
    made.add_argument("--run", help="rerank this run of the collection, not BM25's candidates")
    made.add_argument("--qrels", type=Path, help="judgements to use in place of the split's")


def candidates_of(collection: Any, args: Any) -> tuple[Candidates, Any]:
    """The documents to rerank for each judged query, and the judgements."""
    from crossrank.evaluation.trec import read_qrels
    from crossrank.retrieval.bm25 import BM25

    qrels = read_qrels(args.qrels) if args.qrels else collection.qrels(args.split)
    documents = {document.id: document for document in collection.documents()}
    if args.run:
        queries, given = collection.queries(), collection.run(args.run)
        wanted = [query_id for query_id in given if query_id in qrels][: args.queries]
        found = [[hit.document_id for hit in given[query_id][: args.depth]] for query_id in wanted]
    else:
        queries = collection.queries(args.split)
        wanted = [query_id for query_id in queries if query_id in qrels][: args.queries]
        rankings = BM25(list(documents.values())).retrieve([queries[q] for q in wanted], args.depth)
        found = [list(ranking.document_ids) for ranking in rankings]
    rows = {q: (queries[q], [documents[i] for i in ids]) for q, ids in zip(wanted, found, strict=True)}
    return rows, {query_id: qrels[query_id] for query_id in rows}


class KeptVectors:
    """The bi-encoder over vectors made beforehand: what it costs at query time is the query."""

    def __init__(self, documents: Sequence[Any], threads: int) -> None:
        from crossrank.models.bi_encoder import BiEncoder

        self.model = BiEncoder(threads=threads)
        vectors = self.model.encode_documents(documents)
        self.vectors = dict(zip((document.id for document in documents), vectors, strict=True))

    def rank(self, query: str, documents: Sequence[Any]) -> Any:
        from crossrank.types import Hit, Ranking

        stacked = np.stack([self.vectors[document.id] for document in documents])
        scores = stacked @ self.model.encode_queries([query])[0]
        hits = [Hit(d.id, float(s), 1, "bi-encoder") for d, s in zip(documents, scores, strict=True)]
        return Ranking.from_hits(query, hits)


def remembering(model: Any, *, when_ranking: bool = False) -> None:
    """Have a model encode each document once, for the several indices it goes into.

    Args:
        model: a `LateInteraction`.
        when_ranking: its own rankings use what is remembered, too: the same scores, not the same time.
    """
    from crossrank.models.late_interaction import DocumentVectors
    from crossrank.models.maxsim import TokenVectors

    known: dict[str, tuple[npt.NDArray[np.float32], int]] = {}
    encode = model.encode_documents_with_cuts

    def encode_once(texts: Sequence[str]) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.int32]]:
        new = [text for text in texts if text not in known]
        if new:
            vectors, cut = encode(new)
            known.update(zip(new, zip(vectors, cut.tolist(), strict=True), strict=True))
        return [known[text][0] for text in texts], np.array([known[text][1] for text in texts], np.int32)

    def wanted_once(wanted: Sequence[Any], tracked: Any) -> Any:
        vectors, cut = encode_once([each.text for each in wanted])
        tracked.advance(len(wanted))
        return DocumentVectors(TokenVectors.of(vectors, model.dimensions), cut)

    model.encode_documents_with_cuts = encode_once
    if when_ranking:
        model.encode_wanted = wanted_once


def indices(model: Any, documents: Sequence[Any], forms: Sequence[str], folder: Path) -> dict[str, Any]:
    """One index for each form of token vectors."""
    from crossrank.models.token_codec import ResidualCodec
    from crossrank.store.lance import Index

    remembering(model)
    made = {}
    for form in forms:
        codec: Any = form
        if form.startswith("residual-"):
            sample = [document.full_text for document in documents[:: max(1, len(documents) // SAMPLE_TEXTS)]]
            vectors = np.concatenate(model.encode_documents_with_cuts(sample)[0])
            codec = ResidualCodec.train(vectors, bits=int(form.removeprefix("residual-").removesuffix("bit")))
        made[form] = Index.create(folder / form, late_interaction=model, token_codec=codec)
        made[form].add(documents)
    return made


def median_ms(rank: Callable[[str, Sequence[Any]], Any], rows: Candidates, timed: int) -> float:
    """The median time of one query, in milliseconds; the first three are not counted."""
    taken = []
    for number, (query, documents) in enumerate(list(rows.values())[: timed + 3]):
        start = time.perf_counter()
        rank(query, documents)
        if number >= 3:
            taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def measured(collection: Any, args: Any, scratch: Path) -> dict[str, dict[str, float | None]]:
    """Quality, latency and size of each way of reranking a collection's candidates."""
    from crossrank.evaluation.measures import evaluate
    from crossrank.models.cross_encoder import CrossEncoder
    from crossrank.models.late_interaction import LateInteraction
    from crossrank.store.late_reranker import StoredLateInteraction
    from crossrank.types import Run

    rows, qrels = candidates_of(collection, args)
    documents = list({d.id: d for _, each in rows.values() for d in each if d.full_text.strip()}.values())
    say(f"{collection.name}: encoding {len(documents)} documents")
    model = LateInteraction(
        args.weights, threads=args.threads, precision=args.precision, long_query="truncate"
    )
    bi_encoder = KeptVectors([d for _, each in rows.values() for d in each], args.threads)
    made = indices(model, documents, args.forms, scratch)
    systems: dict[str, tuple[Any, float | None]] = {
        "bi-encoder, vectors kept": (bi_encoder, 4.0 * bi_encoder.model.dimensions)
    }
    for form, index in made.items():
        size = index.info().token_bytes_per_document
        systems[f"late interaction, {form} kept"] = (StoredLateInteraction(index), size)
    systems["late interaction, documents encoded"] = (model, None)
    if CROSS_ENCODER not in args.without:
        systems[CROSS_ENCODER] = (CrossEncoder(threads=args.threads, long_query="truncate"), None)
    figures = {}
    for name, (reranker, num_bytes) in systems.items():
        say(f"{collection.name}: {name}")
        if reranker is model and not args.timed:
            continue  # its quality is that of the vectors kept, before they lose digits
        figures[name] = {"bytes_per_document": num_bytes}
        if reranker is not model:
            run = Run({q: reranker.rank(query, each) for q, (query, each) in rows.items()})
            figures[name] |= evaluate(run, qrels, ["nDCG@10", "MRR@10"]).means
        if args.timed:
            figures[name]["median_ms"] = median_ms(reranker.rank, rows, args.timed)
    return figures


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def as_markdown(result: Mapping[str, Any]) -> str:
    """A table of a row a way of reranking, for each collection."""
    depth, threads = result["depth"], result["threads"]
    lines = [f"By `benchmarks/late_interaction.py`, {threads} threads, {machine_line(result)}."]
    for name, figures in result["collections"].items():
        rows = [
            [
                system,
                shown(row.get("nDCG@10"), ".4f"),
                shown(row.get("MRR@10"), ".4f"),
                shown(row.get("median_ms"), ".1f"),
                shown(row["bytes_per_document"], ",.0f"),
            ]
            for system, row in figures.items()
        ]
        columns = [f"{name}, {depth} candidates", "nDCG@10", "MRR@10", "ms a query", "bytes a document"]
        lines += ["", *markdown_table(columns, rows)]
    return "\n".join(lines)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("collections", type=Path, nargs="+", help="folders in BEIR form")
    candidate_options(made)
    made.add_argument("--forms", nargs="+", default=["float16", "int8", "residual-2bit"])
    made.add_argument("--precision", default="auto", choices=["auto", "int8", "float32"])
    made.add_argument("--timed", type=int, default=20, help="queries that are timed; 0 for none")
    made.add_argument("--without", nargs="*", default=[], choices=[CROSS_ENCODER])
    page_option(made)
    args = made.parse_args()
    limit_threads(args.threads)
    from crossrank.evaluation.collections import Collection
    from crossrank.models.hub import DEFAULT_MODELS

    result: dict[str, Any] = {
        "depth": args.depth,
        "threads": args.threads,
        "model": args.weights.name if args.weights else DEFAULT_MODELS["late-interaction"],
    }
    result |= {"load_average_before": load_average(), "machine": machine("crossrank", "numpy", "onnxruntime")}
    result["collections"] = {}
    for folder in args.collections:
        collection = Collection.open(folder)
        with tempfile.TemporaryDirectory() as scratch:
            figures = measured(collection, args, Path(scratch))
        result["collections"][collection.name] = figures
    section = args.output.stem if args.output else None
    publish("late_interaction", result, as_markdown(result), args, section=section)


if __name__ == "__main__":
    main()
