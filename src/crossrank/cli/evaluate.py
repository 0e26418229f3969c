"""`crossrank evaluate`: measures of a run file, or of an index on a judged collection."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossrank.cli.inputs import STDIN, as_file
from crossrank.cli.loading import (
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    MarginOption,
    Precision,
    ThenOption,
    ThreadsOption,
    Where,
)
from crossrank.cli.output import console, emit_json, messages, print_notes, table
from crossrank.cli.search import (
    NO_RERANKER,
    BudgetOption,
    DepthOption,
    FilterOption,
    Fuse,
    FuseOption,
    IndexModelOption,
    IndexRevisionOption,
    RerankerPrecisionOption,
    RerankerRevisionOption,
    RetrieverName,
    RetrieverOption,
    SearchLongQueryOption,
    SearchRerankerOption,
    check_queries,
    open_searcher,
    refuse_idle_options,
)
from crossrank.cli.usage import refuse

if TYPE_CHECKING:
    from rich.table import Table

    from crossrank.evaluation.measures import Evaluation
    from crossrank.evaluation.significance import Comparison, Interval
    from crossrank.types import Run

__all__ = ["evaluate"]

LEAST_HITS = 100

SEARCH_OPTIONS = (
    *(
        "split",
        "retriever",
        "reranker",
        "then",
        "margin",
        "depth",
        "top_k",
        "fuse",
        "filter",
        "budget_ms",
        "model",
        "model_revision",
    ),
    *(
        "revision",
        "label",
        "save_run",
        "long_query",
        "long_documents",
        "precision",
        "threads",
        "backend",
        "device",
    ),
)
"""What only `--index` uses."""


def evaluate(
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Argument(help="A TREC run file; '-' is standard input.")] = None,
    qrels: Annotated[Path | None, typer.Argument(help="Judgements, TREC or BEIR form.")] = None,
    *,
    index: Annotated[Path | None, typer.Option(help="Search this index instead of reading a run.")] = None,
    collection: Annotated[
        Path | None, typer.Option(help="BEIR folder with the queries and judgements for --index.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which judgements of the collection.")] = "test",
    retriever: RetrieverOption = RetrieverName.auto,
    reranker: SearchRerankerOption = NO_RERANKER,
    then: ThenOption = None,
    margin: MarginOption = None,
    depth: DepthOption = 100,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            "-k",
            min=1,
            help="Hits a query; default the most of 100, --depth and the deepest cutoff.",
        ),
    ] = None,
    fuse: FuseOption = Fuse.none,
    filter: FilterOption = None,  # the option's name
    budget_ms: BudgetOption = None,
    model: IndexModelOption = None,
    model_revision: IndexRevisionOption = None,
    revision: RerankerRevisionOption = None,
    label: LabelOption = None,
    measures: Annotated[
        str, typer.Option("--measures", help="Names with commas between.")
    ] = "nDCG@10,MRR@10,MAP,Recall@100",
    relevance_level: Annotated[int, typer.Option(min=1, help="The lowest grade that is relevant.")] = 1,
    per_query: Annotated[bool, typer.Option("--per-query", help="Show every query's values, too.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="Compare with this run file: differences, p-values.")
    ] = None,
    interval: Annotated[bool, typer.Option("--interval", help="Show 95 % intervals of the means.")] = False,
    save_run: Annotated[Path | None, typer.Option("--run", help="Keep the run of --index here.")] = None,
    long_query: SearchLongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: RerankerPrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a run with trec_eval's own code: a TREC run file against qrels, or an index on a collection.

    Means are over all judged queries: judged queries that a run lacks count as 0.

    Example: `crossrank evaluate bm25.run qrels.tsv --measures nDCG@10,MRR@10`

    Example: `crossrank evaluate hybrid.run qrels.tsv --against bm25.run`

    Example: `crossrank evaluate --index my-index --collection data/sample --retriever bm25`
    """
    from crossrank.evaluation.collections import Collection
    from crossrank.evaluation.measures import evaluate as measure
    from crossrank.evaluation.measures import parse_measure
    from crossrank.evaluation.trec import read_qrels, read_run, write_run

    wanted = [parse_measure(name.strip()) for name in measures.split(",") if name.strip()]
    if not wanted:
        raise typer.BadParameter("--measures names none")
    deepest = max(measure.cutoff or 1 for measure in wanted)
    if top_k is not None and top_k < deepest:
        raise typer.BadParameter(
            f"--top-k {top_k} is less than {deepest}, the deepest cutoff of the measures"
        )
    if against is not None:
        refuse(ctx, "interval", because="--against shows intervals")
    other: Run | None = None
    if index is None:
        if run is None or qrels is None or collection is not None:
            raise typer.BadParameter("give a RUN and QRELS, or --index and --collection")
        if [run, qrels, against].count(STDIN) > 1:
            raise typer.BadParameter("only one of RUN, QRELS and --against can be standard input")
        refuse(ctx, *SEARCH_OPTIONS, because="a run is measured as it is; --index searches")
        with ExitStack() as files:
            judgements = read_qrels(files.enter_context(as_file(qrels)))
            found = read_run(files.enter_context(as_file(run)))
            if against is not None:
                other = read_run(files.enter_context(as_file(against)))
    else:
        if collection is None or run is not None:
            raise typer.BadParameter("--index goes with --collection, and without RUN and QRELS")
        if save_run == STDIN:
            raise typer.BadParameter("--run - would mix the run with the measures; name a file")
        refuse_idle_options(ctx, retriever=retriever, reranker=reranker)
        if reranker == NO_RERANKER:
            refuse(ctx, "depth", because="there is no reranker (--reranker)")
        if against is not None:
            with as_file(against) as file:
                other = read_run(file)
        judged = Collection.open(collection)
        judgements = judged.qrels(split)
        asked = judged.queries(split)
        with open_searcher(
            index,
            model=model,
            model_revision=model_revision,
            retriever=retriever,
            reranker=reranker,
            revision=revision,
            label=label,
            depth=depth,
            fuse=fuse,
            filter=filter,
            then=then,
            margin=margin,
            long_query=long_query,
            long_documents=long_documents,
            precision=precision,
            threads=threads,
            where=Where(backend, device),
        ) as searcher:
            check_queries(
                searcher, {f"{judged.queries_path}: query {name!r}": text for name, text in asked.items()}
            )
            found = searcher.search_many(
                asked,
                top_k=top_k or max(LEAST_HITS, depth, deepest),
                filter=filter,
                budget_ms=budget_ms,
            )
        if not json:
            print_notes(found.values())
        if save_run is not None:
            write_run(found, save_run)
    evaluation = measure(found, judgements, wanted, relevance_level=relevance_level)
    if other is None:
        _print(evaluation, interval=interval, per_query=per_query, as_json=json)
    else:
        compared_with = measure(other, judgements, wanted, relevance_level=relevance_level)
        _print_comparison(evaluation, compared_with, per_query=per_query, as_json=json)


def _print(evaluation: Evaluation, *, interval: bool, per_query: bool, as_json: bool) -> None:
    from crossrank.evaluation.significance import mean_interval

    intervals = {name: mean_interval(evaluation, name) for name in evaluation} if interval else {}
    if as_json:
        document = _document(evaluation, per_query=per_query)
        emit_json({**document, "intervals": intervals} if interval else document)
        return
    shown = table("query", *evaluation.means, numeric=list(evaluation.means))
    if per_query:
        for query_id, values in evaluation.per_query.items():
            shown.add_row(query_id, *(f"{value:.4f}" for value in values.values()))
    shown.add_row("all", *(f"{value:.4f}" for value in evaluation.means.values()), style="bold")
    if interval:
        shown.add_row("95 %", *map(_ends, intervals.values()))
    console().print(shown)
    _print_counts(evaluation)


def _print_comparison(evaluation: Evaluation, other: Evaluation, *, per_query: bool, as_json: bool) -> None:
    from crossrank.evaluation.significance import compare

    comparisons = {name: compare(evaluation, other, name) for name in evaluation}
    if as_json:
        document = _document(evaluation, per_query=per_query)
        document["against"] = _document(other, per_query=per_query)
        document["comparisons"] = comparisons
        emit_json(document)
        return
    if per_query:
        shown = table("query", *evaluation.means, numeric=list(evaluation.means))
        for query_id, values in evaluation.per_query.items():
            others = other.per_query[query_id]
            cells = (f"{value:.4f} ({value - others[name]:+.4f})" for name, value in values.items())
            shown.add_row(query_id, *cells)
        console().print(shown)
    console().print(_comparison_table(comparisons))
    _print_counts(evaluation)
    if other.missing_queries:
        messages().print(
            f"{len(other.missing_queries)} of them are not in the run of --against and count as 0",
            style="yellow",
        )


def _comparison_table(comparisons: Mapping[str, Comparison]) -> Table:
    columns = ("value", "95 %", "against", "difference", "95 %", "p", "wins/ties/losses")
    shown = table("measure", *columns, numeric=columns)
    for name, compared in comparisons.items():
        shown.add_row(
            name,
            f"{compared.mean.value:.4f}",
            _ends(compared.mean),
            f"{compared.other_mean.value:.4f}",
            f"{compared.difference.value:+.4f}",
            _ends(compared.difference, sign="+"),
            f"{compared.p_value:.4f}",
            f"{compared.wins}/{compared.ties}/{compared.losses}",
        )
    return shown


def _ends(interval: Interval, sign: str = "") -> str:
    return f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f}"


def _document(evaluation: Evaluation, *, per_query: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "measures": dict(evaluation.means),
        "num_queries": evaluation.num_queries,
        "relevance_level": evaluation.relevance_level,
        "missing_queries": list(evaluation.missing_queries),
        "unjudged_queries": list(evaluation.unjudged_queries),
    }
    if per_query:
        document["per_query"] = {query: dict(values) for query, values in evaluation.per_query.items()}
    return document


def _print_counts(evaluation: Evaluation) -> None:
    notes = messages()
    notes.print(f"{evaluation.num_queries} judged queries", style="dim")
    if evaluation.missing_queries:
        notes.print(
            f"{len(evaluation.missing_queries)} of them are not in the run and count as 0", style="yellow"
        )
    if evaluation.unjudged_queries:
        notes.print(f"{len(evaluation.unjudged_queries)} queries of the run are not judged and do not count")
