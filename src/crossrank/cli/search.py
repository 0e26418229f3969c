"""`crossrank search`: one query, a file of queries, or a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossrank.cli.inputs import STDIN, at_place, name_of, read_queries
from crossrank.cli.llm import (
    BaseURLOption,
    LLMBudgetOption,
    LLMChoice,
    LLMCostOption,
    LLMModelOption,
    LLMOption,
    LLMPricesOption,
    LLMTemplateOption,
    Template,
    chosen_llm,
    open_llm,
)
from crossrank.cli.loading import (
    DEFAULT_RERANKER,
    Backend,
    BackendOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    LongDocuments,
    LongDocumentsOption,
    LongQuery,
    MarginOption,
    MinProbabilityOption,
    Precision,
    ThenOption,
    ThreadsOption,
    Where,
    open_index,
    open_next,
    open_reranker,
)
from crossrank.cli.output import (
    emit_json,
    emit_text,
    is_interactive,
    messages,
    print_notes,
    print_ranking,
    ranking_row,
    show_error,
)
from crossrank.cli.usage import refuse
from crossrank.errors import CrossrankError, InputError
from crossrank.types import Ranking, Run

if TYPE_CHECKING:
    from crossrank.depths import Depth
    from crossrank.models.reranker import Reranker
    from crossrank.pipeline import Searcher
    from crossrank.retrieval.fusion import Fusion

__all__ = [
    "NO_RERANKER",
    "BudgetOption",
    "DepthOption",
    "FilterOption",
    "Fuse",
    "FuseOption",
    "IndexModelOption",
    "IndexRevisionOption",
    "RerankerPrecisionOption",
    "RerankerRevisionOption",
    "RetrieverName",
    "RetrieverOption",
    "SearchLongQueryOption",
    "SearchRerankerOption",
    "check_queries",
    "open_searcher",
    "refuse_idle_options",
    "search",
]

NO_RERANKER = "none"


class RetrieverName(str, Enum):
    """The first stage."""

    auto = "auto"
    bm25 = "bm25"
    dense = "dense"
    hybrid = "hybrid"
    late = "late"


class Fuse(str, Enum):
    """How first-stage and reranker scores of the reranked documents are mixed."""

    none = "none"
    rrf = "rrf"
    z_score = "z-score"


RetrieverOption = Annotated[
    RetrieverName,
    typer.Option(
        help="First stage; auto is hybrid, or bm25 where the index has no vectors; late compares tokens."
    ),
]
SearchRerankerOption = Annotated[
    str,
    typer.Option(
        "--reranker", "-r", help=f"Second stage: a built-in model, a folder, a hub name, or {NO_RERANKER!r}."
    ),
]
DepthOption = Annotated[int, typer.Option("--depth", "-d", min=1, help="How many candidates are reranked.")]
FuseOption = Annotated[
    Fuse,
    typer.Option(
        help="Order reranked documents by a mix of both stages, of ranks (rrf) or of scores (z-score). Over "
        "hybrid candidates z-score is better than none on all seven collections where crossrank-mini was "
        "measured."
    ),
]
FilterOption = Annotated[
    str | None, typer.Option("--filter", "-f", help="Condition on fields: year >= 1990 and lang = 'en'.")
]
BudgetOption = Annotated[
    float | None, typer.Option(min=0, help="Rerank as many candidates as this time allows, best first.")
]
IndexModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Where the index's bi-encoder is now, if it has moved.")
]
IndexRevisionOption = Annotated[
    str | None, typer.Option(help="Commit, tag or branch of the index's bi-encoder, if it is from the hub.")
]
SearchLongQueryOption = Annotated[
    LongQuery,
    typer.Option(help="What the reranker, or --retriever late, does with a query that is too long for it."),
]
RerankerRevisionOption = Annotated[
    str | None, typer.Option(help="Commit, tag or branch of a reranker from the hub.")
]
RerankerPrecisionOption = Annotated[
    Precision, typer.Option(help="The reranker's; the bi-encoder's is the one the index was made with.")
]


def refuse_idle_options(ctx: typer.Context, *, retriever: RetrieverName, reranker: str) -> None:
    """End the command if an option was given for a model that this search does not use."""
    if reranker == NO_RERANKER:
        refuse(
            ctx,
            *(
                "then",
                "margin",
                "fuse",
                "budget_ms",
                "label",
                "long_documents",
                "precision",
                "revision",
                "min_probability",
            ),
            because="there is no reranker (--reranker)",
        )
        if retriever is not RetrieverName.late:
            refuse(
                ctx, "long_query", because="no reranker (--reranker) and no --retriever late reads queries"
            )
    elif not ctx.params["then"]:
        refuse(ctx, "margin", because="nothing goes on to another reranker (--then)")
    if retriever in (RetrieverName.bm25, RetrieverName.late):
        refuse(ctx, "model", "model_revision", because=f"--retriever {retriever.value} needs no bi-encoder")


@contextmanager
def open_searcher(
    directory: Path,
    *,
    model: str | None,
    model_revision: str | None,
    retriever: RetrieverName,
    reranker: str,
    revision: str | None,
    label: str | None,
    depth: int,
    fuse: Fuse,
    filter: str | None,
    then: Sequence[str] | None,
    margin: float | None,
    long_query: LongQuery,
    long_documents: LongDocuments,
    precision: Precision,
    threads: int | None,
    where: Where,
    llm: LLMChoice | None = None,
    min_probability: float | None = None,
) -> Iterator[Searcher]:
    """Open an index and what is needed to search it; close it at the end.

    The filter is only looked at: one that cannot be used is an error before any model is loaded.
    """
    from crossrank.pipeline import Searcher
    from crossrank.retrieval.from_index import index_retriever
    from crossrank.store.filters import as_filter
    from crossrank.store.late_reranker import from_index

    with ExitStack() as stack:
        index = stack.enter_context(
            open_index(
                directory,
                model=model,
                with_vectors=retriever not in (RetrieverName.bm25, RetrieverName.late),
                threads=threads,
                revision=model_revision,
                where=where,
                filter=None if filter is None else as_filter(filter),
                late_interaction="its own" if retriever is RetrieverName.late else None,
                long_query=long_query,
            )
        )
        first = index_retriever(index, retriever.value)
        stages: list[tuple[Reranker, Depth]] = []
        if llm is not None:
            stages = [(stack.enter_context(open_llm(llm)), depth)]
        elif reranker != NO_RERANKER:
            options: dict[str, Any] = {
                "precision": precision,
                "threads": threads,
                "long_query": long_query,
                "long_documents": long_documents,
                "where": where,
            }
            opened = open_reranker(reranker, revision=revision, label=label, **options)
            stages = [
                (from_index(index, each), most)
                for each, most in [
                    (opened, depth),
                    *open_next(then, margin=margin, before=depth, **options),
                ]
            ]
        yield Searcher(
            first, stages or None, depth=depth, fuse=_formula(fuse), min_probability=min_probability
        )


def _formula(fuse: Fuse) -> Fusion | None:
    from crossrank.retrieval.fusion import RRF, WeightedSum

    if fuse is Fuse.none:
        return None
    return RRF() if fuse is Fuse.rrf else WeightedSum(normalisation="z-score")


def check_queries(searcher: Searcher, queries: Mapping[str, str]) -> None:
    """Find queries that are too long for a reranker before the first is searched for.

    Args:
        searcher: what is to search for them.
        queries: where a query is from, for the message -> its text.

    Raises:
        QueryTooLongError: names where the first such query is from.
    """
    for stage in searcher.stages:
        for place, query in queries.items():
            with at_place(place):
                stage.reranker.rank(query, [])


def search(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="An index made with `crossrank index`.")],
    query: Annotated[str | None, typer.Argument(help="Leave it out for a prompt or --queries.")] = None,
    *,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="File of queries: JSON lines, id and query with a tab between, or lines; '-' is stdin."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Write the rankings of --queries to this TREC run file; '-' is standard output."),
    ] = None,
    tag: Annotated[str, typer.Option(help="Name of the run, its last column.")] = "crossrank",
    retriever: RetrieverOption = RetrieverName.auto,
    reranker: SearchRerankerOption = DEFAULT_RERANKER,
    then: ThenOption = None,
    margin: MarginOption = None,
    depth: DepthOption = 100,
    fuse: FuseOption = Fuse.none,
    top_k: Annotated[
        int | None, typer.Option("--top-k", "-k", min=1, help="Hits a query; default 10, in a run --depth.")
    ] = None,
    filter: FilterOption = None,  # the option's name
    budget_ms: BudgetOption = None,
    min_probability: MinProbabilityOption = None,
    model: IndexModelOption = None,
    model_revision: IndexRevisionOption = None,
    revision: RerankerRevisionOption = None,
    label: LabelOption = None,
    long_query: SearchLongQueryOption = LongQuery.error,
    long_documents: LongDocumentsOption = LongDocuments.truncate,
    precision: RerankerPrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = None,
    llm: LLMOption = None,
    llm_model: LLMModelOption = None,
    base_url: BaseURLOption = None,
    llm_template: LLMTemplateOption = Template.yes_no,
    llm_budget: LLMBudgetOption = None,
    llm_prices: LLMPricesOption = None,
    llm_max_cost: LLMCostOption = None,
    json: JsonOption = False,
) -> None:
    """Search an index: candidates from the first stage, the best put on top by the reranker.

    With a query, shows its hits. With --queries, writes a TREC run. With neither, asks for queries.

    Example: `crossrank search my-index "who discovered penicillin" --top-k 5`

    Example: `crossrank search my-index --queries questions.tsv --run hybrid.run --reranker none`

    Example: `crossrank search my-index "who discovered penicillin" --depth 20 --llm listwise
    --llm-model qwen3-8b --base-url http://localhost:8000/v1`
    """
    if query is not None and queries is not None:
        raise typer.BadParameter("give a query or --queries, not both")
    if query is not None and not query.strip():
        raise typer.BadParameter("the query is empty")
    if query is None and queries is None and not is_interactive():
        raise typer.BadParameter("give a query, or --queries FILE")
    refuse_idle_options(ctx, retriever=retriever, reranker=reranker)
    language_model = chosen_llm(
        ctx,
        llm=llm,
        llm_model=llm_model,
        base_url=base_url,
        llm_template=llm_template,
        llm_budget=llm_budget,
        llm_prices=llm_prices,
        llm_max_cost=llm_max_cost,
        revision=revision,
    )
    if queries is None:
        refuse(ctx, "run", "tag", because="only --queries makes a run")
        if reranker == NO_RERANKER:
            refuse(ctx, "depth", because="there is no reranker (--reranker)")
    elif json and run is None:
        refuse(ctx, "tag", because="--json prints no run; name a file for it with --run")
    elif json and run == STDIN:
        raise typer.BadParameter("--run - and --json would both write to standard output; name a file")
    _check_tag(tag)
    asked = None if queries is None else read_queries(queries, for_run=run is not None or not json)

    with open_searcher(
        directory,
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
        llm=language_model,
        min_probability=min_probability,
    ) as searcher:
        if queries is not None and asked is not None:
            check_queries(searcher, {f"{name_of(queries)}:{each.line}": each.text for each in asked.values()})
            found = searcher.search_many(
                {query_id: each.text for query_id, each in asked.items()},
                top_k=top_k or depth,
                filter=filter,
                budget_ms=budget_ms,
            )
            _print_run(Run(found.rankings, tag=tag), run, as_json=json)
            return

        def answer(text: str) -> None:
            ranking = searcher.search(text, top_k=top_k or 10, filter=filter, budget_ms=budget_ms)
            _print_ranking(ranking, as_json=json)

        if query is not None:
            answer(query)
        else:
            _prompt(answer)


def _check_tag(tag: str) -> None:
    from crossrank.evaluation.trec import run_lines

    try:
        list(run_lines({}, tag))
    except InputError as error:
        raise typer.BadParameter(f"--tag: {error}") from None


def _prompt(answer: Callable[[str], None]) -> None:
    """Ask for queries until the end of input (Ctrl-D, or Ctrl-Z on Windows)."""
    messages().print("A query and Enter; Ctrl-D ends.", style="dim")
    while _answered_one(answer):
        pass


def _answered_one(answer: Callable[[str], None]) -> bool:
    """Ask for one query and answer it; False at the end of input. A bad query costs itself alone."""
    try:
        query = input("query> ").strip()
        if query:
            answer(query)
    except EOFError:
        messages().print()  # the prompt's line ends here, not with the shell's next prompt
        return False
    except UnicodeDecodeError as error:
        show_error(InputError(f"the query is not {error.encoding} text: {error.reason}; type it again"))
    except CrossrankError as error:
        show_error(error)
    return True


def _print_ranking(ranking: Ranking, *, as_json: bool) -> None:
    print_ranking(ranking, as_json=as_json)
    if not as_json:
        timings = (f"{stage} {milliseconds:.0f} ms" for stage, milliseconds in ranking.timings_ms.items())
        messages().print(", ".join(timings), markup=False, style="dim")


def _print_run(run: Run, path: Path | None, *, as_json: bool) -> None:
    from crossrank.evaluation.trec import run_lines, write_run

    if path is not None and path != STDIN:
        write_run(run, path)
        messages().print(f"{len(run)} queries in {path}", markup=False)
    if not as_json:
        print_notes(run.values())
    if as_json:
        for ranking in run.values():
            emit_json(ranking_row(ranking))
    elif path is None or path == STDIN:
        for line in run_lines(run):
            emit_text(line)
