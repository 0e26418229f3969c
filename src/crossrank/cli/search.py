"""`crossrank search`: one query, a file of queries, or a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crossrank.cli.inputs import read_queries
from crossrank.cli.loading import (
    DEFAULT_RERANKER,
    JsonOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    LongQueryOption,
    Precision,
    PrecisionOption,
    ThreadsOption,
    open_index,
    open_reranker,
)
from crossrank.cli.output import (
    console,
    emit_json,
    emit_text,
    is_interactive,
    messages,
    ranking_row,
    ranking_table,
)
from crossrank.types import Ranking, Run

if TYPE_CHECKING:
    from crossrank.pipeline import Searcher

__all__ = [
    "DepthOption",
    "IndexModelOption",
    "RetrieverName",
    "RetrieverOption",
    "SearchRerankerOption",
    "open_searcher",
    "search",
]

NO_RERANKER = "none"


class RetrieverName(str, Enum):
    """The first stage."""

    auto = "auto"
    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"


RetrieverOption = Annotated[
    RetrieverName, typer.Option(help="First stage; auto is hybrid, or bm25 where the index has no vectors.")
]
SearchRerankerOption = Annotated[
    str,
    typer.Option(
        "--reranker", "-r", help=f"Second stage: a built-in model, a folder, a hub name, or {NO_RERANKER!r}."
    ),
]
DepthOption = Annotated[int, typer.Option("--depth", "-d", min=1, help="How many candidates are reranked.")]
IndexModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the index's bi-encoder is now, if it has moved.")
]


@contextmanager
def open_searcher(
    directory: Path,
    *,
    model: str | None,
    retriever: RetrieverName,
    reranker: str,
    depth: int,
    long_query: LongQuery,
    long_documents: LongDocuments,
    precision: Precision,
    threads: int | None,
) -> Iterator[Searcher]:
    """Open an index and what is needed to search it; close it at the end."""
    from crossrank.pipeline import Searcher
    from crossrank.retrieval.from_index import index_retriever

    with open_index(
        directory,
        model=model,
        with_vectors=retriever is not RetrieverName.bm25,
        precision=precision,
        threads=threads,
    ) as index:
        second = (
            None
            if reranker == NO_RERANKER
            else open_reranker(
                reranker,
                precision=precision,
                threads=threads,
                long_query=long_query,
                long_documents=long_documents,
            )
        )
        yield Searcher(index_retriever(index, retriever.value), second, depth=depth)


def search(
    directory: Annotated[Path, typer.Argument(help="An index made with `crossrank index`.")],
    query: Annotated[str | None, typer.Argument(help="Leave it out for a prompt or --queries.")] = None,
    *,
    queries: Annotated[
        Path | None, typer.Option(help="File of queries: JSON lines, id<TAB>query, or lines; '-' is stdin.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Write the rankings of --queries to this TREC run file.")
    ] = None,
    tag: Annotated[str, typer.Option(help="Name of the run, its last column.")] = "crossrank",
    retriever: RetrieverOption = RetrieverName.auto,
    reranker: SearchRerankerOption = DEFAULT_RERANKER,
    depth: DepthOption = 100,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Hits a query; default 10, in a run --depth.")
    ] = None,
    filter: Annotated[  # the option's name
        str | None,
        typer.Option("--filter", "-f", help="Condition on fields: year >= 1990 and lang = 'en'."),
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(min=0, help="Rerank as many candidates as this time allows, best first.")
    ] = None,
    model: IndexModelOption = None,
    long_query: LongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    json: JsonOption = False,
) -> None:
    """Search an index: candidates from the first stage, the best put on top by the reranker.

    With a query, shows its hits. With --queries, writes a TREC run. With neither, asks for queries.

    Example: `crossrank search my-index "who discovered penicillin" --top-k 5`

    Example: `crossrank search my-index --queries questions.tsv --run hybrid.run --reranker none`
    """
    if query is not None and queries is not None:
        raise typer.BadParameter("give a query or --queries, not both")
    if run is not None and queries is None:
        raise typer.BadParameter("--run goes with --queries")
    if query is None and queries is None and not is_interactive():
        raise typer.BadParameter("give a query, or --queries FILE")
    asked = None if queries is None else read_queries(queries)

    with open_searcher(
        directory,
        model=model,
        retriever=retriever,
        reranker=reranker,
        depth=depth,
        long_query=long_query,
        long_documents=long_documents,
        precision=precision,
        threads=threads,
    ) as searcher:
        if asked is not None:
            found = searcher.search_many(asked, top_k=top_k or depth, filter=filter, budget_ms=budget_ms)
            _print_run(Run(found.rankings, tag=tag), run, as_json=json)
            return
        for text in [query] if query is not None else _typed_queries():
            ranking = searcher.search(text, top_k=top_k or 10, filter=filter, budget_ms=budget_ms)
            _print_ranking(ranking, as_json=json)


def _typed_queries() -> Iterator[str]:
    """Ask for queries until the end of input (Ctrl-D, or Ctrl-Z on Windows)."""
    messages().print("A query and Enter; Ctrl-D ends.", style="dim")
    while True:
        try:
            line = input("query> ").strip()
        except EOFError:
            return
        if line:
            yield line


def _print_ranking(ranking: Ranking, *, as_json: bool) -> None:
    if as_json:
        emit_json(ranking_row(ranking))
        return
    console().print(ranking_table(ranking) if ranking.hits else "nothing found")
    notes = messages()
    for note in ranking.notes:
        notes.print(note, markup=False, style="yellow")
    stages = ", ".join(f"{stage} {milliseconds:.0f} ms" for stage, milliseconds in ranking.timings_ms.items())
    notes.print(stages, markup=False, style="dim")


def _print_run(run: Run, path: Path | None, *, as_json: bool) -> None:
    from crossrank.evaluation.trec import run_lines, write_run

    if path is not None:
        write_run(run, path)
        messages().print(f"{len(run)} queries in {path}", markup=False)
    if as_json:
        for ranking in run.values():
            emit_json(ranking_row(ranking))
    elif path is None:
        for line in run_lines(run):
            emit_text(line)
