"""`crossrank rerank` orders texts for a query; `crossrank score` scores pairs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from crossrank.cli.inputs import STDIN, RerankRequest, read_pairs, read_requests, read_texts
from crossrank.cli.loading import (
    DEFAULT_RERANKER,
    JsonOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    Precision,
    PrecisionOption,
    RerankerOption,
    RevisionOption,
    ThreadsOption,
    open_reranker,
)
from crossrank.cli.output import console, emit_json, emit_text, ranking_row, ranking_table
from crossrank.types import Ranking

__all__ = ["rerank", "score"]

Row = TypeVar("Row")

REQUESTS_AT_ONCE = 64
"""Requests whose pairs share batches."""
PAIRS_AT_ONCE = 4096

LabelOption = Annotated[str | None, typer.Option(help="Of a model with several labels: the one to rank by.")]


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Cut a stream into lists of at most `size` rows."""
    stream = iter(rows)
    while chunk := list(islice(stream, size)):
        yield chunk


def rerank(
    query: Annotated[str | None, typer.Argument(help="Leave it out to read JSON requests.")] = None,
    documents: Annotated[list[str] | None, typer.Argument(help="Texts; none: lines of --input.")] = None,
    *,
    input: Annotated[  # the option's name
        Path, typer.Option("--input", "-i", help="Read from this file instead of standard input.")
    ] = STDIN,
    reranker: RerankerOption = DEFAULT_RERANKER,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", min=1, help="How many to keep.")] = None,
    label: LabelOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    """Put the texts that answer a query best on top.

    Without a query, each line of input is a request: `{"query": ..., "documents": [...]}`.

    Example: `crossrank rerank "who wrote Hamlet" "A hamlet is a village." "Hamlet is by Shakespeare."`
    """
    requests: Iterable[RerankRequest]
    if query is None:
        if input == STDIN and sys.stdin.isatty():
            raise typer.BadParameter("give a query and documents, or requests on standard input")
        requests = read_requests(input)
    else:
        if not documents and input == STDIN and sys.stdin.isatty():
            raise typer.BadParameter("give documents after the query, or lines on standard input")
        requests = [RerankRequest(query, documents or list(read_texts(input)), None)]

    model = open_reranker(
        reranker,
        precision=precision,
        threads=threads,
        revision=revision,
        label=label,
        long_query=long_query,
        long_documents=long_documents,
    )
    for chunk in chunks(requests, REQUESTS_AT_ONCE):
        rankings = model.rank_many(
            [request.query for request in chunk], [request.documents for request in chunk], top_k
        )
        for request, ranking in zip(chunk, rankings, strict=True):
            _print(request, ranking, as_json=json)


def _print(request: RerankRequest, ranking: Ranking, *, as_json: bool) -> None:
    if as_json:
        emit_json(ranking_row(replace(ranking, query_id=request.query_id), request.documents))
        return
    out = console()
    out.print(ranking.query, style="bold", markup=False)
    out.print(ranking_table(ranking, request.documents))


def score(
    input: Annotated[  # the argument's name
        Path, typer.Argument(help="Pairs: TSV or JSON lines; '-' is standard input.")
    ] = STDIN,
    *,
    reranker: RerankerOption = DEFAULT_RERANKER,
    activate: Annotated[
        bool, typer.Option("--activate", help="Apply the model's activation instead of raw logits.")
    ] = False,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    json: JsonOption = False,
) -> None:
    r"""Score pairs of query and document, in the order they come.

    A line is `query<TAB>document`, `["query", "document"]` or `{"query": ..., "document": ...}`. Prints one
    score a line; several, with tabs between, for a model with several labels.

    Example: `printf 'who wrote Hamlet\tHamlet is by Shakespeare.\n' | crossrank score`
    """
    if input == STDIN and sys.stdin.isatty():
        raise typer.BadParameter("give a file of pairs, or pairs on standard input")
    model = open_reranker(
        reranker,
        precision=precision,
        threads=threads,
        revision=revision,
        long_query=long_query,
        long_documents=long_documents,
    )
    for pairs in chunks(read_pairs(input), PAIRS_AT_ONCE):
        values = model.score(pairs)
        if activate:
            values = model.activate(values)
        for pair, value in zip(pairs, values.tolist(), strict=True):
            if json:
                labelled = dict(zip(model.labels, value, strict=True)) if isinstance(value, list) else value
                emit_json({"query": pair.query, "document": pair.document, "score": labelled})
            else:
                columns = value if isinstance(value, list) else [value]
                emit_text("\t".join(f"{column:.6f}" for column in columns))
