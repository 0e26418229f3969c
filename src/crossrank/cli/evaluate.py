"""`crossrank evaluate`: measures of a run file, or of an index on a judged collection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.loading import (
    JsonOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    Precision,
    PrecisionOption,
    ThreadsOption,
)
from crossrank.cli.output import console, emit_json, messages, table
from crossrank.cli.search import (
    DepthOption,
    IndexModelOption,
    RetrieverName,
    RetrieverOption,
    SearchRerankerOption,
    open_searcher,
)

if TYPE_CHECKING:
    from crossrank.evaluation.measures import Evaluation

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A TREC run file.")] = None,
    qrels: Annotated[Path | None, typer.Argument(help="Judgements, TREC or BEIR form.")] = None,
    *,
    index: Annotated[Path | None, typer.Option(help="Search this index instead of reading a run.")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="BEIR folder with the queries and judgements for --index.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of the collection.")] = "test",
    retriever: RetrieverOption = RetrieverName.auto,
    reranker: SearchRerankerOption = "none",
    depth: DepthOption = 100,
    model: IndexModelOption = None,
    measures: Annotated[
        str, typer.Option("--measures", "-m", help="Names with commas between.")
    ] = "nDCG@10,MRR@10,MAP,Recall@100",
    relevance_level: Annotated[int, typer.Option(min=1, help="The lowest grade that is relevant.")] = 1,
    per_query: Annotated[bool, typer.Option("--per-query", help="Show every query's values, too.")] = False,
    save_run: Annotated[Path | None, typer.Option("--run", help="Keep the run of --index here.")] = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a run with trec_eval's own code: a TREC run file against qrels, or an index on a collection.

    Judged queries that a run lacks count as 0.

    Example: `crossrank evaluate bm25.run qrels.tsv --measures nDCG@10,MRR@10`

    Example: `crossrank evaluate --index my-index --collection data/sample --retriever bm25`
    """
    from crossrank.evaluation.collections import Collection
    from crossrank.evaluation.measures import evaluate as measure
    from crossrank.evaluation.trec import read_qrels, read_run, write_run

    if index is None:
        if run is None or qrels is None or collection is not None:
            raise typer.BadParameter("give a RUN and QRELS, or --index and --collection")
        judgements, found = read_qrels(qrels), read_run(run)
    else:
        if collection is None or run is not None:
            raise typer.BadParameter("--index goes with --collection, and without RUN and QRELS")
        judged = Collection.open(collection)
        judgements = judged.qrels(split)
        asked = judged.queries(split)
        with open_searcher(
            index,
            model=model,
            retriever=retriever,
            reranker=reranker,
            depth=depth,
            long_query=long_query,
            long_documents=long_documents,
            precision=precision,
            threads=threads,
        ) as searcher:
            found = searcher.search_many(asked, top_k=depth)
        if save_run is not None:
            write_run(found, save_run)
    names = [name.strip() for name in measures.split(",") if name.strip()]
    _print(
        measure(found, judgements, names, relevance_level=relevance_level), per_query=per_query, as_json=json
    )


def _print(evaluation: Evaluation, *, per_query: bool, as_json: bool) -> None:
    if as_json:
        document = {
            "measures": dict(evaluation.means),
            "num_queries": evaluation.num_queries,
            "relevance_level": evaluation.relevance_level,
            "missing_queries": list(evaluation.missing_queries),
            "unjudged_queries": list(evaluation.unjudged_queries),
        }
        if per_query:
            document["per_query"] = {query: dict(values) for query, values in evaluation.per_query.items()}
        emit_json(document)
        return
    shown = table("query", *evaluation.means, numeric=list(evaluation.means))
    if per_query:
        for query_id, values in evaluation.per_query.items():
            shown.add_row(query_id, *(f"{value:.4f}" for value in values.values()))
    shown.add_row("all", *(f"{value:.4f}" for value in evaluation.means.values()), style="bold")
    console().print(shown)
    notes = messages()
    notes.print(f"{evaluation.num_queries} judged queries", style="dim")
    if evaluation.missing_queries:
        notes.print(
            f"{len(evaluation.missing_queries)} of them are not in the run and count as 0", style="yellow"
        )
    if evaluation.unjudged_queries:
        notes.print(f"{len(evaluation.unjudged_queries)} queries of the run are not judged and do not count")
